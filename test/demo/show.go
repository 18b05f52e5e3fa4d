package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/hprobe/hprobe/test/lab"
)

// show is the demo while it runs: the host, and what was seen in the beginning.
type show struct {
	ctx  context.Context
	host *lab.Host

	text      string // the kernel's code, as the guest saw it before anything else
	heartbeat int
}

func heading(title, text string) {
	bold, plain := "", ""
	if info, err := os.Stdout.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		bold, plain = "\x1b[1m", "\x1b[0m"
	}
	fmt.Printf("\n%s── %s ──%s\n%s\n\n", bold, title, plain, strings.TrimPrefix(text, "\n"))
}

// where a command runs, and how its prompt looks.
const (
	dom0  = "dom0# "
	guest = "guest# "
)

// run runs a command, shows it and its output, and makes sure of what the
// output has to say.
func (s *show) run(prompt, command string, want ...string) (string, error) {
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Minute)
	defer cancel()
	run := s.host.Run
	if prompt == guest {
		run = s.host.Guest.Run
	}
	res, err := run(ctx, command)
	if err != nil {
		return "", fmt.Errorf("%s%s: %w", prompt, command, err)
	}
	fmt.Printf("    %s%s\n", prompt, command)
	for line := range strings.Lines(res.Output) {
		fmt.Printf("    %s\n", strings.TrimRight(line, "\n"))
	}
	if res.Exit != 0 {
		return "", fmt.Errorf("%s%s: exit status %d", prompt, command, res.Exit)
	}
	for _, w := range want {
		if !strings.Contains(res.Output, w) {
			return "", fmt.Errorf("%s%s: that should have said %q", prompt, command, w)
		}
	}
	return strings.TrimSpace(res.Output), nil
}

// script runs several commands, each with what it must say.
func (s *show) script(lines ...[]string) error {
	for _, l := range lines {
		if _, err := s.run(l[0], l[1], l[2:]...); err != nil {
			return err
		}
	}
	return nil
}

func (s *show) beat() (n int, err error) {
	res, err := s.host.Guest.Run(s.ctx, "cat /tmp/heartbeat")
	if err == nil {
		_, err = fmt.Sscan(res.Output, &n)
	}
	return n, err
}

// The attacks, as the guest runs them.
var (
	benignCalls = [][]string{
		{guest, "vmsplice benign", "accepted: 4096 bytes"},
		{guest, "vuln benign", "copied; canary intact"},
	}
	malicious       = []string{guest, "vmsplice malicious", "accepted: 65536 bytes"}
	maliciousDriver = []string{guest, "vuln malicious", "canary OVERWRITTEN"}
)

func (s *show) look() (err error) {
	heading("1. The host and its guest", `
hprobe doctor says whether the guest can be watched. hprobed does nothing to it yet.
The guest notes a hash of its kernel's code, for later.`)
	if err := s.script(
		[]string{dom0, "hprobed --profiles /payload/profiles --findings /tmp/findings.json > /tmp/hprobed.log 2>&1 & echo $! > /tmp/hprobed.pid; until hprobe status 2> /dev/null; do sleep 0.2; done", "attached to no guest"},
		[]string{dom0, "hprobe domain ls", "guest"},
		[]string{dom0, "hprobe doctor guest", "Nothing is in the way."},
	); err != nil {
		return err
	}
	if s.text, err = s.run(guest, "texthash"); err != nil {
		return err
	}
	s.heartbeat, err = s.beat()
	return err
}

func (s *show) unprotected() error {
	heading("2. Two attacks, without hprobe", `
vmsplice() gives memory to a pipe. Its bug of 2008 (CVE-2008-0600) was exploited by
passing a huge length; a kernel of today only cuts it off. The driver in vuln.ko has
a bug of that kind planted: a length just below 4 GiB passes its check, and the copy
overwrites what stands behind its buffer. Here that is a canary; in earnest it would be
the kernel's own data, and the guest would be the attacker's.`)
	return s.script(append([][]string{{guest, "insmod /payload/vuln.ko"}}, append(benignCalls, malicious, maliciousDriver, []string{guest, resetCanary})...)...)
}

