package xen

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// TestPeer measures what hprobe is measured by: a plain C loop over LibVMI (go test
// -v shows it). It is on the hosts of TestCost, and has the same work.
func TestPeer(t *testing.T) {
	t.Parallel()
	source, err := os.ReadFile("peer/loop.c")
	if err != nil {
		t.Fatal(err)
	}
	loop := lab.LibVMIProgram(t, "loop", map[string][]byte{"loop.c": source})
	for limit, cfg := range costHosts {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			peer(t, cfg, loop, limit)
		})
	}
}

func peer(t *testing.T, cfg lab.Config, loop lab.File, limit uint64) {
	h := lab.Copy(t, cfg, loop, program(t, "calls"))
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
	t.Logf("a call costs %d ticks, and %d with the loop's int3 on it; hprobe may take %d", free.ticks, least.ticks, limit)
	call(t, h, costCalls, 1) // as if nothing had been there
	alive(t, h)
}
