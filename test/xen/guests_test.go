package xen

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// moreGuests starts guests beside the first one, and waits until they answer: their domains
// have the IDs from 2 on.
func moreGuests(t *testing.T, h *lab.Host, n int) {
	t.Helper()
	for id := 2; id < n+2; id++ {
		h.MustRun(t, fmt.Sprintf(`sed 's/^name=.*/name="guest-%[1]d"/; s/^memory=.*/memory=160/' /root/guest.cfg > /tmp/g.cfg
xl create -q /tmp/g.cfg || exit 1
n=0; until tty=$(xenstore-read /local/domain/%[1]d/console/tty 2> /dev/null) && [ -n "$tty" ] || [ $n -gt 100 ]; do n=$((n+1)); sleep 0.1; done
agent -c $tty true`, id))
	}
}

// onGuest is a command in the guest of a domain's ID, for a script of dom0.
func onGuest(id int, script string) string {
	return fmt.Sprintf(`agent -c "$(xenstore-read /local/domain/%d/console/tty)" '%s'`, id, script)
}

// TestFourGuests: four guests at a time are watched by one policy. What is done in each is
// found in that one, each time; a storm of hits in one holds up the others no more than its
// share; and what an idle guest costs hprobed is bounded.
func TestFourGuests(t *testing.T) {
	t.Parallel()
	h := daemonHost(t, plain)
	memory := func() (kB int) {
		t.Helper()
		kB, err := strconv.Atoi(strings.TrimSpace(h.MustRun(t, "awk '/^VmRSS/ {print $2}' /proc/$(cat /tmp/hprobed.pid)/status")))
		if err != nil {
			t.Fatal(err)
		}
		return kB
	}
	empty := memory()
	h.MustRun(t, "cat > /tmp/p.yaml <<'E'\n"+policyFile+"E\n")
	says(t, h, 0, "hprobe policy apply /tmp/p.yaml", "directories (observe):\n  guest: armed")
	one := memory()
	moreGuests(t, h, 3)
	for id := 2; id <= 4; id++ {
		awaitPolicy(t, h, id)
	}
	four := memory()
	t.Logf("hprobed takes %d kB, with a guest %d kB, with four %d kB", empty, one, four)
	if per := (four - one) / 3; per > 24<<10 {
		t.Errorf("a further guest takes %d kB", per)
	}
	for id := 1; id <= 4; id++ {
		h.MustRun(t, onGuest(id, fmt.Sprintf("for i in $(seq %d); do mkdir /tmp/d$i && rmdir /tmp/d$i || exit 1; done", 3+id)))
	}
	found := h.MustRun(t, "hprobe findings")
	for id, name := range []string{1: "guest", 2: "guest-2", 3: "guest-3", 4: "guest-4"} {
		if n := strings.Count(found, "  "+name+"  REPORTED"); id > 0 && n != 3+id {
			t.Errorf("%d findings of %s, not %d: %s", n, name, 3+id, found)
		}
	}
	// What four idle guests cost, in ticks of a processor of a second.
	idle := h.MustRun(t, `p=/proc/$(cat /tmp/hprobed.pid)/stat; a=$(awk '{print $14+$15}' $p); sleep 20; b=$(awk '{print $14+$15}' $p); echo $((b-a))`)
	ticks, err := strconv.Atoi(strings.TrimSpace(idle))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("in 20 s with four idle guests hprobed ran for %d of 2,000 scheduler ticks", ticks)

	const work = "for i in $(seq 60); do mkdir /tmp/w$i; rmdir /tmp/w$i; done"
	// A guest that does nothing else takes its share of the processor already: that is
	// what the storm is compared with.
	timed := func(storm string) uint64 {
		t.Helper()
		h.MustRun(t, onGuest(1, "(while [ ! -e /tmp/stop ]; do "+storm+"; done; rm /tmp/stop) > /dev/null 2>&1 &"))
		r, err := h.Run(t.Context(), onGuest(2, work))
		if err != nil || r.Exit != 0 {
			t.Fatalf("%+v, %v", r, err)
		}
		h.MustRun(t, onGuest(1, "touch /tmp/stop; while [ -e /tmp/stop ]; do sleep 0.1; done"))
		return r.TSC
	}
	calm := timed("true; [ -d /tmp ]; true")
	storm := timed("mkdir /tmp/s; rmdir /tmp/s")
	t.Logf("60 directories in a guest take %d ticks beside one that is busy, %d (%.2f times) beside one that is hit all the time", calm, storm, float64(storm)/float64(calm))
	if storm > 4*calm {
		t.Errorf("the storm in one guest makes another one %.1f times slower", float64(storm)/float64(calm))
	}
	for id := 1; id <= 4; id++ {
		h.MustRun(t, onGuest(id, "a=$(cat /tmp/heartbeat); n=0; until [ $(cat /tmp/heartbeat) -gt $a ] || [ $n -gt 50 ]; do n=$((n+1)); sleep 0.2; done; [ $n -le 50 ]"))
	}
	says(t, h, 0, "hprobe policy rm directories; hprobe status", "removed from 4 guests", "attached to no guest")
	if log := h.MustRun(t, stopDaemon+"cat /tmp/hprobed.log"); strings.Contains(log, "level=ERROR") {
		t.Error(log)
	}
}
