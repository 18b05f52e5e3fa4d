package binder

import (
	"math"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// budget is what a probe may cost, in the engine's terms.
func (b *Binder) budget(spec *detectors.ProbeSpec) probe.Budget {
	window, asked := b.engine.Window(), spec.Budget
	if asked == (detectors.Budget{}) && spec.Vital {
		return probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}
	}
	out := probe.Budget{Hits: asked.HitsPerSecond}
	if p := uint64(asked.StalledPercent); p > 0 {
		out.Stalled = min(window, math.MaxUint64/p) * p / 100
	}
	return out
}
