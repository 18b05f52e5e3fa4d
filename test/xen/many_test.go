package xen

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// state is what test/xen/many answers.
type state struct {
	Armed, Shadows, RSS, Maps, Threads, Skipped int
	Ticks, Pages, Max, Hits                     uint64
	Error                                       string
}

// armory starts test/xen/many, and returns what gives it orders.
func armory(t *testing.T, h *lab.Host) func(order string) state {
	t.Helper()
	h.MustRun(t, `mkfifo /tmp/many.in; many > /tmp/many.log 2>&1 & echo $! > /tmp/hits.pid
while ! grep -q ready /tmp/many.log; do [ -d /proc/$(cat /tmp/hits.pid) ] || { cat /tmp/many.log; exit 1; }; sleep 0.05; done`)
	return func(order string) (s state) {
		t.Helper()
		out := h.MustRun(t, fmt.Sprintf(`n=$(wc -l < /tmp/many.log); echo '%s' > /tmp/many.in
while [ $(wc -l < /tmp/many.log) = $n ]; do [ -d /proc/$(cat /tmp/hits.pid) ] || { cat /tmp/many.log; exit 1; }; sleep 0.05; done; tail -n 1 /tmp/many.log`, order))
		if err := json.Unmarshal([]byte(out), &s); err != nil || s.Error != "" {
			t.Fatalf("%s: %q, %v", order, out, err)
		}
		return s
	}
}

// TestComeAndGo: 1,000 probes are added and removed many times while the guest runs.
// Nothing grows: not the guest, nor the monitor; and in the end all is as it was.
func TestComeAndGo(t *testing.T) {
	t.Parallel()
	rounds := 2
	if full {
		rounds = 100
	}
	files := append(monitorFiles(t, plain, "calls", "texthash", "work"), binary(t, "test/xen/many"))
	h := lab.Copy(t, plain, files...)
	before := h.Guest.MustRun(t, "texthash")
	memory := "xl list guest | tail -n 1 | awk '{print $3}'; xl info | grep free_memory"
	first := h.MustRun(t, memory)
	order := armory(t, h)
	comeAndGo := func() state {
		h.Guest.MustRun(t, "(work 30 > /tmp/work.out 2>&1) &")
		s := order("rounds 2 1000")
		if work := h.Guest.MustRun(t, "while ! grep -q checksum /tmp/work.out; do sleep 0.1; done; cat /tmp/work.out"); work != checksum(t, 30) {
			t.Fatalf("the guest computes %q with probes that come and go, %q without", work, checksum(t, 30))
		}
		return s
	}
	warm := comeAndGo()
	if warm.Skipped > 100 || warm.Shadows != 1 {
		t.Errorf("%+v", warm)
	}
	var after state
	var ticks uint64
	for range rounds / 2 {
		after = comeAndGo()
		ticks += after.Ticks
	}
	t.Logf("%d rounds: %d ticks for a probe to come and go; the monitor has %d KiB, and had %d; %d mappings, and had %d", rounds, ticks/uint64(rounds*1000), after.RSS, warm.RSS, after.Maps, warm.Maps)
	if after.Pages != warm.Pages || after.Max != warm.Max || after.Shadows != warm.Shadows || after.Threads != warm.Threads {
		t.Errorf("%+v after 2 rounds, %+v after %d more", warm, after, rounds)
	}
	// Go's heap and what it maps go up and down a little, and the cache of mapped frames
	// fills: the guest's processes come and go, and their page tables are anywhere. One
	// mapping left behind by each thousand probes would be more.
	if after.RSS > warm.RSS+4096 || after.Maps > warm.Maps+4+rounds/5 {
		t.Errorf("the monitor grows: %+v after 2 rounds, %+v after %d more", warm, after, rounds)
	}
	c := call(t, h, 100, 1)
	if s := order("hits"); s.Hits != c.calls {
		t.Errorf("%d hits of %d calls", s.Hits, c.calls)
	}
	h.MustRun(t, "kill $(cat /tmp/hits.pid); "+awaitEnd)
	if last := h.MustRun(t, memory); last != first {
		t.Errorf("memory is %q, and was %q", last, first)
	}
	if now := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); now != before {
		t.Errorf("dom0 sees %q after removal, the guest saw %q before", now, before)
	}
	alive(t, h)
}

// armLimit is 2 s of a CPU of 3 GHz with an instruction a cycle: a tick is one.
const armLimit = 6_000_000_000

// TestManyArmed: what a hit costs does not grow with the probes that are armed, and
// 10,000 (1,000 in CI) are armed in less than 2 s of a CPU and 64 MiB beside their copies.
func TestManyArmed(t *testing.T) {
	t.Parallel()
	cfg := lab.Config{Xen: "4.17", Guest: "6.1", CPUs: 2, VCPUs: 1, Pinned: true}
	files := append(monitorFiles(t, cfg, "calls"), binary(t, "test/xen/many"))
	h := lab.Copy(t, cfg, files...)
	order := armory(t, h)
	var few uint64
	counts := []int{10, 1000}
	if full {
		counts = []int{10, 100, 1000, 10_000}
	}
	for _, n := range counts {
		s := order(fmt.Sprintf("arm %d", n))
		for range 2 { // what the guest calls after all is of no use here
			call(t, h, 100, 1)
			order("quiet")
		}
		least := call(t, h, 1000, 1).ticks
		for range 2 {
			least = min(least, call(t, h, 1000, 1).ticks)
		}
		t.Logf("%d armed on %d pages (%d functions can't be): a hit costs %d ticks; it took %d Mticks; the monitor has %d KiB", s.Armed, s.Shadows, s.Skipped, least, s.Ticks/1e6, s.RSS)
		if few == 0 {
			few = least
		}
		if least > few*103/100 {
			t.Errorf("a hit costs %d ticks with %d probes armed, %d with 10", least, n, few)
		}
		if s.Ticks > armLimit*uint64(n)/10_000+armLimit/20 || s.RSS > 64<<10 {
			t.Errorf("%+v", s)
		}
	}
	order("arm 0")
	h.MustRun(t, "kill $(cat /tmp/hits.pid); "+awaitEnd)
	alive(t, h)
}
