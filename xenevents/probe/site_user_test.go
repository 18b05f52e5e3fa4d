package probe_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

const (
	fromAt   = userAt + 2*xenevents.PageSize // the page that calls, with nops first
	userCall = fromAt + 0x80                 // call userSum; nop; ret
	inMov    = fromAt + 0x204                // in the middle of a mov, after what looks like a call
	mov      = fromAt + 0x200                // mov rax,imm64; ret
	userTop  = uint64(userAt+4*xenevents.PageSize) - 64
)

// program is a process that has a page which calls its function, and a stack.
type program struct {
	*process
	from xenevents.GFN // the page
}

func (r *rig) newProgram() *program {
	p := &program{process: r.newProcess(true)}
	p.from = p.space.Page(fromAt, bytes.Repeat([]byte{0x90}, xenevents.PageSize)...)
	p.space.Page(fromAt + xenevents.PageSize)
	r.guest.Poke(p.from.GPA()+0x80, slices.Concat(rel(0xe8, userCall, userSum), []byte{0x90, 0xc3}))
	r.guest.Poke(p.from.GPA()+0x200, []byte{0x48, 0xb8, 0xff, 0xd0, 3, 4, 5, 6, 7, 8, 0xc3})
	return p
}

// shares is another process with the same pages, as a fork has.
func (p *program) shares() *program {
	o := p.newProgram()
	o.space.Map(userAt, p.code)
	o.space.Map(fromAt, p.from)
	o.code, o.from = p.code, p.from
	return o
}

// setFrom has its kernel write the entry of the page that calls.
func (p *program) setFrom(value uint64) sim.Step {
	return sim.Write(p.entry(1)+2*8, binary.LittleEndian.AppendUint64(nil, value)...)
}

// enter has a vCPU call the function, and be behind its first instruction.
func (p *program) enter(i int, a, b uint64) {
	p.t.Helper()
	p.cpu(i).Set(func(regs *xenevents.Registers) {
		regs.RDI, regs.RSI, regs.RSP = a, b, userTop-uint64(i)*256
	})
	p.run(i, sim.WriteCR3(p.space.CR3()), sim.Exec(userCall), sim.Exec(userSum))
}

// leave has it return, and run what it returned to.
func (p *program) leave(i int) {
	p.t.Helper()
	p.run(i, sim.WriteCR3(p.space.CR3()), sim.Exec(userSum+4), sim.Exec(userSum+5), sim.Exec(userSum+8), sim.Exec(userSum+12), sim.Exec(userSum+13), sim.Exec(userCall+5))
}

// returnsOf asks for a function's returns in one process.
func (p *program) returnsOf(n *notes) probe.ID {
	p.t.Helper()
	return p.request(probe.Request{Name: "u", At: userSum, Space: p.space.AddressSpace(), Follow: true, Return: true, Decide: n.decide("u")})
}

// nothingLeft checks that nothing is left in the guest.
func (r *rig) nothingLeft() {
	r.t.Helper()
	r.reclaimed(0)
	if s := r.stats(); s.Sites+s.Calls+s.Tables != 0 {
		r.t.Errorf("%d sites, %d calls, %d tables are left", s.Sites, s.Calls, s.Tables)
	}
}

func TestReturnInAProcess(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProgram()
	var n notes
	id := p.returnsOf(&n)
	for i := range uint64(3) {
		p.enter(0, 40, i)
		p.leave(0)
		n.are(t, fmt.Sprintf("u#%d u#%d=%d", i+1, i+1, 40+i))
	}
	r.over(id, 3, 3, 0)
	events := r.stats().Events["int3"]
	p.in(sim.Exec(userCall + 5)) // while none is under way nobody is stopped there
	if s := r.stats(); s.Sites != 1 || s.Events["int3"] != events || s.Passed != 0 {
		t.Errorf("%+v", s)
	}
	r.remove(id)
	r.nothingLeft()
}

// TestReturnWherePagesMove: the page that a call returns to, and the function's own,
// are elsewhere when it does.
func TestReturnWherePagesMove(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProgram()
	var n notes
	id := p.returnsOf(&n)
	hits := uint64(0)
	copied := func() uint64 {
		to := r.guest.Frame()
		r.guest.Poke(to.GPA(), r.guest.Peek(p.from.GPA(), xenevents.PageSize))
		return pte(to)
	}
	for name, steps := range map[string]func() []sim.Step{
		"moved":               func() []sim.Step { return []sim.Step{p.setFrom(copied())} },
		"cleared":             func() []sim.Step { return []sim.Step{p.setFrom(0), p.setFrom(pte(p.from))} },
		"cleared and moved":   func() []sim.Step { return []sim.Step{p.setFrom(0), p.setFrom(copied())} },
		"a table is cleared":  func() []sim.Step { return []sim.Step{p.set(2, 0), p.set(2, pte(p.space.Tables(userAt)[3]))} },
		"the function's page": func() []sim.Step { return []sim.Step{p.set(1, pte(p.copied()))} },
	} {
		hits++
		p.enter(0, 1, hits)
		p.in(steps()...)
		p.leave(0)
		if want := fmt.Sprintf("[u#%d u#%d=%d]", hits, hits, 1+hits); fmt.Sprint(n.all) != want {
			t.Errorf("%s: %v, want %s", name, n.all, want)
		}
		n.all = nil
	}
	r.over(id, hits, hits, 0)
	r.remove(id)
	r.nothingLeft()
}

