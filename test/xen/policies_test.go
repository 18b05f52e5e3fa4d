package xen

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

// attack is one that a stock policy tells of. Kernels of today have none of the bugs, and
// refuse some of them by themselves.
type attack struct {
	policy, command, says string // what the guest says without the policy, and in observe mode
	refused               string // what it says in enforce mode
	finding               string // part of its message
}

var attacks = []attack{
	{"cve-2008-0600", "vmsplice malicious", "accepted: ", "refused: EFAULT", "0x7ffff000 bytes, as copied, to a pipe"},
	{"cve-2008-0600", "vmsplice exploit", "refused: EINVAL", "refused: EFAULT", "the first length is 0xffffffffffffffff"},
	{"cve-2008-0600", "splicerace from 8 3 compat", "huge 4 refused 0", "huge 0 refused 4", "0x7ffff000 bytes, as copied, from a pipe"},
	{"cve-2022-0185", "attacks fsconfig", "refused: EINVAL", "refused: EINVAL", `writes "behind" behind the page of options, which has 0xfff bytes`},
	{"cve-2021-4034", "attacks argv", "argv: done", "refused: EINVAL", `"attacks" (uid 0) runs a program without arguments`},
	{"cve-2022-0492", "attacks release_agent", "refused: EPERM", "refused: EPERM", `sets a release_agent to "/nothing" from a container`},
	{"cve-2022-0492", "attacks mount_agent", "refused: EINVAL", "refused: EPERM", "mounts a cgroup with a release_agent from a container"},
	{"setuid-exec", "attacks setuid", "setuid: done", "refused: EPERM", `(uid 1000) becomes root by running "/tmp/attacks.suid"`},
	{"ptrace-attach", "attacks ptrace", "ptrace: done", "refused: EPERM", `gets at the memory of "attacks"`},
	{"ptrace-attach", "attacks vm_read", "vm_read: done", "refused: EPERM", `gets at the memory of "attacks"`},
	{"bpf", "attacks bpf", "bpf: done", "refused: EPERM", "loads a BPF program of type 0x1"},
	{"module-load", "insmod /payload/vuln.ko && rmmod vuln && echo loaded", "loaded", "not permitted", `"insmod" (uid 0) loads a module by`},
}

