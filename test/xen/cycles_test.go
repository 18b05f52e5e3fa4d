package xen

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
	"github.com/hprobe/hprobe/xenevents"
)

// TestAttachDetach: a monitor attaches and detaches many times while the guest works
// (10,000 in the full run), and nothing grows: not in it, not in the guest.
func TestAttachDetach(t *testing.T) {
	t.Parallel()
	cycles := 100
	if full {
		cycles = 10_000
	}
	h := lab.Copy(t, plain, append(monitorFiles(t, plain, "calls", "work"), binary(t, "test/xen/cycles"))...)
	memory := "xl list guest | tail -n 1 | awk '{print $3}'; xl info | grep free_memory"
	first := h.MustRun(t, memory)
	h.Guest.MustRun(t, "(while work 1 > /tmp/work.last 2>&1; do mv /tmp/work.last /tmp/work.out; sleep 0.5; done) &")
	h.MustRun(t, fmt.Sprintf("(cycles -n %d > /tmp/cycles.log 2> /tmp/cycles.err; echo $? > /tmp/cycles.end) &", cycles))
	// The limit of a command is for one look, not for all the cycles.
	for h.MustRun(t, "n=0; while [ ! -s /tmp/cycles.end ] && [ $n -lt 400 ]; do n=$((n+1)); sleep 0.1; done; cat /tmp/cycles.end 2> /dev/null; true") == "" {
	}
	out := h.MustRun(t, "cat /tmp/cycles.log /tmp/cycles.end")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if len(lines) != 3 || lines[2] != "0" {
		t.Fatalf("cycles says %s %s", out, h.MustRun(t, "tail -n 20 /tmp/cycles.err"))
	}
	var at [2]struct {
		RSS, Maps, Files, Threads, Cycles int
		Domain                            xenevents.DomainInfo
	}
	for i := range at {
		if err := json.Unmarshal([]byte(lines[i]), &at[i]); err != nil {
			t.Fatalf("%v: %s", err, lines[i])
		}
	}
	t.Logf("after %d cycles %+v", at[0].Cycles, at[0])
	t.Logf("after %d cycles %+v", at[1].Cycles, at[1])
	if at[1].Cycles != cycles || at[0].Domain != at[1].Domain || at[0].Domain.Paused {
		t.Errorf("the domain was %+v and is %+v", at[0].Domain, at[1].Domain)
	}
	// Go's heap and what it maps go up and down a little.
	if at[1].Files != at[0].Files || at[1].Threads > at[0].Threads || at[1].Maps > at[0].Maps+4 || at[1].RSS > at[0].RSS+1024 {
		t.Error("the monitor grows")
	}
	if last := h.MustRun(t, memory); last != first {
		t.Errorf("memory is %q, and was %q", last, first)
	}
	if work := h.Guest.MustRun(t, "cat /tmp/work.out"); work != checksum(t, 1) {
		t.Errorf("the guest computes %q meanwhile, %q alone", work, checksum(t, 1))
	}
	call(t, h, 100, plain.VCPUs)
	alive(t, h)
}
