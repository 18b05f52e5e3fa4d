package xen

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// daemonHost is a copy in whose dom0 hprobed runs.
func daemonHost(t *testing.T, cfg lab.Config, programs ...string) *lab.Host {
	t.Helper()
	return daemonHostWith(t, cfg, nil, programs...)
}

// daemonHostWith is daemonHost with other files.
func daemonHostWith(t *testing.T, cfg lab.Config, more []lab.File, programs ...string) *lab.Host {
	t.Helper()
	files := append([]lab.File{binary(t, "cmd/hprobe"), binary(t, "cmd/hprobed"), binary(t, "test/xen/texthash"), profile(t, cfg.Guest)}, more...)
	for _, name := range programs {
		files = append(files, program(t, name))
	}
	return daemonOf(t, cfg, files)
}

// daemonOf is one with files: hprobe, hprobed and a profile among them.
func daemonOf(t *testing.T, cfg lab.Config, files []lab.File) *lab.Host {
	t.Helper()
	h := lab.Copy(t, cfg, files...)
	h.MustRun(t, startDaemon("--profiles /payload/profiles --findings /tmp/findings.json"))
	return h
}

// startDaemon starts hprobed and waits until it answers.
func startDaemon(flags string) string {
	return `hprobed ` + flags + ` > /tmp/hprobed.log 2>&1 & echo $! > /tmp/hprobed.pid
until hprobe status > /dev/null 2>&1; do [ -d /proc/$(cat /tmp/hprobed.pid) ] || { cat /tmp/hprobed.log; exit 1; }; sleep 0.1; done; `
}

// says runs a command in dom0 that must end with a status and say some words.
func says(t *testing.T, h *lab.Host, exit int, script string, words ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), lab.CommandLimit)
	defer cancel()
	res, err := h.Run(ctx, script)
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	if res.Exit != exit {
		t.Errorf("%s: exit status %d, not %d: %q", script, res.Exit, exit, res.Output)
	}
	for _, w := range words {
		if !strings.Contains(res.Output, w) {
			t.Errorf("%s: says %q, nothing of %q", script, res.Output, w)
		}
	}
	return res.Output
}

// awaitTraces waits until a trace that was just started sees hits.
const awaitTraces = "until hprobe status | grep -q '; 1 trace'; do sleep 0.1; done"

const stopDaemon = `kill $(cat /tmp/hprobed.pid); while [ -d /proc/$(cat /tmp/hprobed.pid) ]; do sleep 0.05; done; `

// daemon: an operator's day: doctor, probe, trace, list, remove.
func daemon(t *testing.T, cfg lab.Config) {
	h := daemonHost(t, cfg, "calls", "texthash")
	before := h.Guest.MustRun(t, "texthash")
	pages := h.MustRun(t, "xl list guest | tail -n 1 | awk '{print $3}'; xl info | grep free_memory")
	says(t, h, 0, "hprobe doctor guest", "Nothing is in the way.")
	says(t, h, 0, "hprobe domain features guest", "altp2m")
	says(t, h, 0, "hprobe domain ls", "guest")
	says(t, h, 0, "hprobe probe add --domain guest --at __x64_sys_getpriority", "p1: armed in guest")
	says(t, h, 4, "hprobe doctor guest", "BAD", "monitor")
	h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
	c := call(t, h, 50, cfg.VCPUs)
	out := says(t, h, 0, "hprobe probe ls; sleep 1; cat /tmp/trace.log", "__x64_sys_getpriority")
	if n := strings.Count(out, "calls"); n < int(c.calls) {
		t.Errorf("the trace shows %d of %d calls: %q", n, c.calls, out)
	}
	says(t, h, 0, "hprobe probe rm p1", fmt.Sprintf("after %d hits", c.calls))
	says(t, h, 0, "hprobe status", "attached to no guest")
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
	}
	if now := h.MustRun(t, "xl list guest | tail -n 1 | awk '{print $3}'; xl info | grep free_memory"); now != pages {
		t.Errorf("memory is %q, and was %q", now, pages)
	}
	alive(t, h)
}

// TestWrong: what a user gets wrong gets a status and a way out, and nothing
// stays behind.
func TestWrong(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain)
	for _, c := range []struct {
		exit    int
		command string
		words   string
	}{
		{2, "hprobe probe add --domain guest", "--at"},
		{2, "hprobe probe add --domian guest", "--domian"},
		{2, "hprobe nonsense", "nonsense"},
		{2, "hprobe probe add --domain guest --at 'a+b+c'", "a+b+c"},
		{3, "hprobe probe add --domain nobody --at do_exit", `"guest" (1)`},
		{3, "hprobe probe add --domain guest --at do_exitt", "do_exitt"},
		{3, "hprobe probe rm p7", "p7"},
		{5, "hprobe --socket /tmp/none status", "hprobed"},
		{3, "hprobe doctor nobody", `"guest" (1)`},
		{1, "hprobed", "hprobed"}, // a second one
	} {
		says(t, h, c.exit, c.command, c.words)
	}
	says(t, h, 0, "hprobe status", "attached to no guest")
	alive(t, h)
}

