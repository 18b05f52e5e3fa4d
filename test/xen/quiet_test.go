package xen

import (
	"fmt"
	"strings"
	"testing"

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
