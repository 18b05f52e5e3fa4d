package xen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// callsFor lets the guest make 500 calls, some of which a rule may change, and
// returns what the guest's program itself says of them.
func callsFor(t *testing.T, h *lab.Host) (c calls, said string) {
	t.Helper()
	out := h.Guest.MustRun(t, "calls 500 1 2> /tmp/calls.err; true")
	return parseCalls(t, out), h.Guest.MustRun(t, "cat /tmp/calls.err")
}

// ruled puts a probe on getpriority(2) with a rule, has the guest make its calls, and
// takes the probe out again. It returns what the guest says, and what trace showed.
func ruled(t *testing.T, h *lab.Host, rule string, matched, wrong int, words ...string) (said, trace string) {
	t.Helper()
	id, _, _ := strings.Cut(says(t, h, 0, "hprobe probe add --domain guest --at __x64_sys_getpriority "+rule, "armed in guest"), ":")
	h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
	c, said := callsFor(t, h)
	if c.wrong != uint64(wrong) {
		t.Errorf("%s: the guest says that %d of %d calls ended otherwise, not %d: %s", rule, c.wrong, c.calls, wrong, said)
	}
	t.Logf("%d ticks a call with %s", c.ticks, rule)
	says(t, h, 0, "hprobe probe ls", words...)
	says(t, h, 0, "hprobe probe rm "+id, fmt.Sprintf("after %d hits, %d matched", c.calls, matched))
	trace = h.MustRun(t, "sleep 0.5; kill $(cat /tmp/trace.pid); cat /tmp/trace.log")
	if n := strings.Count(trace, "\n"); n != matched {
		t.Errorf("%s: trace shows %d hits, not %d", rule, n, matched)
	}
	return said, trace
}

// when: a condition matches exactly the calls that it is of, and a verdict
// changes those and no others, as the guest's own program counts them.
func when(t *testing.T, cfg lab.Config) {
	h := daemonHost(t, cfg, "calls", "texthash")
	before := h.Guest.MustRun(t, "texthash")
	for _, wrong := range [][2]string{
		{`--at __x64_sys_getpriority --when 'whick == 1'`, "did you mean 'which'"}, {`--at vfs_open --when 'file.f_mod == 1'`, "did you mean 'f_mode'"},
		{`--at __x64_sys_getpriority --when which`, "true or false"}, {`--at __x64_sys_getpriority --mode enforce`, "without a verdict"},
		{`--at vfs_open+4 --deny EPERM`, "entry"}, {`--at vfs_open --deny ENOSUCH`, "ENOSUCH"},
	} {
		says(t, h, 2, "hprobe probe add --domain guest "+wrong[0], wrong[1])
	}
	says(t, h, 0, "hprobe status", "attached to no guest")

	_, trace := ruled(t, h, `--when 'which >= 1100 && which < 1200 && comm == "calls" && pid < tid' --capture 'which,who=arg1,comm,uid,start_time > 0'`, 100, 0, "100 ")
	if n := strings.Count(trace, `, comm="calls", uid=0, start_time > 0=true)`); n != 100 || !strings.Contains(trace, "(which=1100, who=0, ") || !strings.Contains(trace, "(which=1199, who=0, ") {
		t.Errorf("%d calls as they were in %.600s", n, trace)
	}
	// What would be done is not done, until somebody says so.
	_, trace = ruled(t, h, `--when 'which % 2 == 0' --deny EACCES`, 250, 0, "observe: deny EACCES")
	if n := strings.Count(trace, "would be denied with EACCES"); n != 250 {
		t.Errorf("%d calls would be denied: %.600s", n, trace)
	}
	said, _ := ruled(t, h, `--when 'which % 2 == 0' --deny EACCES --mode enforce`, 250, 250, "enforce: deny EACCES")
	if !strings.Contains(said, "call 0 returned -13") {
		t.Errorf("the guest says %q", said)
	}
	// From the 401st call of one process on.
	said, _ = ruled(t, h, `--key pid --threshold 401 --deny -77 --mode enforce`, 500, 100, "from 401 on of one pid (1 key)")
	if !strings.Contains(said, "call 400 returned -77") {
		t.Errorf("the guest says %q", said)
	}
	said, _ = ruled(t, h, `--key pid --threshold 10 --reset 'which % 20 == 0' --deny -77 --mode enforce`, 500, 25*11, "275")
	if !strings.Contains(said, "call 9 returned -77") {
		t.Errorf("the guest says %q", said)
	}
	// An argument in memory, and one in a register.
	said, _ = ruled(t, h, `--when 'which == 1007' --set which=0 --mode enforce`, 1, 1, "set which=0")
	if !strings.Contains(said, "call 7 returned 20") {
		t.Errorf("the guest says %q", said)
	}
	// Memory that is not there is no match, and no harm.
	ruled(t, h, `--when 'u64(which) == 5' --deny EPERM --mode enforce`, 0, 0, "last error")

	says(t, h, 0, "hprobe findings --last 10", "REPORTED", "which == 1007; set which=0", "could not be judged, and was let pass (256 so far)")
	says(t, h, 0, "hprobe findings | grep -c BLOCKED", fmt.Sprint(250+100+275))
	says(t, h, 0, "hprobe status", "attached to no guest")
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
	}
	alive(t, h)
}

