package packaging

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// build builds the package.
func build(t *testing.T) string {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.Command("./build.sh", t.TempDir())
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, &errs)
	}
	return strings.TrimSpace(string(out))
}

func run(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%s %v: %v: %s%s", name, args, err, out, exit.Stderr)
		}
		t.Fatal(err)
	}
	return out
}

// files reads a tar file: the mode of each name, and the contents of some.
func files(t *testing.T, b []byte) (modes map[string]string, texts map[string]string) {
	t.Helper()
	modes, texts = map[string]string{}, map[string]string{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return modes, texts
		}
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(h.Name, ".")
		modes[name] = fmt.Sprintf("%o", h.Mode)
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "root" || h.Gname != "root" {
			t.Errorf("%s is of %s:%s (%d:%d)", name, h.Uname, h.Gname, h.Uid, h.Gid)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = string(text)
	}
}

// want are the files of the package, and their modes. Manual pages of commands are beside them.
var want = map[string]string{
	"/usr/sbin/hprobed": "755", "/usr/bin/hprobe": "755", "/usr/lib/systemd/system/hprobed.service": "644", "/usr/lib/sysusers.d/hprobe.conf": "644",
	"/usr/lib/tmpfiles.d/hprobe.conf": "644", "/etc/hprobe/hprobed.yaml": "644", "/etc/hprobe/policies/": "755",
	"/usr/share/man/man1/hprobe.1.gz": "644", "/usr/share/man/man1/hprobe-audit-verify.1.gz": "644", "/usr/share/man/man8/hprobed.8.gz": "644",
	"/usr/share/bash-completion/completions/hprobe": "644", "/usr/share/zsh/vendor-completions/_hprobe": "644", "/usr/share/fish/vendor_completions.d/hprobe.fish": "644",
	"/usr/share/doc/hprobe/copyright": "644", "/usr/share/doc/hprobe/README.md": "644", "/usr/share/doc/hprobe/operators.md": "644", "/usr/share/doc/hprobe/findings.md": "644",
	"/usr/share/doc/hprobe/metrics.md": "644", "/usr/share/doc/hprobe/hprobe.json": "644",
}

var page = regexp.MustCompile(`^/usr/share/man/man1/hprobe-[a-z-]+\.1\.gz$`)

func TestPackage(t *testing.T) {
	deb := build(t)
	modes, texts := files(t, run(t, "dpkg-deb", "--fsys-tarfile", deb))
	for name, mode := range want {
		if modes[name] != mode {
			t.Errorf("%s has mode %q, not %s", name, modes[name], mode)
		}
	}
	for name, mode := range modes {
		if _, ok := want[name]; !ok && !page.MatchString(name) && !strings.HasSuffix(name, "/") {
			t.Errorf("what is %s?", name)
		}
		if strings.HasSuffix(name, "/") && mode != "755" {
			t.Errorf("%s has mode %s", name, mode)
		}
	}
	for _, name := range []string{"/usr/sbin/hprobed", "/usr/bin/hprobe"} {
		static(t, name, texts[name])
	}
	for shell, name := range map[string]string{"bash": "/usr/share/bash-completion/completions/hprobe", "zsh": "/usr/share/zsh/vendor-completions/_hprobe", "fish": "/usr/share/fish/vendor_completions.d/hprobe.fish"} {
		if !strings.Contains(texts[name], "completion") || !strings.Contains(texts[name], "hprobe") {
			t.Errorf("no completion for %s: %.200q", shell, texts[name])
		}
	}

	modes, texts = files(t, run(t, "dpkg-deb", "--ctrl-tarfile", deb))
	if texts["/conffiles"] != "/etc/hprobe/hprobed.yaml\n" {
		t.Errorf("conffiles are %q", texts["/conffiles"])
	}
	for _, script := range []string{"/postinst", "/prerm", "/postrm"} {
		if modes[script] != "755" {
			t.Errorf("%s has mode %q", script, modes[script])
		}
	}
	if c := texts["/control"]; strings.Contains(c, "@") && !strings.Contains(c, "hprobe@") || !regexp.MustCompile(`(?m)^Version: [0-9][0-9A-Za-z.+~]*$`).MatchString(c) ||
		!regexp.MustCompile(`(?m)^Installed-Size: [0-9]{4,6}$`).MatchString(c) || strings.Contains(c, "Depends:") {
		t.Errorf("control is\n%s", c)
	}
	root := t.TempDir()
	run(t, "dpkg-deb", "--extract", deb, root)
	sums := exec.Command("md5sum", "--check", "--quiet", "-")
	sums.Dir, sums.Stdin = root, strings.NewReader(texts["/md5sums"])
	if out, err := sums.CombinedOutput(); err != nil {
		t.Errorf("md5sums: %v: %s", err, out)
	}
	unit(t, root)

	// The same commit makes the same package.
	if a, b := sum(t, deb), sum(t, build(t)); a != b {
		t.Errorf("it is %x, and then %x", a, b)
	}
}

func sum(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(b)
}

// static says what is wrong with a program that has to run in any dom0.
func static(t *testing.T, name, text string) {
	t.Helper()
	f, err := elf.NewFile(strings.NewReader(text))
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	if f.Machine != elf.EM_X86_64 || slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		t.Errorf("%s is no static program for x86-64", name)
	}
	if top, err := filepath.Abs(".."); err != nil || strings.Contains(text, top+"/") {
		t.Errorf("%s names a folder of the machine that it was built on, %s (%v)", name, top, err)
	}
}

// unit has systemd check its unit, where it is installed. Nothing in it kills hprobed.
func unit(t *testing.T, root string) {
	t.Helper()
	path := filepath.Join(root, "usr/lib/systemd/system/hprobed.service")
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"Type=notify", "SendSIGKILL=no", "KillSignal=SIGTERM", "WatchdogSignal=SIGTERM", "OOMScoreAdjust=-1000", "NoNewPrivileges=yes", "ProtectSystem=strict", "DevicePolicy=closed"} {
		if !strings.Contains(string(b), "\n"+line+"\n") {
			t.Errorf("the unit has no line %s", line)
		}
	}
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Log("the unit is not checked: systemd-analyze is not installed")
		return
	}
	// What it needs of a system beside itself.
	for name, mode := range map[string]os.FileMode{"bin/kill": 0o755, "usr/lib/systemd/system/sysinit.target": 0o644, "usr/lib/systemd/system/basic.target": 0o644, "usr/lib/systemd/system/shutdown.target": 0o644} {
		path := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte("[Unit]\n"), mode)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("systemd-analyze", "--root="+root, "--man=no", "verify", "/usr/lib/systemd/system/hprobed.service").CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v: %s", err, out)
	}
}

func TestScriptsAreClean(t *testing.T) {
	if _, err := exec.LookPath("shellcheck"); err != nil {
		t.Log("the scripts are not checked: shellcheck is not installed")
		return
	}
	if out, err := exec.Command("shellcheck", "build.sh", "postinst", "prerm", "postrm").CombinedOutput(); err != nil {
		t.Errorf("shellcheck: %v\n%s", err, out)
	}
}
