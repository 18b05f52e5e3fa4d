package xen

import (
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// listed is a probe as probe ls -o json has it. Numbers of 64 bits are strings there.
type listed struct {
	ID, At, State, Detail string
	Hits, Passed, Changed uint64 `json:",string"`
	Returns, Lost         uint64 `json:",string"`
	Places                int
	Count                 int               `json:"syscall_count"`
	CallTexts             map[string]string `json:"calls"`
	calls                 map[string]uint64
}

func probesOf(t *testing.T, h *lab.Host) (all []listed) {
	t.Helper()
	for line := range strings.Lines(h.MustRun(t, "hprobe -o json probe ls")) {
		var p listed
		if err := json.Unmarshal([]byte(line), &p); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		p.calls = map[string]uint64{}
		for name, text := range p.CallTexts {
			var n uint64
			if _, err := fmt.Sscan(text, &n); err != nil {
				t.Fatal(err)
			}
			p.calls[name] = n
		}
		all = append(all, p)
	}
	return all
}

// make32 has the guest make n rounds of calls, of which so many must end otherwise.
func make32(t *testing.T, h *lab.Host, n, wrong int) {
	t.Helper()
	if out := h.Guest.MustRun(t, fmt.Sprintf("syscalls %d 2> /tmp/syscalls.err", n)); out != fmt.Sprintf("rounds %d wrong %d\n", n, wrong) {
		t.Errorf("the guest says %q %q, not %d wrong", out, h.Guest.MustRun(t, "cat /tmp/syscalls.err"), wrong)
	}
}

// syscalls: a set of system calls, native ones and those of int 0x80: hits of each are
// exact, arguments right, and a rule is of those that it says.
func syscalls(t *testing.T, cfg lab.Config) {
	h := daemonHost(t, cfg, "syscalls", "texthash")
	before := h.Guest.MustRun(t, "texthash")
	make32(t, h, 2, 0)
	says(t, h, 3, "hprobe probe add -d guest --syscall getpriority,munlokall", `no system call "munlokall" (near it: "munlockall"`)
	says(t, h, 2, "hprobe probe add -d guest --syscall getpriority --at vfs_read", "exclude")
	says(t, h, 2, "hprobe probe add -d guest --syscall getpriority --return", "--return")
	says(t, h, 0, "hprobe status", "attached to no guest")
	says(t, h, 0, "hprobe probe add -d guest --syscall getpriority,munlockall,umount2,chown32", "p1: armed in guest at ", " of 4 system calls")
	h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
	const rounds = 3
	make32(t, h, rounds, 0)
	want := map[string]uint64{"getpriority": 7 * rounds, "32-bit getpriority": 5 * rounds, "munlockall": 3 * rounds, "32-bit munlockall": 4 * rounds,
		"umount2": 6 * rounds, "32-bit umount2": 3 * rounds, "32-bit chown32": 2 * rounds}
	all := probesOf(t, h)
	if len(all) != 1 || all[0].Hits != 30*rounds || !maps.Equal(all[0].calls, want) || all[0].Detail != "" {
		t.Errorf("%+v", all)
	}
	t.Logf("%d places, %d passed", all[0].Places, all[0].Passed)
	trace := h.MustRun(t, "sleep 1; kill $(cat /tmp/trace.pid); cat /tmp/trace.log")
	for name, n := range want {
		if got := strings.Count(trace, "  "+name+"("); uint64(got) != n {
			t.Errorf("trace shows %d of %d calls of %s", got, n, name)
		}
	}
	if !strings.Contains(trace, "  getpriority(which=1000, who=0)") || !strings.Contains(trace, "  32-bit getpriority(which=1007, who=0)") || !strings.Contains(trace, `  umount2(name=?, flags=0)`) || strings.Count(trace, "syscalls[") != 30*rounds {
		t.Errorf("%s", trace)
	}
	says(t, h, 0, "hprobe probe rm p1", fmt.Sprintf("after %d hits", 30*rounds))
	// A verdict is of those that the condition means.
	says(t, h, 0, `hprobe probe add -d guest --syscall getpriority,munlockall --when 'syscall.compat && syscall.name == "getpriority" || !syscall.compat && syscall.nr == 151+1' --capture 'syscall.name,syscall.nr,arg0' --deny EPERM --mode enforce`, "armed")
	make32(t, h, 1, 5+3)
	all = probesOf(t, h)
	if len(all) != 1 || all[0].Hits != 19 || all[0].Changed != 8 {
		t.Errorf("%+v", all)
	}
	says(t, h, 0, "hprobe probe rm "+all[0].ID+"; hprobe status", "after 19 hits, 8 matched", "attached to no guest")
	make32(t, h, 1, 0)
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
	}
	alive(t, h)
}

// TestAllSyscalls: all of them at once, and all but the busiest.
func TestAllSyscalls(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain, "syscalls", "texthash", "work", "calls")
	before := h.Guest.MustRun(t, "texthash")
	// What a call costs without a probe, with one for others, and with one of its own.
	without := call(t, h, 300, 1).ticks
	says(t, h, 0, "hprobe probe add -d guest --syscall munlockall,umount2", "p1: armed")
	others := call(t, h, 300, 1).ticks
	says(t, h, 0, "hprobe probe add -d guest --syscall getpriority", "p2: armed")
	own := call(t, h, 300, 1).ticks
	says(t, h, 0, "hprobe probe rm p1; hprobe probe rm p2; hprobe status", "p1: removed from guest after 0 hits", "after 300 hits", "attached to no guest")
	t.Logf("a call takes %d ticks, %d with others probed, %d with a hit", without, others, own)
	if others > 2*without+100 {
		t.Errorf("calls that are not probed take %d ticks, %d without", others, without)
	}
	t.Log(strings.TrimSpace(says(t, h, 0, "time hprobe probe add -d guest --syscall all 2>&1", "p3: armed in guest at ")))
	make32(t, h, 2, 0)
	p := probesOf(t, h)[0]
	for name, n := range map[string]uint64{"getpriority": 14, "32-bit getpriority": 10, "munlockall": 6, "32-bit munlockall": 8, "umount2": 12, "32-bit umount2": 6, "32-bit chown32": 4} {
		if p.calls[name] != n {
			t.Errorf("%d hits of %s, not %d", p.calls[name], name, n)
		}
	}
	t.Logf("%d hits at %d places: %v", p.Hits, p.Places, p.calls)
	t.Log(says(t, h, 0, "hprobe status", "probes  1, in "))
	says(t, h, 0, "time hprobe probe rm p3 2>&1; hprobe status", "attached to no guest")
	says(t, h, 0, "hprobe probe add -d guest --syscall '!getpriority,!read,!write'", "p4: armed in guest at ")
	make32(t, h, 2, 0)
	if p = probesOf(t, h)[0]; p.calls["getpriority"] != 0 || p.calls["32-bit getpriority"] != 0 || p.calls["munlockall"] != 6 || p.calls["read"] != 0 {
		t.Errorf("%v", p.calls)
	}
	if work := h.Guest.MustRun(t, "work 5"); work != checksum(t, 5) {
		t.Errorf("the guest computes %q with probes, %q without", work, checksum(t, 5))
	}
	says(t, h, 0, "hprobe probe rm p4; hprobe status", "attached to no guest")
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
	}
	alive(t, h)
}
