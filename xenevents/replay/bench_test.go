package replay_test

import (
	"context"
	"fmt"
	"io"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/replay"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// BenchmarkHit is what the vCPU of a hit waits for the engine, in nanoseconds, with a probe
// that reads words of so many pages: as it is, and recorded.
func BenchmarkHit(b *testing.B) {
	for _, pages := range []int{0, 1, 4} {
		for _, recorded := range []bool{false, true} {
			b.Run(fmt.Sprintf("%d pages/recorded %v", pages, recorded), func(b *testing.B) { hits(b, pages, recorded) })
		}
	}
}

func hits(b *testing.B, pages int, recorded bool) {
	g := newGuest(b)
	dom, err := g.host.Open(b.Context(), 1)
	must(b, err)
	if recorded {
		dom, err = replay.Record(b.Context(), dom, replay.About{}, io.Discard)
		must(b, err)
	}
	engine, err := probe.New(dom, probe.Options{Budget: probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}, Domain: probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}})
	must(b, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(ctx) }()
	<-engine.Ready()
	from := []xenevents.GVA{dataAt, otherAt, stackAt, codeAt}[:pages]
	_, err = engine.Add(b.Context(), probe.Request{Name: "p", At: sum, Space: g.space.AddressSpace(), Decide: func(h *probe.Hit) probe.Verdict {
		for _, at := range from {
			if _, err := h.ReadUint64(at); err != nil {
				b.Error(err)
			}
		}
		return probe.Verdict{}
	}})
	must(b, err)
	_, before, err := engine.Probes(b.Context())
	must(b, err)
	n := 0
	for b.Loop() {
		g.poke64(dataAt, uint64(n)) // something changes
		g.run(sim.Call(sum, 1, 2))
		n++
	}
	_, after, err := engine.Probes(b.Context())
	must(b, err)
	cancel()
	must(b, <-ended)
	b.ReportMetric(float64(after.Ticks-before.Ticks)/float64(n), "engine-ns/hit")
	b.ReportMetric(0, "ns/op") // most of it is the simulator's
	if r, ok := dom.(*replay.Recorder); ok && r.Early() != "" {
		b.Errorf("%d hits: %s", n, r.Early())
	}
	must(b, dom.Close())
}
