package xen

import (
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

// stackHit is what trace -o json has of one with its stack.
type stackHit struct {
	At      string
	Process struct {
		Comm      string
		UID       *uint32
		StartTime string `json:"start_time"`
	}
	Stack []struct {
		Address, Text string
		User          bool
	}
	StackError string `json:"stack_error"`
}

// texts are the frames of the kernel, or of the program.
func (s *stackHit) texts(user bool) (all []string) {
	for _, f := range s.Stack {
		if f.User == user {
			all = append(all, f.Text)
		}
	}
	return all
}

// traced adds a probe, has the guest run a command, and returns the hits and what the
// guest said.
func traced(t *testing.T, h *lab.Host, add, command string) (hits []stackHit, out string) {
	t.Helper()
	id, _, _ := strings.Cut(says(t, h, 0, "hprobe probe add -d guest "+add, "guest"), ":")
	h.MustRun(t, "hprobe -o json trace > /tmp/trace.json 2>&1 & echo $! > /tmp/trace.pid; sleep 1")
	out = h.Guest.MustRun(t, command)
	for line := range strings.Lines(h.MustRun(t, "sleep 1; kill $(cat /tmp/trace.pid); cat /tmp/trace.json")) {
		var one stackHit
		if err := json.Unmarshal([]byte(line), &one); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		hits = append(hits, one)
	}
	says(t, h, 0, "hprobe probe rm "+id, "after ")
	if len(hits) == 0 {
		t.Fatalf("%s: no hits", add)
	}
	return hits, out
}

var kernelFrame = regexp.MustCompile(`(?m)^\[<0>\] ([^/\s]+)`)

// TestStacks: the stack of a hit is what the guest's own kernel finds it to be, through
// modules, too; and of a program with frame pointers what that says itself.
func TestStacks(t *testing.T) {
	for _, cfg := range first(3, plain, smp, oldest, older) {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			p := program(t, "stack")
			files := []lab.File{p, {Name: "copies/stack", Source: p.Source}}
			withModule := full || cfg == plain // each Linux has a compiler of its own to be fetched
			if withModule {
				module, err := guests.Module(context.Background(), cfg.Guest, func(s string) { t.Log(s) })
				if err != nil {
					t.Fatal(err)
				}
				files = append(files, module)
			}
			h := daemonHostWith(t, cfg, files, "vuln")

			hits, out := traced(t, h, "--at stack_trace_save_tsk --stack kernel", "cat /proc/self/stack")
			var want []string
			for _, m := range kernelFrame.FindAllStringSubmatch(out, -1) {
				want = append(want, m[1])
			}
			got := hits[0].texts(false)
			if len(hits) != 1 || len(got) < 5 || got[0] != "stack_trace_save_tsk" || strings.Join(got[1:], " ") != strings.Join(want, " ") || hits[0].StackError != "" {
				t.Errorf("%d hits, %q (%s), and the guest says %q", len(hits), got, hits[0].StackError, out)
			}
			if p := hits[0].Process; p.Comm != "cat" || p.UID == nil || *p.UID != 0 || p.StartTime == "" || p.StartTime == "0" {
				t.Errorf("%+v", p)
			}

			if withModule {
				h.Guest.MustRun(t, "insmod /payload/vuln.ko")
				hits, _ = traced(t, h, "--at vuln!vuln_copy --stack all", "vuln benign")
				got = hits[0].texts(false)
				if len(got) < 4 || got[0] != "vuln!vuln_copy" || !strings.HasPrefix(got[1], "vuln!vuln_ioctl+0x") || hits[0].StackError != "" {
					t.Errorf("%q (%s)", got, hits[0].StackError)
				}
				if user := hits[0].texts(true); len(user) == 0 || !strings.HasPrefix(user[0], "/payload/vuln+0x") {
					t.Errorf("%q", user)
				}
			}

			for add, entry := range map[string]int{
				"--at __x64_sys_getpriority --stack all":                                           0,
				"--at 'image:/payload/stack!leaf' --image-file /payload/copies/stack --stack user": 1,
			} {
				hits, out = traced(t, h, add, "stack 2")
				var say [3]string
				var wrong int
				if _, err := fmt.Sscanf(out, "%s %s %s wrong %d", &say[0], &say[1], &say[2], &wrong); err != nil || wrong != 0 || len(hits) != 2 {
					t.Fatalf("%q: %v, %d hits", out, err, len(hits))
				}
				for _, hit := range hits {
					var at []string
					for _, f := range hit.Stack {
						if f.User {
							var n uint64
							fmt.Sscan(f.Address, &n)
							at = append(at, fmt.Sprintf("%#x", n))
						}
					}
					// The first is where it runs, at a function's entry the second its caller.
					if len(at) < 4+entry || strings.Join(at[1+entry:4+entry], " ") != strings.Join(say[:], " ") {
						t.Errorf("%s: %v (%s), and the program says %v", add, at, hit.StackError, say)
					}
					texts := hit.texts(true)
					for _, text := range texts[:min(len(texts), 4)] { // what is behind main is libc's
						if !strings.HasPrefix(text, "/payload/stack+0x") {
							t.Errorf("%q", text)
						}
					}
					if kernel := hit.texts(false); entry == 0 && (len(kernel) < 3 || kernel[0] != "__x64_sys_getpriority") || entry == 1 && kernel != nil {
						t.Errorf("%s: %q", add, kernel)
					}
				}
			}
			says(t, h, 2, "hprobe probe add -d guest --at vfs_read --stack both", "kernel, user or all")
			says(t, h, 0, "hprobe probe add -d guest --at __x64_sys_getpriority --stack all", "armed")
			h.MustRun(t, "hprobe trace -n 1 > /tmp/one.log 2>&1 & "+awaitTraces)
			h.Guest.MustRun(t, "stack 1")
			t.Log(h.MustRun(t, "sleep 1; cat /tmp/one.log"))
			alive(t, h)
		})
	}
}
