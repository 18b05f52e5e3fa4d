package cli

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/cmd/internal/rehearsal"
	"github.com/hprobe/hprobe/cmd/internal/rehearsal/rehearsaltest"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents/replay"
)

const openPolicy = `apiVersion: hprobe/v1
kind: ProbePolicy
metadata: {name: opens}
spec:
  domains: {names: ['*']}
  probes: [{name: open, at: vfs_open, when: name == "/etc/shadow", then: {finding: {severity: high, message: '{comm} opens {name}'}}}]
`

// recording makes a folder with a recording, a policy, and the profile of the guest.
func recording(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	put(t, dir, "p.yaml", openPolicy)
	g := rehearsaltest.New(t)
	if _, err := store.Open(dir).Add(g.Profile); err != nil {
		t.Fatal(err)
	}
	dom := g.Open()
	kernel, err := guestos.FindKernel(dom, 1, g.Profile)
	if err != nil {
		t.Fatal(err)
	}
	all, err := policy.ReadFile(filepath.Join(dir, "p.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	ctx, stop := context.WithCancel(t.Context())
	r := rehearsal.Recorder{Policies: all, To: &file, Log: slog.New(slog.DiscardHandler), Armed: func() {
		g.Call("c\x1b[2Jt", "vfs_open", "/etc/shadow", 0)
		g.Call("ls", "vfs_open", "/tmp", 0)
		stop()
	}}
	if _, err := r.Record(ctx, dom, kernel); err != nil {
		t.Fatal(err)
	}
	put(t, dir, "rec", file.String())
	return dir
}

func put(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestPolicyTest: findings of a recording are printed, kept, and compared.
func TestPolicyTest(t *testing.T) {
	dir := recording(t)
	try := func(more ...string) (int, string, string) {
		args := []string{"policy", "test", filepath.Join(dir, "p.yaml"), "--recording", filepath.Join(dir, "rec"), "--profiles", dir}
		return run(append(args, more...)...)
	}
	expected := filepath.Join(dir, "expected.json")
	status, out, errs := try()
	if status != exitOK || !strings.Contains(out, `REPORTED  policy/opens  "c\x1b[2Jt"[6]  vcpu0`) || !strings.HasSuffix(out, "\n1 finding\n") || errs != "" {
		t.Errorf("%d, %q, %q", status, out, errs)
	}
	if status, _, errs := try("--expect", expected); status != exitUsage || !strings.Contains(errs, "--update writes them") {
		t.Errorf("%d, %q", status, errs)
	}
	if status, out, _ := try("--expect", expected, "--update"); status != exitOK || !strings.Contains(out, "1 finding, kept in "+expected) {
		t.Errorf("%d, %q", status, out)
	}
	if status, out, errs := try("--expect", expected); status != exitOK || !strings.Contains(out, "1 finding, as expected") || errs != "" {
		t.Errorf("%d, %q, %q", status, out, errs)
	}
	if status, out, _ := try("--expect", expected, "-o", "json"); status != exitOK || strings.Count(out, "\n") != 1 || !strings.Contains(out, `\"/etc/shadow\"`) {
		t.Errorf("%d, %q", status, out)
	}
	// Another policy has another finding, and a difference a terminal can take.
	put(t, dir, "p.yaml", strings.Replace(openPolicy, "/etc/shadow", "/tmp", 1))
	if status, _, errs := try("--expect", expected); status != exitFailed || !strings.Contains(errs, "--- expected: 1 finding\n+++ found: 1 finding\n- high reported") || !strings.Contains(errs, "\n+ high reported") || strings.Contains(errs, "\x1b") {
		t.Errorf("%d, %q", status, errs)
	}
	put(t, dir, "p.yaml", strings.Replace(openPolicy, "vfs_open", "vfs_unlink", 1))
	if status, out, errs := try(); status != exitPartial || !strings.Contains(errs, "the recording was made without a probe at vfs_unlink") || !strings.Contains(errs, "2 events of the recording are where the policies have no probe") || out != "0 findings\n" {
		t.Errorf("%d, %q, %q", status, out, errs)
	}
	put(t, dir, "p.yaml", openPolicy+"  when: x\n")
	if status, out, _ := try(); status != exitUsage || !strings.Contains(out, "p.yaml:7:") {
		t.Errorf("%d, %q", status, out)
	}
	put(t, dir, "p.yaml", openPolicy)
	put(t, dir, "expected.json", "{}\n{")
	if status, _, errs := try("--expect", expected); status != exitUsage || !strings.Contains(errs, "line 2") {
		t.Errorf("%d, %q", status, errs)
	}
	rec, err := os.ReadFile(filepath.Join(dir, "rec"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, dir, "rec", string(rec[:len(rec)-9]))
	if status, _, errs := try(); status != exitFailed || !strings.Contains(errs, "not a whole recording: at byte ") {
		t.Errorf("%d, %q", status, errs)
	}
	put(t, dir, "rec", string(rec))
	if status, _, errs := run("policy", "test", filepath.Join(dir, "p.yaml"), "--recording", filepath.Join(dir, "rec"), "--profiles", t.TempDir()); status == exitOK || !strings.Contains(errs, `is of the kernel that was recorded, "Linux version 6.1.0-13-amd64`) {
		t.Errorf("%d, %q", status, errs)
	}
}

// TestRecordUsage: what is missing on the command line is said, before anything is done.
func TestRecordUsage(t *testing.T) {
	good, bad := policyFiles(t)
	for _, c := range []struct {
		args []string
		says string
	}{
		{[]string{"record", "guest"}, "takes --policy FILE and --to FILE"},
		{[]string{"record", "guest", "--policy", good}, "takes --policy FILE and --to FILE"},
		{[]string{"record", "guest", "--policy", bad, "--to", "/nowhere/rec"}, "2 problems in policies"},
		{[]string{"record"}, "takes DOMAIN"},
		{[]string{"policy", "test", good}, "takes --recording FILE or --lab"},
		{[]string{"policy", "test", good, "--recording", "x", "--lab"}, "takes --recording FILE or --lab"},
		{[]string{"policy", "test", good, "--lab"}, "--lab and --run COMMAND go together"},
		{[]string{"policy", "test", good, "--recording", "x", "--run", "y"}, "--lab and --run COMMAND go together"},
		{[]string{"policy", "test", good, "--recording", "x", "--update"}, "--update writes the file of --expect"},
		{[]string{"policy", "test", good, "--recording", good + ".no"}, "a recording: open"},
		{[]string{"policy", "test", bad, "--recording", "x"}, "2 problems in policies"},
	} {
		if status, _, errs := run(c.args...); status != exitUsage || !strings.Contains(errs, c.says) {
			t.Errorf("%q: %d, %q", c.args, status, errs)
		}
	}
}

// TestRemarks: what a recording lacked is an error; what else is to be known are notes.
func TestRemarks(t *testing.T) {
	var out bytes.Buffer
	p := &rehearsal.Played{Needless: []string{"policy \"a\" is not needed here"}}
	p.Probes = []rehearsal.Probe{{Policy: "a", ProbeStatus: policy.ProbeStatus{Name: "b"}}}
	p.Probes[0].Errors, p.Probes[0].LastError = 2, "e\x1bx"
	if err := remarks(&out, p); err != nil || strings.Count(out.String(), "note: ") != 2 || strings.Contains(out.String(), "\x1b") {
		t.Errorf("%q, %v", out.String(), err)
	}
	p.Stats.Missing, p.Stats.FirstMissing, p.Stats.Older = 3, &replay.MissingError{What: "gfn 0x5", Event: 7}, 1
	if err := remarks(&out, p); exitStatus(err) != exitPartial || !strings.Contains(err.Error(), "3 reads of what is not there, the first: not in the recording: gfn 0x5 at event 7; 1 read of memory that was recorded at an earlier event") {
		t.Error(err)
	}
}
