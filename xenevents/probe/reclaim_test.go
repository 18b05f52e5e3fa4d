package probe_test

import (
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// frames is how many frames of the guest's are not its own.
func (r *rig) frames() int {
	r.t.Helper()
	var n int
	r.must(r.engine.Do(r.t.Context(), func(dom xenevents.Domain) error {
		info, err := dom.Info(r.t.Context())
		n = int(info.Pages) - 1024
		return err
	}))
	return n
}

func TestReclaim(t *testing.T) {
	r := newRig(t, sim.Config{})
	a, b := r.add(sum, nil), r.add(diff, nil)
	if r.frames() != 2 {
		t.Errorf("%d spare frames", r.frames())
	}
	r.remove(a)
	r.reclaimed(1)
	r.run(0, sim.Read(sum, make([]byte, 1)))
	if s := r.stats(); s.Reads != 0 {
		t.Errorf("%+v", s)
	}
	r.remove(b)
	r.reclaimed(0)
	if r.frames() != 0 {
		t.Errorf("%d spare frames", r.frames())
	}
	// And again, in other places.
	var hits int
	r.add(sum, counted(&hits))
	r.add(diff, counted(&hits))
	if r.call(sum, 1, 2) != 3 || r.call(diff, 2, 1) != 1 || hits != 2 {
		t.Errorf("%d hits", hits)
	}
}

// TestReclaimWaitsForTheReply: Xen carries out an emulation when the vCPU is next
// scheduled, and no entry may go before.
func TestReclaimWaitsForTheReply(t *testing.T) {
	for name, verdict := range map[string]func(*probe.Hit) probe.Verdict{
		"emulation": nil,
		"registers": func(*probe.Hit) probe.Verdict { return probe.Verdict{Action: probe.Deny, Return: 3} },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, sim.Config{VCPUs: 2})
			var others int
			replied := make(chan struct{})
			r.between(func() {
				r.dom.flushed = func() {
					r.dom.flushed = nil
					close(replied)
				}
			})
			id := r.add(sum, verdict)
			other := r.add(diff, counted(&others))
			r.between(func() {
				r.cpu(0).Run(sim.Call(sum, 1, 2))
				r.cpu(0).Hold()
			})
			r.wait(replied)
			r.remove(id)
			r.remove(other)
			for range 20 { // each is a try
				if s := r.stats(); s.Shadows != 2 {
					t.Fatalf("%+v", s)
				}
			}
			r.run(1, sim.Call(sum, 3, 4), sim.Call(diff, 3, 4)) // nothing holds up the others
			if s := r.stats(); s.Shadows != 2 || r.guest.Accidents() != nil || others != 0 {
				t.Errorf("%+v, %q", s, r.guest.Accidents())
			}
			r.cpu(0).Release()
			r.wait(r.dom.freed) // without a command or an event
			r.done(0)
			if got := r.cpu(0).Registers().RAX; got != 3 {
				t.Errorf("it returned %d", got)
			}
			r.reclaimed(0)
		})
	}
}

// TestReclaimAnswersEvents: those that came until the domain stood still get no
// reply that would be carried out later.
func TestReclaimAnswersEvents(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 4})
	id := r.add(sum, nil)
	var hits int
	kept := r.add(diff, counted(&hits))
	data := make([]byte, 1)
	r.must(r.queued(func() {
		r.cpu(0).Run(sim.Call(sum, 1, 2))     // its probe goes
		r.cpu(1).Run(sim.Call(diff, 2, 1))    // a hit
		r.cpu(2).Run(sim.Call(own))           // the guest's own
		r.cpu(3).Run(sim.Read(otherAt, data)) // a violation
	}, id))
	want := []uint64{3, 1, 1}
	for i := range 4 {
		r.done(i)
		if i < len(want) && r.cpu(i).Registers().RAX != want[i] {
			t.Errorf("vCPU %d returned %d", i, r.cpu(i).Registers().RAX)
		}
	}
	s := r.stats()
	if s.Retried != 3 || s.Reinjected != 1 || s.Stale != 0 || s.Reads != 1 || s.Shadows != 1 || hits != 1 || data[0] != code[diff][0] {
		t.Errorf("%+v, %d hits", s, hits)
	}
	if r.status(kept).Hits != 1 {
		t.Errorf("%+v", r.status(kept))
	}
}

// TestNeighboursKeepTheirProbes: when a page that was given up is probed again.
func TestNeighboursKeepTheirProbes(t *testing.T) {
	r := newRig(t, sim.Config{})
	var hits int
	id := r.add(sum, nil)
	r.add(diff, counted(&hits))
	r.remove(id)
	r.reclaimed(1)
	r.add(sum, counted(&hits))
	r.call(sum, 1, 2)
	r.call(diff, 1, 2)
	if hits != 2 {
		t.Errorf("%d hits", hits)
	}
}

// TestEndsWhileItWaits: the engine is told to end just after the time was over in
// which it waits to reclaim.
func TestEndsWhileItWaits(t *testing.T) {
	r := newRig(t, sim.Config{})
	id := r.add(sum, nil)
	replied := make(chan struct{})
	r.between(func() {
		r.dom.flushed = func() {
			r.dom.flushed = nil
			close(replied)
		}
		r.cpu(0).Run(sim.Call(sum, 1, 2))
		r.cpu(0).Hold() // the reply is not carried out
	})
	r.wait(replied)
	r.must(r.queued(func() {
		r.dom.late = func() {
			r.cancel()
			r.cpu(0).Release()
		}
	}, id))
	r.wait(r.ended)
	r.must(r.err)
	r.done(0)
}

// TestManyRemovals: each copy that goes costs work for each that stays, so they go
// together; one that is wanted again meanwhile stays.
func TestManyRemovals(t *testing.T) {
	r := newRig(t, sim.Config{})
	const pages = 200
	first := free.Page() + 16*xenevents.PageSize
	var ids []probe.ID
	for i := range pages {
		at := first + xenevents.GVA(i)*xenevents.PageSize
		r.space.Page(at, 0x55, 0x5d, 0xc3)
		ids = append(ids, r.add(at, nil))
	}
	r.remove(ids[pages-1])
	r.reclaimed(pages - 1)
	for _, id := range ids[1 : pages-1] {
		r.remove(id)
	}
	r.add(first+xenevents.PageSize, nil)
	r.reclaimed(2)
	var remaps int
	r.between(func() { remaps = r.dom.remaps })
	if remaps > 4*pages {
		t.Errorf("%d copies were made, and others hidden %d times", pages, remaps-pages)
	}
	r.call(first)
	r.call(first + xenevents.PageSize)
	if hits := r.status(ids[0]).Hits; hits != 1 {
		t.Errorf("%d hits", hits)
	}
}
