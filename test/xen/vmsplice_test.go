package xen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// spliced is what the guest's splicerace says.
type spliced struct{ honest, huge, refused, errors int }

func splice(t *testing.T, h *lab.Host, calls int, args string, values ...any) (s spliced) {
	t.Helper()
	out := h.Guest.MustRun(t, "splicerace "+fmt.Sprintf(args, values...))
	var n int
	if _, err := fmt.Sscanf(out, "calls %d honest %d huge %d refused %d errors %d", &n, &s.honest, &s.huge, &s.refused, &s.errors); err != nil || n != calls || s.errors != 0 {
		t.Fatalf("splicerace says %q: %v", out, err)
	}
	return s
}

// vmsplice: what the kernel has copied is judged, in both directions, of one segment, of
// several, and of so many that the kernel allocates memory for them. A 32-bit program
// does not come by the place before the copy, so all is up to those after it.
func vmsplice(t *testing.T, cfg lab.Config) {
	const calls = 20
	h := daemonHost(t, cfg, "splicerace", "texthash")
	undisturbed(t, h, func() {
		for _, mode := range []string{"", " --fix"} {
			says(t, h, 0, "hprobe stopgap add vmsplice --domain guest"+mode, "watches guest")
			want, n := spliced{honest: calls / 2, huge: calls / 2}, 0
			if mode != "" {
				want = spliced{honest: calls / 2, refused: calls / 2}
			}
			for _, direction := range []string{"to", "from"} {
				for _, segments := range []int{1, 3, 12} {
					if got := splice(t, h, calls, "%s %d %d compat", direction, calls, segments); got != want {
						t.Errorf("%s %d%s: %+v, not %+v", direction, segments, mode, got, want)
					}
					n += calls / 2
				}
			}
			out := says(t, h, 0, "hprobe stopgap ls", fmt.Sprintf(" %d ", n))
			says(t, h, 0, "hprobe stopgap rm "+strings.Fields(lastLine(out))[0], fmt.Sprintf("it saw %d attempts in 0 calls", n))
		}
	})
}

func lastLine(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return lines[len(lines)-1]
}

// TestVmspliceRace: a thread changes the length between hprobe's look at the call and
// the kernel's copy. Who looks only at the call is deceived; the stopgap is not, and
// what it refuses costs the guest no memory.
func TestVmspliceRace(t *testing.T) {
	t.Parallel()
	calls := 100
	if full {
		calls = 10_000
	}
	h := daemonHost(t, busy, "splicerace", "texthash")
	all := func(what string) (sum spliced) {
		for _, direction := range []string{"to", "from"} {
			for _, segments := range []int{1, 3, 12} {
				s := splice(t, h, calls, "%s %d %d", direction, calls, segments)
				t.Logf("%s: %s, %d segments: %+v", what, direction, segments, s)
				sum.honest, sum.huge, sum.refused = sum.honest+s.honest, sum.huge+s.huge, sum.refused+s.refused
			}
		}
		return sum
	}
	undisturbed(t, h, func() {
		if free := all("without hprobe"); free.huge == 0 || free.refused != 0 {
			t.Errorf("without hprobe: %+v", free)
		}
		before := enforcing(t, h, `--at __x64_sys_vmsplice --when 'u64(addr(arg1) + 16u * (uint(arg2) - 1u) + 8u) > 0x7ffffffeu' --deny EFAULT --mode enforce`)
		early := all("a rule at the call")
		says(t, h, 0, "hprobe probe rm "+before, "removed")
		if early.huge == 0 || early.refused == 0 {
			t.Errorf("a rule at the call: %+v", early)
		}
		says(t, h, 0, "hprobe stopgap add vmsplice --domain guest --fix", "watches guest")
		slab := slabs(t, h)
		late := all("the stopgap")
		if late.huge != 0 || late.refused == 0 || late.honest == 0 {
			t.Errorf("the stopgap: %+v", late)
		}
		if more := slabs(t, h) - slab; more > late.refused/10 {
			t.Errorf("the guest has %d more objects of 192 bytes after %d refusals", more, late.refused)
		}
		if n := strings.Count(says(t, h, 0, "hprobe findings --last 10000"), "as copied"); n == 0 || n >= late.refused {
			t.Errorf("%d of %d attempts were seen after the copy only", n, late.refused)
		} else {
			t.Logf("%d of %d attempts were seen after the copy only", n, late.refused)
		}
	})
}

// slabs is how many objects of 192 bytes the guest's kernel has: 12 struct iovecs.
func slabs(t *testing.T, h *lab.Host) (n int) {
	t.Helper()
	out := h.Guest.MustRun(t, "awk '/^kmalloc(-cg|-rnd-[0-9]+|)-192 /{n+=$2} END{print n}' /proc/slabinfo")
	if _, err := fmt.Sscan(out, &n); err != nil || n == 0 {
		t.Fatalf("slabinfo says %q: %v", out, err)
	}
	return n
}
