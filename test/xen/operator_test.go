package xen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// push copies a program of dom0's into the guest of a domain's ID, by its console: a guest that
// was started later has none of the copy's files.
func push(t *testing.T, h *lab.Host, id int, from, to string) {
	t.Helper()
	h.MustRun(t, fmt.Sprintf(`set -e; gzip -9c %s | base64 -w 60000 > /tmp/push
for i in $(seq $(wc -l < /tmp/push)); do agent -c "$(xenstore-read /local/domain/%[2]d/console/tty)" "printf %%s $(sed -n ${i}p /tmp/push) >> /tmp/push"; done
agent -c "$(xenstore-read /local/domain/%[2]d/console/tty)" 'base64 -d /tmp/push | gunzip > %[3]s && chmod +x %[3]s && rm /tmp/push'`, from, id, to))
}

const operatorsConfig = `profiles: [/payload/profiles]
stock: [ptrace-attach, bpf, setuid-exec, module-load, cve-2022-0185, cve-2022-0492, cve-2008-0600]
policies: [/etc/hprobe/policies]
domains:
  - {names: ['guest-*'], labels: {tier: test}}
findings:
  - file: {path: /var/log/hprobe/findings.json}
audit: {path: /var/log/hprobe/audit.json}
metrics: {listen: 127.0.0.1:9433}
`

// TestOperatorsDay is the whole of it on one host: the package is installed, hprobed started with
// a configuration that has the stock policies, two guests run; attacks in each are found, and
// refused where a policy says so; what is harmless is not; hprobed is upgraded, and what was
// armed is armed again; it is removed. The guests notice nothing.
func TestOperatorsDay(t *testing.T) {
	t.Parallel()
	attacks := program(t, "attacks")
	h := lab.Copy(t, plain, deb(t), profile(t, plain.Guest), attacks, lab.File{Name: "more/attacks", Source: attacks.Source}, program(t, "texthash"), binary(t, "test/xen/texthash"))
	before := h.Guest.MustRun(t, "texthash")
	h.MustRun(t, "set -e; "+install+"; cat > /etc/hprobe/hprobed.yaml <<'E'\n"+operatorsConfig+"E\n")
	const path = "export PATH=/usr/bin:/usr/sbin:$PATH; "
	start := path + "/usr/sbin/" + startDaemon("")
	says(t, h, 0, path+"hprobed --check", "policy ptrace-attach (observe, stock/ptrace-attach.yaml)", "findings go to /var/log/hprobe/findings.json")
	says(t, h, 2, path+"sed -i 's/^stock/stok/' /etc/hprobe/hprobed.yaml; hprobed --check; s=$?; sed -i 's/^stok/stock/' /etc/hprobe/hprobed.yaml; exit $s", `/etc/hprobe/hprobed.yaml:2: there is no field "stok" here (near it: "stock"`)
	h.MustRun(t, start)
	moreGuests(t, h, 1)
	push(t, h, 2, "/payload/more/attacks", "/bin/attacks")
	armed := func() {
		t.Helper()
		says(t, h, 0, path+`n=0; until [ "$(hprobe policy status | grep -c '^  guest.*armed')" -ge 10 ]; do n=$((n+1)); if [ $n -gt 60 ]; then hprobe policy status; cat /tmp/hprobed.log; exit 1; fi; sleep 0.5; done`)
	}
	armed()
	on := func(id int, command string) string {
		t.Helper()
		return h.MustRun(t, onGuest(id, command+" 2>&1; true"))
	}
	// findings are those of a guest and a policy so far.
	findings := func(guest, policy string) int {
		t.Helper()
		n := 0
		for _, l := range strings.Split(h.MustRun(t, "cat /var/log/hprobe/findings.json"), "\n") {
			if strings.Contains(l, fmt.Sprintf(`"domain":%q`, guest)) && strings.Contains(l, fmt.Sprintf(`"detector":"policy/%s"`, policy)) {
				n++
			}
		}
		return n
	}
	for id := 1; id <= 2; id++ {
		if out := on(id, "attacks benign 3"); !strings.Contains(out, "benign: 0 errors") {
			t.Errorf("benign in %d: %q", id, out)
		}
	}
	if found := h.MustRun(t, "cat /var/log/hprobe/findings.json"); found != "" {
		t.Errorf("findings of what is harmless: %s", found)
	}
	for _, a := range []struct{ command, says string }{{"attacks ptrace", "ptrace: done"}, {"attacks bpf", "bpf: done"}, {"attacks setuid", "setuid: done"}} {
		for id := 1; id <= 2; id++ {
			if out := on(id, a.command); !strings.Contains(out, a.says) {
				t.Errorf("%s in %d: %q", a.command, id, out)
			}
		}
	}
	for _, guest := range []string{"guest", "guest-2"} {
		for _, p := range []string{"ptrace-attach", "bpf", "setuid-exec"} {
			if n := findings(guest, p); n != 1 {
				t.Errorf("%d findings of %s in %s", n, p, guest)
			}
		}
	}
	// Enforced in the guests that have a label: only in the second one.
	says(t, h, 0, path+`hprobe policy stock ptrace-attach | sed 's/name: ptrace-attach/name: no-ptrace/; s/^spec:/&\n  mode: enforce/; s/^    names: .*/    labels: {tier: test}/' > /tmp/no-ptrace.yaml; hprobe policy apply /tmp/no-ptrace.yaml`, "no-ptrace (enforce):\n  guest-2: armed")
	if out := on(2, "attacks ptrace"); !strings.Contains(out, "refused: EPERM") {
		t.Errorf("enforced: %q", out)
	}
	if out := on(1, "attacks ptrace"); !strings.Contains(out, "ptrace: done") {
		t.Errorf("in the guest without the label: %q", out)
	}
	says(t, h, 0, path+"wget -q -O - http://127.0.0.1:9433/metrics", `hprobe_findings_total{`, `domain="guest-2"`)
	says(t, h, 0, path+"hprobe audit verify /var/log/hprobe/audit.json; grep -c ApplyPolicy /var/log/hprobe/audit.json", "1")

	says(t, h, 0, "set -e; "+upgrade)
	says(t, h, 0, "cat /tmp/hprobed.log", "detached")
	h.MustRun(t, start)
	armed()
	says(t, h, 0, path+"hprobe policy status no-ptrace", "guest-2  armed")
	if out := on(2, "attacks ptrace"); !strings.Contains(out, "refused: EPERM") {
		t.Errorf("after the upgrade: %q", out)
	}
	if n := findings("guest-2", "no-ptrace"); n != 2 {
		t.Errorf("%d findings of the enforced policy", n)
	}
	says(t, h, 0, "set -e; "+remove+"; "+purge)
	if log := h.MustRun(t, "cat /tmp/hprobed.log"); strings.Contains(log, "level=ERROR") || strings.Count(log, "detached") != 2 {
		t.Error(log)
	}
	if out := on(2, "attacks ptrace"); !strings.Contains(out, "ptrace: done") {
		t.Errorf("after the removal: %q", out)
	}
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q, the guest saw %q before", after, before)
	}
	alive(t, h)
	on(2, "a=$(cat /tmp/heartbeat); n=0; until [ $(cat /tmp/heartbeat) -gt $a ]; do sleep 0.2; done")
}
