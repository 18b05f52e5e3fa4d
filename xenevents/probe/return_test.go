package probe_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// Functions that call others; all but inner are in the other page.
const (
	caller  = otherAt + 0x100 // call sum; nop; ret
	twice   = otherAt + 0x110 // call caller; add rax,1; ret
	any     = otherAt + 0x120 // call rdx; nop; ret
	jumps   = otherAt + 0x130 // endbr64; jmp sum
	viaJump = otherAt + 0x140 // call jumps; nop; ret
	recurs  = otherAt + 0x150 // add rdi,8; call [rdi]; add rax,1; ret
	start   = otherAt + 0x170 // call recurs; nop; ret
	leap    = codeAt + 0x200  // mov rsp,rsi; ret: as longjmp, to the place that rsi had
	zero    = codeAt + 0x210  // xor eax,eax; ret
	outer   = otherAt + 0x180 // endbr64; mov rsi,rsp; call inner; nop; ret
	inner   = otherAt + 0x190 // endbr64; call leap; nop; ret
	viaLeap = otherAt + 0x1a0 // call outer; nop; ret
)

// rel is a call or a jump from at to another function.
func rel(op byte, at, to xenevents.GVA) []byte {
	return binary.LittleEndian.AppendUint32([]byte{op}, uint32(to-at-5))
}

// newCalls is a rig with those functions.
func newCalls(t *testing.T, c sim.Config) *rig {
	t.Helper()
	r := newRig(t, c)
	r.pokeCalls()
	return r
}

func (r *rig) pokeCalls() {
	nop := []byte{0x90, 0xc3}
	endbr := []byte{0xf3, 0x0f, 0x1e, 0xfa}
	for at, insns := range map[xenevents.GVA][][]byte{
		caller:  {rel(0xe8, caller, sum), nop},
		twice:   {rel(0xe8, twice, caller), {0x48, 0x83, 0xc0, 1, 0xc3}},
		any:     {{0xff, 0xd2}, nop},
		jumps:   {endbr, rel(0xe9, jumps+4, sum)},
		viaJump: {rel(0xe8, viaJump, jumps), nop},
		recurs:  {{0x48, 0x83, 0xc7, 8, 0xff, 0x17, 0x48, 0x83, 0xc0, 1, 0xc3}},
		start:   {rel(0xe8, start, recurs), nop},
		leap:    {{0x48, 0x89, 0xf4, 0xc3}},
		zero:    {{0x31, 0xc0, 0xc3}},
		outer:   {endbr, {0x48, 0x89, 0xe6}, rel(0xe8, outer+7, inner), nop},
		inner:   {endbr, rel(0xe8, inner+4, leap), nop},
		viaLeap: {rel(0xe8, viaLeap, outer), nop},
	} {
		r.poke(at, slices.Concat(insns...)...)
	}
}

// note is what was seen of a hit.
type note struct {
	what   string // of the probe
	seq    uint64
	ret    bool
	rax    uint64
	rip    xenevents.GVA
	vcpu   xenevents.VCPU
	cannot bool // be denied
}

func (n note) String() string {
	if n.ret {
		return fmt.Sprintf("%s#%d=%d", n.what, n.seq, n.rax)
	}
	return fmt.Sprintf("%s#%d", n.what, n.seq)
}

// notes are the hits of some probes, in order.
type notes struct {
	all []note
}

func (n *notes) decide(what string) func(*probe.Hit) probe.Verdict {
	return func(h *probe.Hit) probe.Verdict {
		n.all = append(n.all, note{what, h.Seq, h.Return, h.Regs.RAX, xenevents.GVA(h.Regs.RIP), h.VCPU, h.CanDeny() != nil})
		return probe.Verdict{}
	}
}

func (n *notes) are(t *testing.T, want string) {
	t.Helper()
	if got := fmt.Sprint(n.all); got != "["+want+"]" {
		t.Errorf("hits %s, want [%s]", got, want)
	}
	n.all = nil
}

