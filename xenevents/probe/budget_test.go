package probe_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// newClocked is a rig whose clock stands still until the test moves it.
func newClocked(t *testing.T, c sim.Config, o probe.Options) (*rig, *atomic.Uint64) {
	t.Helper()
	r := newGuest(t, c)
	clock := &atomic.Uint64{}
	clock.Store(1 << 40)
	var err error
	r.engine, err = probe.New(&clocked{r.dom, clock}, withLog(r, o))
	r.must(err)
	r.start()
	r.pokeCalls()
	return r, clock
}

type clocked struct {
	*spy
	now *atomic.Uint64
}

func (c *clocked) Ticks() uint64 { return c.now.Load() }

func (c *clocked) TicksPerSecond() uint64 { return 0 }

// state waits for a probe's state.
func (r *rig) state(id probe.ID, want probe.State) probe.Status {
	r.t.Helper()
	for until := time.Now().Add(late); ; time.Sleep(time.Millisecond) {
		s := r.status(id)
		if s.State == want {
			return s
		}
		if time.Now().After(until) {
			r.t.Fatalf("%+v is not %v", s, want)
		}
	}
}

// TestBudgetOfHits: over it the guest runs on without hits, until the probe is
// tried again; each time soon after the last takes twice as long.
func TestBudgetOfHits(t *testing.T) {
	const window, hits = 800, 10
	r, clock := newClocked(t, sim.Config{}, probe.Options{Window: window})
	var gaps []probe.Gap
	var seen int
	id := r.request(probe.Request{Name: "hot", At: sum, Decide: counted(&seen), Budget: probe.Budget{Hits: hits}, Gap: func(g probe.Gap) { gaps = append(gaps, g) }})
	other := r.add(diff, nil)
	out := uint64(window)
	for n := range uint64(9) {
		for i := range uint64(hits + 5) {
			if got := r.call(sum, 1, i); got != 1+i {
				t.Errorf("it returned %d", got)
			}
		}
		if want := int(n+1) * (hits + 1); seen != want {
			t.Fatalf("%d hits, want %d", seen, want)
		}
		s := r.status(id)
		if s.State != probe.Suspended || s.Gaps != n+1 || !strings.Contains(s.Detail, "more than 10 hits") {
			t.Fatalf("%+v", s)
		}
		clock.Add(out - 1)
		r.between(func() {})
		if s := r.status(id); s.State != probe.Suspended || !strings.HasSuffix(s.Detail, " 1 ticks") {
			t.Fatalf("gap %d: %+v", n, s)
		}
		clock.Add(1)
		s = r.state(id, probe.Armed) // by itself
		if s.Detail != "" {
			t.Errorf("%+v", s)
		}
		r.between(func() {
			if g := gaps[len(gaps)-2:]; g[0].Over || !g[1].Over || g[1].Ticks != out || g[1].Seq != n+1 || g[0].Probe != id || g[0].Why == "" || g[0].Why != g[1].Why {
				t.Errorf("%+v", g)
			}
		})
		out = min(2*out, window<<6)
	}
	if s := r.status(id); s.GapTicks != window*(1+2+4+8+16+32+64+64+64) {
		t.Errorf("%+v", s)
	}
	clock.Add(window * 8) // it has been quiet for long
	for range hits + 1 {
		r.call(sum, 1, 2)
	}
	if s := r.status(id); !strings.HasSuffix(s.Detail, " 800 ticks") {
		t.Errorf("%+v", s)
	}
	if s := r.status(other); s.State != probe.Armed || !r.log.has("suspended") || !r.log.has("armed again") {
		t.Errorf("%+v", s)
	}
}

// TestBudgetSlides: what was long ago does not count.
func TestBudgetSlides(t *testing.T) {
	const window, hits = 800, 16
	r, clock := newClocked(t, sim.Config{}, probe.Options{Window: window, Budget: probe.Budget{Hits: hits}})
	id := r.add(sum, nil)
	for range 20 * hits {
		r.call(sum, 1, 2)
		clock.Add(window / hits)
	}
	if s := r.status(id); s.Gaps != 0 || s.Hits != 20*hits {
		t.Errorf("%+v", s)
	}
	for range 4 { // twice as many
		for range hits / 2 {
			r.call(sum, 1, 2)
			clock.Add(window / hits / 2)
		}
	}
	if s := r.status(id); s.Gaps != 1 {
		t.Errorf("%+v", s)
	}
}

// TestBudgetOfTime: one slow decision is enough.
func TestBudgetOfTime(t *testing.T) {
	r, clock := newClocked(t, sim.Config{}, probe.Options{Window: 800})
	id := r.request(probe.Request{At: sum, Budget: probe.Budget{Stalled: 100}, Decide: func(*probe.Hit) probe.Verdict {
		clock.Add(60)
		return probe.Verdict{}
	}})
	for range 3 {
		r.call(sum, 1, 2)
	}
	if s := r.status(id); s.Hits != 2 || s.State != probe.Suspended || !strings.Contains(s.Detail, "waited") {
		t.Errorf("%+v", s)
	}
	r.remove(id)
	r.reclaimed(0)
}

