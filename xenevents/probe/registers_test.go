package probe_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

func (r *rig) tryWatch(w probe.Watch) (probe.ID, error) {
	w.Name, w.Space = "watch", r.space.AddressSpace()
	return r.engine.Watch(context.Background(), w)
}

func (r *rig) watch(w probe.Watch) probe.ID {
	r.t.Helper()
	id, err := r.tryWatch(w)
	r.must(err)
	return id
}

// sightings are what a watch saw, one word each.
type sightings []string

func (n *sightings) take(h *probe.Hit) probe.Verdict {
	s := h.Seen
	*n = append(*n, fmt.Sprintf("%x:%x>%x", s.Index, s.Old, s.New))
	return probe.Verdict{}
}

func (n *sightings) want(t *testing.T, want string) {
	t.Helper()
	if got := strings.Join(*n, " "); got != want {
		t.Errorf("seen: %q, want %q", got, want)
	}
	*n = nil
}

const smep, smap, tsd = 1 << 20, 1 << 21, 1 << 2

func TestControlRegisters(t *testing.T) {
	r := newRig(t, sim.Config{})
	cr4 := r.cpu(0).Registers().CR4
	var all, masked sightings
	id := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindControlReg, Index: 4}, Decide: all.take})
	some := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindControlReg, Index: 4, Mask: smep | smap}, Decide: masked.take})
	r.run(0, sim.WriteCR(4, cr4), sim.WriteCR(4, cr4|tsd), sim.WriteCR(4, cr4|smep), sim.WriteCR(0, 0x8001_0011), sim.WriteCR(4, cr4))
	all.want(t, fmt.Sprintf("4:%x>%x 4:%x>%x 4:%x>%x", cr4, cr4|tsd, cr4|tsd, cr4|smep, cr4|smep, cr4))
	masked.want(t, fmt.Sprintf("4:%x>%x 4:%x>%x", cr4|tsd, cr4|smep, cr4|smep, cr4))
	if s := r.status(id); s.Hits != 3 || s.State != probe.Armed || s.Source.Index != 4 {
		t.Errorf("%+v", s)
	}
	r.remove(id)
	r.remove(some)
	r.run(0, sim.WriteCR(4, cr4|tsd), sim.WriteCR(4, cr4))
	if all.want(t, ""); r.stats().Events["control register"] != 3 {
		t.Errorf("%v", r.stats().Events)
	}
}

// comes waits until a probe has n hits, at which nobody waits.
func (r *rig) comes(id probe.ID, n uint64) {
	r.t.Helper()
	for until := time.Now().Add(late); r.status(id).Hits != n; {
		if time.Now().After(until) {
			r.t.Fatalf("%d hits, not %d", r.status(id).Hits, n)
		}
	}
}

// TestAsyncRegister: nobody waits, until somebody wants to.
func TestAsyncRegister(t *testing.T) {
	r := newRig(t, sim.Config{})
	cr3 := r.space.CR3()
	var async, sync sightings
	paused := 0
	r.dom.change = func(ev *xenevents.Event) {
		if ev.Kind == xenevents.KindControlReg && ev.Paused {
			paused++
		}
	}
	id := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindControlReg, Index: 3}, Async: true, Decide: async.take})
	r.run(0, sim.Repeat(20, sim.WriteCR3(cr3|8), sim.WriteCR3(cr3))...)
	r.comes(id, 40)
	r.between(func() {
		if paused != 0 {
			t.Errorf("the vCPU waited at %d hits", paused)
		}
	})
	other := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindControlReg, Index: 3}, Decide: sync.take})
	r.run(0, sim.WriteCR3(cr3|8), sim.WriteCR3(cr3))
	if paused != 2 || len(sync) != 2 {
		t.Errorf("%d waits, %q", paused, sync)
	}
	r.remove(other)
	r.run(0, sim.WriteCR3(cr3|8), sim.WriteCR3(cr3))
	r.comes(id, 44)
	r.between(func() {
		if paused != 2 {
			t.Errorf("the vCPU waited at %d hits", paused)
		}
	})
	// Once writes are held, each must be waited for.
	r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindMSR, Index: lstar}, Deny: true})
	r.run(0, sim.WriteCR3(cr3|8), sim.WriteCR3(cr3))
	if s := r.status(id); s.Hits != 46 || paused != 4 || r.cpu(0).Registers().CR3 != cr3 {
		t.Errorf("%d hits, %d waits, CR3 %#x", s.Hits, paused, r.cpu(0).Registers().CR3)
	}
	for _, w := range []probe.Watch{
		{Source: probe.Source{Kind: xenevents.KindMSR, Index: 1}, Async: true}, {Source: probe.Source{Kind: xenevents.KindControlReg, Index: 4}, Async: true, Deny: true},
		{Source: probe.Source{Kind: xenevents.KindControlReg, Index: 3}, Deny: true}, {Source: probe.Source{Kind: xenevents.KindCPUID}, Deny: true},
		{Source: probe.Source{Kind: xenevents.KindControlReg, Index: 8}}, {Source: probe.Source{Kind: xenevents.KindInt3}},
	} {
		if id, err := r.tryWatch(w); err == nil {
			t.Errorf("%+v is probe %d", w.Source, id)
		}
	}
}

