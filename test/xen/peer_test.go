package xen

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// TestPeer measures what hprobe is measured by: a plain C loop over LibVMI, and beside it,
// in the same copy and with the same work, hprobe with either driver (go test -v shows
// it). It is on the hosts of TestCost.
func TestPeer(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("peer/loop.c")
	if err != nil {
		t.Fatal(err)
	}
	loop := lab.LibVMIProgram(t, "loop", map[string][]byte{"loop.c": source})
	for _, cfg := range costHosts {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			peer(t, cfg, loop)
		})
	}
}

func peer(t *testing.T, cfg lab.Config, loop lab.File) {
	h := lab.Copy(t, cfg, loop, lab.File{Name: "hits", Source: lab.GoBinaryLibVMI(t, module+"test/xen/hits")}, profile(t, cfg.Guest), program(t, "calls"))
	// Where KASLR has put it.
	at, _, _ := strings.Cut(h.Guest.MustRun(t, "grep -m 1 ' __x64_sys_getpriority$' /proc/kallsyms"), " ")
	free := call(t, h, costCalls, 1)
	h.MustRun(t, `loop `+at+` > /tmp/loop.log 2>&1 & echo $! > /tmp/loop.pid
while ! grep -q armed /tmp/loop.log; do [ -d /proc/$(cat /tmp/loop.pid) ] || { cat /tmp/loop.log; exit 1; }; sleep 0.05; done`)
	least := leastOf(t, h)
	log := h.MustRun(t, `kill $(cat /tmp/loop.pid); while [ -d /proc/$(cat /tmp/loop.pid) ]; do sleep 0.05; done; cat /tmp/loop.log`)
	if want := fmt.Sprintf("armed\nhits %d others 0\n", costWarmUp+3*costCalls); log != want {
		t.Errorf("the loop says %q, not %q", log, want)
	}
	call(t, h, costCalls, 1) // as if nothing had been there
	t.Logf("a call costs %d ticks, and %d with the loop's int3 on it", free.ticks, least.ticks)
	for _, driver := range []string{"native", "libvmi"} {
		m := armWith(t, h, driver, "-match 1500")
		hprobe := leastOf(t, h)
		if r := m.stop(); r.Matched != 3 || r.Probe.Hits != costWarmUp+3*costCalls {
			t.Errorf("%s: %d hits, %d of them with the argument that matches", driver, r.Probe.Hits, r.Matched)
		}
		ratio := float64(hprobe.ticks) / float64(least.ticks)
		t.Logf("with hprobe and the driver %s, which hides it and looks at an argument: %d, %.2f of the loop's", driver, hprobe.ticks, ratio)
		if ratio > 1.10 {
			t.Errorf("%s: %d ticks are more than a tenth over the loop's %d", driver, hprobe.ticks, least.ticks)
		}
	}
	alive(t, h)
}
