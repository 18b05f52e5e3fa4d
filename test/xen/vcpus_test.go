package xen

import (
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// TestVCPUOffline: a guest takes a vCPU offline and back, before and while a
// probe is armed. Every call is a hit, and nothing of the guest's is disturbed.
func TestVCPUOffline(t *testing.T) {
	t.Parallel()
	h := lab.Copy(t, smp, monitorFiles(t, smp, "calls", "texthash")...)
	online := func(is string) {
		t.Helper()
		h.Guest.MustRun(t, "echo "+is+" > /sys/devices/system/cpu/cpu1/online")
		if got := h.Guest.MustRun(t, "cat /sys/devices/system/cpu/cpu1/online"); got != is+"\n" && got != is {
			t.Errorf("cpu1/online is %q, not %s", got, is)
		}
	}
	before := h.Guest.MustRun(t, "texthash")
	for _, first := range []string{"0", "1"} {
		online(first)
		m := arm(t, h, "")
		all := call(t, h, 200, 2)
		for _, then := range map[string][]string{"0": {"1", "0", "1"}, "1": {"0", "1"}}[first] {
			online(then)
			c := call(t, h, 200, 2)
			all.calls, all.sum = all.calls+c.calls, all.sum+c.sum
		}
		r := m.stop()
		r.sees(t, all)
		if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
			t.Errorf("dom0 sees %q after removal, the guest saw %q before", after, before)
		}
	}
	call(t, h, 200, 2)
	alive(t, h)
}
