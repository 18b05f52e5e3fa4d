package xen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// TestProgramReturns: the ends of a program's calls, in every way that one can end, and
// with what can happen to the page that it returns to.
func TestProgramReturns(t *testing.T) {
	for _, cfg := range first(2, plain, smp, oldest) {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			p := program(t, "returns")
			files := []lab.File{p, {Name: "copies/returns", Source: p.Source}, binary(t, "cmd/hprobe"), binary(t, "cmd/hprobed"), profile(t, cfg.Guest)}
			h := daemonOf(t, cfg, files)
			before := h.Guest.MustRun(t, "md5sum /payload/returns")
			const add = "hprobe probe add -d guest --at 'image:/payload/returns!work' --image-file /payload/copies/returns --return"
			says(t, h, 0, add, "p1: waiting in guest")
			h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
			var hits, returns, lost int
			for _, one := range []struct {
				what                string
				rounds              int
				hits, returns, lost int // a round
			}{
				{"add", 20, 1, 1, 0},
				{"recurse", 5, 6, 6, 0},
				{"fork", 5, 3, 3, 0},
				{"leap", 5, 2, 1, 1},
				{"quit", 5, 1, 0, 1},
				{"move", 3, 5, 5, 0},
				{"threads", 10, 20, 20, 0},
			} {
				runs(t, h, fmt.Sprintf("returns %s %d", one.what, one.rounds))
				hits, returns, lost = hits+one.rounds*one.hits, returns+one.rounds*one.returns, lost+one.rounds*one.lost
				says(t, h, 0, "hprobe -o json probe ls", fmt.Sprintf(`"hits":"%d"`, hits), fmt.Sprintf(`"returns":"%d"`, returns), fmt.Sprintf(`"lost":"%d"`, lost), `"missed":"0"`)
			}
			trace := h.MustRun(t, "sleep 1; kill $(cat /tmp/trace.pid); cat /tmp/trace.log")
			if n := strings.Count(trace, "!work -> "); n != returns {
				t.Errorf("the trace has %d of %d returns: %s", n, returns, trace)
			}
			for i := range 20 {
				if want := fmt.Sprintf("!work -> %#x ", 1000+i); !strings.Contains(trace, want) {
					t.Errorf("no %q in the trace", want)
				}
			}
			says(t, h, 0, "hprobe probe rm p1", fmt.Sprintf("after %d hits", hits))
			// What a program is told may be another thing than what the function found.
			says(t, h, 0, add+" --when 'ret >= 1000u' --capture ret,comm --set ret=77 --mode enforce", "p2: waiting in guest")
			runs(t, h, "returns set 10")
			says(t, h, 0, "hprobe probe rm p2", "after 10 hits, 10 matched")
			says(t, h, 0, "hprobe status", "attached to no guest")
			if after := h.Guest.MustRun(t, "md5sum /payload/returns"); after != before {
				t.Errorf("the program is %q, and was %q", after, before)
			}
			if log := h.MustRun(t, "cat /tmp/hprobed.log"); strings.Contains(log, "level=ERROR") || strings.Contains(log, "can't be seen") {
				t.Error(log)
			}
			alive(t, h)
		})
	}
}
