package xen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// policyFile is a policy that refuses a call of the program calls, in all guests.
const policyFile = `apiVersion: hprobe/v1
kind: ProbePolicy
metadata: {name: directories, title: directories of mkdir}
spec:
  domains: {names: ['*']}
  probes:
  - name: call
    syscalls: [mkdir]
    when: comm == "mkdir"
    then: {finding: {severity: info, message: 'a directory of {comm}'}}
`

// awaitPolicy waits until the policy is armed in the domain of an ID.
func awaitPolicy(t *testing.T, h *lab.Host, id int) {
	t.Helper()
	says(t, h, 0, fmt.Sprintf(`n=0; until hprobe -o json policy status directories | grep -q '"domain_id": *%d, *"state": *"armed"'; do
n=$((n+1)); if [ $n -gt 60 ]; then hprobe policy status; hprobe domain ls; cat /tmp/hprobed.log; exit 1; fi; sleep 0.2; done`, id))
}

// guestTTY has dom0's command guest speak to another domain than the first one.
const guestTTY = `xenstore-read /local/domain/%d/console/tty > /tmp/guest.tty; `

// TestPolicyStays: a policy is armed in the guest that runs; in the one that comes up when
// it reboots, without a command; after it was saved and restored; and after it was released.
// Each time every call is found, and the guest lives.
func TestPolicyStays(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain)
	h.MustRun(t, "cat > /tmp/p.yaml <<'E'\n"+policyFile+"E\n")
	says(t, h, 0, "hprobe policy apply /tmp/p.yaml", "directories (observe):\n  guest: armed")
	found := 0
	check := func(when string, id int) {
		t.Helper()
		awaitPolicy(t, h, id)
		says(t, h, 0, fmt.Sprintf(guestTTY, id)+"guest 'for i in 1 2 3 4 5; do mkdir /tmp/d$i && rmdir /tmp/d$i || exit 1; done; a=$(cat /tmp/heartbeat); sleep 2; [ $(cat /tmp/heartbeat) -gt $a ]'")
		found += 5
		if n := strings.Count(h.MustRun(t, "hprobe findings"), "a directory of"); n != found {
			t.Errorf("%s: %d findings, and there were %d calls", when, n, found)
		}
	}
	check("at first", 1)
	h.MustRun(t, "xl reboot guest; n=0; until xl list guest | grep -q '^guest  *2 ' || [ $n -gt 600 ]; do n=$((n+1)); sleep 0.1; done")
	check("after a reboot", 2)
	says(t, h, 0, "xl save guest /tmp/guest.save && xl restore /tmp/guest.save && rm /tmp/guest.save && xl list", "guest  ")
	check("after save and restore", 3)
	says(t, h, 0, "hprobe domain release guest", "nothing of hprobed is in it")
	says(t, h, 0, "hprobe policy status; hprobe status", "held", "attached to no guest")
	says(t, h, 0, "hprobe domain resume guest", "policies come back")
	check("after it was released", 3)
	says(t, h, 0, "hprobe policy rm directories", "directories: removed from 1 guest, after 5 findings")
	says(t, h, 0, "hprobe status", "attached to no guest")
	if log := h.MustRun(t, stopDaemon+"cat /tmp/hprobed.log"); strings.Contains(log, "level=ERROR") {
		t.Error(log)
	}
}
