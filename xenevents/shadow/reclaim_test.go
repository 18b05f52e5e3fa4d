package shadow_test

import (
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/sim"
)

func (r *rig) reclaim() {
	r.t.Helper()
	r.must(xenevents.WithPaused(r.dom, r.set.Reclaim))
}

func TestReclaim(t *testing.T) {
	r := newRig(t, 3)
	if r.set.Idle() {
		t.Error("there is something to reclaim before the first patch")
	}
	a, b, c := r.insert(0, movAt, 5), r.insert(1, movAt, 5), r.insert(1, pushAt, 1)
	if r.set.Idle() {
		t.Error("there is something to reclaim with all patches in place")
	}
	r.must(r.set.Remove(c))
	if r.set.Idle() {
		t.Error("the page of c has another patch")
	}
	r.must(r.set.Remove(a))
	if !r.set.Idle() {
		t.Error("the page of a has no patch any more")
	}
	r.reclaim()
	// The frame waits: Xen would empty the view.
	if r.set.Idle() || r.set.Pages() != 1 || r.set.Holds(r.code[0]) || r.frames() != 2 {
		t.Errorf("idle %v, %d copies, %d spare frames", r.set.Idle(), r.set.Pages(), r.frames())
	}
	r.reads = 0
	r.mustCall(0, 7)
	r.run(sim.Read(r.page(0), make([]byte, 1)), sim.Write(r.page(0)+valueAt, 8))
	if r.reads != 0 {
		t.Error("a page whose copy is gone is protected still")
	}
	r.mustCall(0, 8)
	r.mustCall(1, 7, b)
	// The next page takes the frame.
	d := r.insert(2, movAt, 5)
	if r.frames() != 2 {
		t.Errorf("%d spare frames", r.frames())
	}
	r.mustCall(2, 7, d)
	r.must(r.set.Remove(b))
	r.must(r.set.Remove(d))
	r.reclaim()
	if r.set.Idle() || r.set.Pages() != 0 || r.frames() != 0 {
		t.Errorf("idle %v, %d copies, %d spare frames after the last patch", r.set.Idle(), r.set.Pages(), r.frames())
	}
	r.mustCall(1, 7)
	r.mustCall(1, 7, r.insert(1, movAt, 5))
}

// TestReclaimKeepsNeighbours: Xen fills an entry that it dropped from view 0's
// superpage, over all that the view has there.
func TestReclaimKeepsNeighbours(t *testing.T) {
	for _, touched := range []bool{false, true} {
		r := newRig(t, 3)
		a, b := r.insert(0, movAt, 5), r.insert(1, movAt, 5)
		r.must(r.set.Remove(a))
		r.reclaim()
		if touched {
			r.mustCall(0, 7)
		}
		a = r.insert(0, movAt, 5)
		c := r.insert(2, movAt, 5)
		r.mustCall(0, 7, a)
		r.mustCall(1, 7, b)
		r.mustCall(2, 7, c)
	}
}

// TestEmptiedView: with the last frame Xen empties the view, and the guest fills it
// page by page.
func TestEmptiedView(t *testing.T) {
	r := newRig(t, 3)
	r.must(r.set.Remove(r.insert(0, movAt, 5)))
	r.reclaim()
	r.mustCall(0, 7) // fills the entry of page 0 alone
	a, b, c := r.insert(0, movAt, 5), r.insert(1, movAt, 5), r.insert(2, movAt, 5)
	r.mustCall(0, 7, a)
	r.mustCall(1, 7, b)
	r.mustCall(2, 7, c)
	r.reads = 0
	r.run(sim.Read(r.page(0), make([]byte, 1)))
	if r.reads != 1 {
		t.Error("the copy can be read")
	}
}

// TestReclaimWithoutTheFrame: the guest has given the frame back.
func TestReclaimWithoutTheFrame(t *testing.T) {
	r := newRig(t, 3)
	a, b, c := r.insert(0, movAt, 5), r.insert(1, movAt, 5), r.insert(2, movAt, 5)
	r.guest.Balloon(r.code[0])
	r.must(r.set.Remove(c))
	r.reclaim()
	r.mustCall(2, 7, r.insert(2, movAt, 5)) // though a can't be hidden anew
	r.must(r.set.Remove(a))
	r.reclaim()
	if r.set.Pages() != 2 || r.set.Idle() {
		t.Errorf("%d copies", r.set.Pages())
	}
	r.mustCall(1, 7, b)
}
