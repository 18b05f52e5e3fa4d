package xen

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

// pokeHosts are those whose guest has the driver that writes registers and memory: its
// Linux is one for which the lab has the headers for other tests as well.
func pokeHosts() []lab.Config {
	all := []lab.Config{plain}
	if full {
		all = append(all, lab.Config{Xen: "4.20", Guest: "6.12", CPUs: 2, VCPUs: 2, KPTI: true}, lab.Config{Xen: "4.14", Guest: "6.12", CPUs: 1, VCPUs: 1})
	}
	return all
}

// eachPokeHost runs a test on each, with hprobed in dom0. The guest's code must be as it
// was at the end.
func eachPokeHost(t *testing.T, test func(t *testing.T, h *lab.Host)) {
	t.Parallel()
	for _, cfg := range pokeHosts() {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			module, err := guests.PokeModule(context.Background(), cfg.Guest, func(s string) { t.Log(s) })
			if err != nil {
				t.Fatal(err)
			}
			h := daemonHostWith(t, cfg, []lab.File{module, pokeProgram(t)}, "calls", "texthash")
			h.Guest.MustRun(t, "insmod /payload/poke.ko")
			undisturbed(t, h, func() { test(t, h) })
		})
	}
}

func pokeProgram(t *testing.T) lab.File {
	t.Helper()
	f, err := guests.PokeProgram(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// undisturbed runs do, after which the guest must be as before, and live on.
func undisturbed(t *testing.T, h *lab.Host, do func()) {
	t.Helper()
	before := h.Guest.MustRun(t, "texthash")
	do()
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
	}
	alive(t, h)
}

// poke has the guest's driver do something, and returns what it says.
func poke(t *testing.T, h *lab.Host, args string, values ...any) string {
	t.Helper()
	return strings.TrimSpace(h.Guest.MustRun(t, "poke "+fmt.Sprintf(args, values...)))
}

// watching adds a probe, and returns its ID.
func watching(t *testing.T, h *lab.Host, flags string) string {
	t.Helper()
	id, _, _ := strings.Cut(says(t, h, 0, "hprobe probe add --domain guest "+flags, "watching "), ":")
	return id
}

// sourceHits are those of a probe, with others counters in its line.
func sourceHits(t *testing.T, h *lab.Host, id string) (hits, passed uint64, state string) {
	t.Helper()
	var out struct {
		Hits   uint64 `json:",string"`
		Passed uint64 `json:",string"`
		State  string
		ID     string
	}
	for line := range strings.Lines(h.MustRun(t, "hprobe probe ls -o json")) {
		if err := json.Unmarshal([]byte(line), &out); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if out.ID == id {
			return out.Hits, out.Passed, out.State
		}
	}
	t.Fatalf("there is no probe %s", id)
	return 0, 0, ""
}

func wantHits(t *testing.T, h *lab.Host, what, id string, want uint64) (passed uint64) {
	t.Helper()
	hits, passed, state := sourceHits(t, h, id)
	if hits != want || state != "armed" {
		t.Errorf("%s: %d hits, not %d; %s, %d passed", what, hits, want, state, passed)
	}
	return passed
}

// tracing runs do while hprobe trace runs, and returns what that says.
func tracing(t *testing.T, h *lab.Host, do func()) string {
	t.Helper()
	h.MustRun(t, "hprobe trace > /tmp/trace.log 2>&1 & echo $! > /tmp/trace.pid; "+awaitTraces)
	do()
	return h.MustRun(t, "sleep 0.5; kill $(cat /tmp/trace.pid); cat /tmp/trace.log")
}

const (
	sysenterEIP = 0x176 // nothing of a 64-bit guest uses it
	lstarMSR    = 0xc0000082
)

// sources: what a guest's programs cause on any host: CPUID, switches of address spaces,
// execution and reads of code.
func sources(t *testing.T, cfg lab.Config) {
	h := daemonHostWith(t, cfg, []lab.File{pokeProgram(t)}, "calls", "texthash")
	undisturbed(t, h, func() {
		cpuids(t, h)
		switches(t, h)
		withBreakpoint(t, h)
		says(t, h, 0, "hprobe status", "attached to no guest")
	})
}

// TestRegistersAndMemory: writes of registers and accesses to memory are counted
// exactly, with what was there before and after.
func TestRegistersAndMemory(t *testing.T) {
	eachPokeHost(t, func(t *testing.T, h *lab.Host) {
		registers(t, h)
		memoryOf(t, h)
		readsOfCode(t, h)
		says(t, h, 0, "hprobe status", "attached to no guest")
	})
}

func registers(t *testing.T, h *lab.Host) {
	t.Helper()
	const n = 50
	cr4, cr0, msr, star := watching(t, h, "--register cr4:tsd"), watching(t, h, "--register cr0:wp"), watching(t, h, "--register sysenter_eip"), watching(t, h, "--register lstar")
	seen := tracing(t, h, func() {
		poke(t, h, "cr4 0 4 %d", n)         // TSD, and back
		poke(t, h, "cr0 0 0x10000 %d", n/2) // WP
		poke(t, h, "wrmsr %d 0x1234 %d", sysenterEIP, n)
		poke(t, h, "wrmsr %d 0x5678 1", sysenterEIP)
	})
	wantHits(t, h, "CR4", cr4, 2*n)
	wantHits(t, h, "CR0", cr0, n)
	wantHits(t, h, "MSR", msr, n+1)
	wantHits(t, h, "LSTAR", star, 0)
	if c := strings.Count(seen, "old=0x1234, new=0x5678"); c != 1 || strings.Count(seen, "old=0x1234, new=0x1234") != n-1 || strings.Count(seen, "poke[") < 3*n {
		t.Errorf("trace shows %.1500s", seen)
	}
	// Who runs is said, and a rule is over the values.
	ruled := watching(t, h, `--register sysenter_eip --when 'new == 0x9999 && old != new && comm == "poke" && cpl == 0' --message 'MSR {new}'`)
	poke(t, h, "wrmsr %d 0x9999 7", sysenterEIP)
	says(t, h, 0, "hprobe probe rm "+ruled, "after 7 hits, 1 matched")
	says(t, h, 0, "hprobe findings", "MSR 0x9999")
	for _, id := range []string{cr4, cr0, msr, star} {
		says(t, h, 0, "hprobe probe rm "+id, "removed")
	}
}

func cpuids(t *testing.T, h *lab.Host) {
	t.Helper()
	want := poke(t, h, "cpuid 0x40000000 0 1")
	any, one := watching(t, h, `--cpuid any --when 'comm == "poke"'`), watching(t, h, "--cpuid 0x40000000")
	// A program that starts may ask itself, as often each time.
	poke(t, h, "cpuid 0x40000000 0 1")
	start, _, _ := sourceHits(t, h, one)
	if got := poke(t, h, "cpuid 0x40000000 0 100"); got != want {
		t.Errorf("the guest gets %q, and got %q", got, want)
	}
	if hits, _, _ := sourceHits(t, h, one); hits != 2*start+99 || start == 0 {
		t.Errorf("%d CPUIDs of the leaf by 100 of a program, %d by 1", hits-start, start)
	}
	h.Guest.MustRun(t, "poke cpuid 1 0 25; poke cpuid 7 1 3")
	says(t, h, 0, "hprobe probe rm "+one, "removed")
	says(t, h, 0, "hprobe probe rm "+any, "matched")
}

func memoryOf(t *testing.T, h *lab.Host) {
	t.Helper()
	const n = 50
	w := watching(t, h, "--memory poke!poke_area+0x100:8 --access w")
	seen := tracing(t, h, func() {
		poke(t, h, "write 0x100 0x1000 %d 8", n) // 0x1000, 0x1001 …
		poke(t, h, "write 0x104 0 %d 4", n)      // the upper half
		poke(t, h, "write 0xf9 0 %d 8", n)       // its last byte is the first
		poke(t, h, "add 0x100 1 %d", n)
		poke(t, h, "write 0x108 1 %d 8", n) // neighbours
		poke(t, h, "write 0xf8 1 %d 8", n)
		poke(t, h, "read 0x100 0 %d 8", n)
		poke(t, h, "fill 0xf0 0x61 32") // 8 of them
	})
	if passed := wantHits(t, h, "writes", w, 4*n+8); passed < 2*n+24 {
		t.Errorf("%d writes of neighbours passed", passed)
	}
	for i := range n - 1 {
		if line := fmt.Sprintf("old=0x%x, new=0x%x,", 0x1000+i, 0x1001+i); !strings.Contains(seen, line) {
			t.Errorf("no %q in %.600s", line, seen)
			break
		}
	}
	if got := poke(t, h, "read 0x100 0 1 8"); got != "0x6161616161616161" {
		t.Errorf("the memory is %s", got)
	}
	says(t, h, 0, "hprobe probe rm "+w, "removed")

	rw := watching(t, h, "--memory poke!poke_area+0xffc:8 --access rw") // in two pages
	r := watching(t, h, "--memory poke!poke_area+0x1000:1 --access r")
	poke(t, h, "read 0xffc 0 %d 8", n)
	poke(t, h, "read 0x1000 0 %d 1", n)
	poke(t, h, "read 0x1004 0 %d 8", n)
	poke(t, h, "write 0xff8 7 %d 8", n)
	poke(t, h, "write 0x1001 7 %d 1", n)
	wantHits(t, h, "reads and writes across pages", rw, 4*n)
	wantHits(t, h, "reads of a byte", r, 2*n)
	says(t, h, 0, "hprobe probe rm "+rw, "removed")
	says(t, h, 0, "hprobe probe rm "+r, "removed")
}

// withBreakpoint: a page of the kernel's code has a breakpoint, and its execution is
// watched, at the same time.
func withBreakpoint(t *testing.T, h *lab.Host) {
	t.Helper()
	bp, _, _ := strings.Cut(says(t, h, 0, "hprobe probe add --domain guest --at __x64_sys_getpriority", "armed"), ":")
	x := watching(t, h, "--memory __x64_sys_getpriority:1 --access x")
	c := call(t, h, 50, h.Config.VCPUs)
	wantHits(t, h, "execution", x, c.calls)
	wantHits(t, h, "breakpoint", bp, c.calls)
	says(t, h, 0, "hprobe probe rm "+bp, "removed")
	c = call(t, h, 50, h.Config.VCPUs)
	wantHits(t, h, "execution", x, 2*c.calls)
	says(t, h, 0, "hprobe probe rm "+x, "removed")
}

// readsOfCode: a page of the kernel's code has a breakpoint, and who reads it sees what
// was there, and is seen.
func readsOfCode(t *testing.T, h *lab.Host) {
	t.Helper()
	at := "0x" + strings.TrimSpace(h.Guest.MustRun(t, "grep ' __x64_sys_getpriority$' /proc/kallsyms | cut -d ' ' -f 1"))
	was := poke(t, h, "look %s 0 1 8", at)
	bp, _, _ := strings.Cut(says(t, h, 0, "hprobe probe add --domain guest --at __x64_sys_getpriority", "armed"), ":")
	r := watching(t, h, "--memory __x64_sys_getpriority:4 --access r")
	c := call(t, h, 50, 1)
	if got := poke(t, h, "look %s 0 50 8", at); got != was {
		t.Errorf("the guest reads %s of its code, and read %s", got, was)
	}
	wantHits(t, h, "breakpoint", bp, c.calls)
	wantHits(t, h, "reads of code", r, 50)
	says(t, h, 0, "hprobe probe rm "+bp, "removed")
	says(t, h, 0, "hprobe probe rm "+r, "removed")
}

// switches: two processes on one vCPU that wake each other switch address spaces, and
// each switch is seen, whether the guest waits or not.
func switches(t *testing.T, h *lab.Host) {
	t.Helper()
	for _, flags := range []string{"", " --async"} {
		const n = 500
		id := watching(t, h, "--register cr3"+flags)
		poke(t, h, "switch %d", n)
		hits, _, state := sourceHits(t, h, id)
		if hits < 2*n {
			t.Errorf("cr3%s: %d writes, %s, of %d switches at least", flags, hits, state, 2*n)
		}
		t.Logf("cr3%s: %d writes, %s", flags, hits, state)
		says(t, h, 0, "hprobe probe rm "+id, "removed")
	}
}

// TestSwitchesWithoutEnd: more than a probe may see: it is let go, and the guest is as
// quick as ever.
func TestSwitchesWithoutEnd(t *testing.T) {
	t.Parallel()
	h := daemonHostWith(t, plain, []lab.File{pokeProgram(t)})
	id := watching(t, h, "--register cr3 --async --max-hits 1000")
	poke(t, h, "switch 5000")
	if hits, _, state := sourceHits(t, h, id); hits < 1000 || hits >= 10_000 {
		t.Errorf("%d writes, %s", hits, state)
	}
	says(t, h, 0, "hprobe findings", "suspended")
	says(t, h, 0, "hprobe probe rm "+id, "removed")
	alive(t, h)
}

// TestDeniedWrites: a write that is denied has no effect, the guest is not told, and it
// lives on; others have theirs.
func TestDeniedWrites(t *testing.T) {
	eachPokeHost(t, func(t *testing.T, h *lab.Host) {
		entry, cr0 := poke(t, h, "rdmsr %d 0 1", lstarMSR), poke(t, h, "cr0 0 0 1")
		wp := watching(t, h, `--register cr0:wp --when 'mask(new, 0x10000) == 0' --deny write --mode enforce`)
		tsd := watching(t, h, `--register cr4:tsd --deny write --mode enforce`)
		star := watching(t, h, `--register lstar --deny write --mode enforce`)
		other := watching(t, h, `--register sysenter_eip`)
		if got := poke(t, h, "cr0 0 0x10000 20"); got != cr0 {
			t.Errorf("CR0 is %s after it was written, and was %s", got, cr0)
		}
		cr4 := poke(t, h, "cr4 0 0 1")
		if got := poke(t, h, "cr4 0 4 20"); got != cr4 { // TSD, and back
			t.Errorf("CR4 is %s after it was written, and was %s", got, cr4)
		}
		poke(t, h, "wrmsr %d 0xffffffffdeadbeef 20", lstarMSR)
		if got := poke(t, h, "rdmsr %d 0 1", lstarMSR); got != entry {
			t.Errorf("LSTAR is %s after it was written, and was %s", got, entry)
		}
		poke(t, h, "wrmsr %d 0x77 5", sysenterEIP)
		if got := poke(t, h, "rdmsr %d 0 1", sysenterEIP); got != "0x77" {
			t.Errorf("a write that nobody denies is lost: %s", got)
		}
		wantHits(t, h, "CR0", wp, 20) // writing back what it was changes nothing
		wantHits(t, h, "CR4", tsd, 20)
		wantHits(t, h, "LSTAR", star, 20)
		wantHits(t, h, "MSR", other, 5)
		says(t, h, 0, "hprobe findings | grep -c BLOCKED", "60")
		mem := watching(t, h, `--memory poke!poke_area:8 --when 'new == 0x666' --deny write --mode enforce`)
		poke(t, h, "write 0 0x665 3 8") // 0x665, 0x666, 0x667
		poke(t, h, "write 0 0x666 1 8")
		if got := poke(t, h, "read 0 0 1 8"); got != "0x667" {
			t.Errorf("the memory is %s", got)
		}
		wantHits(t, h, "memory", mem, 4)
		says(t, h, 0, "hprobe findings | grep -c BLOCKED", "62")
		for _, id := range []string{wp, tsd, star, other, mem} {
			says(t, h, 0, "hprobe probe rm "+id, "removed")
		}
		// Without the probe it works again.
		if got := poke(t, h, "cr0 0 0x10000 1"); got == cr0 {
			t.Errorf("CR0 is still %s", got)
		}
	})
}

// TestSourcesEnd: hprobed ends in the middle of all of that, and the guest runs on.
func TestSourcesEnd(t *testing.T) {
	eachPokeHost(t, func(t *testing.T, h *lab.Host) {
		for _, flags := range []string{"--register cr3", "--register sysenter_eip --when 'new == 1' --deny write --mode enforce", "--cpuid any", "--memory poke!poke_area:64 --access rw"} {
			watching(t, h, flags)
		}
		h.MustRun(t, `guest '(for i in 1 2 3 4 5 6 7 8; do poke wrmsr 0x176 $i 2000; poke cpuid 1 0 2000; poke add 0 1 2000; done > /tmp/poke.out 2>&1; echo done >> /tmp/poke.out) &'; sleep 1; `+stopDaemon)
		out := h.Guest.MustRun(t, "while ! grep -q done /tmp/poke.out; do sleep 0.1; done; cat /tmp/poke.out")
		if got := poke(t, h, "read 0 0 1 8"); got != "0x3e80" || strings.Contains(out, "poke:") {
			t.Errorf("the guest added up %s: %q", got, out)
		}
	})
}

// TestSources is what TestHosts does on its hosts, on one.
func TestSources(t *testing.T) {
	t.Parallel()
	sources(t, plain)
}
