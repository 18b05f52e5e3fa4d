package probe_test

import (
	"context"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/pagewatch"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

const (
	userAt  xenevents.GVA = 0x40_1000
	userSum               = userAt + 0x10  // sum's code
	nearAt                = userAt + 0x800 // of the same leaf table
	tableAt xenevents.GVA = 0xffff_9000_0000_0000
	nxBit                 = 1 << 63
)

// process is an address space with user code in it, and a way for the guest's
// kernel to write its page tables: they are mapped in it, a page for each level.
type process struct {
	*rig
	space *sim.Space
	code  xenevents.GFN
}

// newProcess makes one that has the page of userAt or has not, and its tables.
func (r *rig) newProcess(there bool) *process {
	p := &process{rig: r, space: r.guest.NewSpace()}
	p.space.Map(stackAt, r.gpa(stackAt).GFN())
	p.code = p.space.Page(userAt)
	p.space.Page(userAt + 2*xenevents.PageSize) // it has other memory as well
	r.guest.Poke(p.code.GPA()+0x10, code[sum])
	if !there {
		p.space.Unmap(userAt)
	}
	for i, gfn := range p.space.Tables(userAt) {
		p.space.Map(tableAt+xenevents.GVA(i)*xenevents.PageSize, gfn)
	}
	return p
}

// entry is where the process's kernel sees the entry of userAt at a level: 1 is the last.
func (p *process) entry(level int) xenevents.GVA {
	return tableAt + xenevents.GVA(4-level)*xenevents.PageSize + xenevents.GVA(uint64(userAt)>>(12+9*(level-1))&511*8)
}

// set has the process's kernel write an entry.
func (p *process) set(level int, value uint64) sim.Step {
	return sim.Write(p.entry(level), binary.LittleEndian.AppendUint64(nil, value)...)
}

func pte(gfn xenevents.GFN) uint64 { return uint64(gfn.GPA()) | 7 }

// in runs steps in the process's address space.
func (p *process) in(steps ...sim.Step) {
	p.t.Helper()
	p.run(0, append([]sim.Step{sim.WriteCR3(p.space.CR3())}, steps...)...)
}

// calls calls its function so often.
func (p *process) calls(n int) {
	p.t.Helper()
	for range n {
		p.in(sim.Call(userSum, 3, 4))
		if got := p.cpu(0).Registers().RAX; got != 7 {
			p.t.Errorf("the function returned %d", got)
		}
	}
}

func (p *process) follow(at xenevents.GVA) (probe.ID, error) {
	return p.engine.Add(context.Background(), probe.Request{Name: "followed", At: at, Space: p.space.AddressSpace(), Follow: true})
}

func (p *process) mustFollow() probe.ID {
	p.t.Helper()
	id, err := p.follow(userSum)
	p.must(err)
	return id
}

func (p *process) is(id probe.ID, state probe.State, hits, passed uint64) {
	p.t.Helper()
	if s := p.status(id); s.State != state || s.Hits != hits || s.Passed != passed {
		p.t.Errorf("%v (%s), %d hits, %d passed; want %v, %d, %d", s.State, s.Detail, s.Hits, s.Passed, state, hits, passed)
	}
}

// copied is another frame with the same code.
func (p *process) copied() xenevents.GFN {
	gfn := p.guest.Frame()
	p.guest.Poke(gfn.GPA(), p.guest.Peek(p.code.GPA(), xenevents.PageSize))
	return gfn
}

// TestFollowWaits: a probe on a page that is not there waits, and no call is missed
// once it is, whichever table was missing.
func TestFollowWaits(t *testing.T) {
	for level := 1; level <= 4; level++ {
		r := newRig(t, sim.Config{})
		p := r.newProcess(true)
		tables := append(p.space.Tables(userAt), p.code)
		here := []uint64{4: pte(tables[1]), 3: pte(tables[2]), 2: pte(tables[3]), 1: pte(tables[4])}
		p.in(p.set(level, 0))
		if level == 4 { // a root without anything is that of no process
			p.space.Page(0x7fff_0000_0000)
		}
		id := p.mustFollow()
		p.is(id, probe.Waiting, 0, 0)
		p.in(p.set(level, here[level]))
		p.is(id, probe.Armed, 0, 0)
		p.calls(5)
		p.is(id, probe.Armed, 5, 0)
		p.in(p.set(level, 0))
		p.is(id, probe.Waiting, 5, 0)
		p.in(p.set(level, here[level]))
		p.calls(2)
		p.is(id, probe.Armed, 7, 0)
		p.remove(id)
		p.calls(1)
		r.reclaimed(0)
		if n := r.stats().Tables; n != 0 {
			t.Errorf("level %d: %d tables are protected", level, n)
		}
	}
}

// TestFollowMoves: copy-on-write, migration and the like, with the entry cleared
// in between and without.
func TestFollowMoves(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := p.mustFollow()
	p.calls(1)
	hits := uint64(1)
	for i := range 10 {
		to := p.copied()
		if i%2 == 0 {
			p.in(p.set(1, 0))
		}
		p.in(p.set(1, pte(to)))
		p.calls(3)
		hits += 3
		p.is(id, probe.Armed, hits, 0)
	}
	if s := r.status(id); s.Moves != 11 {
		t.Errorf("armed in %d frames", s.Moves)
	}
	r.reclaimed(1) // what it left goes, in a while
}

// TestFollowMprotect: an entry that is cleared for a moment is the same page, and
// one that must not be run is none.
func TestFollowMprotect(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := p.mustFollow()
	for range 10 {
		p.in(p.set(1, 0), p.set(1, pte(p.code)))
		p.calls(1)
	}
	p.is(id, probe.Armed, 10, 0)
	if s := r.status(id); s.Moves != 1 {
		t.Errorf("armed anew %d times", s.Moves-1)
	}
	p.in(p.set(1, pte(p.code)|nxBit))
	p.is(id, probe.Waiting, 10, 0)
	r.reclaimed(0)
	p.in(p.set(1, pte(p.code)))
	p.calls(1)
	p.is(id, probe.Armed, 11, 0)
}

// TestFollowPasses: another address space that runs the frame, and another address
// of it, are not the probe's.
func TestFollowPasses(t *testing.T) {
	r := newRig(t, sim.Config{})
	a, b := r.newProcess(true), r.newProcess(true)
	b.in(b.set(1, pte(a.code)))
	ida := a.mustFollow()
	a.calls(2)
	b.calls(3)
	a.is(ida, probe.Armed, 2, 3)
	idb := b.mustFollow()
	a.calls(1)
	b.calls(1)
	a.is(ida, probe.Armed, 3, 4)
	b.is(idb, probe.Armed, 1, 1)
	if n := r.stats().Passed; n != 3 {
		t.Errorf("%d int3s were nobody's", n)
	}
	b.in(b.set(1, pte(b.code))) // its own copy now
	a.calls(1)
	b.calls(1)
	a.is(ida, probe.Armed, 4, 4)
	b.is(idb, probe.Armed, 2, 1)
	r.remove(idb)
	const alias = userAt + 5*xenevents.PageSize
	a.space.Map(alias, a.code)
	a.in(sim.Call(alias+0x10, 3, 4))
	a.is(ida, probe.Armed, 4, 5)
}

// TestFollowAccessedBits: the processor's own walks write to protected tables: it
// takes one event, and no step.
func TestFollowAccessedBits(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := p.mustFollow()
	p.calls(1)
	before := r.stats()
	for i := 1; i <= 5; i++ {
		r.guest.Poke(p.space.Tables(userAt)[3].GPA()+8, binary.LittleEndian.AppendUint64(nil, pte(p.code))) // its accessed bit is gone
		p.calls(1)
	}
	after := r.stats()
	if n := after.AccessedBits - before.AccessedBits; n != 5 || after.OtherWalks != before.OtherWalks || after.TableWrites != before.TableWrites {
		t.Errorf("%d accessed bits, %+v, before %+v", n, after.TableStats, before.TableStats)
	}
	// A dirty bit: the walk is stepped.
	p.in(sim.Write(userAt+2*xenevents.PageSize, 1))
	if s := r.stats(); s.OtherWalks == after.OtherWalks {
		t.Errorf("a dirty bit came from nowhere: %+v", s.TableStats)
	}
	p.is(id, probe.Armed, 6, 0)
}

// TestFollowOtherEntries: writes to a table that are of other pages take one event.
func TestFollowOtherEntries(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := p.mustFollow()
	kernel := p.guest.Frame() // mov [rdi],rsi; ret
	r.guest.Poke(kernel.GPA(), code[store])
	p.space.Map(codeAt, kernel)
	before, steps := r.stats(), 0
	r.between(func() { steps = r.dom.steps })
	const writes = 10
	for i := range xenevents.GVA(writes) {
		p.in(sim.Call(codeAt, uint64(p.entry(1)+8*(i+1)), pte(p.code)))
	}
	after := r.stats()
	r.between(func() { steps = r.dom.steps - steps })
	if n := after.TableWrites - before.TableWrites; n != writes || steps != 0 {
		t.Errorf("%d writes took %d steps", n, steps)
	}
	p.in(sim.Call(codeAt, uint64(p.entry(1)), 0))
	p.is(id, probe.Waiting, 0, 0)
	p.in(sim.Call(codeAt, uint64(p.entry(1)-4), pte(p.code)<<32), sim.Call(codeAt, uint64(p.entry(1)+4), uint64(p.code.GPA())>>32))
	p.is(id, probe.Armed, 0, 0)
	p.calls(1)
	p.is(id, probe.Armed, 1, 0)
}

// TestFollowEnds: when a process exits its probe ends, and nothing of its tables is
// held any more: their frames are others' now.
func TestFollowEnds(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := p.mustFollow()
	p.calls(2)
	p.in(p.set(1, 0), p.set(2, 0), p.set(3, 0), p.set(4, 0))
	p.is(id, probe.Ended, 2, 0)
	if n := r.stats().Tables; n != 0 {
		t.Errorf("%d tables are protected", n)
	}
	r.reclaimed(0)
	if _, err := p.follow(userSum); !errors.Is(err, pagewatch.ErrEnded) {
		t.Errorf("a probe on a process that is gone: %v", err)
	}
	r.remove(id)
}

// TestFollowNewCode: code that is written while the probe waits for its first run is
// what it is armed on; what came once it ran must come back.
func TestFollowNewCode(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	r.guest.Poke(p.code.GPA(), make([]byte, xenevents.PageSize))
	id := p.mustFollow()
	for i, b := range code[sum] { // byte by byte
		p.in(sim.Write(userSum+xenevents.GVA(i), b))
	}
	p.is(id, probe.Armed, 0, 0)
	p.calls(3)
	p.is(id, probe.Armed, 3, 0)
	p.in(sim.Write(userSum, code[diff]...))
	p.is(id, probe.Displaced, 3, 0)
	p.in(sim.Call(userSum, 7, 4))
	p.in(sim.Write(userSum, code[sum]...))
	p.calls(1)
	p.is(id, probe.Armed, 4, 0)
	// In another frame, too.
	to := p.copied()
	r.guest.Poke(to.GPA()+0x10, code[diff])
	p.in(p.set(1, pte(to)), sim.Call(userSum, 7, 4))
	p.is(id, probe.Displaced, 4, 0)
}

// TestFollowLoops: tables that are their own, and frames that are not there.
func TestFollowLoops(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := p.mustFollow()
	root := p.space.Tables(userAt)[0]
	absent := xenevents.GFN(1 << 30)
	for _, to := range []xenevents.GFN{root, absent, p.code, 0} {
		for level := 4; level >= 1; level-- {
			was := binary.LittleEndian.Uint64(r.guest.Peek(p.space.Tables(userAt)[4-level].GPA()+xenevents.GPA(uint64(p.entry(level))&xenevents.PageMask), 8))
			p.in(p.set(level, pte(to)))
			r.status(id)
			p.in(p.set(level, was))
			p.calls(1)
		}
	}
	p.is(id, probe.Armed, 16, 0)
}

// TestFollowUnread: an int3 that was run by a translation which is gone from the
// tables is tried again, not given to the guest.
func TestFollowUnread(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := p.mustFollow()
	stale := 3
	entry := p.space.Tables(userAt)[3].GPA() + 8
	r.between(func() {
		r.dom.change = func(ev *xenevents.Event) {
			if ev.Kind != xenevents.KindInt3 {
				return
			}
			if stale--; stale >= 0 {
				ev.GFN = ^xenevents.GFN(0)
				r.guest.Poke(entry, make([]byte, 8))
			}
		}
		r.dom.answered = func() { r.guest.Poke(entry, binary.LittleEndian.AppendUint64(nil, pte(p.code)|0x20)) }
	})
	p.calls(1)
	p.is(id, probe.Armed, 1, 0)
	if traps := p.cpu(0).Traps(); len(traps) > 0 {
		t.Errorf("the guest got %v", traps)
	}
}

// TestFollowLimit: there is an end to what is watched.
func TestFollowLimit(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(false)
	for i := range pagewatch.MaxWatches {
		_, err := p.follow(userAt + xenevents.GVA(i))
		r.must(err)
	}
	if _, err := p.follow(userAt); !errors.Is(err, pagewatch.ErrTooMany) {
		t.Error(err)
	}
	if n := r.stats().Tables; n != 4 {
		t.Errorf("%d tables for one page", n)
	}
}

// TestFollowTwoCPUs: one vCPU moves the page, and the other one runs it before the
// write's end is known: that, too, is a hit.
func TestFollowTwoCPUs(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 2, Frames: 2048})
	p := r.newProcess(true)
	p.space.Map(stackAt+xenevents.PageSize, r.gpa(stackAt+xenevents.PageSize).GFN())
	kernel := p.guest.Frame() // mov [rdi],rsi; ret
	r.guest.Poke(kernel.GPA(), code[store])
	p.space.Map(codeAt, kernel)
	id := p.mustFollow()
	const calls = 200
	ran := 0
	r.run(1, sim.WriteCR3(p.space.CR3()))
	r.between(func() {
		r.dom.change = func(ev *xenevents.Event) {
			if ev.Kind == xenevents.KindSingleStep { // the page is there, and nobody knows yet
				r.cpu(1).Run(sim.Call(userSum, 3, 4))
				ran++
			}
		}
	})
	for range calls {
		p.in(sim.Call(codeAt, uint64(p.entry(1)), pte(p.copied())|0x60)) // accessed and dirty, as kernels have it
	}
	r.done(1)
	r.between(func() {})
	p.is(id, probe.Armed, uint64(ran), 0)
	if ran < calls/2 { // some steps end while something else is done
		t.Errorf("%d calls", ran)
	}
	if s := r.status(id); s.Moves != calls+1 {
		t.Errorf("armed in %d frames", s.Moves)
	}
}

