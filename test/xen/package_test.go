package xen

import (
	"os"
	"os/exec"
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

// deb builds the package.
func deb(t *testing.T) lab.File {
	t.Helper()
	cmd := exec.Command("../../packaging/build.sh", t.TempDir())
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return lab.File{Name: "hprobe.deb", Source: strings.TrimSpace(string(out))}
}

// The steps of dpkg, in its order (Debian Policy, 6.5 to 6.8): busybox' dpkg, which dom0 has, calls
// the package's scripts without their arguments.
const (
	install = `rm -rf /tmp/ctl /tmp/new; mkdir /tmp/ctl /tmp/new; dpkg-deb -e /payload/hprobe.deb /tmp/ctl; dpkg-deb -x /payload/hprobe.deb /tmp/new; cp -a /tmp/new/. /; /tmp/ctl/postinst configure`
	upgrade = `/tmp/ctl/prerm upgrade 2; mv /etc/hprobe/hprobed.yaml /tmp/mine; ` + install + ` 1; mv /tmp/mine /etc/hprobe/hprobed.yaml`
	remove  = `/tmp/ctl/prerm remove; rm /usr/sbin/hprobed /usr/bin/hprobe; /tmp/ctl/postrm remove`
	purge   = `rm /etc/hprobe/hprobed.yaml; /tmp/ctl/postrm purge`
)

// TestPackage installs the package in dom0, upgrades it while hprobed watches a guest, and removes it
// while hprobed does so again: hprobed ends in order, and the guest runs on. It has no more
// capabilities than the systemd unit leaves it; dom0 has no systemd.
func TestPackage(t *testing.T) {
	t.Parallel()
	h := lab.Copy(t, plain, deb(t), binary(t, "test/xen/capped"), binary(t, "test/xen/texthash"), profile(t, plain.Guest), program(t, "calls"), program(t, "texthash"))
	before := h.Guest.MustRun(t, "texthash")
	h.MustRun(t, "printf 'root:x:0:\\nhprobe:x:990:\\n' > /etc/group") // what systemd-sysusers does
	says(t, h, 0, "set -e; "+install+"; ls -ld /usr/sbin/hprobed /usr/bin/hprobe /etc/hprobe/policies /var/log/hprobe", "-rwxr-xr-x", "drwxr-s---")
	start := `export PATH=/usr/bin:/usr/sbin:$PATH; capped ` + unitCapabilities(t) + " /usr/sbin/" + startDaemon("--profiles /payload/profiles")
	probe := `hprobe probe add --domain guest --at __x64_sys_getpriority; (guest 'calls 2000 1' > /tmp/calls.out 2>&1; echo over >> /tmp/calls.out) & sleep 0.3; hprobe probe ls; `
	untouched := func(what string) {
		t.Helper()
		says(t, h, 0, "until grep -q over /tmp/calls.out; do sleep 0.1; done; cat /tmp/calls.out", "calls 2000 wrong 0")
		says(t, h, 0, "cat /tmp/hprobed.log", "armed", "detached")
		says(t, h, 1, "ps | grep -v grep | grep sbin/hprobed")
		if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
			t.Errorf("after %s dom0 sees %q, the guest saw %q before", what, after, before)
		}
		alive(t, h)
	}
	says(t, h, 0, start+`grep -h Cap[BE] /proc/$(cat /tmp/hprobed.pid)/status; ls -ln /run/hprobe/hprobed.sock; `+probe, "CapEff:\t00000000000000e1", "srw-rw----    1 0        990 ", "armed")
	says(t, h, 0, "set -e; "+upgrade)
	untouched("the upgrade")

	says(t, h, 0, start+probe, "armed")
	says(t, h, 0, "set -e; "+remove)
	untouched("the removal")
	says(t, h, 0, "ls -d /etc/hprobe/hprobed.yaml /var/log/hprobe; set -e; "+purge+"; ls -d /etc/hprobe /var/log/hprobe /var/lib/hprobe /run/hprobe 2>&1 | grep -c 'No such'", "/etc/hprobe/hprobed.yaml", "4")
}
