package xen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// What system calls return.
const (
	einval         = -22
	erestartNoHand = -514 // in the kernel, of one that a signal ends
)

// returned checks that each entry had its return, with one value.
func (r *report) returned(t *testing.T, value int64, n uint64) {
	t.Helper()
	if r.Probe.Hits != n || r.Probe.Returns != n || r.Probe.Lost != 0 || r.Unpaired != 0 || len(r.Values) != 1 || r.Values[value] != n {
		t.Errorf("%d calls: %d entries, %d returns, %d lost, %d without a pair, values %v; stale %d, evicted %d", n,
			r.Probe.Hits, r.Probe.Returns, r.Probe.Lost, r.Unpaired, r.Values, r.Stats.StaleCalls, r.Stats.Evicted)
	}
	if r.Stats.Calls != 0 {
		t.Errorf("%d calls are still under way", r.Stats.Calls)
	}
}

// returns: each call of two threads on two vCPUs is an entry and a return, with
// its value, in pairs; the guest's code is as it was all the time, and nothing is
// left. All system calls of the guest return to the same place.
func returns(t *testing.T, cfg lab.Config) {
	h := lab.Copy(t, cfg, monitorFiles(t, cfg, "calls", "texthash", "work")...)
	before := h.Guest.MustRun(t, "texthash")
	pages := h.MustRun(t, "xl list guest | tail -n 1 | awk '{print $3}'; xl info | grep free_memory")
	m := arm(t, h, "-return")
	c := call(t, h, 2000, cfg.VCPUs)
	if during := h.Guest.MustRun(t, "texthash"); during != before {
		t.Errorf("the guest's code is %q while the probe is armed, and was %q", during, before)
	}
	if work := h.Guest.MustRun(t, "work 5"); work != checksum(t, 5) {
		t.Errorf("the guest computes %q with a probe, %q without", work, checksum(t, 5))
	}
	r := m.stop()
	r.sees(t, c)
	r.returned(t, einval, c.calls)
	t.Logf("a call with its return costs %d ticks; %d sites, %d shadows, passed %d, events %v", c.ticks, r.Stats.Sites, r.Stats.Shadows, r.Probe.Passed, r.Stats.Events)
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after removal, the guest saw %q before", after, before)
	}
	if now := h.MustRun(t, "xl list guest | tail -n 1 | awk '{print $3}'; xl info | grep free_memory"); now != pages {
		t.Errorf("memory is %q, and was %q", now, pages)
	}
	call(t, h, 200, cfg.VCPUs)
	alive(t, h)
}

// TestReturnOfKilled: threads are killed in the middle of a call; then of one that
// never returns, by threads whose stacks are used again at once.
func TestReturnOfKilled(t *testing.T) {
	t.Parallel()
	h := lab.Copy(t, smp, monitorFiles(t, smp, "calls", "killed")...)
	const n = 20
	m := arm(t, h, "-return -symbol __x64_sys_pause")
	if out := h.Guest.MustRun(t, fmt.Sprintf("killed %d", n)); out != fmt.Sprintf("killed %d wrong 0\n", n) {
		t.Errorf("the guest says %q", out)
	}
	r := m.stop()
	r.returned(t, erestartNoHand, n)

	m = arm(t, h, "-return -window 20000000 -symbol __x64_sys_exit_group")
	for range 4 {
		h.Guest.MustRun(t, "sleep 0.1; for i in 1 2 3 4 5 6 7 8 9 10; do calls 1 1 > /dev/null || exit 1; done")
	}
	c := call(t, h, 200, 2)
	r = m.stop()
	// What is left is of stacks that Linux keeps for the next thread.
	if r.Probe.Hits < 30 || r.Probe.Returns != 0 || r.Stats.Calls > r.Probe.Hits/2 || r.Probe.Lost+r.Stats.Calls != r.Probe.Hits {
		t.Errorf("%d ends of processes: %d returns, %d lost, %d still under way, values %v", r.Probe.Hits, r.Probe.Returns, r.Probe.Lost, r.Stats.Calls, r.Values)
	}
	t.Logf("%d ends of processes: %d still waited for; others came by %d times; a call costs %d ticks meanwhile", r.Probe.Hits, r.Stats.Calls, r.Probe.Passed, c.ticks)
	call(t, h, 200, 2)
	alive(t, h)
}