const lstar = 0xc000_0082

// TestDenyRegister: a write that is denied has no effect, the others have theirs.
func TestDenyRegister(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 2})
	was := r.cpu(0).Registers()
	deny := func(h *probe.Hit) probe.Verdict {
		if h.CanDeny() != nil || h.Seen.New == 7 {
			return probe.Verdict{}
		}
		return probe.Verdict{Action: probe.Deny}
	}
	var seen sightings
	msr := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindMSR, Index: lstar}, Deny: true, Decide: deny})
	r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindMSR, Index: lstar}, Decide: func(h *probe.Hit) probe.Verdict {
		if h.CanDeny() == nil {
			t.Error("a watch that is not to deny may deny")
		}
		seen.take(h)
		return probe.Verdict{Action: probe.Deny}
	}})
	wp := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindControlReg, Index: 0, Mask: xenevents.CR0WP}, Deny: true, Decide: deny})
	for i := range 2 {
		r.cpu(i).Run(sim.WriteMSR(lstar, 7), sim.WriteMSR(lstar, 0xbad), sim.WriteCR(0, was.CR0&^xenevents.CR0WP), sim.WriteCR(0, was.CR0|8))
	}
	for i := range 2 {
		r.done(i)
		if got := r.cpu(i).Registers(); got.LSTAR != 7 || got.CR0 != was.CR0|8 {
			t.Errorf("vCPU %d: LSTAR %#x, CR0 %#x", i, got.LSTAR, got.CR0)
		}
	}
	if s := r.status(msr); s.Hits != 4 || s.Changed != 2 {
		t.Errorf("%+v", s)
	}
	if s := r.status(wp); s.Hits != 2 || s.Changed != 2 {
		t.Errorf("%+v", s)
	}
	if len(seen) != 4 {
		t.Errorf("%q", seen)
	}
	r.end() // nothing that was held is lost
}

// TestPauseWithAHeldWrite: the guest is paused by a write that waits, and the end of the
// engine is not the end of the write.
func TestPauseWithAHeldWrite(t *testing.T) {
	r := newRig(t, sim.Config{})
	id := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindMSR, Index: lstar}, Deny: true, Decide: func(*probe.Hit) probe.Verdict { return probe.Verdict{Pause: true} }})
	r.cpu(0).Run(sim.WriteMSR(lstar, 5))
	for r.status(id).Hits == 0 {
	}
	if info, err := r.dom.Info(context.Background()); err != nil || !info.Paused || r.cpu(0).Registers().LSTAR == 5 {
		t.Errorf("%+v, LSTAR %d, %v", info, r.cpu(0).Registers().LSTAR, err)
	}
	r.end()
	r.done(0)
	if got := r.cpu(0).Registers().LSTAR; got != 5 {
		t.Errorf("LSTAR %d", got)
	}
}