// resetCanary loads the driver anew: its canary is whole again.
const resetCanary = "rmmod vuln && insmod /payload/vuln.ko"

const (
	stopVmsplice = "hprobe stopgap add vmsplice --domain guest"
	stopDriver   = "hprobe stopgap add vuln --domain guest --at 'vuln!vuln_copy' --length '[arg0+8]' --limit 0x1001 --errno EINVAL"
)

func (s *show) readOnly() error {
	heading("3. hprobe reports attacks: read-only mode", `
Each command puts one probe into the running guest: a breakpoint in a copy of the page
that only the processor's instruction fetch sees. hprobed follows the lengths in the
caller's memory and reports those over the limit. The calls run as they are.`)
	if err := s.script([]string{dom0, stopVmsplice, "read-only mode"}, []string{dom0, stopDriver, "read-only mode"}); err != nil {
		return err
	}
	if err := s.script(append(benignCalls, malicious, maliciousDriver)...); err != nil {
		return err
	}
	_, err := s.run(dom0, "hprobe findings", "REPORTED  stopgap/vmsplice  vmsplice[", "iov[0].iov_len is 0x80000000", "REPORTED  stopgap/vuln  vuln[", "0xfffffffd")
	return err
}

func (s *show) fix() error {
	heading("4. hprobe stops attacks: fix mode", `
The same probes, now with --fix: an attempt does not reach the function at all. Its
caller gets the error that a patched kernel returns, and the guest goes on. Calls that
are no attacks run as before. The canary is intact now.`)
	if err := s.script(
		[]string{dom0, "hprobe stopgap rm d1 && hprobe stopgap rm d2", "it saw 1 attempt in 2 calls"},
		[]string{guest, resetCanary},
		[]string{dom0, stopVmsplice + " --fix", "fix mode"}, []string{dom0, stopDriver + " --fix", "fix mode"},
		[]string{guest, "vmsplice benign", "accepted: 4096 bytes"},
		[]string{guest, "vuln benign", "copied; canary intact"},
		[]string{guest, "vmsplice malicious", "refused: EFAULT"},
		[]string{guest, "vuln malicious", "EINVAL; canary intact"},
		[]string{dom0, "hprobe findings --last 2", "BLOCKED  stopgap/vmsplice", "BLOCKED  stopgap/vuln"},
		[]string{dom0, "hprobe stopgap ls", "fix"},
	); err != nil {
		return err
	}
	fmt.Println("\nCan the guest see the breakpoints? It hashes its kernel's code, page by page, now:")
	fmt.Println()
	_, err := s.run(guest, "texthash", s.text)
	return err
}

func (s *show) gone() error {
	heading("5. Nothing stays behind", `
With the last probe gone hprobed detaches from the guest. Its kernel's code is byte for
byte what it was: as the guest sees it, and as dom0 reads it from the guest's memory.`)
	if err := s.script(
		[]string{dom0, "hprobe stopgap rm d3 && hprobe stopgap rm d4", "removed"},
		[]string{dom0, "hprobe status", "attached to no guest"},
		[]string{guest, "texthash", s.text},
		[]string{dom0, "texthash guest /payload/profiles/guest.hprofile", s.text},
		[]string{guest, "vmsplice malicious", "accepted: 65536 bytes"},
		[]string{dom0, "kill $(cat /tmp/hprobed.pid); while [ -d /proc/$(cat /tmp/hprobed.pid) ]; do sleep 0.1; done; cat /tmp/findings.json", `"blocked":true`},
		[]string{guest, "uptime"},
	); err != nil {
		return err
	}
	n, err := s.beat()
	if err == nil && n <= s.heartbeat {
		err = fmt.Errorf("the guest's heartbeat stands at %d", n)
	}
	if err != nil {
		return err
	}
	fmt.Printf("\nThe guest ran on all the time: its heartbeat went from %d to %d seconds.\n", s.heartbeat, n)
	return nil
}
