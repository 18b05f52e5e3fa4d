package shadow_test

import (
	"errors"
	"testing"

	"github.com/hprobe/hprobe/xenevents/sim"
)

// TestWithdraw: the int3 goes and comes, through writes of the guest's as well.
func TestWithdraw(t *testing.T) {
	r := newRig(t, 1)
	p := r.insert(0, movAt, 5)
	calls := func(n, hits int, why string) {
		t.Helper()
		r.hits = nil
		for range n {
			r.run(sim.Call(r.page(0)))
		}
		if len(r.hits) != hits {
			t.Errorf("%s: %d hits in %d calls", why, len(r.hits), n)
		}
	}
	calls(2, 2, "in place")
	for range 2 { // twice is harmless
		r.must(r.set.Withdraw(p, true))
		if found, in := r.set.Find(p.At.GFN(), p.At.Offset()); found != p || in || !r.set.Holds(p.At.GFN()) || r.set.Idle() {
			t.Error("the patch is gone, or in place")
		}
		calls(2, 0, "withdrawn")
	}
	r.run(sim.Write(r.page(0)+valueAt, 9)) // displaces it
	calls(1, 0, "withdrawn and displaced")
	r.must(r.set.Withdraw(p, false))
	calls(1, 0, "displaced")
	r.run(sim.Write(r.page(0)+valueAt, 7))
	calls(1, 1, "as it was")
	r.must(r.set.Withdraw(p, true))
	r.run(sim.Write(r.page(0)+0x100, 1)) // the page is copied anew
	calls(1, 0, "after a write")
	for range 2 {
		r.must(r.set.Withdraw(p, false))
		calls(1, 1, "back")
	}
	failed := errors.New("failed")
	r.dom.fail["WriteGPA"] = failed
	if err := r.set.Withdraw(p, true); !errors.Is(err, failed) {
		t.Error(err)
	}
	delete(r.dom.fail, "WriteGPA")
	r.must(r.set.Remove(p))
	calls(1, 0, "removed while withdrawn")
	if err := r.set.Withdraw(p, false); err == nil {
		t.Error("a patch that is gone came back")
	}
}
