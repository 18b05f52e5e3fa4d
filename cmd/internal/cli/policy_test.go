package cli

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goodPolicy = `apiVersion: hprobe/v1
kind: ProbePolicy
metadata: {name: good, title: a good one}
spec:
  domains: {names: [web]}
  probes: [{name: a, at: do_exit, then: {finding: {}}}]
`

func policyFiles(t *testing.T) (good, bad string) {
	t.Helper()
	dir := t.TempDir()
	good, bad = filepath.Join(dir, "good.yaml"), filepath.Join(dir, "bad.yaml")
	for path, text := range map[string]string{good: goodPolicy, bad: strings.Replace(strings.Replace(goodPolicy, "then", "than", 1), "do_exit", "do exit", 1)} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return good, bad
}

func TestPolicyCheck(t *testing.T) {
	good, bad := policyFiles(t)
	if status, out, errs := run("policy", "check", good); status != exitOK || out != good+": policy good is well-formed: 1 probe, observe mode\n" || errs != "" {
		t.Errorf("%d, %q, %q", status, out, errs)
	}
	// What is right is said, too, and each problem is where an editor finds it.
	status, out, errs := run("policy", "check", bad, good)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if status != exitUsage || errs != "hprobe: 2 problems in policies\n" || len(lines) != 3 || !strings.HasPrefix(lines[0], bad+`:6:26: spec.probes[0].at: no place for a probe: "do exit"`) ||
		!strings.HasPrefix(lines[1], bad+`:6:35: spec.probes[0]: there is no field "than" here (near it: "then"`) || !strings.Contains(lines[2], "policy good") {
		t.Errorf("%d, %s, %q", status, out, errs)
	}
	status, out, _ = run("policy", "check", "-o", "json", bad)
	var p problemLine
	if err := json.NewDecoder(strings.NewReader(out)).Decode(&p); err != nil || status != exitUsage || p.File != bad || p.Line != 6 || p.Column != 26 || p.Field != "spec.probes[0].at" || p.Why == "" {
		t.Errorf("%d, %s: %+v, %v", status, out, p, err)
	}
	for _, args := range [][]string{{"policy", "check"}, {"policy", "explain"}, {"policy", "stock", "a", "b"}, {"policy", "schema", "x"}, {"policy", "chek", "x"}} {
		if status, _, errs := run(args...); status != exitUsage || !strings.Contains(errs, "wrong usage") {
			t.Errorf("%q: %d, %s", args, status, errs)
		}
	}
	if status, _, errs := run("policy", "check", good+".no"); status != exitFailed || !strings.Contains(errs, "no such file") {
		t.Errorf("%d, %s", status, errs)
	}
}

func TestPolicyExplain(t *testing.T) {
	good, bad := policyFiles(t)
	if status, out, errs := run("policy", "explain", good); status != exitOK || errs != "" || !strings.HasPrefix(out, "good: a good one\n  Mode: observe.") {
		t.Errorf("%d, %s, %s", status, out, errs)
	}
	if status, out, errs := run("policy", "explain", bad); status != exitUsage || !strings.Contains(out, "bad.yaml:6:26: ") || errs == "" {
		t.Errorf("%d, %s, %s", status, out, errs)
	}
	status, out, _ := run("policy", "explain", good, "-o", "json")
	var p policyLine
	if err := json.Unmarshal([]byte(out), &p); err != nil || status != exitOK || p.Name != "good" || !strings.Contains(p.Text, "Probe a: at the beginning of do_exit.") {
		t.Errorf("%d, %s, %v", status, out, err)
	}
}

func TestPolicyStock(t *testing.T) {
	if status, out, _ := run("policy", "stock"); status != exitOK || !strings.Contains(out, "ptrace-attach") || strings.Count(out, "\n") < 10 {
		t.Errorf("%d, %s", status, out)
	}
	if status, out, _ := run("policy", "stock", "-o", "json"); status != exitOK || !strings.Contains(out, `"name":"ptrace-attach"`) {
		t.Errorf("%d, %s", status, out)
	}
	status, text, _ := run("policy", "stock", "bpf")
	file := filepath.Join(t.TempDir(), "bpf.yaml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if again, out, _ := run("policy", "check", file); status != exitOK || again != exitOK {
		t.Errorf("%d, %d, %s", status, again, out)
	}
	if status, out, _ := run("policy", "stock", "bpf", "-o", "json"); status != exitOK || !strings.Contains(out, `"text":"apiVersion`) {
		t.Errorf("%d, %s", status, out)
	}
	if status, _, errs := run("policy", "stock", "bfp"); status != exitUsage || !strings.Contains(errs, `no stock policy "bfp" (near it: "bpf"`) {
		t.Errorf("%d, %s", status, errs)
	}
	status, out, _ := run("policy", "schema")
	var schema struct {
		Schema string `json:"$schema"`
	}
	if err := json.Unmarshal([]byte(out), &schema); err != nil || status != exitOK || !strings.Contains(schema.Schema, "2020-12") {
		t.Errorf("%d, %v", status, err)
	}
}
