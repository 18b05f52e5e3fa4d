package xen

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/test/lab"
	"github.com/hprobe/hprobe/test/lab/profiler"
)

// What a hit may cost, in ticks of the guest's TSC, which are instructions: with
// an argument captured and compared, the original instruction emulated. A plain C
// loop over LibVMI with nothing of that costs 72,500 on one CPU and 57,400 where
// guest and monitor have one each.
const (
	maxShared = 72_500
	maxApart  = 57_400 * 85 / 100
)

// maxOwn is all that hprobe does for a hit, but to wait for it, by driver. The way from
// an event in the ring to its reply there is some 300 less: 2,500 at most with the native
// one. LibVMI's own code is in the other.
var maxOwn = map[string]uint64{"native": 2_800, "libvmi": 6_000}

// costHosts are those of the C loop's figures (TestPeer measures them), by what a
// hit may cost there.
var costHosts = map[uint64]lab.Config{
	maxShared: {Xen: "4.17", Guest: "6.1", CPUs: 1, VCPUs: 1},
	maxApart:  {Xen: "4.17", Guest: "6.1", CPUs: 2, VCPUs: 1, Pinned: true},
}

// The guest's work: so many calls at a time, after some to warm up.
const costCalls, costWarmUp = 1000, 100

// leastOf is what a call costs with a probe on it: the least of three times, as what
// else happens in the guest and in dom0 only adds.
func leastOf(t *testing.T, h *lab.Host) calls {
	t.Helper()
	call(t, h, costWarmUp, 1)
	least := call(t, h, costCalls, 1)
	for range 2 {
		if c := call(t, h, costCalls, 1); c.ticks < least.ticks {
			least = c
		}
	}
	return least
}

// TestCost: what a hit costs, and where that goes (go test -v shows it).
func TestCost(t *testing.T) {
	t.Parallel()
	for limit, cfg := range costHosts {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			cost(t, cfg, limit)
		})
	}
}

func cost(t *testing.T, cfg lab.Config, limit uint64) {
	hits := lab.GoBinaryWithSymbols(t, module+"test/xen/hits")
	samples := filepath.Join(t.TempDir(), "samples")
	h := lab.CopyWith(t, cfg, lab.Options{Profile: samples}, lab.File{Name: "hits", Source: hits}, profile(t, cfg.Guest), program(t, "calls"))
	xensyms := h.MustRun(t, "cat /proc/xen/xensyms")
	free := call(t, h, costCalls, 1)
	m := arm(t, h, "-match 1500")
	least := leastOf(t, h)
	r := m.stop()
	if r.Matched != 3 || r.Probe.Hits != costWarmUp+3*costCalls {
		t.Errorf("%d hits, %d of them with the argument that matches", r.Probe.Hits, r.Matched)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	report := profileOf(t, samples, profiler.Options{
		Exit: 0, Longest: 200_000, GuestCPU: cfg.CPUs - 1, Anchors: profiler.Hit,
		Xen: kallsyms(t, xensyms), Kernel: kernelSymbols(t, "6.12"), User: elfSymbols(t, hits),
	})
	var text strings.Builder
	if _, err := report.WriteTo(&text); err != nil {
		t.Fatal(err)
	}
	own := ownWork(report.CPUs[0])
	t.Logf("a call costs %d ticks, and %d with a probe on it: %.2f of what it may; of that %.0f are hprobe's own\n%s",
		free.ticks, least.ticks, float64(least.ticks)/float64(limit), own, &text)
	if least.ticks > limit {
		t.Errorf("a hit costs %d ticks, of %d that it may", least.ticks, limit)
	}
	driver, err := lab.Driver()
	if err != nil {
		t.Fatal(err)
	}
	if most := float64(maxOwn[driver]); own > most || own < 100 {
		t.Errorf("hprobe's part of a hit is %.0f ticks, of %.0f that it may be", own, most)
	}
}

// ownWork is what dom0's programs do for a hit: all but to wait for it.
func ownWork(cpu profiler.CPU) (ticks float64) {
	for _, c := range cpu.Self {
		name, program := strings.CutPrefix(c.Name, "dom0 ")
		if !program || strings.HasPrefix(name, "kernel ") || strings.Contains(name, "spin") || strings.Contains(name, "pollRing") || strings.Contains(name, "cancelCtx") {
			continue
		}
		ticks += c.N
	}
	return ticks
}

func profileOf(t *testing.T, file string, o profiler.Options) profiler.Report {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	samples, err := profiler.Read(f)
	if err != nil {
		t.Fatal(err)
	}
	r := profiler.New(samples, o)
	if r.Windows < 1000 || len(r.CPUs) == 0 {
		t.Fatalf("%d hits in %d samples", r.Windows, len(samples))
	}
	return r
}

func kallsyms(t *testing.T, text string) *profiler.Symbols {
	t.Helper()
	s, err := profiler.ReadKallsyms(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// kernelSymbols are those of a PV dom0's kernel, which runs where it was linked
// to. (dom0's own /proc/kallsyms takes minutes to read.)
func kernelSymbols(t *testing.T, linux string) *profiler.Symbols {
	t.Helper()
	p, err := isf.ReadFile(profile(t, linux).Source)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for i := range p.NumSymbols() {
		s := p.SymbolAt(i)
		fmt.Fprintf(&text, "%x t %s\n", s.Addr, s.Name)
	}
	return kallsyms(t, text.String())
}

func elfSymbols(t *testing.T, file string) *profiler.Symbols {
	t.Helper()
	s, err := profiler.ReadELF(file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