// policies: each stock policy tells of its attack in observe mode, which is as it is without
// it; in enforce mode the attack is refused; and of what is like it, and harmless, it says
// nothing.
func policies(t *testing.T, cfg lab.Config) {
	ctx := context.Background()
	vuln, err := guests.Module(ctx, cfg.Guest, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	creds, err := guests.CredsModule(ctx, cfg.Guest, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	h := lab.Copy(t, cfg, binary(t, "test/xen/policies"), profile(t, cfg.Guest), program(t, "attacks"), program(t, "vmsplice"), program(t, "splicerace"), vuln, creds)
	var all []attack
	var names []string
	for _, a := range attacks {
		if a.policy == "cve-2022-0185" && cfg.Guest == "7.2" {
			continue // it has no such function any more
		}
		all = append(all, a)
		if len(names) == 0 || names[len(names)-1] != a.policy {
			names = append(names, a.policy)
		}
	}
	for _, mode := range []string{"", "-enforce "} {
		m := startPolicies(t, h, mode+strings.Join(names, " "))
		m.clear()
		if out := h.Guest.MustRun(t, "attacks benign 3; vmsplice benign"); !strings.Contains(out, "benign: 0 errors") || !strings.Contains(out, "accepted") {
			t.Errorf("%sbenign: %s", mode, out)
		}
		if found := m.found(); found != "" {
			t.Errorf("%sfindings of what is harmless:\n%s", mode, found)
		}
		for _, a := range all {
			m.clear()
			res, err := h.Guest.Run(ctx, a.command+" 2>&1")
			if err != nil {
				t.Fatal(err)
			}
			want, blocked := a.says, `"blocked":false`
			if mode != "" {
				want, blocked = a.refused, `"blocked":true`
			}
			if found := m.found(); !strings.Contains(res.Output, want) || !strings.Contains(unquoted(found), a.finding) || !strings.Contains(found, `"detector":"policy/`+a.policy) || !strings.Contains(found, blocked) {
				t.Errorf("%s%s says %q, and there is\n%s", mode, a.command, res.Output, found)
			}
		}
		t.Logf("%s%s", mode, m.stop())
	}
	h.Guest.MustRun(t, "insmod /payload/creds.ko")
	m := startPolicies(t, h, "commit-creds")
	m.clear()
	out := h.Guest.MustRun(t, "attacks benign 1; attacks creds")
	if found := m.found(); !strings.Contains(out, "creds: done") || strings.Count(found, "\n") != 1 || !strings.Contains(unquoted(found), `uid 1000) becomes root, and had no way to; would be paused in enforce mode`) {
		t.Errorf("%s, and there is\n%s", out, found)
	}
	m.stop()
}

// language is a policy with what the EDCC 2015 paper's detectors need: a heartbeat, a counter
// that another probe sets back, and a value in a register.
const language = `apiVersion: hprobe/v1
kind: ProbePolicy
metadata: {name: language}
spec:
  domains: {names: [guest]}
  counters: [{name: turns, key: vcpu}]
  probes:
    - {name: begin, at: security_bprm_check, when: 'bprm.filename.endsWith("/calls")', then: {reset: turns}}
    - name: turn
      at: __x64_sys_getpriority
      when: comm == "calls"
      then: {count: turns, threshold: 50, finding: {message: 'turn of {comm}'}}
    - {name: late, at: __x64_sys_getpriority+0x4, when: comm == "calls" && u64(reg.rdi + 112u) % 1000u == 7u, then: {finding: {message: register}}}
  watchdogs: [{name: alive, expect: turn, within: 3s, clock: host, from: first, finding: {message: no turn any more}}]
`

// TestPolicyLanguage: the watchdog and the loop detectors, as policies, on real hits.
func TestPolicyLanguage(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "language.yaml")
	if err := os.WriteFile(file, []byte(language), 0o600); err != nil {
		t.Fatal(err)
	}
	h := lab.Copy(t, plain, binary(t, "test/xen/policies"), profile(t, plain.Guest), program(t, "calls"), lab.File{Name: "language.yaml", Source: file})
	m := startPolicies(t, h, "/payload/language.yaml")
	for range 2 { // the exec of the second one sets the count back; others do not
		m.clear()
		h.Guest.MustRun(t, "calls 240 1")
		found := m.found()
		if turns := strings.Count(found, "turn of"); turns != 3 || !strings.Contains(found, `"count":"0xc8"`) || strings.Count(found, `"message":"register"`) != 1 { // at 50, 100, 200
			t.Errorf("%d findings of turns:\n%s", turns, found)
		}
	}
	if found := h.MustRun(t, "sleep 6; cat /tmp/policies.log"); strings.Count(found, "no turn any more") != 1 {
		t.Errorf("of the watchdog there is\n%s", found)
	}
	h.Guest.MustRun(t, "calls 1 1")
	if found := h.MustRun(t, "sleep 2; cat /tmp/policies.log"); strings.Count(found, "alive: turn matches again") != 1 {
		t.Errorf("of the watchdog there is\n%s", found)
	}
	t.Log(m.stop())
}

func unquoted(json string) string { return strings.ReplaceAll(json, `\"`, `"`) }

// armedPolicies is a monitor with policies.
type armedPolicies struct {
	t *testing.T
	h *lab.Host
}

func startPolicies(t *testing.T, h *lab.Host, args string) *armedPolicies {
	t.Helper()
	h.MustRun(t, fmt.Sprintf(": > /tmp/policies.log; policies %s >> /tmp/policies.log 2>&1 & echo $! > /tmp/policies.pid", args))
	if out := h.MustRun(t, "for i in $(seq 300); do grep -q armed /tmp/policies.log && break; kill -0 $(cat /tmp/policies.pid) || break; sleep 0.2; done; cat /tmp/policies.log"); !strings.Contains(out, "armed") {
		t.Fatalf("policies %s: %s", args, out)
	}
	return &armedPolicies{t, h}
}

// found are the findings since clear, a line each. The monitor writes them a moment later.
func (m *armedPolicies) found() string { return m.h.MustRun(m.t, "sleep 0.3; cat /tmp/policies.log") }

func (m *armedPolicies) clear() { m.h.MustRun(m.t, ": > /tmp/policies.log") }

// stop ends the monitor, and returns the status of its probes.
func (m *armedPolicies) stop() string {
	m.clear()
	out := m.h.MustRun(m.t, "kill $(cat /tmp/policies.pid); while kill -0 $(cat /tmp/policies.pid) 2> /dev/null; do sleep 0.1; done; cat /tmp/policies.log")
	if !strings.Contains(out, "matched") {
		m.t.Errorf("the monitor ended with %s", out)
	}
	return out
}

// TestPolicies: the stock policies on real kernels.
func TestPolicies(t *testing.T) {
	t.Parallel()
	for _, cfg := range first(1, plain, smp, older, oldest) {
		t.Run(cfg.String(), func(t *testing.T) { policies(t, cfg) })
	}
}
