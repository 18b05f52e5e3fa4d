package xen

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

// imagesHost is a copy in whose guest there are programs and libraries, which dom0 has
// copies of, and in whose dom0 hprobed runs.
func imagesHost(t *testing.T, cfg lab.Config) *lab.Host {
	t.Helper()
	dir, err := os.MkdirTemp(scratch, "images-")
	if err != nil {
		t.Fatal(err)
	}
	files, err := guests.Images(context.Background(), dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if f.Guest && f.Source != "" {
			files = append(files, lab.File{Name: "copies/" + filepath.Base(f.Name), Source: f.Source})
		}
	}
	files = append(files, binary(t, "cmd/hprobe"), binary(t, "cmd/hprobed"), binary(t, "test/xen/texthash"), profile(t, cfg.Guest), program(t, "texthash"))
	return daemonOf(t, cfg, files)
}

// imageProbe is what probe ls -o json has of one.
type imageProbe struct {
	State, Detail, Hits, Missed, MissedWhy string
	Passed                                 string
	Processes, Touched                     int
}

// inImage is a probe as probe ls has it.
func inImage(t *testing.T, h *lab.Host, id string) (p imageProbe) {
	t.Helper()
	for line := range strings.Lines(h.MustRun(t, "hprobe probe ls -o json")) {
		var one struct {
			ID string
			imageProbe
			MissedWhy string `json:"missed_why"`
		}
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if one.ID == id {
			one.imageProbe.MissedWhy = one.MissedWhy
			return one.imageProbe
		}
	}
	t.Fatalf("there is no probe %s", id)
	return p
}

// counts makes sure that probes have so many hits, and missed nothing.
func counts(t *testing.T, h *lab.Host, when string, want map[string]int) {
	t.Helper()
	for id, n := range want {
		if p := inImage(t, h, id); p.Hits != fmt.Sprint(n) || p.Missed != "0" {
			t.Errorf("%s: probe %s has %s hits, not %d: %+v", when, id, p.Hits, n, p)
		}
	}
}

// runs runs the guest's program, which checks itself.
func runs(t *testing.T, h *lab.Host, command string) string {
	t.Helper()
	out := h.Guest.MustRun(t, command)
	if !strings.HasSuffix(out, "ok\n") {
		t.Errorf("%s: %q", command, out)
	}
	return out
}

const sums = "md5sum /payload/images /payload/static /payload/lib*.so /payload/libc.so.6"

// images: a probe at a symbol of a program or library is in each process that has it,
// from its first call on.
func images(t *testing.T, cfg lab.Config) {
	h := imagesHost(t, cfg)
	text, files := h.Guest.MustRun(t, "texthash"), h.Guest.MustRun(t, sums)
	const program, library = "hprobe probe add -d guest --at 'image:/payload/images!program_sum' --image-file /payload/copies/images",
		"hprobe probe add -d guest --at 'image:libshared.so!shared_sum' --image-file /payload/copies/libshared.so"
	says(t, h, 0, "hprobe probe add -d guest --at 'image:/payload/static!program_sum' --image-file /payload/copies/static", "p1: waiting in guest", "mapped 0 times")
	says(t, h, 0, program, "p2: waiting in guest")
	says(t, h, 0, library, "p3: waiting in guest")
	says(t, h, 0, library+" --comm twin", "p4: waiting")
	runs(t, h, "static once 50")
	counts(t, h, "static", map[string]int{"p1": 50, "p2": 0, "p3": 0, "p4": 0})
	runs(t, h, "images once 40")
	counts(t, h, "once", map[string]int{"p1": 50, "p2": 40, "p3": 40, "p4": 0})
	runs(t, h, "images fork 30")
	counts(t, h, "fork", map[string]int{"p2": 160, "p3": 160, "p4": 0})
	runs(t, h, "images exec 20 /payload/twin") // by another name: its program is another one
	counts(t, h, "exec", map[string]int{"p2": 180, "p3": 200, "p4": 20})
	runs(t, h, "images exec 5 /payload/images")
	counts(t, h, "exec of itself", map[string]int{"p2": 190, "p3": 210, "p4": 20})
	runs(t, h, "images threads 10 & twin threads 20 & wait; echo ok")
	counts(t, h, "threads", map[string]int{"p2": 230, "p3": 330, "p4": 100})
	for _, id := range []string{"p1", "p2", "p3", "p4"} {
		if p := inImage(t, h, id); p.State != "waiting" || p.Processes != 0 {
			t.Errorf("no process is left, and %s is %+v", id, p)
		}
	}
	says(t, h, 0, "hprobe probe rm p1; hprobe probe rm p2", "after 50 hits", "after 230 hits")
	says(t, h, 0, "hprobe probe rm p3; hprobe probe rm p4", "after 330 hits", "after 100 hits")
	says(t, h, 0, "hprobe status", "attached to no guest")
	if now := h.Guest.MustRun(t, sums); now != files {
		t.Errorf("the guest's files are %q, and were %q", now, files)
	}
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != text {
		t.Errorf("dom0 sees the guest's code as %q after removal, the guest saw %q before", after, text)
	}
	out := h.MustRun(t, "cat /tmp/hprobed.log")
	for _, bad := range []string{"level=ERROR", "can't be armed", "wrote over"} {
		if strings.Contains(out, bad) {
			t.Errorf("hprobed's log: %s", out)
		}
	}
	alive(t, h)
}

