// Package xen holds the end-to-end tests: hprobe on a real Xen with real
// guests, each test in a copy of a host of its own.
package xen

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

const module = "github.com/hprobe/hprobe/"

// full says whether the whole matrix and the long runs are asked for (make test-full).
var full = os.Getenv("HPROBE_TEST_FULL") != ""

// The hosts of CI, in which each Xen, each guest's Linux, one and two CPUs and
// vCPUs, and KPTI on and off come up once. All have KASLR.
var (
	plain  = lab.Config{Xen: "4.20", Guest: "6.12", CPUs: 1, VCPUs: 1}
	smp    = lab.Config{Xen: "4.20", Guest: "7.2", CPUs: 2, VCPUs: 2, KPTI: true}
	older  = lab.Config{Xen: "4.17", Guest: "6.1", CPUs: 1, VCPUs: 1}
	oldest = lab.Config{Xen: "4.14", Guest: "5.10", CPUs: 1, VCPUs: 1}
)

// hosts are those that a test of everything runs on.
func hosts() []lab.Config {
	if !full {
		return []lab.Config{plain, smp, older, oldest}
	}
	var all []lab.Config
	for _, xen := range []string{"4.20", "4.17", "4.14"} {
		for _, linux := range []string{"6.12", "7.2", "6.1", "5.10"} {
			for cpus := 1; cpus <= 2; cpus++ {
				for vcpus := 1; vcpus <= 2; vcpus++ {
					for _, kpti := range []bool{false, true} {
						all = append(all, lab.Config{Xen: xen, Guest: linux, CPUs: cpus, VCPUs: vcpus, KPTI: kpti})
					}
				}
			}
		}
	}
	return all
}

// first are the first n of some hosts, and in make test-full all of them: CI has no time
// to see everything everywhere.
func first(n int, all ...lab.Config) []lab.Config {
	if full {
		return all
	}
	return all[:n]
}

// TestHosts: what must be so on every host, each in a copy of its own. Hosts are
// outside, so that each boots once.
func TestHosts(t *testing.T) {
	t.Parallel()
	for _, cfg := range hosts() {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			t.Run("Conformance", func(t *testing.T) { conformance(t, cfg) })
			t.Run("Hits", func(t *testing.T) { hits(t, cfg) })
			t.Run("Daemon", func(t *testing.T) { daemon(t, cfg) })
			t.Run("Return", func(t *testing.T) { returns(t, cfg) })
			t.Run("CopyOnWrite", func(t *testing.T) { copyOnWrite(t, cfg) })
			t.Run("Vmsplice", func(t *testing.T) { vmsplice(t, cfg) })
			t.Run("StepOver", func(t *testing.T) { stepOver(t, cfg) })
			// What is more of the guest's kernel than of Xen: in CI with the newest and
			// the oldest.
			if !full && cfg != smp && cfg != oldest {
				return
			}
			t.Run("When", func(t *testing.T) { when(t, cfg) })
			t.Run("Sources", func(t *testing.T) { sources(t, cfg) })
			t.Run("Modules", func(t *testing.T) { modulesComeAndGo(t, cfg) })
			t.Run("Syscalls", func(t *testing.T) { syscalls(t, cfg) })
			t.Run("Images", func(t *testing.T) { images(t, cfg) })
		})
	}
}

var scratch string // for files that copies are made from; removed at the end

