package xen

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
	"github.com/hprobe/hprobe/test/xen/forms"
)

// The ways of stepOver, in their order: Xen's emulator with all forms, which
// the engine does not do, then what it does.
var ways = []string{"force-emulate", "fast-singlestep", "singlestep", "auto"}

// stepReport is what the monitor test/xen/steps prints of a way.
type stepReport struct {
	Way      string
	Refused  map[int]string
	Hits     map[int]uint64
	Emulated []int
	Stats    struct {
		Reinjected, Stale uint64
	}
}

// difference is what the guest's program steps found in one way for one form.
type difference struct {
	states uint64 // a bit for each
	what   string // the first thing that differs, in the first state
	text   string // that and more
}

// stepOver: instruction forms of real code, stepped over in each way, do to
// registers, flags and memory what they do without a probe, and are one hit each
// time. What Xen's emulator gets wrong is known, and the engine emulates none of it.
func stepOver(t *testing.T, cfg lab.Config) {
	cases, err := forms.Cases()
	if err != nil {
		t.Fatal(err)
	}
	h := lab.Copy(t, cfg, binary(t, "test/xen/steps"), profile(t, cfg.Guest), program(t, "steps"),
		lab.File{Name: "forms", Data: forms.Encode(cases), Guest: true})
	h.MustRun(t, `steps -ways `+strings.Join(ways, ",")+` > /tmp/steps.log 2>&1 & echo $! > /tmp/steps.pid
while ! grep -q armed /tmp/steps.log; do [ -d /proc/$(cat /tmp/steps.pid) ] || { cat /tmp/steps.log; exit 1; }; sleep 0.05; done`)
	found := parseSteps(t, h.Guest.MustRun(t, "steps /payload/forms"), len(cases))
	log := h.MustRun(t, "kill $(cat /tmp/steps.pid); while [ -d /proc/$(cat /tmp/steps.pid) ]; do sleep 0.05; done; cat /tmp/steps.log")
	reports := parseStepReports(t, log)
	if len(found) != len(ways)+2 || len(reports) != len(ways) {
		t.Fatalf("the guest made %d passes, the monitor %d: %s", len(found), len(reports), log)
	}
	for _, pass := range []string{"native", "again"} { // before the first probe, after the last
		for i, d := range found[pass] {
			t.Errorf("without a probe %s does another thing the second time: %s", cases[i].Name(), d.text)
		}
	}
	for n, r := range reports {
		for i, hits := range r.Hits {
			t.Errorf("%s: %s was run %d times, with %d hits", r.Way, cases[i].Name(), forms.States, hits)
		}
		// A way that steps once can't be had for what repeats.
		once := r.Way == ways[0] || r.Way == ways[1]
		for i, c := range cases {
			if _, refused := r.Refused[i]; refused != (once && c.Form.Rep()) {
				t.Errorf("%s: a probe on %s: %q", r.Way, c.Name(), r.Refused[i])
			}
		}
		if r.Stats.Reinjected != 0 || r.Stats.Stale != 0 {
			t.Errorf("%s: %+v", r.Way, r.Stats)
		}
		differs := found[fmt.Sprint(n+1)]
		t.Logf("%s: %d forms, %d of them emulated by the engine, %d differ", r.Way, len(cases), len(r.Emulated), len(differs))
		if r.Way == ways[0] {
			emulator(t, cfg.Xen, cases, differs)
			continue
		}
		for i, d := range differs {
			t.Errorf("%s: %s (%s), states %#x: %s", r.Way, cases[i].Name(), cases[i].Form.Key(), d.states, d.text)
		}
	}
	wrong := forms.EmulatorWrong("")
	auto := reports[len(reports)-1].Emulated
	for _, i := range auto {
		if what := wrong[cases[i].Form.Key()]; what != "" {
			t.Errorf("the engine emulates %s, which Xen gets wrong: %s", cases[i].Name(), what)
		}
	}
	if len(auto) < 400 {
		t.Errorf("the engine emulates %d forms only", len(auto))
	}
	alive(t, h)
}

// emulator checks what Xen's emulator got wrong: what is known, no less, no more.
func emulator(t *testing.T, xen string, cases []*forms.Case, differs map[int]difference) {
	t.Helper()
	want := forms.EmulatorWrong(xen)
	if len(want) == 0 {
		t.Errorf("emulator.txt has nothing of Xen %s", xen)
	}
	for i, d := range differs {
		key := cases[i].Form.Key()
		if want[key] != d.what {
			t.Errorf("Xen %s emulates %s (%s) wrong: %s: %s; emulator.txt says %q", xen, key, cases[i].Name(), d.what, d.text, want[key])
		}
		delete(want, key)
	}
	for _, key := range slices.Sorted(maps.Keys(want)) {
		t.Errorf("Xen %s emulates %s right; emulator.txt says %q", xen, key, want[key])
	}
}

// parseSteps reads what the guest's program printed: by pass, by case.
func parseSteps(t *testing.T, out string, cases int) map[string]map[int]difference {
	t.Helper()
	all := map[string]map[int]difference{}
	now := map[int]difference{}
	for line := range strings.Lines(out) {
		var i, n, signal int
		var d difference
		var pass, what string
		if _, err := fmt.Sscanf(line, "differs %d states %x first %s", &i, &d.states, &what); err == nil && i < cases {
			_, d.text, _ = strings.Cut(strings.TrimSpace(line), " first "+what+" ")
			d.what = differenceNames[what]
			var a, b uint64
			if _, err := fmt.Sscanf(d.text, "flags %x/%x", &a, &b); err == nil && a^b == 0x10000 {
				d.what = "RF"
			}
			now[i] = d
			continue
		}
		if _, err := fmt.Sscanf(line, "pass %s forms %d differ %d", &pass, &n, &signal); err == nil && n == cases && signal == len(now) {
			all[pass] = now
			now = map[int]difference{}
			continue
		}
		if _, err := fmt.Sscanf(line, "faults %d signal %d", &i, &signal); err != nil {
			t.Errorf("steps says %q", line)
		}
	}
	return all
}

// differenceNames are for the letters of steps.c.
var differenceNames = map[string]string{
	"s": "signal", "i": "rip", "r": "registers", "f": "flags", "S": "selectors", "x": "xmm", "p": "fpu", "m": "memory",
}

func parseStepReports(t *testing.T, log string) (all []stepReport) {
	t.Helper()
	for line := range strings.Lines(log) {
		var r stepReport
		if err := json.Unmarshal([]byte(line), &r); err == nil {
			all = append(all, r)
		} else if line != "armed\n" {
			t.Errorf("the monitor says %s", line)
		}
	}
	return all
}
