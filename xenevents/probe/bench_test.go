package probe_test

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// memory is a guest whose memory costs nothing to read, and whose vCPU hits one
// probe again and again: what is left is the engine.
type memory struct {
	*sim.Domain
	all  []byte
	feed *feed
}

func (m *memory) ReadGPA(p []byte, at xenevents.GPA) (int, error) { return copy(p, m.all[at:]), nil }

func (m *memory) Attach(ctx context.Context) (xenevents.Events, error) {
	e, err := m.Domain.Attach(ctx)
	if err != nil {
		return nil, err
	}
	m.feed.Events = e.(*sim.Events)
	return m.feed, nil
}

// events are to be given out; done is closed when all have had their replies.
type events struct {
	n    int
	done chan struct{}
}

// feed gives out copies of one event, in batches.
type feed struct {
	*sim.Events
	event       xenevents.Event
	batch       int
	todo        int
	start       chan events
	interrupted chan struct{}
	done        chan struct{} // of the events that are given out
	replies     atomic.Int64
}

func (f *feed) Next(ctx context.Context, batch []xenevents.Event) (int, error) {
	if f.todo == 0 {
		if f.done != nil {
			close(f.done)
			f.done = nil
		}
		select {
		case e := <-f.start:
			f.todo, f.done = e.n, e.done
		case <-f.interrupted:
			return 0, xenevents.ErrInterrupted
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	n := min(f.batch, f.todo)
	for i := range n {
		batch[i] = f.event
	}
	f.todo -= n
	return n, nil
}

func (f *feed) Reply(*xenevents.Event, *xenevents.Reply) error {
	f.replies.Add(1)
	return nil
}

func (f *feed) Flush() error { return nil }

func (f *feed) Interrupt() { f.interrupted <- struct{}{} }

// BenchmarkHit is from an event to its reply, without the driver.
func BenchmarkHit(b *testing.B) {
	var buf [64]byte
	var sum uint64
	args := func(h *probe.Hit) probe.Verdict {
		sum += h.Regs.RDI + h.Regs.RSI
		return probe.Verdict{}
	}
	for _, c := range []struct {
		name   string
		step   probe.StepOver
		batch  int
		pages  int // with another probe in each
		decide func(*probe.Hit) probe.Verdict
	}{
		{"nobody asked", probe.Emulate, 1, 0, nil},
		{"arguments", probe.Emulate, 1, 0, args},
		{"arguments, batch of 8", probe.Emulate, 8, 0, args},
		{"arguments, fast step", probe.FastStep, 1, 0, args},
		{"arguments, 1000 pages", probe.Emulate, 1, 1000, args},
		{"64 bytes", probe.Emulate, 1, 0, func(h *probe.Hit) probe.Verdict {
			if _, err := h.Read(buf[:], dataAt); err != nil {
				panic(err)
			}
			return probe.Verdict{}
		}},
		{"deny", probe.Emulate, 1, 0, func(*probe.Hit) probe.Verdict { return probe.Verdict{Action: probe.Deny} }},
	} {
		b.Run(c.name, func(b *testing.B) {
			hit := newFeed(b, c.step, c.batch, c.pages, c.decide)
			b.ReportAllocs()
			b.ResetTimer()
			hit(b.N)
		})
	}
}

// TestHitAllocatesNothing: a garbage collection in the middle of a hit is one that
// all vCPUs wait for.
func TestHitAllocatesNothing(t *testing.T) {
	for _, v := range []probe.Verdict{{}, {Action: probe.Deny}} {
		hit := newFeed(t, probe.Auto, 1, 0, func(h *probe.Hit) probe.Verdict {
			if _, err := h.ReadUint64(dataAt); err != nil {
				panic(err)
			}
			return v
		})
		const hits = 10_000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		hit(hits)
		runtime.ReadMemStats(&after)
		if n := after.Mallocs - before.Mallocs; n > hits/10 { // other goroutines allocate as well
			t.Errorf("%v: %d allocations", v.Action, n)
		}
	}
}

// newFeed returns what has an engine serve n hits.
func newFeed(tb testing.TB, step probe.StepOver, batch, pages int, decide func(*probe.Hit) probe.Verdict) func(n int) {
	tb.Helper()
	const frames = 4096
	h := sim.NewHost()
	g := h.Add(sim.Config{ID: 1, Frames: frames})
	s := g.NewSpace()
	at := codeAt + 0x10
	gfn := s.Page(codeAt, append(make([]byte, 0x10), code[at]...)...)
	s.Page(dataAt)
	s.Page(stackAt)
	for i := range pages {
		s.Page(otherAt+xenevents.GVA(i)*xenevents.PageSize, 0x90, 0xc3)
	}
	dom, err := h.Open(context.Background(), 1)
	if err != nil {
		tb.Fatal(err)
	}
	f := &feed{batch: batch, start: make(chan events), interrupted: make(chan struct{}, 100)}
	f.event = xenevents.Event{Kind: xenevents.KindInt3, Paused: true, GFN: gfn, InsnLen: 1, Regs: g.VCPU(0).Registers()}
	f.event.Regs.RIP, f.event.Regs.RSP, f.event.Regs.CR3 = uint64(at), uint64(stackAt), s.CR3()
	engine, err := probe.New(&memory{Domain: dom.(*sim.Domain), all: g.Peek(0, frames*xenevents.PageSize), feed: f}, probe.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			tb.Error(err)
		}
	})
	add := func(r probe.Request) {
		r.Space = s.AddressSpace()
		if _, err := engine.Add(context.Background(), r); err != nil {
			tb.Fatal(err)
		}
	}
	add(probe.Request{At: at, Step: step, Decide: decide, Budget: probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}})
	for i := range pages {
		add(probe.Request{At: otherAt + xenevents.GVA(i)*xenevents.PageSize})
	}
	return func(n int) {
		done := make(chan struct{})
		f.start <- events{n, done}
		<-done
		if f.replies.Load() != int64(n) {
			tb.Errorf("%d replies to %d hits", f.replies.Load(), n)
		}
	}
}