// TestImageOfProcess: a probe in a program that runs, by its number, with symbols from
// its memory; and what an operator gets wrong.
func TestImageOfProcess(t *testing.T) {
	for _, cfg := range first(1, plain, smp) {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := imagesHost(t, cfg)
			await := func(file string) {
				t.Helper()
				h.Guest.MustRun(t, "while [ ! -e /tmp/images."+file+" ]; do sleep 0.1; done")
			}
			const at = "hprobe probe add -d guest --at 'image:/payload/libshared.so!"
			says(t, h, 1, at+"shared_sum'", "--image-file", "no process has")
			pid := strings.TrimSpace(h.Guest.MustRun(t, "images serve 100 > /tmp/serve.out 2>&1 & echo $!"))
			await("ready")
			says(t, h, 3, at+"shared_sun'", "shared_sum", "--image-file")
			says(t, h, 3, at+"shared_hidden'", "only what programs link to", "--image-file")
			says(t, h, 3, at+"shared_hiden' --image-file /payload/copies/libshared.so", "near it: shared_hidden")
			says(t, h, 1, at+"shared_sum' --image-file /payload/copies/newer.so", "another build", "images")
			says(t, h, 2, at+"shared_sum+1' --return", "first instruction")
			says(t, h, 3, at+"shared_sum' --pid 9999", "no process 9999")
			says(t, h, 2, "hprobe probe add -d guest --at do_exit --comm x", "--comm")
			says(t, h, 0, "hprobe status", "attached to no guest")
			says(t, h, 0, at+"shared_sum' --pid "+pid+" --capture arg0,arg1,comm", "mapped 1 time")
			says(t, h, 0, at+"shared_hidden' --image-file /payload/copies/libshared.so", "mapped 1 time")
			says(t, h, 0, "hprobe probe add -d guest --at 'image:/payload/images!program_sum' --when 'arg0 == 7u'", "mapped 1 time")
			h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
			runs(t, h, "images once 10")
			h.Guest.MustRun(t, "touch /tmp/images.go")
			await("done")
			ids := strings.Fields(h.MustRun(t, "hprobe probe ls | tail -n +2 | awk '{print $1}'"))
			if len(ids) != 3 {
				t.Fatalf("%q", ids)
			}
			counts(t, h, "serve", map[string]int{ids[0]: 100, ids[1]: 110, ids[2]: 110})
			out := says(t, h, 0, "hprobe probe ls", "PROCESSES", "libshared.so!shared_sum of process "+pid)
			t.Log(out)
			h.Guest.MustRun(t, "touch /tmp/images.end; while [ -d /proc/"+pid+" ]; do sleep 0.1; done")
			says(t, h, 0, "hprobe probe ls", "ended (its process has exited)", "no process has it mapped")
			t.Log(h.MustRun(t, "cat /tmp/trace.log | tail -n 3"))
			for _, id := range ids {
				says(t, h, 0, "hprobe probe rm "+id)
			}
			says(t, h, 0, "hprobe status", "attached to no guest")
			alive(t, h)
		})
	}
}