func TestCPUID(t *testing.T) {
	r := newRig(t, sim.Config{})
	var all, one sightings
	id := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindCPUID, Any: true}, Decide: func(h *probe.Hit) probe.Verdict {
		all = append(all, fmt.Sprintf("%x/%x=%x", h.Seen.Index, h.Seen.Subleaf, h.Regs.RBX))
		return probe.Verdict{}
	}})
	leaf := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindCPUID, Index: 7}, Decide: one.take})
	r.run(0, sim.CPUID(1, 0), sim.CPUID(7, 2))
	all.want(t, "1/0=2 7/2=8")
	one.want(t, "7:0>0")
	if regs := r.cpu(0).Registers(); regs.RAX != uint64(^uint32(7)) || regs.RDX != 3 {
		t.Errorf("%+v", regs)
	}
	// One is on its way when the last watch goes: it is answered all the same.
	r.remove(id)
	r.must(r.queued(func() {
		r.cpu(0).Run(sim.CPUID(7, 0))
	}, leaf))
	r.done(0)
	if regs := r.cpu(0).Registers(); regs.RAX != uint64(^uint32(7)) {
		t.Errorf("%+v", regs)
	}
}

// TestWatchBudget: a register that is written all the time is let go, and watched again.
func TestWatchBudget(t *testing.T) {
	r := newGuest(t, sim.Config{})
	tick := uint64(0)
	var err error
	r.engine, err = probe.New(&ticking{r.dom, &tick}, withLog(r, probe.Options{Window: 800}))
	r.must(err)
	r.start()
	var gaps []probe.Gap
	id := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindControlReg, Index: 3}, Budget: probe.Budget{Hits: 10, Stalled: probe.Unlimited}, Gap: func(g probe.Gap) { gaps = append(gaps, g) }})
	cr3 := r.space.CR3()
	r.run(0, sim.Repeat(20, sim.WriteCR3(cr3|8), sim.WriteCR3(cr3))...)
	if s := r.status(id); s.Hits != 11 || s.State != probe.Suspended || s.Gaps != 1 {
		t.Errorf("%+v", s)
	}
	r.between(func() { tick += 10_000 })
	r.waitFor(id, probe.Armed)
	r.run(0, sim.WriteCR3(cr3|8), sim.WriteCR3(cr3))
	if s := r.status(id); s.Hits != 13 || len(gaps) != 2 || !gaps[1].Over {
		t.Errorf("%+v, %+v", s, gaps)
	}
}

type ticking struct {
	*spy
	tick *uint64
}

func (d *ticking) Ticks() uint64 { return *d.tick }

func (d *ticking) TicksPerSecond() uint64 { return 0 }

func (r *rig) waitFor(id probe.ID, s probe.State) {
	r.t.Helper()
	for range 2000 {
		if r.status(id).State == s {
			return
		}
	}
	r.t.Fatalf("%+v", r.status(id))
}

// TestWatchThatPanics is not asked again, and the guest does not suffer.
func TestWatchThatPanics(t *testing.T) {
	r := newRig(t, sim.Config{})
	id := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindMSR, Index: lstar}, Decide: func(h *probe.Hit) probe.Verdict {
		return probe.Verdict{Action: probe.SetRegs, Regs: h.Regs} // is none of a watch
	}})
	r.run(0, sim.WriteMSR(lstar, 1), sim.WriteMSR(lstar, 2))
	if s := r.status(id); s.State != probe.Failed || s.Hits != 2 || r.cpu(0).Registers().LSTAR != 2 {
		t.Errorf("%+v", s)
	}
}

// TestWatchWithoutEvents: what the CPU can't tell of is refused, and nothing is left of it.
func TestWatchWithoutEvents(t *testing.T) {
	r := newRig(t, sim.Config{Without: []xenevents.Kind{xenevents.KindCPUID}})
	if _, err := r.tryWatch(probe.Watch{Source: probe.Source{Kind: xenevents.KindCPUID, Any: true}}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindMSR, Index: lstar}})
}