// TestFollowSuspended: a probe that is over its budget has no int3 wherever its page
// goes, and has one where its page is then when it is armed again.
func TestFollowSuspended(t *testing.T) {
	const window = 800
	r, clock := newClocked(t, sim.Config{}, probe.Options{Window: window})
	p := r.newProcess(true)
	id, err := p.engine.Add(context.Background(), probe.Request{Name: "followed", At: userSum, Space: p.space.AddressSpace(), Follow: true, Budget: probe.Budget{Hits: 3}})
	p.must(err)
	p.calls(6)
	p.is(id, probe.Suspended, 4, 0)
	for range 2 {
		p.in(p.set(1, 0))
		p.is(id, probe.Suspended, 4, 0)
		p.in(p.set(1, pte(p.copied())))
		p.calls(3)
		p.is(id, probe.Suspended, 4, 0)
	}
	if s := r.stats(); s.Passed != 0 {
		t.Errorf("%d int3s were hit for nothing", s.Passed)
	}
	clock.Add(window)
	r.state(id, probe.Armed)
	p.calls(2)
	p.is(id, probe.Armed, 6, 0)
	p.in(p.set(1, pte(p.copied())))
	p.calls(1)
	p.is(id, probe.Armed, 7, 0)
	// It is suspended while there is no page, too, and may go then.
	p.calls(3)
	p.is(id, probe.Suspended, 8, 0)
	p.in(p.set(1, 0))
	p.remove(id)
	r.reclaimed(0)
}

