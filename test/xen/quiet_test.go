package xen

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

// TestStockIsQuiet: a guest that is busy with what is harmless, and like what the stock
// policies look for, makes no finding: for two minutes of its time in make test-full, for
// fifteen seconds in CI. hprobed has all stock policies, each enforced.
func TestStockIsQuiet(t *testing.T) {
	t.Parallel()
	seconds := 15
	if full {
		seconds = 120
	}
	for _, cfg := range first(1, plain, smp, older, oldest) {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := lab.Copy(t, cfg, binary(t, "cmd/hprobe"), binary(t, "cmd/hprobed"), profile(t, cfg.Guest), program(t, "attacks"), program(t, "vmsplice"))
			h.MustRun(t, "mkdir /tmp/p; cd /tmp/p; for n in $(hprobe policy stock -o json | sed 's/.*\"name\":\"\\([^\"]*\\)\".*/\\1/'); do hprobe policy stock $n | sed 's/^spec:/&\\n  mode: enforce/' > $n.yaml; done; ls; echo 'policies: [/tmp/p]' > /tmp/hprobed.yaml")
			h.MustRun(t, startDaemon("--config /tmp/hprobed.yaml --profiles /payload/profiles"))
			says(t, h, 0, `n=0; while hprobe policy status | grep -qE '^  guest  (not there|waiting)' || [ "$(hprobe policy status | grep -c '^  guest ')" -lt 9 ]; do n=$((n+1)); if [ $n -gt 100 ]; then hprobe policy status; exit 1; fi; sleep 0.5; done`)
			out := h.Guest.MustRun(t, fmt.Sprintf(`up() { cut -d. -f1 /proc/uptime; }; end=$(($(up)+%d)); n=0
while [ $(up) -lt $end ]; do
	attacks benign 1 || exit 1; vmsplice benign || exit 1
	mkdir -p /tmp/q/r && cp /bin/busybox /tmp/q/r && tar cf /tmp/q.tar /tmp/q 2> /dev/null && gzip -f /tmp/q.tar && rm -r /tmp/q /tmp/q.tar.gz
	ps > /dev/null; cat /proc/[0-9]*/stat /proc/[0-9]*/maps > /dev/null 2>&1; mount -t tmpfs t /mnt 2> /dev/null && umount /mnt
	n=$((n+1))
done; echo $n rounds`, seconds))
			if strings.Contains(strings.ReplaceAll(out, "benign: 0 errors", ""), "errors") || !strings.Contains(out, "rounds") || strings.Contains(out, "\n0 rounds") {
				t.Errorf("the guest says %q", out)
			}
			if found := h.MustRun(t, "hprobe findings"); found != "" {
				t.Errorf("findings: %s", found)
			}
			status := says(t, h, 0, "hprobe policy status", "armed")
			t.Logf("%s\n%s", out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:], status)
			// It looked: some of the probes were hit, and none of them matched.
			if hits := h.MustRun(t, `hprobe probe ls -o json | sed 's/.*"hits":"\([0-9]*\)".*/\1/' | awk '{n+=$1} END {print n}'`); strings.TrimSpace(hits) == "0" {
				t.Errorf("no probe was hit:\n%s", status)
			}
			h.MustRun(t, stopDaemon+"true")
			alive(t, h)
		})
	}
}

// TestPolicyPauses: the stock policy commit-creds, enforced, stops the whole guest before a
// process is root that had no way to become it; with xl unpause the guest goes on.
func TestPolicyPauses(t *testing.T) {
	t.Parallel()
	creds, err := guests.CredsModule(context.Background(), plain.Guest, func(s string) { t.Log(s) })
	if err != nil {
		t.Fatal(err)
	}
	h := daemonHostWith(t, plain, []lab.File{creds}, "attacks")
	h.Guest.MustRun(t, "insmod /payload/creds.ko")
	h.MustRun(t, "hprobe policy stock commit-creds | sed 's/^spec:/&\\n  mode: enforce/' > /tmp/p.yaml")
	says(t, h, 0, "hprobe policy apply /tmp/p.yaml", "commit-creds (enforce):\n  guest: armed")
	h.Guest.MustRun(t, "(attacks creds > /tmp/creds.out 2>&1) > /dev/null 2>&1 &")
	says(t, h, 0, "n=0; until xl list guest | grep -q ' --p--- '; do n=$((n+1)); [ $n -lt 100 ] || exit 1; sleep 0.2; done; hprobe findings", "uid 1000) becomes root, and had no way to; paused the guest")
	says(t, h, 0, "xl unpause guest; xl list guest | grep -c ' --p--- '; true", "0")
	if out := h.Guest.MustRun(t, "until grep -q creds: /tmp/creds.out; do sleep 0.1; done; cat /tmp/creds.out"); !strings.Contains(out, "creds: done") {
		t.Errorf("the guest says %q", out)
	}
	says(t, h, 0, "hprobe policy rm commit-creds", "after 1 finding")
	h.MustRun(t, stopDaemon+"true")
	alive(t, h)
}
