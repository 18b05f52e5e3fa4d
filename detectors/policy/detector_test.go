package policy

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// TestStopgap: the paper's emergency detector, in both modes.
func TestStopgap(t *testing.T) {
	const spec = `
  probes:
    - name: check
      at: [vfs_stat_v2, vfs_stat]
      when: name == "/etc/shadow" && flags < 0
      then:
        finding: {severity: info, tags: [own], message: '{comm} asks for {name}'}
        deny: EACCES
`
	for mode, want := range map[string]struct {
		rax     int64
		message string
	}{"observe": {0x77, `info: "sh" asks for "/etc/shadow"; would be denied with EACCES in enforce mode`}, "enforce": {-13, `info: "sh" asks for "/etc/shadow"; denied with EACCES`}} {
		t.Run(mode, func(t *testing.T) {
			r := newRig(t)
			d := r.arm("  mode: " + mode + spec)
			if rax := r.call("vfs_stat", nameAt, 1); rax != 0x77 {
				t.Errorf("an honest call returned %#x", rax)
			}
			if rax := r.call("vfs_stat", nameAt, 0xffffffff); int64(rax) != want.rax {
				t.Errorf("an attempt returned %#x", rax)
			}
			r.call("vfs_stat", 0x1000, 0xffffffff) // not mapped
			f := r.findings()
			if got := r.found(); len(got) != 2 || got[0] != want.message || !slices.Equal(f[0].Tags, []string{"of-policy", "own"}) || f[0].Blocked != (mode == "enforce") || f[0].Detector != "policy/test" {
				t.Errorf("%q, %+v", got, f)
			}
			s := d.Status()
			if len(s) != 1 || s[0].Name != "check" || s[0].At != "vfs_stat" || s[0].Matched != 1 || s[0].Acted != 1 || s[0].Errors != 1 || !strings.Contains(s[0].LastError, "not mapped") || s[0].Skipped != "" {
				t.Errorf("%+v", s)
			}
			if vital := d.Probes()[0].Vital; vital != (mode == "enforce") {
				t.Errorf("vital: %v", vital)
			}
		})
	}
}

// TestLoop: the paper's loop detector. Loop bodies are counted for each thread, and the
// loop's begin sets its count back.
func TestLoop(t *testing.T) {
	r := newRig(t)
	d := r.arm(`
  counters: [{name: iterations, key: tid}]
  probes:
    - {name: enter, at: loop_enter, then: {reset: iterations}}
    - name: body
      at: loop_body
      then: {count: iterations, threshold: 5, finding: {severity: high, message: 'thread {tid} loops'}}
`)
	run := func(tid uint32, function string, n int) {
		r.thread(tid, "loops")
		for range n {
			r.call(function)
		}
	}
	for range 3 { // a loop that ends
		run(1, "loop_body", 4)
		run(1, "loop_enter", 1)
	}
	run(2, "loop_body", 4) // another thread's
	run(1, "loop_body", 4)
	if got := r.found(); got != nil {
		t.Errorf("%q", got)
	}
	// One that does not: told at 5, 10, 20, 40.
	run(2, "loop_body", 40)
	if got := r.found(); len(got) != 4 || got[0] != "high: thread 2 loops" || r.findings()[3].Facts[len(r.findings()[3].Facts)-1] != (detectors.Fact{Name: "count", Value: 40}) {
		t.Errorf("%q", got)
	}
	if s := d.Status(); s[1].Matched != 60 || s[1].Acted != 40 || s[1].Keys != 2 || s[0].Matched != 3 || s[0].Acted != 0 {
		t.Errorf("%+v", s)
	}
	// Another guest has counts of its own.
	other := newRig(t)
	o, err := d.Policy.Compile(other.target())
	if err != nil {
		t.Fatal(err)
	}
	if o.Status()[1].Matched != 0 || o.probes[1].program.Rule().Counter == d.probes[1].program.Rule().Counter {
		t.Error("two guests share a counter")
	}
}

// TestRegisterLoop: the other one judges the loop's variable in its register.
func TestRegisterLoop(t *testing.T) {
	r := newRig(t)
	r.arm(`
  mode: enforce
  probes:
    - {name: body, at: loop_body+0x4, when: reg.rdi > 1000, then: {finding: {message: 'i is {reg.rdi}'}, set: [rdi=1]}}
`)
	r.call("loop_body", 1000)
	r.call("loop_body", 1001)
	if got := r.found(); len(got) != 1 || got[0] != "high: i is 0x3e9; set rdi=1" {
		t.Errorf("%q", got)
	}
}

