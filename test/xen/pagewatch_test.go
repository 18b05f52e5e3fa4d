package xen

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// pagesReport is what the monitor test/xen/user prints at its end.
type pagesReport struct {
	Probes []struct {
		Name                string
		State               int
		Hits, Passed, Moves uint64
		Insn, Detail        string
	}
	Stats struct {
		Events                                                             map[string]uint64
		Reinjected, Stale, Retried, Reads, Writes, Passed, Shadows, Tables uint64
		TableWrites, AccessedBits, OtherWalks                              uint64
	}
}

const (
	startUser = `user > /tmp/user.log 2>&1 & echo $! > /tmp/user.pid
while ! grep -q armed /tmp/user.log; do [ -d /proc/$(cat /tmp/user.pid) ] || { cat /tmp/user.log; exit 1; }; sleep 0.05; done`
	stopUser = `kill $(cat /tmp/user.pid); while [ -d /proc/$(cat /tmp/user.pid) ]; do sleep 0.05; done; cat /tmp/user.log`
)

// pages has the guest's program of that name do one thing to a page of code while
// the monitor follows it: see test/guests/src/pages.c, which checks each count
// itself. The program's output must have each of the texts.
func pages(t *testing.T, cfg lab.Config, what, before string, texts ...string) (r pagesReport) {
	h := lab.Copy(t, cfg, binary(t, "test/xen/user"), profile(t, cfg.Guest), program(t, "pages"), program(t, "texthash"), binary(t, "test/xen/texthash"))
	text := h.Guest.MustRun(t, "texthash")
	h.MustRun(t, startUser)
	if before != "" {
		h.Guest.MustRun(t, before)
	}
	res, err := h.Guest.Run(t.Context(), "pages "+what)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s", res.Output)
	if res.Exit != 0 {
		t.Errorf("pages %s: exit status %d", what, res.Exit)
	}
	for _, text := range append(texts, "\nok\n") {
		if !strings.Contains(res.Output, text) {
			t.Errorf("the program does not say %q", text)
		}
	}
	log := h.MustRun(t, stopUser)
	for line := range strings.Lines(log) {
		switch {
		case strings.HasPrefix(line, "{"):
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		case strings.TrimSpace(line) != "armed" && !strings.Contains(line, "level=WARN"):
			t.Errorf("the monitor says: %s", line)
		}
	}
	t.Logf("%+v", r.Stats)
	for _, p := range r.Probes {
		// The program has exited: what followed its pages has ended.
		if p.Name == "watched" && p.State != 4 {
			t.Errorf("a probe is in state %d after the program's end: %+v", p.State, p)
		}
	}
	if r.Stats.Reinjected != 0 || r.Stats.Tables != 0 || len(r.Probes) < 2 {
		t.Errorf("%d probes, %+v", len(r.Probes), r.Stats)
	}
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != text {
		t.Errorf("dom0 sees the guest's code as %q after removal, the guest saw %q before", after, text)
	}
	alive(t, h)
	return r
}

const (
	waits = "before: state 3"
	thpOn = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
)

// copyOnWrite: fork, and a page that two processes share until each has its own.
func copyOnWrite(t *testing.T, cfg lab.Config) {
	pages(t, cfg, "cow", "", "after: state 0, armed 2 times, passed 4")
}

// TestPages: a probe on a function of a process follows the function's page,
// whatever is done to it, and each call is a hit, once. (TestHosts has copy-on-write.)
func TestPages(t *testing.T) {
	t.Run("File", func(t *testing.T) { t.Parallel(); pages(t, plain, "file", "", waits, "touched: 5 calls, 5 hits") })
	t.Run("Fresh", func(t *testing.T) { t.Parallel(); pages(t, plain, "fresh", "", waits) })
	t.Run("Munmap", func(t *testing.T) { t.Parallel(); pages(t, plain, "munmap", "", "other code: state 1") })
	t.Run("Mremap", func(t *testing.T) { t.Parallel(); pages(t, plain, "mremap", "", "back: 3 calls") })
	t.Run("Exit", func(t *testing.T) { t.Parallel(); pages(t, plain, "exit", "", "the root was used again") })
	t.Run("Huge", func(t *testing.T) {
		t.Parallel()
		pages(t, plain, "thp", thpOn, "split: 3 calls", "collapsed: 3 calls")
	})
	t.Run("KSM", func(t *testing.T) { t.Parallel(); pages(t, plain, "ksm", "", "its own again: 3 calls") })
	t.Run("Migration", func(t *testing.T) {
		t.Parallel()
		pages(t, plain, "migrate", "", "migrated: 3 calls", "compacted: 3 calls")
	})
	t.Run("Swap", func(t *testing.T) { t.Parallel(); pages(t, plain, "swap", "", "in: 3 calls", "after: 3 calls") })
	t.Run("Cost", func(t *testing.T) { t.Parallel(); pages(t, plain, "cost", "", "watched: ", "after: 3 calls") })
	t.Run("Walk", func(t *testing.T) {
		t.Parallel()
		if r := pages(t, plain, "walk", ""); r.Stats.AccessedBits < 10 {
			t.Errorf("%d accessed bits were written", r.Stats.AccessedBits)
		}
	})
	t.Run("Threads", func(t *testing.T) { t.Parallel(); pages(t, smp, "threads", "", "after: 3 calls") })
}

