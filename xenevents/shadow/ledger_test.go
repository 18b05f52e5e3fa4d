package shadow_test

import (
	"errors"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// faults says how many of one write, one read and one run of a page fault.
func (r *rig) faults(page int) (writes, reads int) {
	r.t.Helper()
	r.writes, r.reads = 0, 0
	r.run(sim.Write(r.page(page)+valueAt, 7), sim.Read(r.page(page), make([]byte, 1)))
	r.call(page)
	return r.writes, r.reads
}

func (r *rig) isProtected(page int, want bool) {
	r.t.Helper()
	n := 0
	if want {
		n = 1
	}
	if writes, reads := r.faults(page); writes != n || reads != 0 || r.set.Protected(r.code[page]) != want {
		r.t.Errorf("page %d: %d writes and %d reads fault; protected %v, want %v", page, writes, reads, r.set.Protected(r.code[page]), want)
	}
}

func TestProtectCounts(t *testing.T) {
	r := newRig(t, 2)
	gfn := r.code[0]
	for range 3 {
		r.must(r.set.Protect(gfn))
	}
	if r.set.Tables() != 1 {
		t.Errorf("%d tables", r.set.Tables())
	}
	r.isProtected(1, false)
	for range 3 {
		r.isProtected(0, true)
		r.must(r.set.Unprotect(gfn))
	}
	r.isProtected(0, false)
	if err := r.set.Unprotect(gfn); err == nil || r.set.Tables() != 0 {
		t.Errorf("%d tables, %v", r.set.Tables(), err)
	}
}

// TestProtectedAndShadowed: a frame that is both, whichever came first and goes
// first.
func TestProtectedAndShadowed(t *testing.T) {
	r := newRig(t, 1)
	gfn := r.code[0]
	r.must(r.set.Protect(gfn))
	p := r.insert(0, movAt, 5)
	if writes, reads := r.faults(0); writes != 1 || reads != 1 {
		t.Errorf("%d writes and %d reads fault", writes, reads)
	}
	r.mustCall(0, 7, p)
	r.must(r.set.Remove(p))
	r.reclaim()
	r.isProtected(0, true)
	if r.set.Idle() || r.frames() != 1 {
		t.Errorf("idle %v, %d spare frames: the view would be emptied, with what is protected in it", r.set.Idle(), r.frames())
	}
	p = r.insert(0, movAt, 5)
	r.must(r.set.Unprotect(gfn))
	if writes, reads := r.faults(0); writes != 1 || reads != 1 {
		t.Errorf("%d writes and %d reads fault", writes, reads)
	}
	r.mustCall(0, 7, p)
	r.must(r.set.Protect(gfn))
	r.must(r.set.Unprotect(gfn))
	r.must(r.set.Remove(p))
	r.reclaim()
	r.isProtected(0, false)
	if r.set.Idle() || r.frames() != 0 {
		t.Errorf("idle %v, %d spare frames", r.set.Idle(), r.frames())
	}
}

// TestProtectedStays: what is filled anew when a copy goes, a superpage in the end,
// takes no protection along; nor does the last copy's end.
func TestProtectedStays(t *testing.T) {
	r := newRig(t, 4)
	r.must(r.set.Protect(r.code[3]))
	a, b := r.insert(0, movAt, 5), r.insert(1, movAt, 5)
	r.must(r.set.Protect(r.code[2]))
	r.must(r.set.Remove(a))
	r.reclaim()
	r.isProtected(0, false)
	r.isProtected(2, true)
	r.isProtected(3, true)
	r.mustCall(1, 7, b)
	r.must(r.set.Remove(b))
	r.reclaim()
	r.isProtected(1, false)
	r.isProtected(2, true)
	r.isProtected(3, true)
	r.must(r.set.Unprotect(r.code[2]))
	r.must(r.set.Unprotect(r.code[3]))
	if !r.set.Idle() {
		t.Error("the spare frames stay")
	}
	r.reclaim()
	if r.frames() != 0 {
		t.Errorf("%d spare frames", r.frames())
	}
}

func TestProtectFails(t *testing.T) {
	r := newRig(t, 1)
	for _, gfn := range []xenevents.GFN{1024, 1 << 40} { // above the guest's memory
		if err := r.set.Protect(gfn); !errors.Is(err, xenevents.ErrAbsent) || r.set.Protected(gfn) {
			t.Errorf("gfn %v: %v", gfn, err)
		}
	}
	r.dom.fail["SetAccess"] = errBroken
	if err := r.set.Protect(r.code[0]); !errors.Is(err, errBroken) || r.set.Protected(r.code[0]) {
		t.Error(err)
	}
	clear(r.dom.fail)
	r.must(r.set.Protect(r.code[0]))
	r.dom.fail["SetAccess"] = errBroken
	if err := r.set.Unprotect(r.code[0]); !errors.Is(err, errBroken) {
		t.Error(err)
	}
	clear(r.dom.fail)
	if r.set.Protected(r.code[0]) {
		t.Error("it is counted still")
	}
}

// TestInsertDisplaced: a patch on an instruction that is not there takes effect when
// it is, and one on another is none.
func TestInsertDisplaced(t *testing.T) {
	r := newRig(t, 1)
	was := r.guest.Peek(r.gpa(0, 0), 16)
	r.run(sim.Write(r.page(0)+valueAt, 9))
	for _, first := range []bool{true, false} { // alone, or beside another patch
		if !first {
			r.insert(0, pushAt, 1)
		}
		p, err := r.set.Insert(r.gpa(0, movAt), [16]byte(append(was[movAt:], was[:movAt]...)), 5)
		r.must(err)
		if !p.Displaced || len(r.set.Displaced(r.code[0])) != 1 {
			t.Error("it is in place, on another instruction")
		}
		if got, _ := r.call(0); got != 9 {
			t.Errorf("the function returns %d", got)
		}
		r.run(sim.Write(r.page(0)+valueAt, 7))
		if p.Displaced {
			t.Error("it is not in place, on its instruction")
		}
		if first {
			r.mustCall(0, 7, p)
		}
		r.run(sim.Write(r.page(0)+valueAt, 9))
		r.must(r.set.Change(p, [16]byte{0xb8, 9}, 5))
		if p.Displaced {
			t.Error("it is not in place, on its new instruction")
		}
		if err := r.set.Change(p, [16]byte{0x90}, 1); err == nil {
			t.Error("a patch in place was changed")
		}
		r.must(r.set.Remove(p))
	}
}

// TestWatch: a frame that is watched faults for what is watched of it, whatever else it
// is, and is what it was when the last watch goes.
func TestWatch(t *testing.T) {
	r := newRig(t, 2)
	gfn := r.code[0]
	check := func(what string, writes, reads int) {
		t.Helper()
		if w, rd := r.faults(0); w != writes || rd != reads {
			t.Errorf("%s: %d writes and %d reads fault, want %d and %d", what, w, rd, writes, reads)
		}
		if w, rd := r.faults(1); w+rd != 0 {
			t.Errorf("%s: its neighbour faults", what)
		}
	}
	r.must(r.set.Watch(gfn, xenevents.AccessW))
	check("writes", 1, 0)
	r.must(r.set.Watch(gfn, xenevents.AccessR))
	check("reads, too", 1, 1)
	r.must(r.set.Unwatch(gfn, xenevents.AccessW))
	check("reads only, which EPT can't have", 1, 1)
	r.must(r.set.Protect(gfn))
	r.must(r.set.Unwatch(gfn, xenevents.AccessR))
	check("protected", 1, 0)
	r.must(r.set.Watch(gfn, xenevents.AccessR))
	p := r.insert(0, movAt, 5)
	r.must(r.set.Unprotect(gfn))
	check("watched and shadowed", 1, 1)
	r.must(r.set.Remove(p))
	r.must(xenevents.WithPaused(r.dom, r.set.Reclaim))
	check("watched", 1, 1)
	if !r.set.Watched(gfn) || r.set.Idle() && r.set.Pages() > 0 {
		t.Error("it is not watched")
	}
	r.must(r.set.Unwatch(gfn, xenevents.AccessR))
	check("free", 0, 0)
	if err := r.set.Unwatch(gfn, xenevents.AccessR); err == nil || r.set.Watched(gfn) {
		t.Errorf("watched %v, %v", r.set.Watched(gfn), err)
	}
	if err := r.set.Watch(1<<30, xenevents.AccessW); !errors.Is(err, xenevents.ErrAbsent) {
		t.Error(err)
	}
}
