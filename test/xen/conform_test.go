package xen

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
	"github.com/hprobe/hprobe/xenevents/drivertest"
)

// conformance: the driver does what every driver must.
// One copy for all checks of a host: each must leave the guest as it found it,
// and the next one would notice.
func conformance(t *testing.T, cfg lab.Config) {
	h := lab.Copy(t, cfg, binary(t, "test/xen/conform"), program(t, "texthash"), program(t, "calls"))
	before := h.Guest.MustRun(t, "texthash")
	out := h.MustRun(t, "conform 2> /tmp/conform.log || { cat /tmp/conform.log; exit 1; }")
	left, results := map[string]bool{}, map[string]string{}
	for _, c := range drivertest.Checks() {
		left[c.Name] = true
	}
	for line := range strings.Lines(out) {
		var r struct{ Name, Error, Skip string }
		switch err := json.Unmarshal([]byte(line), &r); {
		case err != nil:
			t.Errorf("conform says %s", line)
		case r.Error != "":
			t.Errorf("%s: %s", r.Name, r.Error)
		case r.Skip != "": // an honest no: the table has its reason
			results[r.Name] = "skip: " + strings.ReplaceAll(r.Skip, " | ", " / ")
		default:
			results[r.Name] = "pass"
		}
		delete(left, r.Name)
	}
	if len(left) != 0 {
		t.Errorf("never checked: %v", left)
	}
	health(t, cfg, results)
	if after := h.Guest.MustRun(t, "texthash"); after != before {
		t.Errorf("the guest's code is %q, and was %q", after, before)
	}
	call(t, h, 200, cfg.VCPUs)
	alive(t, h)
}