func TestMain(m *testing.M) {
	var err error
	if scratch, err = os.MkdirTemp("", "hprobe-xen-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(scratch)
	os.Exit(code)
}

// binary is a program of this module, in dom0 as /payload/NAME.
func binary(t *testing.T, pkg string) lab.File {
	t.Helper()
	return lab.File{Name: filepath.Base(pkg), Source: lab.GoBinary(t, module+pkg)}
}

// program is a program of test/guests, in the guest.
func program(t *testing.T, name string) lab.File {
	t.Helper()
	f, err := guests.Program(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

var profiles struct {
	sync.Mutex
	files map[string]lab.File
}

// profile is that of a guest's kernel, in dom0.
func profile(t *testing.T, linux string) lab.File {
	t.Helper()
	profiles.Lock()
	defer profiles.Unlock()
	if f, ok := profiles.files[linux]; ok {
		return f
	}
	ctx := context.Background()
	kernel, _, err := lab.GuestKernel(ctx, linux)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(scratch, linux)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	hprobe, err := lab.BuildGo(ctx, module+"cmd/hprobe")
	if err != nil {
		t.Fatal(err)
	}
	f, err := guests.Profile(ctx, hprobe, kernel, dir)
	if err != nil {
		t.Fatal(err)
	}
	if profiles.files == nil {
		profiles.files = map[string]lab.File{}
	}
	profiles.files[linux] = f
	return f
}

// monitorFiles are what a test with the monitor needs.
func monitorFiles(t *testing.T, cfg lab.Config, programs ...string) []lab.File {
	t.Helper()
	all := []lab.File{binary(t, "test/xen/hits"), binary(t, "test/xen/texthash"), profile(t, cfg.Guest)}
	for _, name := range programs {
		all = append(all, program(t, name))
	}
	return all
}

// report is what the monitor test/xen/hits prints at its end.
type report struct {
	Probe struct {
		Hits, Changed, Passed, Returns, Lost, Gaps, GapTicks uint64
		Insn                                                 string
		State, Step                                          int
	}
	Stats struct {
		Events                            map[string]uint64
		Reinjected, Stale, Reads, Writes  uint64
		Batches, Ticks, MaxTicks, Shadows uint64
		Calls, Sites, StaleCalls, Evicted uint64
		Waiting, TooLate                  uint64
	}
	Late, Overtook         uint64
	Sum, Matched, Unpaired uint64
	Values                 map[int64]uint64
	Gaps                   []struct {
		Over  bool
		Ticks uint64
	}
}

// monitor is a running test/xen/hits in dom0.
type monitor struct {
	t    *testing.T
	host *lab.Host
}

// arm starts the monitor and waits until its probe is in place.
func arm(t *testing.T, h *lab.Host, flags string) *monitor {
	t.Helper()
	return armWith(t, h, "", flags)
}

// armWith is arm with a driver, if it is not "", that is not the one the tests are for.
func armWith(t *testing.T, h *lab.Host, driver, flags string) *monitor {
	t.Helper()
	if driver != "" {
		driver = "HPROBE_DRIVER=" + driver + " "
	}
	h.MustRun(t, driver+`hits `+flags+` > /tmp/hits.log 2>&1 & echo $! > /tmp/hits.pid
while ! grep -q armed /tmp/hits.log; do [ -d /proc/$(cat /tmp/hits.pid) ] || { cat /tmp/hits.log; exit 1; }; sleep 0.05; done`)
	return &monitor{t, h}
}

// awaitEnd waits until the monitor's process is gone.
const awaitEnd = `while [ -d /proc/$(cat /tmp/hits.pid) ]; do sleep 0.05; done; `

// stop ends the monitor as an operator would, and returns its report.
func (m *monitor) stop() report {
	m.t.Helper()
	return m.parse(m.host.MustRun(m.t, `kill $(cat /tmp/hits.pid); `+awaitEnd+`cat /tmp/hits.log`))
}

// wait returns the report of a monitor that ends by itself.
func (m *monitor) wait() report {
	m.t.Helper()
	return m.parse(m.host.MustRun(m.t, awaitEnd+`cat /tmp/hits.log`))
}

func (m *monitor) parse(log string) (r report) {
	m.t.Helper()
	for line := range strings.Lines(log) {
		switch {
		case strings.HasPrefix(line, "{"):
			if err := json.Unmarshal([]byte(line), &r); err != nil {
				m.t.Fatalf("%q: %v", line, err)
			}
		case strings.HasPrefix(line, "VMI_ERROR: xc_altp2m_destroy_view"): // LibVMI's, where the engine tries again
		case strings.TrimSpace(line) != "armed":
			m.t.Errorf("the monitor says: %s", line)
		}
	}
	if r.Probe.Insn == "" {
		m.t.Fatalf("the monitor made no report: %q", log)
	}
	return r
}

// calls is what test/guests' program calls printed.
type calls struct{ calls, wrong, sum, ticks uint64 }

func parseCalls(t *testing.T, out string) (c calls) {
	t.Helper()
	if _, err := fmt.Sscanf(out, "calls %d wrong %d sum %d ticks/call %d", &c.calls, &c.wrong, &c.sum, &c.ticks); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return c
}

// call makes n system calls in each of so many threads of the guest, and checks
// their results.
func call(t *testing.T, h *lab.Host, n, threads int) calls {
	t.Helper()
	c := parseCalls(t, h.Guest.MustRun(t, fmt.Sprintf("calls %d %d", n, threads)))
	if c.wrong != 0 || c.calls != uint64(n*threads) {
		t.Errorf("%d of %d calls had a wrong result", c.wrong, c.calls)
	}
	return c
}

// sees checks a report against what the guest did.
func (r *report) sees(t *testing.T, c calls) {
	t.Helper()
	if r.Probe.Hits != c.calls || r.Sum != c.sum {
		t.Errorf("%d hits with arguments that add up to %d, of %d calls with %d; events %v, stale %d, reinjected %d",
			r.Probe.Hits, r.Sum, c.calls, c.sum, r.Stats.Events, r.Stats.Stale, r.Stats.Reinjected)
	}
}

// alive makes sure that the guest works, and goes on working.
func alive(t *testing.T, h *lab.Host) {
	t.Helper()
	var before, after int
	if _, err := fmt.Sscan(h.Guest.MustRun(t, "cat /tmp/heartbeat"), &before); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		if _, err := fmt.Sscan(h.Guest.MustRun(t, "sleep 0.3; cat /tmp/heartbeat"), &after); err != nil {
			t.Fatal(err)
		}
		if after > before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("the guest's heartbeat stands still at %d", before)
}

// checksum is what test/guests' program work must print for ten rounds: it was
// computed on this machine.
func checksum(t *testing.T, rounds int) string {
	t.Helper()
	return onThisMachine(t, program(t, "work").Source, fmt.Sprint(rounds))
}
