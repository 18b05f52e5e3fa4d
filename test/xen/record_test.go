package xen

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// recordedPolicies are one at each system call of a kind and one at a function, which
// look at arguments, at memory and at who runs.
const recordedPolicies = `apiVersion: hprobe/v1
kind: ProbePolicy
metadata: {name: priorities}
spec:
  domains: {names: ['*']}
  probes:
  - name: call
    syscalls: [getpriority, mkdir]
    when: comm == "calls" && arg0 % 10 == 3 || comm == "mkdir"
    capture: [nr=syscall.nr]
    then: {finding: {severity: info, message: '{comm} (uid {uid}) calls {syscall.name}'}}
---
apiVersion: hprobe/v1
kind: ProbePolicy
metadata: {name: opens}
spec:
  domains: {names: ['*']}
  mode: enforce
  probes:
  - name: open
    at: do_sys_openat2
    when: filename == "/etc/nothing"
    then: {finding: {severity: high, message: '{comm} opens {filename}'}, deny: EACCES}
`

const recordedWork = "calls 100; mkdir /tmp/made; rmdir /tmp/made; cat /etc/nothing /etc/passwd > /dev/null; cat /etc/nothing"

// TestRecord: what policies find in a guest while hprobed has them armed they find in a
// recording of the same work, played on this machine; changed, they find other things.
func TestRecord(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain, "calls", "texthash")
	h.MustRun(t, "cat > /tmp/p.yaml <<'E'\n"+recordedPolicies+"E\n")
	before := h.Guest.MustRun(t, "texthash")
	says(t, h, 0, "hprobe policy apply /tmp/p.yaml", "guest: armed")
	watched := h.Guest.MustRun(t, recordedWork+" 2>&1 || :")
	live := h.MustRun(t, "hprobe findings -o json")
	says(t, h, 4, "hprobe record guest --policy /tmp/p.yaml --to /tmp/rec --profiles /payload/profiles 2>&1", "monitor")
	says(t, h, 0, "hprobe policy rm priorities opens; hprobe status", "attached to no guest")

	const record = `hprobe record guest --policy /tmp/p.yaml --to /tmp/rec --profiles /payload/profiles -o json > /tmp/record.log 2>&1 & echo $! > /tmp/record.pid
for i in $(seq 300); do grep -q recording /tmp/record.log && break; [ -d /proc/$(cat /tmp/record.pid) ] || break; sleep 0.2; done; grep recording /tmp/record.log || { cat /tmp/record.log; exit 1; }`
	says(t, h, 0, record, "recording guest")
	recorded := h.Guest.MustRun(t, recordedWork+" 2>&1 || :")
	out := says(t, h, 0, "kill -INT $(cat /tmp/record.pid); while [ -d /proc/$(cat /tmp/record.pid) ]; do sleep 0.1; done; cat /tmp/record.log; ls -l /tmp/rec", `"events"`)
	t.Logf("the guest with hprobed: %s\nand recorded: %s\n%s", watched, recorded, out)
	n := strings.Count(live, "\n")
	if n != 13 || strings.Count(live, "denied with EACCES") != 2 || !strings.Contains(out, fmt.Sprintf(`"findings":%d}`, n)) {
		t.Errorf("%d findings:\n%s\n%s", n, live, out)
	}
	if after := h.Guest.MustRun(t, "texthash"); after != before {
		t.Errorf("texthash %s before, %s after", before, after)
	}
	// hprobed can have the guest again.
	says(t, h, 0, "hprobe policy apply /tmp/p.yaml; hprobe policy rm priorities opens", "guest: armed")

	dir := t.TempDir()
	keep := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	packed, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(h.MustRun(t, "base64 /tmp/rec")), ""))
	if err != nil {
		t.Fatal(err)
	}
	rec, expected := keep("rec", string(packed)), keep("live.json", live)
	test := func(policies string, args ...string) (string, int) {
		return hprobeHere(t, append([]string{"policy", "test", keep("p.yaml", policies), "--recording", rec, "--profiles", filepath.Dir(profile(t, plain.Guest).Source)}, args...)...)
	}
	if out, status := test(recordedPolicies, "--expect", expected); status != 0 || !strings.Contains(out, "13 findings, as expected") {
		t.Errorf("exit status %d: %s", status, out)
	} else {
		t.Log(out)
	}
	out, status := test(strings.Replace(strings.Replace(recordedPolicies, "== 3", "== 4", 1), "/etc/nothing", "/etc/passwd", 1), "--expect", expected)
	if status != 1 || !regexp.MustCompile(`(?m)^- high blocked, policy/opens .*/etc/nothing`).MatchString(out) || !regexp.MustCompile(`(?m)^\+ high blocked, policy/opens .*/etc/passwd`).MatchString(out) {
		t.Errorf("exit status %d: %s", status, out)
	}
	elsewhere := strings.NewReplacer("do_sys_openat2", "do_filp_open", "filename ==", "pathname.name ==", "{filename}", "{pathname.name}")
	out, status = test(elsewhere.Replace(recordedPolicies))
	if status != 6 || !strings.Contains(out, "the recording was made without a probe at do_filp_open") && !strings.Contains(out, "not in the recording: gfn") {
		t.Errorf("exit status %d: %s", status, out)
	}
}

// hprobeHere runs hprobe on this machine.
func hprobeHere(t *testing.T, args ...string) (out string, status int) {
	t.Helper()
	hprobe, err := lab.BuildGo(context.Background(), module+"cmd/hprobe")
	if err != nil {
		t.Fatal(err)
	}
	return run(t, hprobe, args...)
}

// run runs a program on this machine.
func run(t *testing.T, program string, args ...string) (out string, status int) {
	t.Helper()
	b, err := exec.Command(program, args...).CombinedOutput()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return string(b), exit.ExitCode()
	}
	if err != nil {
		t.Fatal(err)
	}
	return string(b), 0
}

// TestPolicyInLab: hprobe policy test --lab boots a host, has hprobed watch its guest, and
// compares what is found there.
func TestPolicyInLab(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	copied := func(from string, err error, name string) {
		t.Helper()
		var b []byte
		if err == nil {
			b, err = os.ReadFile(from)
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o700)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"hprobe", "hprobed"} { // beside each other
		built, err := lab.BuildGo(t.Context(), module+"cmd/"+name)
		copied(built, err, name)
	}
	copied(program(t, "calls").Source, nil, "calls")
	policy, expected := filepath.Join(dir, "p.yaml"), filepath.Join(dir, "expected.json")
	if err := os.WriteFile(policy, []byte(recordedPolicies), 0o600); err != nil {
		t.Fatal(err)
	}
	test := func(work string, more ...string) (string, int) {
		args := append([]string{"policy", "test", policy, "--lab", "--put-guest", filepath.Join(dir, "calls"), "--run", work, "--expect", expected}, more...)
		return run(t, filepath.Join(dir, "hprobe"), args...)
	}
	if out, status := test(recordedWork, "--update"); status != 0 || !strings.Contains(out, "calls 100 wrong 0") || !strings.Contains(out, "13 findings, kept in ") {
		t.Fatalf("exit status %d: %s", status, out)
	}
	if out, status := test(strings.Replace(recordedWork, "calls 100", "calls 90", 1)); status != 1 || strings.Count(out, "\n- ") != 1 || !strings.Contains(out, "+++ found: 12 findings") {
		t.Errorf("exit status %d: %s", status, out)
	}
}
