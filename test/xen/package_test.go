package xen

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// capabilities are the numbers of those that hprobed's unit may name: linux/capability.h.
var capabilities = map[string]string{"CAP_CHOWN": "0", "CAP_DAC_OVERRIDE": "1", "CAP_KILL": "5", "CAP_SETGID": "6", "CAP_SETUID": "7", "CAP_IPC_LOCK": "14", "CAP_SYS_ADMIN": "21", "CAP_SYS_RESOURCE": "24"}

// unitCapabilities are those that the unit leaves hprobed, as capped takes them.
func unitCapabilities(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../packaging/hprobed.service")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(b), "\nCapabilityBoundingSet=")
	line, _, _ := strings.Cut(rest, "\n")
	var numbers []string
	for _, name := range strings.Fields(line) {
		n, ok := capabilities[name]
		if !ok {
			t.Fatalf("the unit has %s, whose number is not here", name)
		}
		numbers = append(numbers, n)
	}
	if len(numbers) == 0 {
		t.Fatal("the unit has no capabilities")
	}
	return strings.Join(numbers, ",")
}

// debs builds the package, and one of the same files with a higher version.
func debs(t *testing.T) (now, later lab.File) {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.Command("../../packaging/build.sh", dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	deb := strings.TrimSpace(string(out))
	script := `set -e; dpkg-deb -R "$1" "$2/new"; sed -i '/^Version:/s/$/+later/' "$2/new/DEBIAN/control"; dpkg-deb --root-owner-group -Zgzip -b "$2/new" "$2/later.deb"`
	if out, err := exec.Command("sh", "-c", script, "sh", deb, dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return lab.File{Name: "hprobe.deb", Source: deb}, lab.File{Name: "later.deb", Source: filepath.Join(dir, "later.deb")}
}

// TestPackage installs the package in dom0, upgrades it while hprobed watches a guest, and removes it
// while hprobed does so again: hprobed ends in order, and the guest runs on. dom0 has busybox' dpkg and no systemd.
func TestPackage(t *testing.T) {
	t.Parallel()
	now, later := debs(t)
	h := lab.Copy(t, plain, now, later, binary(t, "test/xen/capped"), binary(t, "test/xen/texthash"), profile(t, plain.Guest), program(t, "calls"), program(t, "texthash"))
	before := h.Guest.MustRun(t, "texthash")
	h.MustRun(t, "mkdir -p /var/lib/dpkg/info; touch /var/lib/dpkg/status; dpkg -i /payload/hprobe.deb")
	says(t, h, 0, "ls -ld /usr/sbin/hprobed /usr/bin/hprobe /etc/hprobe/policies /var/log/hprobe; dpkg -l | grep hprobe", "-rwxr-xr-x", "drwxr-s---", "0~git")
	start := `export PATH=/usr/bin:/usr/sbin:$PATH; capped ` + unitCapabilities(t) + " /usr/sbin/" + startDaemon("--profiles /payload/profiles")
	probe := `/usr/bin/hprobe probe add --domain guest --at __x64_sys_getpriority; (guest 'calls 2000 1' > /tmp/calls.out 2>&1; echo over >> /tmp/calls.out) & sleep 0.3; hprobe probe ls; `
	untouched := func(what string) {
		t.Helper()
		says(t, h, 0, "until grep -q over /tmp/calls.out; do sleep 0.1; done; cat /tmp/calls.out", "2000 calls")
		says(t, h, 0, "cat /tmp/hprobed.log", "armed", "detached")
		says(t, h, 1, "ps | grep -v grep | grep sbin/hprobed")
		if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
			t.Errorf("after %s dom0 sees %q, the guest saw %q before", what, after, before)
		}
		alive(t, h)
	}
	says(t, h, 0, start+`grep -h Cap[BE] /proc/$(cat /tmp/hprobed.pid)/status; `+probe, "CapEff:\t00000000000000e1", "armed")
	says(t, h, 0, "echo '# mine' >> /etc/hprobe/hprobed.yaml; dpkg -i /payload/later.deb; dpkg -l | grep hprobe; tail -n 1 /etc/hprobe/hprobed.yaml", "+later", "# mine")
	untouched("the upgrade")

	says(t, h, 0, start+probe, "armed")
	says(t, h, 0, "dpkg -r hprobe; ls /usr/sbin/hprobed /usr/bin/hprobe 2>&1 | grep -c 'No such'; ls /etc/hprobe/hprobed.yaml", "2\n", "/etc/hprobe/hprobed.yaml")
	untouched("the removal")
}
