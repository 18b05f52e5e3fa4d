package probe_test

import (
	"context"
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// memory is a guest whose memory costs nothing to read, and whose vCPU hits one
// probe again and again: what is left is the engine.
type memory struct {
	*sim.Domain
	all  []byte
	feed *feed
	tick uint64
}

// Ticks is as cheap as a TSC.
func (m *memory) TicksPerSecond() uint64 { return 0 }

func (m *memory) Ticks() uint64 {
	m.tick++
	return m.tick
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
	dom         *memory
	event       xenevents.Event
	then        *xenevents.Event // every second one is this
	odd         bool
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
		if f.odd && f.then != nil {
			batch[i] = *f.then
		}
		f.odd = !f.odd
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
		// returns: every second hit is one.
		returns bool
	}{
		{"nobody asked", probe.Emulate, 1, 0, nil, false},
		{"arguments", probe.Emulate, 1, 0, args, false},
		{"arguments, batch of 8", probe.Emulate, 8, 0, args, false},
		{"arguments, fast step", probe.FastStep, 1, 0, args, false},
		{"arguments, 1000 pages", probe.Emulate, 1, 1000, args, false},
		{"64 bytes", probe.Emulate, 1, 0, func(h *probe.Hit) probe.Verdict {
			if _, err := h.Read(buf[:], dataAt); err != nil {
				panic(err)
			}
			return probe.Verdict{}
		}, false},
		{"deny", probe.Emulate, 1, 0, func(*probe.Hit) probe.Verdict { return probe.Verdict{Action: probe.Deny} }, false},
		{"return", probe.Emulate, 1, 0, args, true},
	} {
		b.Run(c.name, func(b *testing.B) {
			hit := newFeed(b, c.batch, c.pages, probe.Request{Step: c.step, Decide: c.decide, Return: c.returns})
			b.ReportAllocs()
			b.ResetTimer()
			hit(b.N)
		})
	}
}

// TestHitAllocatesNothing: a garbage collection in the middle of a hit is one that
// all vCPUs wait for.
func TestHitAllocatesNothing(t *testing.T) {
	for i, v := range []probe.Verdict{{}, {Action: probe.Deny}, {}} {
		returns := 0
		hit := newFeed(t, 1, 0, probe.Request{Return: i == 2, Decide: func(h *probe.Hit) probe.Verdict {
			if _, err := h.ReadUint64(dataAt); err != nil {
				panic(err)
			}
			if h.Return {
				returns++
			}
			return v
		}, Thread: func(*probe.Hit) (uint64, bool) { return 5, true }})
		const hits = 10_000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		hit(hits)
		runtime.ReadMemStats(&after)
		if n := after.Mallocs - before.Mallocs; n > hits/10 { // other goroutines allocate as well
			t.Errorf("%v: %d allocations", v.Action, n)
		}
		if i == 2 && returns != hits/2 {
			t.Errorf("%d returns of %d hits", returns, hits)
		}
	}
}

// newFeed returns what has an engine serve n hits.
func newFeed(tb testing.TB, batch, pages int, q probe.Request, then ...func(*feed, *probe.Engine, *sim.Space)) func(n int) {
	tb.Helper()
	const frames, pagesAt = 4096, otherAt + 16*xenevents.PageSize
	h := sim.NewHost()
	g := h.Add(sim.Config{ID: 1, Frames: frames})
	s := g.NewSpace()
	at := codeAt + 0x10
	gfn := s.Page(codeAt, append(make([]byte, 0x10), code[at]...)...)
	s.Page(dataAt)
	const call = otherAt + 0x100
	site := s.Page(call, append(rel(0xe8, call, at), 0x90)...)
	g.Poke(site.GPA()+0x100, append(rel(0xe8, call, at), 0x90))
	s.Page(stackAt, binary.LittleEndian.AppendUint64(nil, uint64(call+5))...)
	for i := range pages {
		s.Page(pagesAt+xenevents.GVA(i)*xenevents.PageSize, 0x90, 0xc3)
	}
	dom, err := h.Open(context.Background(), 1)
	if err != nil {
		tb.Fatal(err)
	}
	f := &feed{batch: batch, start: make(chan events), interrupted: make(chan struct{}, 100)}
	f.event = xenevents.Event{Kind: xenevents.KindInt3, Paused: true, GFN: gfn, InsnLen: 1, Regs: g.VCPU(0).Registers()}
	f.event.Regs.RIP, f.event.Regs.RSP, f.event.Regs.CR3 = uint64(at), uint64(stackAt), s.CR3()
	if q.Return {
		then := f.event
		then.GFN, then.Regs.RIP = site, uint64(call+5)
		then.Regs.RSP += 8
		f.then = &then
	}
	f.dom = &memory{Domain: dom.(*sim.Domain), all: g.Peek(0, frames*xenevents.PageSize), feed: f}
	engine, err := probe.New(f.dom, probe.Options{})
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
	q.At, q.Budget = at, probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}
	add(q)
	for i := range pages {
		add(probe.Request{At: pagesAt + xenevents.GVA(i)*xenevents.PageSize})
	}
	for _, f2 := range then {
		f2(f, engine, s)
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

// TestWatchAllocatesNothing, as TestHitAllocatesNothing.
func TestWatchAllocatesNothing(t *testing.T) {
	for _, ev := range []xenevents.Event{
		{Kind: xenevents.KindControlReg, Index: 3, New: 1}, {Kind: xenevents.KindMSR, Index: lstar, New: 1}, {Kind: xenevents.KindCPUID, Leaf: 1, InsnLen: 2},
		{Kind: xenevents.KindMemAccess, Access: xenevents.AccessRW, Fault: xenevents.FaultGLAValid | xenevents.FaultWithGLA, GLA: dataAt},
	} {
		seen := 0
		w := probe.Watch{Source: probe.Source{Kind: ev.Kind, Index: ev.Index, Any: true}, Budget: probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}, Decide: func(h *probe.Hit) probe.Verdict {
			seen += int(h.Seen.Kind)
			return probe.Verdict{}
		}}
		if ev.Kind == xenevents.KindMemAccess {
			w.Source = bytesAt(dataAt+8, 8, xenevents.AccessW)
		}
		hit := newFeed(t, 1, 0, probe.Request{}, func(f *feed, engine *probe.Engine, s *sim.Space) {
			w.Space = s.AddressSpace()
			if _, err := engine.Watch(context.Background(), w); err != nil {
				t.Fatal(err)
			}
			ev.Paused, ev.Regs = true, f.event.Regs
			if ev.Kind == xenevents.KindMemAccess {
				data, err := guestmem.NewReader(f.dom).Translate(w.Space, dataAt)
				if err != nil {
					t.Fatal(err)
				}
				ev.GFN = data.GPA.GFN()
				ev.Regs.RIP += 7 // lea rax,[rdi+rsi]: none of its own
			}
			f.event = ev
		})
		const hits = 10_000
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		hit(hits)
		runtime.ReadMemStats(&after)
		if n := after.Mallocs - before.Mallocs; n > hits/10 {
			t.Errorf("%v: %d allocations", ev.Kind, n)
		}
		if ev.Kind != xenevents.KindMemAccess && seen != hits*int(ev.Kind) {
			t.Errorf("%v: %d of %d were seen", ev.Kind, seen, hits)
		}
	}
}