// TestWhenOfTypes: strings and fields through structs of a real kernel; a refused
// open(2) is that of one file.
func TestWhenOfTypes(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain)
	h.Guest.MustRun(t, "echo a > /tmp/one; echo b > /tmp/two")
	says(t, h, 0, `hprobe probe add -d guest --at do_sys_openat2 --when 'filename == "/tmp/one"' --capture 'filename,how.flags,dfd' --deny EACCES --mode enforce --message '{comm} opens {filename}'`)
	says(t, h, 0, `hprobe probe add -d guest --at vfs_open --when 'path.dentry.d_name.name == "two" && path.dentry.d_parent.d_name.name in ["tmp", "/"]' --capture 'path.dentry.d_name.name,file'`)
	h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
	if out := h.Guest.MustRun(t, "cat /tmp/one 2>&1; cat /tmp/two; cat /tmp/one 2>&1; true"); strings.Count(out, "Permission denied") != 2 || !strings.Contains(out, "b\n") {
		t.Errorf("the guest says %q", out)
	}
	says(t, h, 0, "hprobe probe ls; sleep 1; cat /tmp/trace.log", `(filename="/tmp/one", how.flags=0x`, "dfd=-100)  denied with EACCES", `path.dentry.d_name.name="two", file=struct file at 0xffff`)
	says(t, h, 0, "hprobe findings", "BLOCKED", `opens "/tmp/one"; denied with EACCES`)
	says(t, h, 0, "hprobe probe rm p1; hprobe probe rm p2", "2 matched", "1 matched", "p2: removed")
	if out := h.Guest.MustRun(t, "cat /tmp/one"); out != "a\n" {
		t.Errorf("without the probe the guest says %q", out)
	}
	alive(t, h)
}

// TestWhenPauses: a match pauses the guest before the call; it goes on as if there
// had been nothing, by xl unpause or by hprobed's end.
func TestWhenPauses(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain, "calls")
	const state = "xl list guest | tail -n 1 | awk '{print $5}'"
	h.MustRun(t, `hprobe probe add -d guest --at __x64_sys_getpriority --when 'which == 1100 || which == 1200' --pause --mode enforce
guest '(calls 500 1 > /tmp/calls.out 2>&1) &'; n=0; until `+state+` | grep -q p || [ $n -gt 100 ]; do n=$((n+1)); sleep 0.1; done`)
	says(t, h, 0, state, "p")
	says(t, h, 0, "hprobe probe ls", "101 ")
	h.MustRun(t, "xl unpause guest; n=0; until hprobe probe ls | grep -q '201 ' || [ $n -gt 100 ]; do n=$((n+1)); sleep 0.1; done; sleep 0.5")
	says(t, h, 0, state, "p")
	says(t, h, 0, "hprobe probe rm p1", "after 201 hits, 2 matched")
	c := parseCalls(t, h.Guest.MustRun(t, "while ! grep -q calls /tmp/calls.out; do sleep 0.1; done; cat /tmp/calls.out"))
	if c.wrong != 0 || c.calls != 500 {
		t.Errorf("%d of %d calls had a wrong result", c.wrong, c.calls)
	}
	says(t, h, 0, "hprobe status", "attached to no guest")
	alive(t, h)
}
