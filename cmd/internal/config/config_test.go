package config

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/detectors/policy"
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const onePolicy = `apiVersion: hprobe/v1
kind: ProbePolicy
metadata: {name: one}
spec:
  domains: {names: ['*']}
  probes: [{name: exit, at: do_exit, then: {finding: {}}}]
`

func TestLoad(t *testing.T) {
	file := write(t, "hprobed.yaml", `# all of it
socket: /run/x.sock
group: adm
driver: native
poll: -1
state: /var/lib/x
profiles: [/a, /b]
capture: false
policies: [p.yaml, folder]
stock: [ptrace-attach]
domains:
  - names: ['web-*', '!web-test']
    labels: {tier: front}
  - names: [secret]
    ignore: true
findings:
  - file: {path: /var/log/f.json, max_mib: 10, keep: 3}
  - name: siem
    webhook: {url: 'https://siem.example/hprobe'}
metrics: {listen: 127.0.0.1:9433}
audit: {path: /var/log/a.json}
verbose: true
`)
	dir := filepath.Dir(file)
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "p.yaml"), []byte(onePolicy), 0o600), os.Mkdir(filepath.Join(dir, "folder"), 0o700),
		os.WriteFile(filepath.Join(dir, "folder", "q.yaml"), []byte(strings.ReplaceAll(onePolicy, "name: one", "name: two")), 0o600),
		os.WriteFile(filepath.Join(dir, "folder", "README"), []byte("no policy"), 0o600)); err != nil {
		t.Fatal(err)
	}
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, p := range c.Read {
		names = append(names, p.Name())
	}
	if !slices.Equal(names, []string{"ptrace-attach", "one", "two"}) {
		t.Errorf("policies %q", names)
	}
	if c.Socket != "/run/x.sock" || c.Group != "adm" || c.Driver != "native" || c.Poll != -1 || c.State != "/var/lib/x" || len(c.Profiles) != 2 || c.Capture == nil || *c.Capture || !c.Verbose || c.Metrics.Listen != "127.0.0.1:9433" {
		t.Errorf("%+v", c)
	}
	if len(c.Domains) != 2 || c.Domains[0].Labels["tier"] != "front" || !c.Domains[1].Ignore || len(c.Findings) != 2 || c.Findings[0].File.MaxMiB != 10 || c.Audit.Path != "/var/log/a.json" {
		t.Errorf("%+v", c)
	}
	if c, err := Load(write(t, "empty.yaml", "# nothing\n")); err != nil || c.Socket != "" || c.Read != nil {
		t.Errorf("%+v, %v", c, err)
	}
}

// prose are the lines of the package's configuration that are no example.
var prose = regexp.MustCompile(`(?m)^#( [^ ].*)?$`)