// returns asks for a probe of a function's returns.
func (r *rig) returns(at xenevents.GVA, what string, n *notes) probe.ID {
	r.t.Helper()
	return r.request(probe.Request{Name: what, At: at, Return: true, Decide: n.decide(what)})
}

func (r *rig) request(q probe.Request) probe.ID {
	r.t.Helper()
	if q.Space.Root == 0 {
		q.Space = r.space.AddressSpace()
	}
	id, err := r.engine.Add(context.Background(), q)
	r.must(err)
	return id
}

// over checks that no call is under way, and what became of a probe's.
func (r *rig) over(id probe.ID, hits, returns, lost uint64) {
	r.t.Helper()
	if s := r.status(id); s.Hits != hits || s.Returns != returns || s.Lost != lost {
		r.t.Errorf("%d hits, %d returns, %d lost, want %d, %d, %d", s.Hits, s.Returns, s.Lost, hits, returns, lost)
	}
	if s := r.stats(); s.Calls != 0 {
		r.t.Errorf("%d calls are under way", s.Calls)
	}
}

func TestReturn(t *testing.T) {
	r := newCalls(t, sim.Config{})
	r.poke(free, slices.Concat(rel(0xe8, free, sum), []byte{0x90, 0xc3})...)
	var n notes
	id := r.returns(sum, "sum", &n)
	for i := range uint64(3) {
		if got := r.call(caller, 40, i); got != 40+i {
			t.Errorf("it returned %d", got)
		}
		if len(n.all) != 2 || n.all[0].rip != sum || n.all[0].cannot || n.all[1].rip != caller+5 || !n.all[1].cannot {
			t.Errorf("%+v", n.all)
		}
		n.are(t, fmt.Sprintf("sum#%d sum#%d=%d", i+1, i+1, 40+i))
	}
	// Another caller, in another page.
	if got := r.call(free, 1, 1); got != 2 {
		t.Errorf("it returned %d", got)
	}
	n.are(t, "sum#4 sum#4=2")
	r.over(id, 4, 4, 0)
	if s := r.stats(); s.Sites != 2 || s.Shadows != 2 || s.Passed+s.StaleCalls+s.Evicted+s.Stale != 0 || s.Events["int3"] != 8 {
		t.Errorf("%+v", s)
	}
	// While no call is under way nobody is stopped where they return to.
	r.run(0, sim.Exec(caller+5))
	if s := r.stats(); s.Events["int3"] != 8 {
		t.Errorf("%+v", s)
	}
	r.remove(id)
	r.reclaimed(0)
	if got := r.call(caller, 1, 2); got != 3 || len(n.all) != 0 || r.stats().Sites != 0 {
		t.Errorf("it returned %d; %v", got, n.all)
	}
}

func TestReturnsNested(t *testing.T) {
	r := newCalls(t, sim.Config{})
	var n notes
	a, b := r.returns(caller, "caller", &n), r.returns(sum, "sum", &n)
	if got := r.call(twice, 1, 2); got != 4 {
		t.Errorf("it returned %d", got)
	}
	n.are(t, "caller#1 sum#1 sum#1=3 caller#1=3")
	r.over(a, 1, 1, 0)
	r.over(b, 1, 1, 0)
}

// TestReturnsOfARecursion: through one and the same site, each with its own value.
func TestReturnsOfARecursion(t *testing.T) {
	r := newCalls(t, sim.Config{})
	var n notes
	table := []byte{}
	for _, f := range []xenevents.GVA{0, recurs, recurs, recurs, zero} {
		table = binary.LittleEndian.AppendUint64(table, uint64(f))
	}
	r.poke(dataAt, table...)
	id := r.returns(recurs, "r", &n)
	for i := range uint64(3) {
		if got := r.call(start, uint64(dataAt)); got != 4 {
			t.Errorf("it returned %d", got)
		}
		k := 4 * i
		n.are(t, fmt.Sprintf("r#%d r#%d r#%d r#%d r#%d=1 r#%d=2 r#%d=3 r#%d=4", k+1, k+2, k+3, k+4, k+4, k+3, k+2, k+1))
	}
	r.over(id, 12, 12, 0)
	// zero, which is called from the same place, was none of its calls.
	if s := r.status(id); s.Passed != 3 {
		t.Errorf("%+v", s)
	}
}

