package binder

import (
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents/probe"
)

func TestBudget(t *testing.T) {
	b := newBench(t).binder
	window := uint64(gapWindow)
	for _, c := range []struct {
		spec detectors.ProbeSpec
		want probe.Budget
	}{
		{detectors.ProbeSpec{}, probe.Budget{}},
		{detectors.ProbeSpec{Vital: true}, probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}},
		{detectors.ProbeSpec{Vital: true, Budget: detectors.Budget{HitsPerSecond: 7}}, probe.Budget{Hits: 7}},
		{detectors.ProbeSpec{Budget: detectors.Budget{StalledPercent: 150}}, probe.Budget{Stalled: window / 2 * 3}},
		{detectors.ProbeSpec{Budget: detectors.Budget{HitsPerSecond: 1, StalledPercent: 1 << 31}}, probe.Budget{Hits: 1, Stalled: window / 100 << 31}},
	} {
		if got := b.budget(&c.spec); got != c.want {
			t.Errorf("%+v: %+v, not %+v", c.spec, got, c.want)
		}
	}
}
