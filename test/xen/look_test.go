package xen

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

// lookHosts have each Linux, and in make test-full a guest with four vCPUs as well. Where
// there are two processors the guest runs while it is looked at; else Xen takes turns.
func lookHosts() []lab.Config { return first(1, oldest, smp, plain, older, busy) }

// looked is the report of test/xen/looked.
type looked struct {
	Runs, Threads, Passing, Regions, Files, Modules, LogRecords, Partial, Processes, More int
	Ticks                                                                                 uint64
	Wrong                                                                                 []string
}

func looks(t *testing.T, h *lab.Host, flags string) (r looked) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Minute)
	defer cancel()
	res, err := h.Run(ctx, "looked "+flags)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(res.Output), &r); err != nil {
		t.Fatalf("%q: %v", res.Output, err)
	}
	for _, w := range r.Wrong {
		t.Error(w)
	}
	if r.More > 0 {
		t.Errorf("and %d more", r.More)
	}
	return r
}

// TestLook: hprobe's ps, modules, maps, files and dmesg say of a busy guest what the guest
// says itself, without hprobed, and with one that watches the guest.
func TestLook(t *testing.T) {
	t.Parallel()
	runs := 10
	if full {
		runs = 100
	}
	for _, cfg := range lookHosts() {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := lab.Copy(t, cfg, binary(t, "cmd/hprobe"), binary(t, "cmd/hprobed"), binary(t, "test/xen/looked"), profile(t, cfg.Guest), program(t, "props"), program(t, "procs"))
			r := looks(t, h, fmt.Sprintf("-runs %d", runs))
			if r.Runs != runs || r.Threads < 40*runs || r.Regions < 800*runs || r.Files < 15*runs || r.Modules < 2*runs || r.LogRecords < 250+20*runs {
				t.Errorf("too little was compared: %+v", r)
			}
			t.Logf("%d runs: %d threads, %d regions, %d files, %d modules, %d records of the log as the guest has them; %d threads that came and went; %d answers about a process whose memory and files always change were partial",
				r.Runs, r.Threads, r.Regions, r.Files, r.Modules, r.LogRecords, r.Passing, r.Partial)
			h.MustRun(t, `hprobed --profiles /payload/profiles > /tmp/hprobed.log 2>&1 & echo $! > /tmp/hprobed.pid
until hprobe status > /dev/null 2>&1; do sleep 0.1; done
hprobe probe add -d guest --at do_exit`)
			looks(t, h, "-runs 2")
			says(t, h, 0, "hprobe probe ls", "armed")
			says(t, h, 3, "hprobe maps guest 4000000 --profiles /payload/profiles", "no process 4000000 runs in the guest")
			says(t, h, 1, "hprobe ps guest --profiles /tmp/none", "no profile in /tmp/none is of the guest's kernel", "hprobe profile capture")
			h.MustRun(t, stopDaemon+"true")
			alive(t, h)
		})
	}
}

// TestLookCost: what it costs to read some hundred processes, and that the guest goes on
// meanwhile: the longest time in which a program on a processor of its own did not run.
func TestLookCost(t *testing.T) {
	t.Parallel()
	for _, cfg := range first(0, costHosts[maxApart]) { // minutes of an emulated CPU
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			lookCost(t, cfg)
		})
	}
}