// TestWatchdog: the paper's heartbeat. Time that the guest is paused does not count.
func TestWatchdog(t *testing.T) {
	r := newRig(t)
	d := r.arm(`
  probes:
    - {name: beat, at: heartbeat, when: pid == 6}
    - {name: other, at: loop_body, then: {finding: {}}}
  watchdogs:
    - {name: alive, expect: beat, within: 2s, finding: {severity: high, tags: [hang], message: the program hangs}}
    - {name: strict, expect: beat, within: 2s, clock: host, from: first}
`)
	if d.Every() != 200*time.Millisecond {
		t.Errorf("every %v", d.Every())
	}
	start := time.Now()
	var log []string
	tick := func(host, guest time.Duration) {
		for _, f := range d.Tick(detectors.Moment{Host: start.Add(host), Guest: guest}) {
			log = append(log, fmt.Sprintf("%v %s %s %s %d", guest, f.Severity, f.Probe, f.Message, f.Facts[0].Value))
			if f.Severity == detectors.High && !slices.Equal(f.Tags, []string{"of-policy", "hang"}) {
				t.Errorf("%+v", f)
			}
		}
	}
	at := func(seconds float64) time.Duration { return time.Duration(seconds * float64(time.Second)) }
	tick(0, 0)
	tick(at(2), at(2)) // not more than 2s yet
	r.thread(7, "sh")
	r.call("heartbeat") // of another process
	tick(at(2.1), at(2.1))
	tick(at(9), at(9)) // told once
	r.thread(6, "sh")
	r.call("heartbeat")
	tick(at(10), at(10))
	r.call("heartbeat")
	tick(at(11), at(11))
	tick(at(100), at(12)) // paused
	tick(at(101), at(13))
	tick(at(102), at(13.1))
	want := []string{
		"2.1s high heartbeat the program hangs 2100",
		"10s info heartbeat alive: beat matches again, after 10s 10000",
		"12s medium heartbeat strict: beat did not match for more than 2s 89000",
		"13.1s high heartbeat the program hangs 2100",
	}
	if !slices.Equal(log, want) {
		t.Errorf("%s", strings.Join(log, "\n"))
	}
	if got := r.found(); got != nil {
		t.Errorf("%q", got) // a probe that a watchdog expects says nothing itself
	}
}

// TestReturnsAndSources: the end of a call, and a register.
func TestReturnsAndSources(t *testing.T) {
	r := newRig(t)
	d := r.arm(`
  mode: enforce
  probes:
    - {name: ended, at: vfs_stat, return: true, when: ret == 0x77 && current.flags == 0, then: {finding: {message: 'it was {ret}'}, set: [ret=5]}}
    - {name: smep, register: 'cr4:smep', when: 'mask(new, 0x100000) == 0', then: {deny: write}}
`)
	if rax := r.call("caller", nameAt, 1); rax != 5 {
		t.Errorf("it returned %#x: %+v", rax, d.Status())
	}
	if got := r.found(); len(got) != 1 || got[0] != "high: it was 119; set ret=5" {
		t.Errorf("%q", got)
	}
}

func TestCompileErrors(t *testing.T) {
	r := newRig(t)
	for _, c := range []struct{ spec, want string }{
		{"  probes: [{name: a, at: vfs_sta, then: {finding: {}}}]\n", `test.yaml:6:26: spec.probes[0].at: symbol "vfs_sta": not in the profile (near it: loop_enter, vfs_stat)`},
		{"  probes:\n  - name: a\n    at: vfs_stat\n    when: flgs == 1\n    then: {finding: {}}\n", `test.yaml:9:11: spec.probes[0].when: condition "flgs == 1": `},
		{"  probes:\n  - name: a\n    at: vfs_stat\n    capture: [flags, nme]\n    then: {finding: {}}\n", `test.yaml:9:22: spec.probes[0].capture[1]: capture "nme": `},
		{"  probes:\n  - name: a\n    at: vfs_stat\n    then: {finding: {message: 'x {fags}'}}\n", `test.yaml:9:31: spec.probes[0].then.finding.message: message "fags": `},
		{"  probes:\n  - name: a\n    at: vfs_stat\n    then: {set: ['flgs=1']}\n", `test.yaml:9:18: spec.probes[0].then.set[0]: set "flgs": `},
		{"  counters: [{name: c, key: cmm}]\n  probes:\n  - name: a\n    at: vfs_stat\n    then: {count: c, threshold: 2}\n", `test.yaml:10:11: spec.probes[0].then: key "cmm": `},
		{"  probes:\n  - name: a\n    syscalls: [opnat]\n    then: {finding: {}}\n", `test.yaml:8:15: spec.probes[0].syscalls: `},
		{"  probes:\n  - name: a\n    at: vfs_stat\n    only: [{kernel: '< 6'}]\n    then: {finding: {}}\n", `test.yaml:7:3: spec.probes: none of them is for this guest's kernel, Linux version 6.1.0-13`},
		{"  probes:\n  - {name: a, at: vfs_sta, then: {finding: {}}}\n  - {name: b, at: vfs_stat, when: flags, then: {finding: {}}}\n", "test.yaml:8:35: spec.probes[1].when: "}, // and the first one
	} {
		_, err := policies(t, c.spec)[0].Compile(r.target())
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s\nsays   %v\nwanted %s", c.spec, err, c.want)
		}
	}
}

