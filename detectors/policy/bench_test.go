package policy

import (
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

// still is a hit that has registers, and nothing else.
type still struct {
	detectors.Hit // what nobody should use panics
	regs          xenevents.Registers
}

func (h *still) Registers() *xenevents.Registers { return &h.regs }

// TestHitsAllocateNothing: while a vCPU waits, and nobody is to be told.
func TestHitsAllocateNothing(t *testing.T) {
	p := policies(t, `
  counters: [{name: c, key: reg.rdi}]
  probes:
    - {name: none, at: vfs_stat, when: reg.rsi == 1, then: {finding: {}}}
    - {name: counted, at: vfs_stat, then: {count: c, threshold: 1000000000}}
    - {name: beat, at: vfs_stat}
  watchdogs: [{name: w, expect: beat, within: 1s}]
`)[0]
	d, err := p.Compile(newRig(t).target())
	if err != nil {
		t.Fatal(err)
	}
	h := &still{}
	for _, a := range d.probes {
		a.hit(h)
		if n := testing.AllocsPerRun(100, func() { a.hit(h) }); n != 0 {
			t.Errorf("%s: %v allocations a hit", a.Name, n)
		}
	}
	if d.probes[2].matched < 100 {
		t.Errorf("%d matches", d.probes[2].matched)
	}
	told := 0
	d.Seen = func(m *Match) { told++ }
	d.probes[2].hit(h)
	d.probes[0].hit(h)
	if told != 1 {
		t.Errorf("told of %d matches", told)
	}
}
