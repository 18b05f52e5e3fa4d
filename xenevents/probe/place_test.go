package probe_test

import (
	"context"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// placed asks for a probe that waits to be placed.
func (r *rig) placed(returns bool, decide func(*probe.Hit) probe.Verdict) probe.ID {
	r.t.Helper()
	id, err := r.engine.Add(context.Background(), probe.Request{Name: "placed", Space: r.space.AddressSpace(), Placed: true, Return: returns, Decide: decide})
	r.must(err)
	return id
}

// TestPlace: a probe goes where it is put, within a hit of another one, and its count
// goes on.
func TestPlace(t *testing.T) {
	r := newRig(t, sim.Config{})
	hits := 0
	id := r.placed(false, counted(&hits))
	if s := r.status(id); s.State != probe.Waiting || s.At != 0 || s.Detail == "" {
		t.Errorf("%+v", s)
	}
	// Each call of load has the probe go on to the next place.
	next := []xenevents.GVA{sum, diff, 0, sum}
	var errs []error
	trigger := r.add(load, func(*probe.Hit) probe.Verdict {
		at := next[0]
		next = next[1:]
		if at == 0 {
			errs = append(errs, r.engine.Lift(id, "gone"))
		} else {
			errs = append(errs, r.engine.Place(id, at), r.engine.Place(id, at))
		}
		return probe.Verdict{}
	})
	for i, want := range []int{1, 2, 2, 3} {
		r.call(load, uint64(dataAt))
		if got := r.call(sum, 40, 2); got != 42 {
			t.Errorf("%d", got)
		}
		if got := r.call(diff, 44, 2); got != 42 {
			t.Errorf("%d", got)
		}
		s := r.status(id)
		if hits != want || s.Hits != uint64(want) || (s.State == probe.Waiting) != (i == 2) {
			t.Errorf("%d: %d hits, %+v", i, hits, s)
		}
		if i == 2 && (s.Detail != "gone" || s.At != 0) {
			t.Errorf("%+v", s)
		}
	}
	for _, err := range errs {
		r.must(err)
	}
	r.remove(id)
	r.call(sum, 1, 2)
	r.remove(trigger)
	r.reclaimed(0)
	if hits != 3 {
		t.Errorf("%d hits", hits)
	}
}

// TestPlaceInVain: where it can't be, it waits, and says why.
func TestPlaceInVain(t *testing.T) {
	r := newRig(t, sim.Config{})
	id, fixed := r.placed(false, nil), r.add(load, nil)
	for at, want := range map[xenevents.GVA]string{0x1000: "kernel's half", codeAt + 1<<30: "not mapped", own: "int3 of its own"} {
		var err error
		r.between(func() {
			r.must(r.engine.Place(id, sum))
			err = r.engine.Place(id, at)
		})
		if s := r.status(id); err == nil || !strings.Contains(err.Error(), want) || s.State != probe.Waiting || !strings.Contains(s.Detail, want) {
			t.Errorf("%v: %v, %+v", at, err, s)
		}
	}
	r.between(func() {
		for _, id := range []probe.ID{fixed, 99} {
			if r.engine.Place(id, sum) == nil || r.engine.Lift(id, "") == nil {
				t.Errorf("probe %d was placed", id)
			}
		}
	})
	for _, bad := range []probe.Request{{Placed: true, At: sum}, {Placed: true, Follow: true}} {
		if _, err := r.engine.Add(context.Background(), bad); err == nil {
			t.Errorf("%+v", bad)
		}
	}
	r.call(sum, 1, 2)
	if s := r.status(id); s.Hits != 0 {
		t.Errorf("%+v", s)
	}
	r.remove(id)
	r.reclaimed(1)
}

// TestVacate: where code goes, nothing returns to, whichever probe waits for it.
func TestVacate(t *testing.T) {
	r := newRig(t, sim.Config{})
	caller := free // call sum; ret
	r.poke(caller, 0xe8, 0x0b, 0xff, 0xff, 0xff, 0xc3)
	id := r.placed(true, nil)
	r.between(func() { r.must(r.engine.Place(id, sum)) })
	r.call(caller, 1, 2)
	if s, st := r.status(id), r.stats(); s.Returns != 1 || st.Sites != 1 {
		t.Errorf("%+v, %+v", s, st)
	}
	r.between(func() { r.must(r.engine.Vacate(caller+6, caller+100)) })
	if st := r.stats(); st.Sites != 1 {
		t.Errorf("%+v", st)
	}
	// One is under way: it returns without a hit.
	gone := false
	trigger := r.add(sumPop, func(*probe.Hit) probe.Verdict {
		if !gone {
			gone = true
			if err := r.engine.Vacate(caller, caller+6); err != nil {
				t.Error(err)
			}
		}
		return probe.Verdict{}
	})
	if got := r.call(caller, 1, 2); got != 3 {
		t.Errorf("%d", got)
	}
	if s, st := r.status(id), r.stats(); s.Hits != 2 || s.Returns != 1 || s.Lost != 1 || st.Sites != 0 || st.Calls != 0 {
		t.Errorf("%+v, %+v", s, st)
	}
	r.remove(trigger)
	r.between(func() { r.must(r.engine.Lift(id, "")) })
	r.reclaimed(0)
	r.remove(id)
}

// TestAddAll: all of them or none, and removed at once.
func TestAddAll(t *testing.T) {
	r := newRig(t, sim.Config{})
	all := []probe.Request{{At: sum, Space: r.space.AddressSpace()}, {At: diff, Space: r.space.AddressSpace()}, {At: own, Space: r.space.AddressSpace()}}
	if ids, err := r.engine.AddAll(context.Background(), all); err == nil || ids != nil || !strings.Contains(err.Error(), "int3 of its own") {
		t.Errorf("%v, %v", ids, err)
	}
	r.reclaimed(0)
	ids, err := r.engine.AddAll(context.Background(), all[:2])
	r.must(err)
	r.call(sum, 1, 2)
	r.call(diff, 1, 2)
	for _, id := range ids {
		if s := r.status(id); s.Hits != 1 {
			t.Errorf("%+v", s)
		}
	}
	if err := r.engine.Remove(context.Background(), append(ids, 99)...); err == nil {
		t.Error("there is a probe 99")
	}
	r.reclaimed(0)
}
