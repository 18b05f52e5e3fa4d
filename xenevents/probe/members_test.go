package probe_test

import (
	"context"
	"errors"
	"testing"

	"github.com/hprobe/hprobe/xenevents/pagewatch"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// many adds a probe that processes may join.
func (r *rig) many(decide func(*probe.Hit) probe.Verdict) probe.ID {
	r.t.Helper()
	id, err := r.engine.Add(context.Background(), probe.Request{Name: "many", Many: true, Decide: decide})
	r.must(err)
	return id
}

// joins has a place join a probe, on the engine's goroutine.
func (r *rig) joins(id probe.ID, m probe.Member) error {
	r.t.Helper()
	var err error
	r.between(func() { err = r.engine.Members().Join(id, m) })
	return err
}

func (p *process) member() probe.Member {
	return probe.Member{At: userSum, Space: p.space.AddressSpace(), Code: code[sum]}
}

// TestManyProcesses: one probe in several processes, some of which share a frame, has
// the hits of all of them, each once; and lets others pass, each once.
func TestManyProcesses(t *testing.T) {
	r := newRig(t, sim.Config{})
	a, b, c, other := r.newProcess(true), r.newProcess(true), r.newProcess(true), r.newProcess(true)
	for _, p := range []*process{b, other} { // as a library is shared
		p.space.Map(userAt, a.code)
	}
	decided := 0
	var last uint64
	id := r.many(func(h *probe.Hit) probe.Verdict {
		if decided++; h.Probe == 0 || h.Seq != last+1 {
			t.Errorf("hit %d of probe %d after %d", h.Seq, h.Probe, last)
		}
		last = h.Seq
		return probe.Verdict{}
	})
	if s := r.status(id); s.State != probe.Waiting || s.Members != 0 {
		t.Errorf("%+v", s)
	}
	for _, p := range []*process{a, b, c} {
		r.must(r.joins(id, p.member()))
		r.must(r.joins(id, p.member())) // twice is once
	}
	for i, p := range []*process{a, b, c, other} {
		p.calls(10 * (i + 1))
	}
	s := r.status(id)
	if s.State != probe.Armed || s.Hits != 60 || s.Passed != 40 || s.Members != 3 || s.Armed != 3 || s.Missed != 0 || decided != 60 {
		t.Errorf("%+v, decided %d", s, decided)
	}
	if got := r.membersIn(id, b); len(got) != 1 || got[0].At != userSum || len(got[0].Code) == 0 {
		t.Errorf("%+v", got)
	}
	// One exits, another loses its page.
	b.in(b.set(4, 0))
	c.in(c.set(1, 0))
	if s := r.status(id); s.Members != 2 || s.Armed != 1 || s.State != probe.Armed {
		t.Errorf("%+v", s)
	}
	r.remove(id)
	a.calls(1)
	r.reclaimed(0)
	if n := r.stats().Tables; n != 0 {
		t.Errorf("%d tables are protected", n)
	}
}

func (r *rig) membersIn(id probe.ID, p *process) (all []probe.Member) {
	r.between(func() { all = r.engine.Members().In(id, p.space.AddressSpace()) })
	return all
}

// TestMemberWaits: what joins before it has its page is armed with it, on the code that
// it must have and on no other.
func TestMemberWaits(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(false)
	id := r.many(nil)
	r.must(r.joins(id, p.member()))
	if s := r.status(id); s.State != probe.Waiting || s.Members != 1 {
		t.Errorf("%+v", s)
	}
	wrong := r.guest.Frame()
	r.guest.Poke(wrong.GPA()+0x10, code[load])
	p.in(p.set(1, pte(wrong)))
	if s := r.status(id); s.State != probe.Displaced || s.Hits != 0 {
		t.Errorf("%+v", s)
	}
	p.in(p.set(1, pte(p.code)))
	p.calls(3)
	if s := r.status(id); s.State != probe.Armed || s.Hits != 3 {
		t.Errorf("%+v", s)
	}
}

// TestMemberLeaves: a place that has become something else, while its page was away,
// is the probe's no more, though it has the same code.
func TestMemberLeaves(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := r.many(nil)
	still, asked := true, 0
	m := p.member()
	m.Still = func() bool {
		asked++
		return still
	}
	r.must(r.joins(id, m))
	p.calls(2)
	if asked != 0 {
		t.Errorf("asked %d times", asked)
	}
	p.in(p.set(1, 0))
	p.in(p.set(1, pte(p.code)))
	p.calls(2)
	if s := r.status(id); s.Hits != 4 || asked == 0 {
		t.Errorf("%+v, asked %d times", s, asked)
	}
	p.in(p.set(1, 0))
	still = false
	p.in(p.set(1, pte(p.copied())))
	p.calls(2)
	if s := r.status(id); s.Hits != 4 || s.Members != 0 || s.State != probe.Waiting {
		t.Errorf("%+v", s)
	}
	if n := r.stats().Tables; n != 0 {
		t.Errorf("%d tables are protected", n)
	}
}

// TestMemberEnds: a process that exits is no member any more, and its root may be
// another's.
func TestMemberEnds(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := r.many(nil)
	r.must(r.joins(id, p.member()))
	p.calls(1)
	tables := p.space.Tables(userAt)
	p.in(p.set(4, 0))
	if s := r.status(id); s.Members != 0 || s.Hits != 1 || s.State != probe.Waiting {
		t.Errorf("%+v", s)
	}
	p.in(p.set(4, pte(tables[1])))
	p.calls(1)
	if s := r.status(id); s.Hits != 1 {
		t.Errorf("%+v", s)
	}
	r.must(r.joins(id, p.member()))
	p.calls(1)
	if s := r.status(id); s.Hits != 2 || s.Members != 1 {
		t.Errorf("%+v", s)
	}
}

// TestMembersRefused: what can't join is counted, and the error says why.
func TestMembersRefused(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	id := r.many(nil)
	empty := probe.Member{At: userSum, Space: r.guest.NewSpace().AddressSpace()}
	if err := r.joins(id, empty); !errors.Is(err, pagewatch.ErrEnded) {
		t.Error(err)
	}
	bad := p.member()
	bad.Code = []byte{0x0f, 0xff}
	if err := r.joins(id, bad); err == nil {
		t.Error("code that is none")
	}
	if s := r.status(id); s.Missed != 2 || s.MissedWhy == "" || s.Members != 0 {
		t.Errorf("%+v", s)
	}
	one := r.add(sum, nil)
	for _, no := range []probe.ID{one, 77} {
		if err := r.joins(no, p.member()); !errors.Is(err, probe.ErrNoProbe) {
			t.Error(err)
		}
	}
	if n := r.stats().Tables; n != 0 {
		t.Errorf("%d tables are protected", n)
	}
}

// TestManyOneBudget: a hit is charged once, however many members share the frame, and
// a suspension is of all of them.
func TestManyOneBudget(t *testing.T) {
	r := newRig(t, sim.Config{})
	a, b := r.newProcess(true), r.newProcess(true)
	b.space.Map(userAt, a.code)
	gaps := 0
	id, err := r.engine.Add(context.Background(), probe.Request{Name: "many", Many: true, Budget: probe.Budget{Hits: 20, Stalled: probe.Unlimited}, Gap: func(g probe.Gap) {
		if !g.Over {
			gaps++
		}
	}})
	r.must(err)
	r.must(r.joins(id, a.member()))
	r.must(r.joins(id, b.member()))
	a.calls(10)
	b.calls(10)
	if s := r.status(id); s.Hits != 20 || s.State != probe.Armed {
		t.Errorf("%+v", s)
	}
	a.calls(5)
	b.calls(5)
	if s := r.status(id); s.Hits != 21 || s.State != probe.Suspended || gaps != 1 {
		t.Errorf("%+v, %d gaps", s, gaps)
	}
}
