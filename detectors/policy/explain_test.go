package policy

import (
	"strings"
	"testing"
)

// TestExplain: each field of a policy is said.
func TestExplain(t *testing.T) {
	all, err := Parse("everything.yaml", []byte(everything))
	if err != nil {
		t.Fatal(err)
	}
	const want = `all: t
  d

  Mode: enforce. What it says of calls and guests below is done.
  Guests: all that run Linux, but not x, with the label tier=front.
    not those whose kernel is >= 6.1 < 6.2 and whose kernel's banner has "Debian" and whose kernel has s and whose kernel has a.b.c and whose kernel has 0f 1f at f+0x10
  It ends with 31 January 2030.
  Counter c: one count for each tid.
  Probe a: at the beginning of f, or where the kernel has no such place the instruction at 0xffffffff81000000.
    only in guests whose kernel has f
    A hit matches if:
      x > 1
    A match adds one to the counter c. It acts from a count of 3 on.
    Then it makes a finding (high).
    The whole guest is paused, until somebody has it go on (xl unpause).
    Each hit has its vCPU wait for hprobed, whether it matches or not. Over 1 hits a second, or 1 % of one vCPU's time, the probe is suspended for a while.
  Probe b: at the system calls openat, execve, those of 32-bit programs among them.
    Every hit matches.
    A match makes a finding (high).
    The function does not run: its caller gets -13.
    Each hit has its vCPU wait for hprobed, whether it matches or not. The probe is never suspended, however much it costs.
  Probe c: where cr3 is written.
    Every hit matches.
    A match makes a finding (info): m {pid}
    Nobody waits for hprobed. Over 25000 hits a second, or 25 % of one vCPU's time, the probe is suspended for a while.
  Probe d: where CPUID is asked for leaf 0x40000000.
    Every hit matches.
    A match makes a finding (medium).
    Each hit has its vCPU wait for hprobed, whether it matches or not. Over 25000 hits a second, or 25 % of one vCPU's time, the probe is suspended for a while.
  Probe e: where memory is accessed (rw of sys_call_table:64).
    Every hit matches.
    A match makes a finding (high).
    The write has no effect, and the guest is not told.
    Each hit has its vCPU wait for hprobed, whether it matches or not. The probe is never suspended, however much it costs.
  Probe f: at the end of each call of image:/bin/sh!main, in processes called sh.
    Every hit matches.
    A match makes a finding (high).
    It sets ret=0.
    Each hit has its vCPU wait for hprobed, whether it matches or not. The probe is never suspended, however much it costs.
  Probe g: at the beginning of loop_end.
    Every hit matches.
    A match sets the counter c back to 0.
    Each hit has its vCPU wait for hprobed, whether it matches or not. Over 25000 hits a second, or 25 % of one vCPU's time, the probe is suspended for a while.
  Probe h: at the beginning of beat.
    Every hit matches.
    A match is counted, and nothing else.
    Each hit has its vCPU wait for hprobed, whether it matches or not. Over 25000 hits a second, or 25 % of one vCPU's time, the probe is suspended for a while.
  Watchdog w: h is to match at least once in 1m30s of the host's time, from when h has matched once.
    If not, there is a finding (medium): gone
  It does not see:
    what a guest did before the policy was in place, or while a probe was suspended (a finding says when)
    what a program changes in its own memory after the look and before the kernel reads it
    what is asked for by io_uring, which makes no system call of it
    another build of the program, or a copy under another name
    accesses by devices, and by hprobed's own reads
`
	got, lines := all[0].Explain(), strings.Split(want, "\n")
	for i, line := range strings.Split(got, "\n") {
		if i >= len(lines) || line != lines[i] {
			t.Fatalf("line %d is %q\n%s", i+1, line, got)
		}
	}
	observe := policies(t, "  probes:\n  - {name: a, at: 'm!f', then: {deny: EPERM}}\n  - {name: b, at: 'f:g', then: {finding: {}}}\n")[0].Explain()
	for _, want := range []string{"Mode: observe.", "In enforce mode the function does not run", "a module that is not loaded", "at the call in f:g."} {
		if !strings.Contains(observe, want) {
			t.Errorf("it does not say %q:\n%s", want, observe)
		}
	}
}