// TestReturnRemoved: the monitor ends in the middle of a storm, with calls under way.
func TestReturnRemoved(t *testing.T) {
	t.Parallel()
	for i, cfg := range []lab.Config{plain, smp} {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := lab.CopyWith(t, cfg, lab.Options{Delay: 1 + i*13}, monitorFiles(t, cfg, "calls", "texthash")...)
			before := h.Guest.MustRun(t, "texthash")
			arm(t, h, "-return")
			out := h.MustRun(t, fmt.Sprintf(`guest '(calls 10000 %d > /tmp/calls.out 2>&1) &'; sleep 0.1
kill $(cat /tmp/hits.pid); %s cat /tmp/hits.log`, cfg.VCPUs, awaitEnd))
			r := (&monitor{t, h}).parse(out)
			c := parseCalls(t, h.Guest.MustRun(t, "while ! grep -q calls /tmp/calls.out; do sleep 0.1; done; cat /tmp/calls.out"))
			if c.wrong != 0 || c.calls != uint64(10000*cfg.VCPUs) {
				t.Errorf("%d of %d calls had a wrong result", c.wrong, c.calls)
			}
			if p := r.Probe; p.Hits == 0 || p.Hits >= c.calls || r.Unpaired != 0 || p.Lost != 0 || p.Hits-p.Returns != r.Stats.Calls || r.Stats.Calls > uint64(cfg.VCPUs) {
				t.Errorf("%+v, %d without a pair, %d under way", p, r.Unpaired, r.Stats.Calls)
			}
			if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
				t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
			}
			alive(t, h)
		})
	}
}

// TestBudget: a storm is cut, and the guest runs on at its own speed; later the
// probe is armed again.
func TestBudget(t *testing.T) {
	t.Parallel()
	for _, cfg := range []lab.Config{plain, smp} {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := lab.Copy(t, cfg, monitorFiles(t, cfg, "calls", "texthash")...)
			before := h.Guest.MustRun(t, "texthash")
			free := call(t, h, 20000, cfg.VCPUs)
			const budget, window = 500, 200_000_000
			m := arm(t, h, fmt.Sprintf("-return -budget %d -window %d", budget, window))
			storm := call(t, h, 20000, cfg.VCPUs)
			for range 8 {
				h.Guest.MustRun(t, fmt.Sprintf("sleep 0.2; calls 1000 %d", cfg.VCPUs))
			}
			r := m.stop()
			p := &r.Probe
			if p.Gaps < 2 || p.Gaps > 12 || p.Hits+p.Returns+p.Passed < budget*p.Gaps || p.Hits > (budget+1)*(p.Gaps+1) || p.GapTicks < window || r.Unpaired != 0 {
				t.Errorf("%+v, gaps %+v", *p, r.Gaps)
			}
			for i, g := range r.Gaps {
				if g.Over != (i%2 == 1) || g.Over && g.Ticks < window {
					t.Errorf("gap %d: %+v", i, g)
				}
			}
			// 500 hits in 20,000 calls, and nothing for the others.
			if most := free.ticks + (budget+1)*100_000/20_000*2; storm.ticks > most {
				t.Errorf("a call costs %d ticks in a storm, %d without a probe", storm.ticks, free.ticks)
			}
			t.Logf("%d ticks a call in a storm, %d without a probe; %+v, gaps %+v", storm.ticks, free.ticks, *p, r.Gaps)
			if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before || strings.TrimSpace(after) == "" {
				t.Errorf("dom0 sees %q after removal, the guest saw %q before", after, before)
			}
			alive(t, h)
		})
	}
}

// TestDaemonReturn: what an operator sees of returns.
func TestDaemonReturn(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain, "calls")
	says(t, h, 2, "hprobe probe add --domain guest --at do_exit --return", "does not return")
	says(t, h, 2, "hprobe probe add --domain guest --at __x64_sys_getpriority+4 --return", "first instruction")
	says(t, h, 0, "hprobe probe add --domain guest --at __x64_sys_getpriority --return", "p1: armed in guest")
	h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
	call(t, h, 50, 1)
	out := says(t, h, 0, "sleep 1; cat /tmp/trace.log")
	for n := range 50 {
		entry, end := fmt.Sprintf("  #%d  vcpu0  calls[", n+1), "  __x64_sys_getpriority -> -22  "
		if strings.Count(out, entry) != 2 || strings.Count(out, end) != 50 {
			t.Fatalf("call %d is not in the trace, or twice: %q", n+1, out)
		}
	}
	says(t, h, 0, `hprobe -o json probe ls`, `"hits":"50"`, `"returns":"50"`, `"lost":"0"`, `"state":"armed"`)
	says(t, h, 0, "hprobe probe rm p1", "after 50 hits")
	// A rule judges the end of a call, and may set what it returns.
	const add = "hprobe probe add --domain guest --at __x64_sys_getpriority --return "
	says(t, h, 2, add+"--deny EPERM", "can't be refused")
	says(t, h, 2, add+"--when 'arg0 > 0'", "its arguments are gone")
	says(t, h, 0, add+"--when 'ret == -22 && pid > 1' --capture comm,ret --set ret=-77 --mode enforce", "p2: armed in guest")
	if out := h.Guest.MustRun(t, "calls 50 1 2>&1; true"); !strings.Contains(out, "calls 50 wrong 50 ") || !strings.Contains(out, "returned -77") {
		t.Errorf("the guest says %q", out)
	}
	if out := says(t, h, 0, "sleep 1; cat /tmp/trace.log"); strings.Count(out, `__x64_sys_getpriority(comm="calls", ret=-22) -> -22  `) != 50 {
		t.Errorf("not 50 calls matched: %q", out)
	}
	says(t, h, 0, "hprobe probe rm p2", "after 50 hits, 50 matched")
	call(t, h, 50, 1)
	alive(t, h)
}