// TestReturnOfATailCall: one return ends both calls, the inner one first.
func TestReturnOfATailCall(t *testing.T) {
	r := newCalls(t, sim.Config{})
	var n notes
	r.returns(sum, "a", &n)
	r.returns(jumps, "j", &n)
	r.returns(sum, "b", &n)
	for i := range 2 {
		if got := r.call(viaJump, 1, 2); got != 3 {
			t.Errorf("it returned %d", got)
		}
		n.are(t, fmt.Sprintf("j#%[1]d a#%[1]d b#%[1]d a#%[1]d=3 b#%[1]d=3 j#%[1]d=3", i+1))
	}
	if s := r.stats(); s.StaleCalls != 0 || s.Calls != 0 {
		t.Errorf("%+v", s)
	}
}

// TestReturnAfterALongjmp: the calls that it cut off are dropped, and what it
// lands behind returns.
func TestReturnAfterALongjmp(t *testing.T) {
	r := newCalls(t, sim.Config{})
	var n notes
	in, out := r.returns(inner, "inner", &n), r.returns(outer, "outer", &n)
	jump := r.returns(leap, "leap", &n)
	for i := range uint64(3) {
		r.call(viaLeap, 1)
		n.are(t, fmt.Sprintf("outer#%[1]d inner#%[1]d leap#%[1]d outer#%[1]d=0", i+1))
		r.over(out, i+1, i+1, 0)
		r.over(in, i+1, 0, i+1)
		r.over(jump, i+1, 0, i+1)
	}
	if s := r.stats(); s.StaleCalls != 6 || s.Sites != 3 {
		t.Errorf("%+v", s)
	}
}

// enter has a vCPU call sum from a place, and stay in it.
func (r *rig) enter(i int, from xenevents.GVA, args ...uint64) {
	r.t.Helper()
	r.cpu(i).Set(func(regs *xenevents.Registers) { regs.RDI, regs.RSI, regs.RDX = args[0], args[1], uint64(sum) })
	r.run(i, sim.Exec(from), sim.Exec(sum))
}

// leave has it return, to the instruction behind the call.
func (r *rig) leave(i int, to xenevents.GVA) {
	r.t.Helper()
	r.run(i, sim.Exec(sum+4), sim.Exec(sum+5), sim.Exec(sum+8), sim.Exec(sum+12), sim.Exec(sum+13), sim.Exec(to))
}

// TestReturnsOfTwoThreads: through one site, in another order than they came, with
// a third that was called from there as well and has no probe.
func TestReturnsOfTwoThreads(t *testing.T) {
	r := newCalls(t, sim.Config{VCPUs: 3})
	var n notes
	id := r.returns(sum, "sum", &n)
	r.enter(0, any, 1, 2)
	r.enter(1, any, 3, 4)
	r.run(2, sim.Call(any, 0, 0, uint64(zero)))
	r.leave(0, any+2)
	r.run(2, sim.Call(any, 0, 0, uint64(zero)))
	r.leave(1, any+2)
	r.run(2, sim.Call(any, 0, 0, uint64(zero)))
	if len(n.all) != 4 || n.all[2].vcpu != 0 || n.all[3].vcpu != 1 {
		t.Errorf("%+v", n.all)
	}
	n.are(t, "sum#1 sum#2 sum#1=3 sum#2=7")
	r.over(id, 2, 2, 0)
	if s := r.status(id); s.Passed != 2 {
		t.Errorf("%+v", s)
	}
	if s := r.stats(); s.Passed != 2 || s.Sites != 1 || s.Events["int3"] != 6 || s.StaleCalls != 0 {
		t.Errorf("%+v", s)
	}
	// A thread moves to another vCPU: its stack is what tells.
	r.enter(0, any, 5, 6)
	a := r.cpu(0).Registers()
	r.cpu(1).Set(func(regs *xenevents.Registers) { *regs = a })
	r.leave(1, any+2)
	n.are(t, "sum#3 sum#3=11")
	r.over(id, 3, 3, 0)
}