// TestReturnsOfManyProcesses: that share the frames of the function and of its caller.
func TestReturnsOfManyProcesses(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 3})
	a := r.newProgram()
	b, other := a.shares(), a.shares()
	var n notes
	id, err := r.engine.Add(context.Background(), probe.Request{Name: "many", Many: true, Return: true, Decide: n.decide("m")})
	r.must(err)
	r.must(r.joins(id, a.member()))
	r.must(r.joins(id, b.member()))
	for range 2 {
		a.enter(0, 1, 2)
		b.enter(1, 3, 4)
		other.enter(2, 5, 6)
		other.leave(2)
		a.leave(0)
		b.leave(1)
	}
	n.are(t, "m#1 m#2 m#1=3 m#2=7 m#3 m#4 m#3=3 m#4=7")
	r.over(id, 4, 4, 0)
	if s := r.stats(); s.Sites != 2 || s.StaleCalls != 0 || r.status(id).Passed < 2 {
		t.Errorf("%+v; %+v", s, r.status(id))
	}
	// A thread whose call was cut off by a longjmp makes it again, at the same place.
	a.enter(0, 1, 2)
	a.enter(0, 5, 6)
	a.leave(0)
	n.are(t, "m#5 m#6 m#6=11")
	r.over(id, 6, 5, 1)
	// One ends in the middle of a call; the other's returns are seen still.
	a.enter(0, 1, 2)
	b.enter(1, 3, 4)
	a.in(a.set(4, 0))
	b.leave(1)
	n.are(t, "m#7 m#8 m#8=7")
	r.over(id, 8, 6, 2)
	if s := r.stats(); s.Sites != 1 {
		t.Errorf("%+v", s)
	}
	// The other one is told of before it does.
	b.enter(1, 3, 4)
	r.between(func() { r.must(r.engine.Members().Exits(b.space.AddressSpace())) })
	b.leave(1)
	r.over(id, 9, 6, 3)
	r.remove(id)
	r.nothingLeft()
}

// TestReturnToTheMiddle: a process that says that it was called from the middle of an
// instruction gets no int3 there: others have the page, too.
func TestReturnToTheMiddle(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 2})
	p := r.newProgram()
	other := p.shares()
	var n notes
	id := p.returnsOf(&n)
	r.guest.Poke(r.gpaIn(p.space, xenevents.GVA(userTop)), binary.LittleEndian.AppendUint64(nil, uint64(inMov)))
	p.cpu(0).Set(func(regs *xenevents.Registers) { regs.RSP = userTop })
	p.in(sim.Exec(userSum))
	n.are(t, "u#1")
	r.over(id, 1, 0, 1)
	r.run(1, sim.WriteCR3(other.space.CR3()), sim.Exec(mov))
	if got := r.cpu(1).Registers().RAX; got != 0x0807_0605_0403_d0ff || r.stats().Sites != 0 {
		t.Errorf("the other one has %#x; %+v", got, r.stats())
	}
}

// TestSitesInProcesses are bounded: those that no call needs go, the others stay.
func TestSitesInProcesses(t *testing.T) {
	r := newGuest(t, sim.Config{VCPUs: 3})
	var err error
	r.engine, err = probe.New(r.dom, withLog(r, probe.Options{Sites: 2}))
	r.must(err)
	r.start()
	all := []*program{r.newProgram(), r.newProgram(), r.newProgram()}
	var n notes
	id, err := r.engine.Add(context.Background(), probe.Request{Name: "many", Many: true, Return: true, Decide: n.decide("m")})
	r.must(err)
	for _, p := range all {
		r.must(r.joins(id, p.member()))
	}
	for _, p := range all { // one after the other
		p.enter(0, 1, 2)
		p.leave(0)
	}
	n.are(t, "m#1 m#1=3 m#2 m#2=3 m#3 m#3=3")
	for i, p := range all { // all at once
		p.enter(i, 1, uint64(i))
	}
	for i, p := range all {
		p.leave(i)
	}
	n.are(t, "m#4 m#5 m#6 m#4=1 m#5=2")
	r.over(id, 6, 5, 1)
	if s := r.stats(); s.Sites != 2 || !r.log.has("too many places") {
		t.Errorf("%+v", s)
	}
	r.remove(id)
	r.nothingLeft()
}

// TestBudgetOfReturnsInAProcess: those who pass where a call returns to are on the bill
// of who waits for it, whoever they are.
func TestBudgetOfReturnsInAProcess(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 2})
	a := r.newProgram()
	other := a.shares()
	var n notes
	id := r.request(probe.Request{Name: "u", At: userSum, Space: a.space.AddressSpace(), Follow: true, Return: true, Decide: n.decide("u"), Budget: probe.Budget{Hits: 4, Stalled: probe.Unlimited}})
	a.enter(0, 1, 2)
	r.cpu(1).Set(func(regs *xenevents.Registers) { regs.RSP = userTop })
	for range 8 {
		r.run(1, sim.WriteCR3(other.space.CR3()), sim.Exec(userCall+5))
	}
	if s := r.status(id); s.State != probe.Suspended || s.Passed != 4 || s.Lost != 1 {
		t.Errorf("%+v", s)
	}
	a.leave(0)
	n.are(t, "u#1")
}