func TestNotNeeded(t *testing.T) {
	r := newRig(t)
	code := "f3 0f 1e fa 55"
	for check, want := range map[string]string{
		"kernel: '>= 6.1.10'": `policy "test" is not needed here: its kernel 6.1.0-13-amd64 (6.1.55) is >= 6.1.10`, "kernel: '>= 6.1.56'": "", "kernel: '< 6.1.55'": "", "kernel: '>= 6.1.0-13'": "is >= 6.1.0-13", "kernel: '> 6.1.0-13'": "",
		"banner: Debian": `its banner has "Debian"`, "banner: Ubuntu": "", "symbol: vfs_stat": "its kernel has vfs_stat", "symbol: vfs_stet": "",
		"field: task_struct.comm": "its kernel has task_struct.comm", "field: task_struct.com": "", "field: task.comm": "",
		"bytes: {at: vfs_stat, is: '" + code + "'}": "it has " + code + " at vfs_stat", "bytes: {at: vfs_stat+1, is: '" + code + "'}": "", "bytes: {at: vfs_stet, is: '" + code + "'}": "",
		"bytes: {at: vfs_stat+0x4, is: '55 5d c3'}, kernel: '>= 6'": "is >= 6, and it has 55 5d c3", "symbol: vfs_stat, kernel: '< 6'": "",
	} {
		p := policies(t, "  unless: [{symbol: no_such}, {"+check+"}]\n  probes: [{name: a, at: vfs_stat, then: {finding: {}}}]\n")[0]
		_, err := p.Compile(r.target())
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %q", check, err, want)
		}
		always := r.target()
		always.Regardless = true
		if _, err := p.Compile(always); err != nil {
			t.Errorf("%s: %v", check, err)
		}
	}
	p := policies(t, "  probes:\n  - {name: a, at: vfs_stat, only: [{kernel: '< 6'}], then: {finding: {}}}\n  - {name: b, at: vfs_stat, only: [{kernel: '>= 6'}], then: {finding: {}}}\n  watchdogs: [{name: w, expect: a, within: 1s}]\n")[0]
	d, err := p.Compile(r.target())
	if err != nil {
		t.Fatal(err)
	}
	if s := d.Status(); len(d.Probes()) != 1 || s[0].Skipped == "" || s[1].Skipped != "" || d.Every() != 0 || d.Tick(detectors.Moment{}) != nil {
		t.Errorf("%+v, every %v", s, d.Every())
	}
	unreadable := policies(t, "  unless: [{bytes: {at: heartbeat+0x7ff, is: '00'}}]\n  probes: [{name: a, at: vfs_stat, then: {finding: {}}}]\n")[0]
	if _, err := unreadable.Compile(r.target()); err == nil || !strings.Contains(err.Error(), "test.yaml:6:11: spec.unless: bytes at heartbeat+0x7ff: ") {
		t.Errorf("%v", err)
	}
}

// TestSyscalls: a policy of system calls has a probe at each place where they come by.
func TestSyscalls(t *testing.T) {
	r := newRig(t)
	d := r.arm(`
  mode: enforce
  probes:
    - {name: calls, syscalls: [stat], when: arg0 == 7 && syscall.name == "stat", then: {finding: {message: '{syscall.name} of {arg0}'}, deny: EPERM}}
`)
	const regsAt = nameAt + 0x100
	for _, c := range []struct {
		arg  byte
		want int64
	}{{6, 0x77}, {7, -1}} {
		r.vcpu.Run(sim.Write(regsAt+112, c.arg))
		if rax := r.call("__x64_sys_stat", regsAt); int64(rax) != c.want {
			t.Errorf("%d: %#x", c.arg, rax)
		}
	}
	if got := r.found(); len(got) != 1 || got[0] != "high: \"stat\" of 0x7; denied with EPERM" {
		t.Errorf("%q", got)
	}
	if s := d.Status()[0]; s.At != "system calls stat" || s.Matched != 1 || s.Errors != 0 {
		t.Errorf("%+v", s)
	}
}