// TestReturnOfAKilledThread: its stack is another's now, which comes by the same
// place. Nothing of that is taken for the return.
func TestReturnOfAKilledThread(t *testing.T) {
	for _, c := range []struct {
		name  string
		known bool // who runs
		other func(regs *xenevents.Registers)
	}{
		{"another thread", true, func(regs *xenevents.Registers) { regs.RDX = uint64(zero) }},
		{"other registers", false, func(regs *xenevents.Registers) { regs.RDX, regs.RBX = uint64(zero), 5 }},
		{"another frame pointer", false, func(regs *xenevents.Registers) { regs.RDX, regs.RBP = uint64(zero), 5 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newCalls(t, sim.Config{})
			var n notes
			thread := uint64(1)
			id := r.request(probe.Request{Name: "sum", At: sum, Return: true, Decide: n.decide("sum"), Thread: func(*probe.Hit) (uint64, bool) { return thread, c.known }})
			before := r.cpu(0).Registers()
			r.enter(0, any, 1, 2)
			thread = 2
			r.cpu(0).Set(func(regs *xenevents.Registers) {
				*regs = before
				c.other(regs)
			})
			r.run(0, sim.Exec(any), sim.Exec(zero), sim.Exec(zero+2), sim.Exec(any+2))
			n.are(t, "sum#1")
			r.over(id, 1, 0, 1)
			if s := r.stats(); s.StaleCalls != 1 || s.Passed != 1 {
				t.Errorf("%+v", s)
			}
			// Its own call replaces one that is left.
			for range 2 {
				r.cpu(0).Set(func(regs *xenevents.Registers) { *regs = before })
				r.enter(0, any, 3, 4)
			}
			r.leave(0, any+2)
			n.are(t, "sum#2 sum#3 sum#3=7")
			r.over(id, 3, 1, 2)
		})
	}
}

// TestStackUsedAgain: from elsewhere, deeper or less deep: what can't be under way
// is dropped at the next entry.
func TestStackUsedAgain(t *testing.T) {
	for _, c := range []struct {
		name  string
		up    int // by how much the stack is shorter the second time
		from  xenevents.GVA
		stale uint64
	}{
		{"deeper", -64, any, 0},
		{"the same place", 0, any, 1},
		{"the same, from elsewhere", 0, caller, 1},
		{"less deep", 64, caller, 1},
		{"another page", -xenevents.PageSize, any, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newCalls(t, sim.Config{VCPUs: 2})
			var n notes
			id := r.returns(sum, "sum", &n)
			top := uint64(stackAt) + 2*xenevents.PageSize - 256
			r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RSP = top })
			r.enter(0, any, 1, 2)
			r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RSP = top + uint64(c.up) })
			r.enter(0, c.from, 3, 4)
			if s := r.stats(); s.StaleCalls != c.stale || s.Calls != 2-int(c.stale) {
				t.Errorf("%+v", s)
			}
			r.leave(0, c.from+map[xenevents.GVA]xenevents.GVA{any: 2, caller: 5}[c.from])
			n.are(t, "sum#1 sum#2 sum#2=7")
			if s := r.status(id); s.Lost != c.stale {
				t.Errorf("%+v", s)
			}
		})
	}
}

