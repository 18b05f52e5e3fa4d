package xen

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/test/lab"
)

// TestSinks: what a stopgap finds in a guest comes to a sink of each kind, once each; two that nobody
// answers hold up neither the others nor the guest, and what is lost to them is counted.
func TestSinks(t *testing.T) {
	t.Parallel()
	const calls = 2600 // half of them are attempts: more than wait in memory
	h := lab.Copy(t, plain, binary(t, "test/xen/sunk"), binary(t, "test/xen/texthash"), profile(t, plain.Guest), program(t, "splicerace"), program(t, "texthash"))
	h.MustRun(t, `sunk > /tmp/sunk.out 2> /tmp/sunk.log & echo $! > /tmp/sunk.pid; until grep -q ready /tmp/sunk.out; do [ -d /proc/$(cat /tmp/sunk.pid) ] || { cat /tmp/sunk.out /tmp/sunk.log; exit 1; }; sleep 0.1; done`)
	if got := splice(t, h, calls, "to %d 1 compat", calls); got.refused != calls/2 || got.honest != calls/2 {
		t.Errorf("%+v", got)
	}
	out := h.MustRun(t, `kill $(cat /tmp/sunk.pid); while [ -d /proc/$(cat /tmp/sunk.pid) ]; do sleep 0.1; done; tail -n 1 /tmp/sunk.out`)
	var r struct {
		Found                     uint64
		Health                    []sinks.Health
		Posted, Logged, Journaled uint64
		Error                     string
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("%v: %q, and its log is %s", err, out, h.MustRun(t, "cat /tmp/sunk.log"))
	}
	if r.Found < calls/2 || r.Posted != r.Found || r.Logged != r.Found || r.Journaled != r.Found || !strings.Contains(r.Error, "sink away") || strings.Count(r.Error, "sink ") != 1 {
		t.Errorf("found %d, posted %d, logged %d, journaled %d, %q", r.Found, r.Posted, r.Logged, r.Journaled, r.Error)
	}
	for _, s := range r.Health {
		var dropped uint64
		for _, n := range s.Dropped {
			dropped += n
		}
		delivered, filtered, waiting := r.Found, uint64(0), 0
		switch s.Name {
		case "others":
			delivered, filtered = 0, r.Found
		case "refused":
			delivered, waiting = 0, int(r.Found)
		case "away":
			delivered = 0
			if dropped != r.Found || s.Dropped[sinks.DropSlow] == 0 || s.Dropped[sinks.DropClosed] == 0 {
				t.Errorf("away: %v are dropped of %d", s.Dropped, r.Found)
			}
			dropped = 0
		}
		if s.Delivered != delivered || s.Filtered != filtered || s.Waiting != waiting || dropped != 0 {
			t.Errorf("%+v of %d", s, r.Found)
		}
	}
	said := says(t, h, 0, "cat /tmp/sunk.log; grep -c class_uid.:2004 /tmp/findings/ocsf; grep -c stopgap/vmsplice /tmp/findings/json; cat /tmp/state/queue/refused/0* | wc -l; ls /tmp/findings",
		"reason=slow", "reason=closed", "503 Service Unavailable", fmt.Sprintf("\n%d\n%d\n%d\n", r.Found, r.Found, r.Found))
	if len(r.Health) != 8 {
		t.Errorf("%d sinks: %s", len(r.Health), said)
	}
	alive(t, h)
}