// TestFollowPaused: the page of a hit that paused the guest moves before the hit runs
// again: its verdict is carried out there, once.
func TestFollowPaused(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 2})
	p := r.newProcess(true)
	id, err := p.engine.Add(context.Background(), probe.Request{Name: "followed", At: userSum, Space: p.space.AddressSpace(), Follow: true, Decide: func(*probe.Hit) probe.Verdict {
		return probe.Verdict{Pause: true, Action: probe.Deny, Return: 77}
	}})
	p.must(err)
	r.cpu(0).Run(sim.WriteCR3(p.space.CR3()), sim.Call(userSum, 3, 4))
	r.paused()
	to := p.copied()
	r.cpu(1).Run(sim.WriteCR3(p.space.CR3()), p.set(1, pte(to)))
	r.between(func() { r.must(r.dom.Unpause()) })
	r.done(1)
	r.done(0)
	if got := r.cpu(0).Registers().RAX; got != 77 {
		t.Errorf("it returned %d", got)
	}
	p.is(id, probe.Armed, 1, 0)
}

// TestFollowRefuses: what a probe that follows its page can't do.
func TestFollowRefuses(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	p.space.Map(codeAt, r.gpa(codeAt).GFN())
	p.mustFollow()
	var wrote error
	r.add(sum, func(h *probe.Hit) probe.Verdict {
		wrote = h.Write([]byte{1}, p.entry(1))
		return probe.Verdict{}
	})
	p.in(sim.Call(sum, 1, 2))
	if wrote == nil {
		t.Error("a hit wrote to a page table that is followed")
	}
	p.calls(1)
}