// TestBudgetOfTheDomain: whoever costs most goes first, and not at all whose
// absence would be worse.
func TestBudgetOfTheDomain(t *testing.T) {
	r, clock := newClocked(t, sim.Config{}, probe.Options{Window: 800, Domain: probe.Budget{Hits: 20}})
	ticks := func(n uint64) func(*probe.Hit) probe.Verdict {
		return func(*probe.Hit) probe.Verdict {
			clock.Add(n)
			return probe.Verdict{}
		}
	}
	small := r.request(probe.Request{At: diff, Decide: ticks(1)})
	large := r.request(probe.Request{At: load, Decide: ticks(5)})
	vital := r.request(probe.Request{At: sum, Decide: ticks(10), Budget: probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}})
	for range 7 {
		r.call(diff, 1, 2)
		r.call(load, uint64(dataAt))
		r.call(sum, 1, 2)
	}
	if a, b, c := r.status(small), r.status(large), r.status(vital); a.State != probe.Armed || b.State != probe.Suspended || c.State != probe.Armed || !strings.Contains(b.Detail, "domain") {
		t.Errorf("%+v\n%+v\n%+v", a, b, c)
	}
	r.remove(small)
	for range 21 {
		r.call(sum, 1, 2)
	}
	if s := r.status(vital); s.State != probe.Armed || s.Hits != 28 || !r.log.has("no probe may be suspended") {
		t.Errorf("%+v", s)
	}
}

// TestBudgetOfReturns: calls that are under way are given up with the probe, and
// the place of their return is free again.
func TestBudgetOfReturns(t *testing.T) {
	r, clock := newClocked(t, sim.Config{VCPUs: 2}, probe.Options{Window: 800})
	var n notes
	id := r.request(probe.Request{Name: "s", At: sum, Return: true, Decide: n.decide("s"), Budget: probe.Budget{Hits: 4}})
	r.enter(0, any, 1, 2)
	for range 8 { // others come by while it is in there
		r.run(1, sim.Call(any, 0, 0, uint64(zero)))
	}
	if s := r.status(id); s.State != probe.Suspended || s.Passed != 4 || s.Lost != 1 {
		t.Errorf("%+v", s)
	}
	r.leave(0, any+2)
	n.are(t, "s#1")
	clock.Add(800)
	r.state(id, probe.Armed)
	r.call(caller, 1, 2)
	n.are(t, "s#2 s#2=3")
	r.over(id, 2, 1, 1)
}

// TestSuspendedBesideAnother: the int3 stays for that one.
func TestSuspendedBesideAnother(t *testing.T) {
	r, clock := newClocked(t, sim.Config{}, probe.Options{Window: 800})
	var hot, cool int
	a := r.request(probe.Request{At: sum, Decide: counted(&hot), Budget: probe.Budget{Hits: 2}})
	b := r.request(probe.Request{At: sum, Decide: counted(&cool)})
	for range 10 {
		r.call(sum, 1, 2)
	}
	if hot != 3 || cool != 10 || r.status(a).State != probe.Suspended || r.status(a).Hits != 3 {
		t.Errorf("%d, %d hits; %+v", hot, cool, r.status(a))
	}
	r.remove(b)
	r.call(sum, 1, 2)
	if s := r.stats(); s.Events["int3"] != 10 {
		t.Errorf("%+v", s)
	}
	// One that comes meanwhile arms it for itself.
	b = r.request(probe.Request{At: sum, Decide: counted(&cool)})
	r.call(sum, 1, 2)
	r.remove(b)
	// The guest writes over it, and back.
	r.run(0, sim.Write(sum, 0x90))
	r.run(0, sim.Write(sum, code[sum][0]))
	r.call(sum, 1, 2)
	clock.Add(800)
	r.state(a, probe.Armed)
	r.call(sum, 1, 2)
	if hot != 4 || cool != 11 || r.stats().Events["int3"] != 12 {
		t.Errorf("%d, %d hits; %+v", hot, cool, r.stats())
	}
}

// TestSuspendedWithAHitOnItsWay: it is tried again, without the int3.
func TestSuspendedWithAHitOnItsWay(t *testing.T) {
	r, _ := newClocked(t, sim.Config{VCPUs: 9}, probe.Options{Window: 800})
	id := r.request(probe.Request{At: sum, Budget: probe.Budget{Hits: 2}})
	r.between(func() {
		for i := range 9 {
			r.cpu(i).Run(sim.Call(sum, 1, uint64(i)))
		}
	})
	for i := range 9 {
		r.done(i)
		if regs := r.cpu(i).Registers(); regs.RAX != 1+uint64(i) || len(r.cpu(i).Traps()) != 0 {
			t.Errorf("vCPU %d: %d", i, regs.RAX)
		}
	}
	if s := r.status(id); s.Hits != 3 || r.stats().Stale < 5 || r.stats().Reinjected != 0 {
		t.Errorf("%+v, %+v", s, r.stats())
	}
}