func lookCost(t *testing.T, cfg lab.Config) {
	h := lab.Copy(t, cfg, binary(t, "cmd/hprobe"), binary(t, "test/xen/looked"), profile(t, cfg.Guest), program(t, "props"))
	h.Guest.MustRun(t, "props 100 > /tmp/props.log 2>&1 & until grep -q . /tmp/props.log; do sleep 0.1; done")
	r := looks(t, h, "-cost")
	start, err := h.Run(t.Context(), "hprobe ps guest --profiles /payload/profiles | wc -l")
	if err != nil {
		t.Fatal(err)
	}
	gap := func(script string) (longest uint64) {
		h.Guest.MustRun(t, "(props gap 4 > /tmp/gap.log 2>&1; echo end >> /tmp/gap.log) > /dev/null 2>&1 &")
		h.MustRun(t, script)
		out := h.Guest.MustRun(t, "until grep -q end /tmp/gap.log; do sleep 0.1; done; cat /tmp/gap.log")
		if _, err := fmt.Sscan(out, &longest); err != nil {
			t.Fatalf("%q: %v", out, err)
		}
		return longest
	}
	alone := gap("sleep 1")
	with := gap("for i in 1 2; do for c in 'ps guest' 'modules guest' 'maps guest 1' 'files guest 1' 'dmesg guest'; do hprobe $c --profiles /payload/profiles > /dev/null || exit 1; done; done")
	t.Logf("%d processes are read in %d ticks, %d each; hprobe ps takes %d with its start; the guest's longest pause: %d ticks, without it %d",
		r.Processes, r.Ticks, r.Ticks/uint64(max(1, r.Processes)), start.TSC, with, alone)
	if r.Processes < 150 || r.Ticks > pauseTicks || with > pauseTicks {
		t.Errorf("%+v; %d ticks", r, with)
	}
	alive(t, h)
}

// TestLookAtLies: a guest that makes its lists what no kernel's are gets a marked, partial
// answer, in bounded time and memory, with what is before the lie in it.
func TestLookAtLies(t *testing.T) {
	t.Parallel()
	for _, cfg := range first(0, pokeHosts()...) { // minutes of an emulated CPU
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			module, err := guests.LiarModule(context.Background(), cfg.Guest, func(s string) { t.Log(s) })
			if err != nil {
				t.Fatal(err)
			}
			h := lab.Copy(t, cfg, binary(t, "cmd/hprobe"), profile(t, cfg.Guest), module)
			h.Guest.MustRun(t, "insmod /payload/liar.ko")
			for _, lie := range []struct{ list, kind, why string }{
				{"tasks", "circle", "goes in a circle behind 4 entries"}, {"tasks", "self", "goes in a circle behind 2 entries"}, {"tasks", "wild", "cut off behind 2 entries"},
				{"tasks", "user", "cut off behind 2 entries"}, {"tasks", "back", "does not fit together behind 2 entries"}, {"tasks", "long", "the time for the list of processes was over"},
				// The last: it can't be unloaded with them.
				{"modules", "circle", "goes in a circle behind 3 entries"}, {"modules", "wild", "cut off behind 1 entries"}, {"modules", "long", "the list of modules"},
			} {
				t.Logf("%+v", lie)
				h.Guest.MustRun(t, fmt.Sprintf("echo %s %s > /sys/module/liar/parameters/lie", lie.list, lie.kind))
				command, first := "ps", "kthreadd"
				if lie.list == "modules" {
					command, first = "modules", "liar"
				}
				out := says(t, h, 6, "time -v hprobe "+command+" guest --timeout 5s --profiles /payload/profiles > /tmp/out 2> /tmp/err; e=$?; head -n 30 /tmp/out; tail -n 1 /tmp/out; cat /tmp/err; exit $e",
					"PARTIAL: ", lie.why, first, "the answer is partial")
				var kib int
				if _, text, ok := strings.Cut(out, "Maximum resident set size (kbytes): "); ok {
					fmt.Sscan(text, &kib)
				}
				if kib == 0 || kib > 256<<10 {
					t.Errorf("%+v: %d KiB of memory", lie, kib)
				}
				says(t, h, 6, "hprobe "+command+" guest --timeout 5s -o json --profiles /payload/profiles > /tmp/out 2> /tmp/err; e=$?; head -c 300 /tmp/out; exit $e", `{"partial":true,"why":["`)
			}
			h.Guest.MustRun(t, "echo > /sys/module/liar/parameters/lie")
			says(t, h, 0, "hprobe modules guest --profiles /payload/profiles && hprobe ps guest --profiles /payload/profiles", "liar", "kthreadd")
			h.Guest.MustRun(t, "rmmod liar")
			alive(t, h)
		})
	}
}