// TestDaemonEnds: hprobed gets SIGTERM in the middle of a storm on a traced
// probe; the guest runs on, all its calls are right, its code is as it was.
func TestDaemonEnds(t *testing.T) {
	t.Parallel()
	for _, cfg := range []lab.Config{plain, smp} {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := daemonHost(t, cfg, "calls", "texthash")
			before := h.Guest.MustRun(t, "texthash")
			h.MustRun(t, fmt.Sprintf(`hprobe probe add --domain guest --at __x64_sys_getpriority
hprobe trace > /tmp/trace.log 2>&1 & `+awaitTraces+`
guest '(calls 20000 %d > /tmp/calls.out 2>&1) &'; sleep 0.2; hprobe probe ls; %s`, cfg.VCPUs, stopDaemon))
			c := parseCalls(t, h.Guest.MustRun(t, "while ! grep -q calls /tmp/calls.out; do sleep 0.1; done; cat /tmp/calls.out"))
			if c.wrong != 0 || c.calls != uint64(20000*cfg.VCPUs) {
				t.Errorf("%d of %d calls had a wrong result", c.wrong, c.calls)
			}
			if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
				t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
			}
			if hits := strings.Count(h.MustRun(t, "cat /tmp/trace.log"), "\n"); hits == 0 || uint64(hits) >= c.calls {
				t.Errorf("hprobed ended after %d hits, not in the middle of %d calls", hits, c.calls)
			}
			alive(t, h)
		})
	}
}

// TestDestroyed: the guest is destroyed in the middle of a storm of hits; hprobed
// says so and lives on.
func TestDestroyed(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain, "calls")
	h.MustRun(t, `hprobe probe add --domain guest --at __x64_sys_getpriority
guest '(calls 1000000 1 > /tmp/calls.out 2>&1) &'; sleep 0.2; xl destroy guest; n=0
until hprobe status | grep -q 'attached to no guest' || [ $n -gt 100 ]; do n=$((n+1)); hprobe probe rm p1; sleep 0.1; done`)
	says(t, h, 0, "hprobe status", "attached to no guest")
	says(t, h, 3, "hprobe probe add --domain guest --at do_exit", "no guest runs")
	says(t, h, 0, stopDaemon+"cat /tmp/hprobed.log", "the domain ended")
}

// TestRebooted: the guest reboots while it is probed. hprobed says so, has nothing
// of it any more, and takes probes in the guest that came up.
func TestRebooted(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain, "calls")
	says(t, h, 0, "hprobe probe add --domain guest --at __x64_sys_getpriority", "p1: armed in guest")
	h.MustRun(t, "for id in p1 '-d guest' ''; do hprobe trace $id >> /tmp/trace.log 2>&1 & done; hprobe findings -f -n 1 > /tmp/found.log 2>&1 & until hprobe status | grep -q '; 3 traces; findings are followed by 1'; do sleep 0.1; done")
	call(t, h, 10, 1)
	says(t, h, 0, "xl reboot guest; n=0; until xl list guest | grep -q '^guest  *2 ' || [ $n -gt 600 ]; do n=$((n+1)); sleep 0.1; done; hprobe domain ls", "2   guest")
	says(t, h, 1, "hprobe probe rm p1", `"guest" has ended or restarted, and probe p1 went with it`)
	says(t, h, 3, "hprobe probe rm p1", "there is no probe")
	says(t, h, 0, "hprobe status", "attached to no guest")
	// Who traces the probe, or the guest, is told; who traces all goes on.
	if out := h.MustRun(t, "cat /tmp/found.log; cat /tmp/trace.log; ps | grep -c '[h]probe trace'"); strings.Count(out, `"guest" has ended or restarted, and its probes went with it`) != 2 ||
		strings.Count(out, "__x64_sys_getpriority") != 30 || !strings.Contains(out, "the guest ended or restarted: its probes and stopgaps are gone with it") || !strings.HasSuffix(strings.TrimSpace(out), "1") {
		t.Errorf("those who trace see %q", out)
	}
	// Its kernel is elsewhere now, and at first it has none.
	says(t, h, 0, "n=0; until hprobe probe add --domain guest --at __x64_sys_getpriority 2> /dev/null || [ $n -gt 600 ]; do n=$((n+1)); sleep 0.2; done", "armed in guest")
	out := says(t, h, 0, "xl list; "+stopDaemon+"cat /tmp/hprobed.log", "the domain ended", "id=2", "detached")
	if strings.Contains(out, "level=ERROR") {
		t.Error(out)
	}
}
