package xen

import (
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// TestLater: the hits of one vCPU wait for verdicts that come from elsewhere, those
// of the other one don't. All are there, whether the verdicts come in time or not;
// and the monitor may end in the middle of a wait.
func TestLater(t *testing.T) {
	t.Parallel()
	h := lab.Copy(t, smp, monitorFiles(t, smp, "calls", "texthash")...)
	before := h.Guest.MustRun(t, "texthash")
	for _, c := range []struct {
		flags string
		late  bool
	}{{"-later 2ms", false}, {"-later 20ms -limit 1ms", true}} {
		m := arm(t, h, c.flags)
		all := call(t, h, 200, 2)
		r := m.stop()
		r.sees(t, all)
		if r.Late == 0 || r.Late == all.calls || !c.late && r.Overtook == 0 {
			t.Errorf("%s: of %d hits %d were to wait, and %d came meanwhile", c.flags, r.Probe.Hits, r.Late, r.Overtook)
		}
		if c.late && r.Stats.TooLate == 0 || !c.late && r.Stats.TooLate != 0 || r.Stats.Waiting != 0 {
			t.Errorf("%s: %d verdicts came too late, %d hits wait", c.flags, r.Stats.TooLate, r.Stats.Waiting)
		}
	}
	// A hit that waits for ever, as far as the guest can tell, when the monitor ends.
	m := arm(t, h, "-later 5s -limit 1h")
	h.Guest.MustRun(t, "(calls 10 2 > /tmp/calls.out 2>&1) &")
	h.MustRun(t, "sleep 1")
	h.MustRun(t, "kill $(cat /tmp/hits.pid)")
	c := parseCalls(t, h.Guest.MustRun(t, "while ! grep -q calls /tmp/calls.out; do sleep 0.1; done; cat /tmp/calls.out"))
	if c.wrong != 0 || c.calls != 20 {
		t.Errorf("%d of %d calls had a wrong result", c.wrong, c.calls)
	}
	if r := m.wait(); r.Late == 0 || r.Probe.Hits >= c.calls {
		t.Errorf("%d of %d calls were hits, %d waited: none when the monitor ended", r.Probe.Hits, c.calls, r.Late)
	}
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after removal, the guest saw %q before", after, before)
	}
	alive(t, h)
}
