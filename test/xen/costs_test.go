package xen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// TestCosts: what else hprobe costs than the hit of TestCost: each way to step over,
// hits of others, reads and writes of a probed page, and what a watched page table
// costs. go test -v shows the table of docs/internals/cost.md. No limit is as near as
// TestCost's: a cost that doubles is found.
func TestCosts(t *testing.T) {
	t.Parallel()
	hosts, steps := []lab.Config{{Xen: "4.17", Guest: "6.1", CPUs: 2, VCPUs: 1, Pinned: true}}, []string{"emulate"}
	if full {
		hosts = append(hosts, lab.Config{Xen: "4.17", Guest: "6.1", CPUs: 1, VCPUs: 1})
		steps = append(steps, "fast-singlestep", "singlestep")
	}
	for _, cfg := range hosts {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := lab.Copy(t, cfg, binary(t, "test/xen/user"), profile(t, cfg.Guest), program(t, "costs"))
			for _, step := range steps {
				h.MustRun(t, strings.Replace(startUser, "user >", "user -step "+step+" >", 1))
				out := h.Guest.MustRun(t, "costs")
				h.MustRun(t, stopUser)
				for line := range strings.Lines(out) {
					var what string
					var without, with uint64
					if _, err := fmt.Sscanf(line, "%s %d %d", &what, &without, &with); err != nil {
						t.Errorf("the program says %q", line)
						continue
					}
					if step != "emulate" && what != "hit" && what != "passed" {
						continue // the same
					}
					t.Logf("%-16s %-10s %8d ticks, and %8d with a probe", step, what, without, with)
					if limit, known := costLimits[what]; !known || with > limit {
						t.Errorf("%s, %s costs %d ticks, of %d that it may", step, what, with, limit)
					}
				}
			}
			alive(t, h)
		})
	}
}

// costLimits are in ticks, for the dearest way to step over.
var costLimits = map[string]uint64{"hit": 300_000, "passed": 300_000, "read": 300_000, "write": 300_000, "elsewhere": 100, "mprotect": 1_500_000, "accessed": 500_000}