// TestPagesDetach: the monitor ends in the middle of everything, at other moments in
// each copy: the guest's program goes on, and its memory is right.
func TestPagesDetach(t *testing.T) {
	for i := range 6 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			cfg := []lab.Config{plain, smp}[i%2]
			h := lab.CopyWith(t, cfg, lab.Options{Delay: 1 + i*17}, binary(t, "test/xen/user"), profile(t, cfg.Guest), program(t, "pages"))
			h.MustRun(t, startUser)
			h.Guest.MustRun(t, "(pages storm > /tmp/storm.out 2>&1; echo end >> /tmp/storm.out) & while [ ! -e /tmp/pages.ready ]; do sleep 0.05; done")
			log := h.MustRun(t, fmt.Sprintf("sleep 0.%d; ", 1+i)+stopUser)
			if !strings.Contains(log, `"watched"`) {
				t.Errorf("the monitor says %s", log)
			}
			out := h.Guest.MustRun(t, "while ! grep -q end /tmp/storm.out; do sleep 0.1; done; cat /tmp/storm.out")
			if out != "ok\nend\n" {
				t.Errorf("the guest's program says %q", out)
			}
			t.Log(log)
			alive(t, h)
		})
	}
}

// TestProcessProbe: an operator's probe in a process, by its number and an address.
func TestProcessProbe(t *testing.T) {
	for _, cfg := range []lab.Config{plain, smp} {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := daemonHost(t, cfg, "pages", "calls")
			await := func(file string) {
				h.Guest.MustRun(t, "while [ ! -e /tmp/pages."+file+" ]; do sleep 0.1; done")
			}
			pid := strings.TrimSpace(h.Guest.MustRun(t, "pages serve > /dev/null 2>&1 & echo $!"))
			await("ready")
			add := "hprobe probe add -d guest --pid " + pid + " --at 0x20000080"
			says(t, h, 0, add, "p1: waiting in guest", "process "+pid)
			h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
			h.Guest.MustRun(t, "touch /tmp/pages.map")
			await("mapped")
			says(t, h, 0, "hprobe probe ls", "armed", " 100 ", "0x20000080 of process "+pid)
			says(t, h, 0, add+" --return", "p2: armed in guest")
			h.Guest.MustRun(t, "touch /tmp/pages.go")
			await("done")
			out := says(t, h, 0, "hprobe probe ls", " 200 ", " 100 ")
			says(t, h, 0, "hprobe -o json probe ls", `"returns":"100"`)
			call(t, h, 10, 1) // others live beside it
			h.MustRun(t, "sleep 1; kill $(cat /tmp/trace.pid)")
			if n := strings.Count(h.MustRun(t, "cat /tmp/trace.log"), "pages["); n != 400 {
				t.Errorf("the trace shows %d hits and returns of the process: %s %s", n, out, h.MustRun(t, "head -n 3 /tmp/trace.log"))
			}
			h.Guest.MustRun(t, "touch /tmp/pages.end; while [ -d /proc/"+pid+" ]; do sleep 0.1; done")
			says(t, h, 0, "hprobe probe ls", "ended")
			says(t, h, 0, "hprobe probe rm p1", "after 200 hits")
			says(t, h, 0, "hprobe probe rm p2", "after 100 hits")
			says(t, h, 3, add, "no process "+pid)
			says(t, h, 1, "hprobe probe add -d guest --pid 2 --at 0x20000080", "thread of the kernel")
			says(t, h, 2, "hprobe probe add -d guest --pid 1 --at do_exit", "do_exit")
			says(t, h, 0, "hprobe status", "attached to no guest")
			alive(t, h)
		})
	}
}
