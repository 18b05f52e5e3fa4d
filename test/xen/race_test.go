package xen

import (
	"fmt"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// TestRace: a thread changes what another passes to the kernel, between hprobe's look
// and the kernel's. A rule on a function after the kernel's copy can't be deceived by
// that; one before it can.
func TestRace(t *testing.T) {
	t.Parallel()
	calls := 1000
	if full {
		calls = 10_000
	}
	h := daemonHostWith(t, busy, ourModules(t, busy.Guest), "race", "texthash")
	h.Guest.MustRun(t, "insmod /payload/vuln.ko")
	undisturbed(t, h, func() {
		free := race(t, h, calls)
		if free.dead == 0 || free.refused != 0 {
			t.Errorf("without hprobe: %+v: the race is none", free)
		}
		before := enforcing(t, h, `--at 'vuln!vuln_ioctl' --when 'arg1 == `+fmt.Sprint(vulnCopy)+` && u64(arg2 + 8u) > 0x1000' --deny EINVAL --mode enforce`)
		early := race(t, h, calls)
		says(t, h, 0, "hprobe probe rm "+before, "removed")
		after := enforcing(t, h, `--at 'vuln!vuln_copy' --when 'u64(arg0 + 8u) > 0x1000' --deny EINVAL --mode enforce`)
		late := race(t, h, calls)
		says(t, h, 0, "hprobe probe rm "+after, fmt.Sprintf("after %d hits, %d matched", calls, late.refused))
		says(t, h, 0, "hprobe stopgap add vuln -d guest --at 'vuln!vuln_copy' --length '[arg0+8]' --limit 0x1001 --errno EINVAL --fix", "watches guest")
		stopgap := race(t, h, calls)
		t.Logf("without hprobe %+v; a rule before the copy %+v; one after it %+v; the stopgap %+v", free, early, late, stopgap)
		for what, r := range map[string]raced{"a rule after the copy": late, "the stopgap": stopgap} {
			if r.dead != 0 || r.refused == 0 || r.passed == 0 || r.refused+r.passed != calls {
				t.Errorf("%s: %+v", what, r)
			}
		}
		if early.refused == 0 || early.errors != 0 {
			t.Errorf("a rule before the copy: %+v", early)
		}
	})
}

// vulnCopy is VULN_COPY of test/guests/module/vuln.h, as ioctl's second argument.
const vulnCopy = 0x40107601

type raced struct{ passed, refused, dead, errors int }

// race runs the guest's program.
func race(t *testing.T, h *lab.Host, calls int) (r raced) {
	t.Helper()
	out := h.Guest.MustRun(t, fmt.Sprintf("race %d", calls))
	var n int
	if _, err := fmt.Sscanf(out, "calls %d passed %d refused %d dead %d errors %d", &n, &r.passed, &r.refused, &r.dead, &r.errors); err != nil || n != calls || r.errors != 0 {
		t.Fatalf("race says %q: %v", out, err)
	}
	return r
}

// enforcing adds a probe that acts, and returns its ID.
func enforcing(t *testing.T, h *lab.Host, flags string) string {
	t.Helper()
	var id string
	out := says(t, h, 0, "hprobe probe add --domain guest "+flags, "armed")
	if _, err := fmt.Sscanf(out, "%s", &id); err != nil {
		t.Fatalf("%q: %v", out, err)
	}
	return id[:len(id)-1] // the colon
}
