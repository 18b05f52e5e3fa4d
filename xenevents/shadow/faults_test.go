package shadow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/shadow"
	"github.com/hprobe/hprobe/xenevents/sim"
)

var errBroken = errors.New("broken")

func TestOpenFails(t *testing.T) {
	for _, method := range []string{"EnableViews", "MaxGFN", "CreateView", "SetAccess", "SwitchView"} {
		r := newGuest(t, 1, sim.Config{})
		r.dom.fail[method] = errBroken
		if _, err := shadow.Open(r.dom); !errors.Is(err, errBroken) {
			t.Errorf("%s: %v", method, err)
		}
		r.must(r.events.Close())
		if l := r.guest.Leaks(); l != nil {
			t.Errorf("%s: left behind: %q", method, l)
		}
	}
}

func TestOpenWithoutViews(t *testing.T) {
	r := newGuest(t, 1, sim.Config{NoViews: true})
	if _, err := shadow.Open(r.dom); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// TestOpenWithHoles: a guest whose memory has gaps is no error.
func TestOpenWithHoles(t *testing.T) {
	r := newGuest(t, 1, sim.Config{Frames: 2000})
	r.guest.Balloon(512)
	set, err := shadow.Open(r.dom)
	r.must(err)
	r.must(set.Leave())
	r.must(r.events.Close())
	r.must(set.Close())
}

// TestInsertFails: whatever goes wrong, the guest is as before, and the next try
// works.
func TestInsertFails(t *testing.T) {
	for _, method := range []string{"AllocGFN", "RemapGFN", "SetAccess", "WriteGPA"} {
		for _, touched := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, touched %v", method, touched), func(t *testing.T) { insertFails(t, method, touched) })
		}
	}
}

func insertFails(t *testing.T, method string, touched bool) {
	r := newRig(t, 2)
	b := r.insert(1, movAt, 5)
	r.dom.fail[method] = errBroken
	if _, err := r.try(0, movAt, 5); !errors.Is(err, errBroken) {
		t.Errorf("another page: %v", err)
	}
	if method == "WriteGPA" {
		if _, err := r.try(1, pushAt, 1); !errors.Is(err, errBroken) {
			t.Errorf("the same page: %v", err)
		}
	}
	clear(r.dom.fail)
	if found, _ := r.set.Find(r.code[0], movAt); found != nil || r.set.Holds(r.code[0]) || r.set.Pages() != 1 {
		t.Errorf("found %v, %d pages", found, r.set.Pages())
	}
	if found, _ := r.set.Find(r.code[1], pushAt); found != nil {
		t.Errorf("found %v", found)
	}
	if info, err := r.dom.Info(context.Background()); info.Paused || err != nil {
		t.Errorf("paused %v, %v", info.Paused, err)
	}
	if touched {
		r.run(sim.Read(r.page(0), make([]byte, 1)))
		r.mustCall(0, 7)
		if r.reads != 0 {
			t.Error("the page is protected")
		}
	}
	r.mustCall(0, 7, r.insert(0, movAt, 5))
	r.mustCall(1, 7, b)
	if r.frames() != 2 {
		t.Errorf("%d spare frames", r.frames())
	}
}

func TestInsertWhereNothingIs(t *testing.T) {
	r := newRig(t, 1)
	hole := r.guest.Frame()
	r.guest.Balloon(hole)
	if _, err := r.set.Insert(hole.GPA(), [shadow.MaxInsn]byte{0x90}, 1); !errors.Is(err, xenevents.ErrAbsent) {
		t.Errorf("an absent frame: %v", err)
	}
	// The spare frame is of no use to anybody now.
	if !r.set.Idle() || r.set.Holds(hole) {
		t.Error("nothing to reclaim")
	}
	r.reclaim()
	if r.frames() != -1 {
		t.Errorf("%d spare frames", r.frames()+1)
	}
	spare, err := r.dom.AllocGFN()
	r.must(err)
	for _, gfn := range []xenevents.GFN{spare, 1 << 40} {
		if _, err := r.set.Insert(gfn.GPA(), [shadow.MaxInsn]byte{0x90}, 1); err == nil {
			t.Errorf("a patch in gfn %v, which is not the guest's", gfn)
		}
	}
	r.must(r.dom.FreeGFN(spare))
}

// TestRemoveFails: the int3 may be in place still, but is not ours any more.
func TestRemoveFails(t *testing.T) {
	r := newRig(t, 1)
	p := r.insert(0, movAt, 5)
	r.dom.fail["WriteGPA"] = errBroken
	if err := r.set.Remove(p); !errors.Is(err, errBroken) {
		t.Error(err)
	}
	clear(r.dom.fail)
	if !r.set.Idle() {
		t.Error("the page can't be reclaimed")
	}
	r.reclaim()
	r.mustCall(0, 7)
}

func TestClose(t *testing.T) {
	r := newRig(t, 2)
	p := r.insert(0, movAt, 5)
	r.insert(1, movAt, 5)
	r.must(r.set.Remove(p))
	// The vCPU that is in the view keeps Xen from taking it away alone.
	r.must(r.events.Close())
	for range 2 {
		r.must(r.set.Close())
	}
	if l := r.guest.Leaks(); l != nil {
		t.Errorf("left behind: %q", l)
	}
	if r.set.Pages() != 0 {
		t.Errorf("%d copies", r.set.Pages())
	}
	if p, _ := r.set.Find(r.code[1], movAt); p != nil {
		t.Error("a patch is there still")
	}
}