// TestImagesComeAndGo: a library that a process opens and closes, with another one of
// the same code at its address in between.
func TestImagesComeAndGo(t *testing.T) {
	for _, cfg := range []lab.Config{plain, smp} {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := imagesHost(t, cfg)
			says(t, h, 0, "hprobe probe add -d guest --at 'image:libplugin.so!plugin_sum' --image-file /payload/copies/libplugin.so", "p1: waiting")
			out := runs(t, h, "images plugin 10")
			t.Log(out)
			counts(t, h, "plugin", map[string]int{"p1": 20})
			says(t, h, 0, "hprobe probe rm p1", "after 20 hits")
			says(t, h, 0, "hprobe status", "attached to no guest")
			alive(t, h)
		})
	}
}

// TestImagesDetach: hprobed ends while a process has a probe in its library: it runs on,
// and its code is as it was.
func TestImagesDetach(t *testing.T) {
	for _, cfg := range []lab.Config{plain, smp} {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := imagesHost(t, cfg)
			files := h.Guest.MustRun(t, sums)
			says(t, h, 0, "hprobe probe add -d guest --at 'image:libshared.so!shared_sum' --image-file /payload/copies/libshared.so", "p1: waiting")
			h.Guest.MustRun(t, "(images serve 100 > /tmp/serve.out 2>&1; echo end >> /tmp/serve.out) & while [ ! -e /tmp/images.ready ]; do sleep 0.1; done")
			runs(t, h, "images once 5")
			if p := inImage(t, h, "p1"); p.Processes != 1 || p.Hits != "5" {
				t.Errorf("%+v", p)
			}
			if log := h.MustRun(t, stopDaemon+"cat /tmp/hprobed.log"); strings.Contains(log, "level=ERROR") {
				t.Error(log)
			}
			out := h.Guest.MustRun(t, "touch /tmp/images.go /tmp/images.end; while ! grep -q end /tmp/serve.out; do sleep 0.1; done; cat /tmp/serve.out")
			if out != "ok\nend\n" {
				t.Errorf("the program says %q", out)
			}
			if now := h.Guest.MustRun(t, sums); now != files {
				t.Errorf("the guest's files are %q, and were %q", now, files)
			}
			alive(t, h)
		})
	}
}

// TestImagesMany: a hundred processes with one library: what that costs.
func TestImagesMany(t *testing.T) {
	h := imagesHost(t, plain)
	run := func(when string) {
		h.Guest.MustRun(t, "rm -f /tmp/images.*")
		t.Log(when, runs(t, h, "images cost 200"))
	}
	run("without probes:")
	says(t, h, 0, "hprobe probe add -d guest --at 'image:/payload/libshared.so!shared_sum' --image-file /payload/copies/libshared.so", "p1: waiting")
	run("with one:")
	counts(t, h, "cost", map[string]int{"p1": 800})
	h.Guest.MustRun(t, "images many 5 > /tmp/many.out 2>&1 & while [ ! -e /tmp/images.ready ]; do sleep 0.1; done")
	p := inImage(t, h, "p1")
	if p.Processes != 101 || p.State != "armed" || p.Hits != "1300" {
		t.Errorf("with 100 processes the probe is %+v", p)
	}
	// Another one finds them all as they run, and leaves them as they run.
	says(t, h, 0, "hprobe probe add -d guest --at 'image:/payload/images!program_sum'", "p2: armed", "mapped 101 times")
	t.Log(h.MustRun(t, "hprobe probe ls; hprobe status"))
	says(t, h, 0, "hprobe probe rm p2", "after 0 hits")
	h.Guest.MustRun(t, "touch /tmp/images.go; while ! grep -q ok /tmp/many.out; do sleep 0.1; done")
	t.Log(h.Guest.MustRun(t, "cat /tmp/many.out"))
	t.Log(h.MustRun(t, "cat /tmp/hprobed.log; hprobe status -o json"))
	counts(t, h, "many", map[string]int{"p1": 2300})
	says(t, h, 0, "hprobe probe rm p1", "after 2300 hits")
	if log := h.MustRun(t, "cat /tmp/hprobed.log"); strings.Contains(log, "level=ERROR") {
		t.Error(log)
	}
	says(t, h, 0, "hprobe status", "attached to no guest")
	alive(t, h)
}