// TestRemoveDuringACall: the vCPU returns undisturbed; with another probe, that
// one still has its return.
func TestRemoveDuringACall(t *testing.T) {
	r := newCalls(t, sim.Config{VCPUs: 2})
	var n notes
	a := r.returns(sum, "a", &n)
	r.enter(0, caller, 1, 2)
	b := r.returns(sum, "b", &n)
	r.enter(1, caller, 3, 4)
	r.remove(a)
	r.leave(0, caller+5)
	r.leave(1, caller+5)
	n.are(t, "a#1 a#2 b#1 b#1=7")
	r.over(b, 1, 1, 0)
	r.enter(0, caller, 5, 6)
	r.remove(b)
	r.reclaimed(0)
	r.leave(0, caller+5)
	if got := r.cpu(0).Registers().RAX; got != 11 {
		t.Errorf("it returned %d", got)
	}
	n.are(t, "b#2")
	if s := r.stats(); s.Calls+s.Sites != 0 {
		t.Errorf("%+v", s)
	}
}

// TestRemoveWithAReturnOnItsWay: the int3 was run, and its event comes too late.
func TestRemoveWithAReturnOnItsWay(t *testing.T) {
	r := newCalls(t, sim.Config{VCPUs: 2})
	var n notes
	id := r.returns(sum, "sum", &n)
	r.enter(0, caller, 1, 2)
	r.must(r.queued(func() {
		r.cpu(0).Run(sim.Exec(sum+4), sim.Exec(sum+5), sim.Exec(sum+8), sim.Exec(sum+12), sim.Exec(sum+13), sim.Exec(caller+5))
	}, id))
	r.done(0)
	n.are(t, "sum#1")
	if regs := r.cpu(0).Registers(); regs.RAX != 3 || regs.RIP != uint64(caller)+6 || len(r.cpu(0).Traps()) != 0 {
		t.Errorf("%+v", regs)
	}
	r.reclaimed(0)
}

// TestReturnOfADeniedCall: its caller sees a value, and so does the probe.
func TestReturnOfADeniedCall(t *testing.T) {
	r := newCalls(t, sim.Config{})
	var n notes
	id := r.returns(sum, "sum", &n)
	r.add(sum, func(*probe.Hit) probe.Verdict { return probe.Verdict{Action: probe.Deny, Return: 99} })
	if got := r.call(caller, 1, 2); got != 99 {
		t.Errorf("it returned %d", got)
	}
	n.are(t, "sum#1 sum#1=99")
	r.over(id, 1, 1, 0)
}

// TestVerdictOnAReturn: the value may be changed; there is nothing left to deny.
func TestVerdictOnAReturn(t *testing.T) {
	r := newCalls(t, sim.Config{})
	var v probe.Verdict
	id := r.request(probe.Request{At: sum, Return: true, Decide: func(h *probe.Hit) probe.Verdict {
		if !h.Return {
			return probe.Verdict{}
		}
		if v.Action == probe.SetRegs {
			regs := *h.Regs
			regs.RAX = 50
			v.Regs = &regs
		}
		return v
	}})
	v.Action = probe.SetRegs
	if got := r.call(caller, 1, 2); got != 50 || r.status(id).Changed != 1 {
		t.Errorf("it returned %d; %+v", got, r.status(id))
	}
	v = probe.Verdict{Action: probe.Deny, Return: 7}
	if got := r.call(caller, 1, 2); got != 3 || r.status(id).State != probe.Failed {
		t.Errorf("it returned %d; %+v", got, r.status(id))
	}
	r.call(caller, 1, 2) // it is not asked any more
	r.over(id, 3, 2, 1)
}

// TestThreadThatPanics is no harm to the guest.
func TestThreadThatPanics(t *testing.T) {
	r := newCalls(t, sim.Config{})
	var n notes
	asked := 0
	id := r.request(probe.Request{At: sum, Return: true, Decide: n.decide("s"), Thread: func(*probe.Hit) (uint64, bool) {
		if asked++; asked == 4 {
			panic("broken")
		}
		return 1, true
	}})
	for range 3 {
		if got := r.call(caller, 1, 2); got != 3 {
			t.Errorf("it returned %d", got)
		}
	}
	n.are(t, "s#1 s#1=3 s#2")
	if s := r.status(id); s.State != probe.Failed || s.Hits != 3 || s.Hits != s.Returns+s.Lost || asked != 4 || !r.log.has("broken") {
		t.Errorf("%+v, asked %d times", s, asked)
	}
}