// TestGapThatPanics is no harm.
func TestGapThatPanics(t *testing.T) {
	r, _ := newClocked(t, sim.Config{}, probe.Options{Window: 800})
	id := r.request(probe.Request{At: sum, Budget: probe.Budget{Hits: 1}, Gap: func(probe.Gap) { panic("broken") }})
	for range 3 {
		r.call(sum, 1, 2)
	}
	if s := r.status(id); s.State != probe.Suspended || !r.log.has("broken") {
		t.Errorf("%+v", s)
	}
}

// TestWithdrawFails: the domain is gone.
func TestWithdrawFails(t *testing.T) {
	r := newMortal(t, 1)
	r.request(probe.Request{At: sum, Budget: probe.Budget{Hits: 1}, Decide: func(h *probe.Hit) probe.Verdict {
		if h.Seq == 2 {
			r.guest.Destroy()
		}
		return probe.Verdict{}
	}})
	r.call(sum, 1, 2)
	r.cpu(0).Run(sim.Call(sum, 1, 2))
	r.destroyed()
	if err := r.finish(0); !errors.Is(err, xenevents.ErrDomainGone) {
		t.Error(err)
	}
}

// pair makes the two roots that a process has with KPTI.
func (r *rig) pair() (kernel, user *sim.Space) {
	r.t.Helper()
	last := r.guest.NewSpace()
	for range 8 {
		next := r.guest.NewSpace()
		if next.CR3() == last.CR3()^xenevents.PageSize {
			if next.CR3() < last.CR3() {
				return next, last
			}
			return last, next
		}
		last = next
	}
	r.t.Fatal("no two roots are neighbours")
	return nil, nil
}

// TestOtherSpaces: processes that share a frame. Hits of others are counted and
// passed, at an entry and at a return; both roots of a process are its own.
func TestOtherSpaces(t *testing.T) {
	const user xenevents.GVA = 0x40_0000
	r := newCalls(t, sim.Config{VCPUs: 3})
	frame := r.guest.Frame()
	lower, upper := r.pair()
	other := r.guest.NewSpace()
	for _, s := range []*sim.Space{lower, other} {
		s.Map(user, frame)
		s.Page(user + 16*xenevents.PageSize)
	}
	r.guest.Poke(xenevents.GPA(upper.CR3()), r.guest.Peek(xenevents.GPA(lower.CR3()), xenevents.PageSize/2))
	const top = uint64(user+17*xenevents.PageSize) - 64
	for i, s := range []*sim.Space{lower, upper, other} {
		r.cpu(i).Set(func(regs *xenevents.Registers) { regs.CR3, regs.RSP = s.CR3(), top })
	}
	r.cpu(1).Set(func(regs *xenevents.Registers) { regs.RSP = top - 256 }) // another thread
	const caller = 96
	r.guest.Poke(frame.GPA(), slices.Concat(code[sum], bytes.Repeat([]byte{0x90}, caller-len(code[sum])), rel(0xe8, caller, 0), []byte{0x90, 0xc3}))
	var n notes
	id := r.request(probe.Request{Name: "u", At: user, Space: lower.AddressSpace(), Return: true, Decide: n.decide("u")})
	r.between(func() {
		for i := range 3 {
			r.cpu(i).Run(sim.Repeat(2, sim.Call(user+caller, uint64(i), 10))...)
		}
	})
	for i := range 3 {
		r.done(i)
		if got := r.cpu(i).Registers().RAX; got != 10+uint64(i) {
			t.Errorf("vCPU %d returned %d", i, got)
		}
	}
	for _, x := range n.all {
		if x.vcpu == 2 || x.ret && x.rax != 10+uint64(x.vcpu) {
			t.Errorf("%+v", x)
		}
	}
	r.over(id, 4, 4, 0)
	s := r.status(id)
	if len(n.all) != 8 || s.Passed < 2 || s.Passed != r.stats().Passed {
		t.Errorf("%v, %+v, %+v", n.all, s, r.stats())
	}
	// One address on a stack of each process: they are not mixed up.
	n.all = nil
	r.request(probe.Request{Name: "v", At: user, Space: other.AddressSpace(), Return: true, Decide: n.decide("v")})
	for _, i := range []int{0, 2} {
		r.run(i, sim.Exec(user+caller), sim.Exec(user))
	}
	for _, i := range []int{0, 2} {
		r.run(i, sim.Exec(user+4), sim.Exec(user+5), sim.Exec(user+8), sim.Exec(user+12), sim.Exec(user+13), sim.Exec(user+caller+5))
	}
	n.are(t, "u#5 v#1 u#5=10 v#1=12")
}
