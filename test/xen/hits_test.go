package xen

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

func onThisMachine(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}

// hits: exact hits, right arguments, an undisturbed guest, by each way to step over.
func hits(t *testing.T, cfg lab.Config) {
	h := lab.Copy(t, cfg, monitorFiles(t, cfg, "calls")...)
	for _, step := range []string{"emulate", "fast-singlestep", "singlestep"} {
		m := arm(t, h, "-step "+step)
		c := call(t, h, 200, cfg.VCPUs)
		r := m.stop()
		r.sees(t, c)
		if r.Stats.Reinjected != 0 {
			t.Errorf("%s: %d int3s went to the guest, which has none", step, r.Stats.Reinjected)
		}
	}
	call(t, h, 200, cfg.VCPUs)
	alive(t, h)
}

// TestTwoThreads: 20,000 calls by two threads on two vCPUs are 20,000 hits, and
// the guest's code is as it was while the probe is armed and after.
func TestTwoThreads(t *testing.T) {
	t.Parallel()
	h := lab.Copy(t, smp, monitorFiles(t, smp, "calls", "texthash", "work")...)
	before := h.Guest.MustRun(t, "texthash")
	m := arm(t, h, "")
	c := call(t, h, 10000, 2)
	if during := h.Guest.MustRun(t, "texthash"); during != before {
		t.Errorf("the guest's code is %q while the probe is armed, and was %q", during, before)
	}
	if work := h.Guest.MustRun(t, "work 20"); work != checksum(t, 20) {
		t.Errorf("the guest computes %q with a probe, %q without", work, checksum(t, 20))
	}
	r := m.stop()
	r.sees(t, c)
	if r.Stats.Reads == 0 {
		t.Error("the guest read its code without a trace in the statistics: was the probed page read at all?")
	}
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after removal, the guest saw %q before", after, before)
	}
	alive(t, h)
}

// TestMoments: attach, arm, 1,000 hits, remove, detach, in 200 copies of the
// host at other moments each; the guest works on while that happens.
func TestMoments(t *testing.T) {
	t.Parallel()
	const copies, rounds = 200, 8
	want := checksum(t, rounds)
	files := monitorFiles(t, plain, "calls", "work")
	// As many at a time as the lab has room for: it makes the others wait.
	var wg sync.WaitGroup
	next := make(chan int)
	for range 2 {
		wg.Go(func() {
			for i := range next {
				if err := moment(i, want, rounds, files); err != nil {
					t.Errorf("copy %d: %v", i, err)
				}
			}
		})
	}
	for i := range copies {
		next <- i
	}
	close(next)
	wg.Wait()
}

// moment is one of TestMoments' copies.
func moment(i int, want string, rounds int, files []lab.File) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	// Some thousand instructions of difference each.
	h, err := lab.Open(ctx, plain, lab.Options{Delay: 1 + i*7}, files...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	run := func(script string) string {
		res, runErr := h.Run(ctx, script)
		if runErr == nil && res.Exit != 0 {
			runErr = fmt.Errorf("%s: exit status %d\n%s", script, res.Exit, res.Output)
		}
		err = errors.Join(err, runErr)
		return res.Output
	}
	// The guest works while everything comes and goes.
	run(fmt.Sprintf(`guest 'work %d > /tmp/work.out 2>&1 &'
hits -hits 1000 > /tmp/hits.log 2>&1 & echo $! > /tmp/hits.pid
while ! grep -q armed /tmp/hits.log; do [ -d /proc/$(cat /tmp/hits.pid) ] || { cat /tmp/hits.log; exit 1; }; sleep 0.02; done`, rounds))
	out := run("guest 'calls 1000 1'")
	log := run(awaitEnd + "cat /tmp/hits.log")
	work := run("guest 'while ! grep -q checksum /tmp/work.out; do sleep 0.1; done; cat /tmp/work.out'")
	switch {
	case err != nil:
		return err
	case !strings.HasPrefix(out, "calls 1000 wrong 0 sum 1499500 "):
		return fmt.Errorf("the guest says %q", out)
	case !strings.Contains(log, `"Hits":1000,`) || !strings.Contains(log, `"Sum":1499500,`):
		return fmt.Errorf("the monitor says %q", log)
	case work != want:
		return fmt.Errorf("the guest's work is %q, not %q", work, want)
	}
	return nil
}

// commandLimit bounds what a copy is given to do, generously.
const commandLimit = lab.CommandLimit

// TestStorm: the monitor gets SIGTERM in the middle of a storm of hits, at
// other moments in each copy; the guest runs on, all its calls are right.
func TestStorm(t *testing.T) {
	t.Parallel()
	for i := range 8 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			cfg := smp
			if i%4 == 3 {
				cfg = plain
			}
			h := lab.CopyWith(t, cfg, lab.Options{Delay: 1 + i*13}, monitorFiles(t, cfg, "calls", "texthash")...)
			before := h.Guest.MustRun(t, "texthash")
			arm(t, h, "-step "+[]string{"auto", "fast-singlestep", "singlestep"}[i%3])
			out := h.MustRun(t, fmt.Sprintf(`guest '(calls 10000 %d > /tmp/calls.out 2>&1) &'; sleep 0.1
kill $(cat /tmp/hits.pid); %s cat /tmp/hits.log`, cfg.VCPUs, awaitEnd))
			hits := (&monitor{t, h}).parse(out).Probe.Hits
			out = h.Guest.MustRun(t, "while ! grep -q calls /tmp/calls.out; do sleep 0.1; done; cat /tmp/calls.out")
			c := parseCalls(t, out)
			if c.wrong != 0 || c.calls != uint64(10000*cfg.VCPUs) {
				t.Errorf("%d of %d calls had a wrong result: %s", c.wrong, c.calls, out)
			}
			if hits == 0 || hits >= c.calls {
				t.Errorf("the monitor ended after %d hits, not in the middle of %d calls", hits, c.calls)
			}
			if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
				t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
			}
			alive(t, h)
		})
	}
}

// TestAgainAndAgain: what attaches can attach anew, and nothing piles up in the
// guest or in Xen.
func TestAgainAndAgain(t *testing.T) {
	t.Parallel()
	h := lab.Copy(t, plain, monitorFiles(t, plain, "calls")...)
	pages := func() string {
		return h.MustRun(t, "xl list guest | tail -n 1 | awk '{print $3}'; xl info | grep free_memory; xenstore-ls /local/domain/1 | wc -l")
	}
	arm(t, h, "-hits 1").waitFor(t, h)
	before := pages()
	h.MustRun(t, "hits -hits 10 -rounds 20 > /tmp/hits.log 2>&1 & echo $! > /tmp/hits.pid; "+
		"while [ -d /proc/$(cat /tmp/hits.pid) ]; do guest 'calls 10 1' > /dev/null; done")
	if n := strings.Count(h.MustRun(t, "cat /tmp/hits.log"), `"Hits":`); n != 20 {
		t.Errorf("%d of 20 rounds: %s", n, h.MustRun(t, "cat /tmp/hits.log"))
	}
	if after := pages(); after != before {
		t.Errorf("memory and xenstore are %q after 20 rounds, and were %q", after, before)
	}
	alive(t, h)
}

// waitFor has the guest make one call for a monitor that ends after one hit.
func (m *monitor) waitFor(t *testing.T, h *lab.Host) {
	t.Helper()
	call(t, h, 1, 1)
	m.wait()
}