// TestPackagedConfiguration: the one that the package installs is right, and so is what it
// has in comments, and what the documentation shows.
func TestPackagedConfiguration(t *testing.T) {
	packaged, err := os.ReadFile("../../../packaging/hprobed.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if c, err := Parse("hprobed.yaml", packaged); err != nil || c.Group != "hprobe" || len(c.Policies) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
	c, err := Parse("hprobed.yaml", []byte(strings.ReplaceAll(prose.ReplaceAllString(string(packaged), ""), "\n#", "\n")))
	if err != nil || len(c.Findings) != 4 || c.Audit == nil || len(c.Stock) != 1 || len(c.Domains) != 2 || c.Metrics.Listen == "" {
		t.Errorf("%+v, %v", c, err)
	}
	doc, err := os.ReadFile("../../../docs/operators.md")
	if err != nil {
		t.Fatal(err)
	}
	_, example, ok := strings.Cut(string(doc), "## Configuration")
	_, example, found := strings.Cut(example, "```yaml\n")
	example, _, closed := strings.Cut(example, "```")
	if c, err := Parse("operators.md", []byte(example)); !ok || !found || !closed || err != nil || len(c.Domains) != 2 || len(c.Findings) != 1 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestWrong: each thing that is wrong is told with its line, and with what to do.
func TestWrong(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"unknown":         {"socket: /a\nsockett: /b\n", `:2: there is no field "sockett" here (near it: "socket", "stock", "state"); there are socket, group,`},
		"unknown inside":  {"domains:\n- name: [a]\n", `:2: there is no field "name" here (near it: "names", "labels", "ignore"); there are names`},
		"type":            {"poll: much\n", ":1: "},
		"twice":           {"poll: 1\npoll: 2\n", ":2: "},
		"no YAML":         {"a: b: c\n", ":1: "},
		"a list":          {"- a\n", ":1: "},
		"driver":          {"\ndriver: kvm\n", `:2: driver: there is no driver "kvm": it is auto, libvmi or native`},
		"socket":          {"socket: run/x\n", `:1: socket: "run/x" is no absolute path: begin it with /`},
		"state":           {"state: lib\n", `:1: state: "lib" is no absolute path`},
		"profiles":        {"profiles: [lib]\n", `:1: profiles: "lib" is no absolute path`},
		"stock":           {"stock: [ptrace-atach]\n", `:1: stock: no policy "ptrace-atach" comes with hprobe (near it: "ptrace-attach", "module-load", "setuid-exec"); there are bpf`},
		"no names":        {"domains: [{ignore: true}]\n", ":1: domains: number 1: names is missing"},
		"pattern":         {"domains:\n- {names: [a]}\n- {names: ['[']}\n", `:1: domains: number 2: names: "[" is no pattern of a name`},
		"sink":            {"poll: 1\nfindings: [{name: x}]\n", `:2: findings: sink "x" (number 1): write exactly one of file, syslog, journal and webhook`},
		"sink's field":    {"findings: [{file: {pth: /x}}]\n", `:1: there is no field "pth" here (near it: "path", "keep", "sync"); there are path,`},
		"metrics":         {"metrics: {listen: '0.0.0.0:80'}\n", `:1: metrics: listen: "0.0.0.0:80" is not of this host alone`},
		"audit":           {"audit: {path: x}\n", `:1: audit: path: "x" is not the whole path`},
		"several":         {"driver: x\nsocket: y\n", ":2: socket"},
		"no such policy":  {"poll: 1\npolicies: [none.yaml]\n", ":2: policies: stat"},
		"wrong policy":    {"policies: [bad.yaml]\n", "bad.yaml:2:7: kind"},
		"the same policy": {"policies: [good.yaml, same.yaml]\n", "policy one is in"},
	} {
		file := write(t, "hprobed.yaml", c.text)
		for name, text := range map[string]string{"good.yaml": onePolicy, "same.yaml": onePolicy, "bad.yaml": strings.Replace(onePolicy, "kind: ProbePolicy", "kind: Policy", 1)} {
			if err := os.WriteFile(filepath.Join(filepath.Dir(file), name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := Load(file)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var of *Error
		if strings.HasPrefix(c.want, ":") && (!errors.As(err, &of) || !strings.HasPrefix(err.Error(), file+":")) {
			t.Errorf("%s: %T: %v", name, err, err)
		}
		if name == "wrong policy" && !errors.As(err, new(policy.Errors)) {
			t.Errorf("%s: %T", name, err)
		}
	}
	if _, err := Load("/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := Load(write(t, "large.yaml", "# "+strings.Repeat("x", maxFile))); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("%v", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("socket: /a\ndomains: [{names: [a]}]\nfindings: [{file: {path: /x}}]\n"))
	f.Add([]byte("a: &a [*a, *a]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if c, err := Parse("f.yaml", data); (c == nil) == (err == nil) {
			t.Errorf("%v, %v", c, err)
		} else if err != nil && !strings.HasPrefix(err.Error(), "f.yaml:") {
			t.Errorf("%v", err)
		}
	})
}
