package probe_test

import (
	"slices"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// TestGuestsOwnInt3: the guest gets it, beside a probe of the same page or not.
func TestGuestsOwnInt3(t *testing.T) {
	for _, probed := range []bool{false, true} {
		r := newRig(t, sim.Config{})
		if probed {
			r.add(sum, nil)
		}
		for _, at := range []xenevents.GVA{own, ownToo} {
			if got := r.call(at); got != 1 {
				t.Errorf("%v returned %d", at, got)
			}
		}
		if got := r.cpu(0).Traps(); !slices.Equal(got, []xenevents.GVA{own, ownToo}) {
			t.Errorf("the guest was told of %v", got)
		}
		if s := r.stats(); s.Reinjected != 2 || s.Stale != 0 {
			t.Errorf("%+v", s)
		}
	}
}

// TestGuestPutsInt3: over a probed instruction, as kprobes does; and takes it away.
func TestGuestPutsInt3(t *testing.T) {
	r := newRig(t, sim.Config{})
	var hits int
	r.add(sumPop, counted(&hits))
	r.run(0, sim.Write(sumPop, 0xcc, 0x5d, 0xc3))
	if got := r.call(sum, 1, 2); got != 3 || hits != 0 {
		t.Errorf("it returned %d, %d hits", got, hits)
	}
	if got := r.cpu(0).Traps(); !slices.Equal(got, []xenevents.GVA{sumPop}) {
		t.Errorf("the guest was told of %v", got)
	}
	r.run(0, sim.Write(sumPop, code[sum][sumPop-sum:]...))
	if got := r.call(sum, 1, 2); got != 3 || hits != 1 || len(r.cpu(0).Traps()) != 1 {
		t.Errorf("it returned %d, %d hits, %d traps", got, hits, len(r.cpu(0).Traps()))
	}
}

// TestUnreadableInt3: the page is gone from the guest's tables when its int3 is
// looked at. One that is not ours must not be lost.
func TestUnreadableInt3(t *testing.T) {
	r := newRig(t, sim.Config{})
	page := r.gpa(own).GFN()
	r.between(func() {
		r.cpu(0).Run(sim.Exec(own))
		r.space.Unmap(own.Page())
	})
	r.done(0)
	r.space.Map(own.Page(), page)
	if got := r.cpu(0).Traps(); !slices.Equal(got, []xenevents.GVA{own}) || r.stats().Reinjected != 1 {
		t.Errorf("the guest was told of %v; %+v", got, r.stats())
	}
}

// TestStaleInt3: a vCPU hits a probe that is removed before its event is read.
func TestStaleInt3(t *testing.T) {
	for _, alone := range []bool{false, true} {
		r := newRig(t, sim.Config{})
		var hits, pops int
		id := r.add(sum, counted(&hits))
		if !alone {
			r.add(sumPop, counted(&pops)) // of the same page
		}
		r.must(r.queued(func() { r.cpu(0).Run(sim.Call(sum, 1, 2)) }, id))
		r.done(0)
		if got := r.cpu(0).Registers().RAX; got != 3 || hits != 0 {
			t.Errorf("it returned %d, %d hits", got, hits)
		}
		// Without another probe the page is reclaimed at once, and whatever
		// came until then is tried again.
		s := r.stats()
		if alone && (s.Retried != 1 || s.Stale != 0 || s.Shadows != 0) || !alone && (s.Retried != 0 || s.Stale != 1 || pops != 1) {
			t.Errorf("alone %v: %+v, %d pops", alone, s, pops)
		}
		if s.Reinjected != 0 || r.cpu(0).Traps() != nil {
			t.Errorf("the guest was told of %v", r.cpu(0).Traps())
		}
	}
}

// TestPrefixBeforeInt3: the guest jumps to a prefix in front of a probed
// instruction. It is another instruction, and no hit.
func TestPrefixBeforeInt3(t *testing.T) {
	for _, at := range []xenevents.GVA{nops, last} {
		r := newRig(t, sim.Config{})
		var hits int
		r.add(at+1, counted(&hits))
		before := r.cpu(0).Registers().RSP
		r.run(0, sim.Call(at))
		if s := r.stats(); hits != 0 || s.Reinjected != 0 || s.Stale != 0 || r.cpu(0).Registers().RSP != before {
			t.Errorf("%v: %d hits, %+v", at, hits, s)
		}
		r.run(0, sim.Call(at+1))
		if hits != 1 {
			t.Errorf("%v: %d hits of the instruction itself", at, hits)
		}
	}
}

// TestOwnInt3AcrossPages: of two bytes in two pages, where a probe is at the start
// of the first.
func TestOwnInt3AcrossPages(t *testing.T) {
	r := newRig(t, sim.Config{})
	r.poke(codeAt, 0x90, 0xc3)
	r.poke(last+1, 0xcc, 0xc3)
	r.add(codeAt, nil)
	r.run(0, sim.Call(last))
	if got := r.cpu(0).Traps(); !slices.Equal(got, []xenevents.GVA{last}) {
		t.Errorf("the guest was told of %v", got)
	}
}
