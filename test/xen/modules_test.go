package xen

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

// modulesOf are modules of a guest's own kernel. dummy is network devices that do
// nothing: it makes as many as it is told to, with a call of dummy_setup for each. ifb
// is another one, to be where that was.
func modulesOf(t *testing.T, linux string) (all []lab.File) {
	t.Helper()
	dir := filepath.Join(scratch, "modules-"+linux)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dummy", "ifb"} {
		f, err := guests.KernelModule(context.Background(), linux, name, dir)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	return all
}

// ourModules are the module with the planted bug, and its twin.
func ourModules(t *testing.T, linux string) []lab.File {
	t.Helper()
	var all []lab.File
	for _, build := range []func(context.Context, string, func(string)) (lab.File, error){guests.Module, guests.Twin} {
		f, err := build(context.Background(), linux, func(s string) { t.Log(s) })
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	return all
}

// hitsOf are the hits of each probe by its place, as probe ls has them.
func hitsOf(t *testing.T, h *lab.Host) map[string]uint64 {
	t.Helper()
	all := map[string]uint64{}
	for _, p := range probesOf(t, h) {
		all[p.At] = p.Hits
	}
	return all
}

// statesOf are their states.
func statesOf(t *testing.T, h *lab.Host) string {
	t.Helper()
	var all []string
	for _, p := range probesOf(t, h) {
		all = append(all, p.At+" "+p.State)
	}
	return strings.Join(all, ", ")
}

// moduleText is where a loaded module's code begins, as the guest has it.
func moduleText(t *testing.T, h *lab.Host, name string) string {
	t.Helper()
	return strings.TrimSpace(h.Guest.MustRun(t, "cat /sys/module/"+name+"/sections/.text"))
}

// idle waits until hprobed hides no page but those of its two own probes in the kernel.
func idle(t *testing.T, h *lab.Host) {
	t.Helper()
	says(t, h, 0, "n=0; until hprobe status | grep -q 'in 2 hidden pages' || [ $n -gt 100 ]; do n=$((n+1)); sleep 0.1; done; hprobe status", "in 2 hidden pages")
}

// modulesComeAndGo: probes in a module that is not loaded yet. Three loads and unloads,
// at two places at least: each call is a hit, those of its init among them, and nothing is left in its memory.
func modulesComeAndGo(t *testing.T, cfg lab.Config) {
	h := daemonHostWith(t, cfg, modulesOf(t, cfg.Guest), "calls", "texthash")
	before := h.Guest.MustRun(t, "texthash")
	says(t, h, 0, "hprobe probe add -d guest --at 'dummy!init_module'", `p1: waiting in guest: armed when module "dummy" loads, before it runs: no module "dummy" is loaded`, "can't be told from a module that is not there")
	says(t, h, 0, "hprobe probe add -d guest --at 'dummy!dummy_setup' --return; hprobe probe add -d guest --at 'dummy!cleanup_module'; hprobe probe add -d guest --at 'dummy!dummy_setupp'", "p2: waiting", "p3: waiting", "p4: waiting")
	says(t, h, 0, "hprobe probe add -d guest --at __x64_sys_getpriority", "p5: armed")
	places := map[string]bool{}
	for round := uint64(1); round <= 3; round++ {
		h.Guest.MustRun(t, fmt.Sprintf("insmod /payload/dummy.ko numdummies=%d", round+1))
		places[moduleText(t, h, "dummy")] = true
		if got, want := statesOf(t, h), "dummy!init_module waiting, dummy!dummy_setup armed, dummy!cleanup_module armed, dummy!dummy_setupp waiting, __x64_sys_getpriority armed"; got != want {
			t.Errorf("round %d: loaded: %s", round, got)
		}
		says(t, h, 0, "hprobe probe ls", "its code ran when module", `has no function "dummy_setupp" (near it: "dummy_setup"`)
		h.Guest.MustRun(t, "rmmod dummy")
		if round == 2 {
			h.Guest.MustRun(t, "insmod /payload/ifb.ko") // where dummy was, as a rule
		}
		if got, want := statesOf(t, h), "dummy!init_module waiting, dummy!dummy_setup waiting, dummy!cleanup_module waiting, dummy!dummy_setupp waiting, __x64_sys_getpriority armed"; got != want {
			t.Errorf("round %d: unloaded: %s", round, got)
		}
		got := hitsOf(t, h)
		if setups := (round + 1) * (round + 2) / 2; got["dummy!init_module"] != round || got["dummy!dummy_setup"] != setups-1 || got["dummy!cleanup_module"] != round || got["dummy!dummy_setupp"] != 0 {
			t.Errorf("round %d: %v", round, got)
		}
		for _, p := range probesOf(t, h) {
			if p.At == "dummy!dummy_setup" && (p.Returns != p.Hits || p.Lost != 0) {
				t.Errorf("round %d: %+v", round, p)
			}
		}
	}
	t.Logf("it was loaded at %v", places)
	if len(places) < 2 {
		t.Error("it was loaded at one place only")
	}
	c := call(t, h, 50, cfg.VCPUs)
	if got := hitsOf(t, h)["__x64_sys_getpriority"]; got != c.calls {
		t.Errorf("%d hits of %d calls", got, c.calls)
	}
	if n := strings.Count(h.MustRun(t, "hprobe findings"), `no function "dummy_setupp"`); n != 3 {
		t.Errorf("%d findings", n)
	}
	says(t, h, 0, "hprobe probe rm p1; hprobe probe rm p2; hprobe probe rm p4; hprobe probe rm p5", "after 3 hits")
	// One waits yet; then nothing does, and a load is nobody's.
	h.Guest.MustRun(t, "insmod /payload/dummy.ko && rmmod dummy")
	says(t, h, 0, "hprobe probe rm p3; hprobe status", "after 4 hits", "attached to no guest")
	h.Guest.MustRun(t, "insmod /payload/dummy.ko && rmmod dummy")
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
	}
	alive(t, h)
}

var hashLine = regexp.MustCompile(`text [0-9a-f]{16}`)

// pageHash is a page of the guest's kernel as the guest itself reads it.
func pageHash(t *testing.T, h *lab.Host, at string) string {
	t.Helper()
	hash := hashLine.FindString(h.Guest.MustRun(t, "texthash "+at))
	if hash == "" {
		t.Errorf("no hash of the page at %s", at)
	}
	return hash
}

// TestModuleInFreedPlace: a module with a planted bug, and another one loaded where it
// was: neither hits of one are taken for the other's, nor is a byte changed. Its first
// code, the setter of a parameter, is seen, and so is a load that fails.
func TestModuleInFreedPlace(t *testing.T) {
	t.Parallel()
	for _, cfg := range []lab.Config{plain, smp} {
		if cfg.Guest != "6.12" && !full { // others' compilers have to be fetched
			continue
		}
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			freedPlace(t, cfg)
		})
	}
}

func freedPlace(t *testing.T, cfg lab.Config) {
	h := daemonHostWith(t, cfg, ourModules(t, cfg.Guest), "vuln", "texthash")
	before := h.Guest.MustRun(t, "texthash")
	// What the modules' code is without probes.
	h.Guest.MustRun(t, "insmod /payload/vuln.ko")
	vulnAt := moduleText(t, h, "vuln")
	vulnHash := pageHash(t, h, vulnAt)
	h.Guest.MustRun(t, "rmmod vuln")
	for i, at := range []string{"vuln_init", "vuln_ioctl", "vuln_copy+4", "vuln_exit", "vuln_set"} {
		says(t, h, 0, "hprobe probe add -d guest --at 'vuln!"+at+"'", fmt.Sprintf("p%d: waiting in guest", i+1))
	}
	says(t, h, 0, "hprobe stopgap add vuln -d guest --at 'vuln!vuln_copy' --length '[arg0+8]' --limit 0x1001 --errno EINVAL --fix", "d6: waiting: armed when module")
	same, compared := 0, 0
	for round := uint64(1); round <= 3; round++ {
		h.Guest.MustRun(t, "insmod /payload/vuln.ko word=a")
		at := moduleText(t, h, "vuln")
		if at == vulnAt {
			compared++
		}
		if got := pageHash(t, h, at); at == vulnAt && got != vulnHash {
			t.Errorf("round %d: the guest reads %s at %s, and %s without probes", round, got, at, vulnHash)
		}
		out := h.Guest.MustRun(t, "vuln benign; vuln malicious")
		if strings.Count(out, "canary intact") != 2 || !strings.Contains(out, "EINVAL") {
			t.Errorf("round %d: the guest says %q", round, out)
		}
		h.Guest.MustRun(t, "rmmod vuln")
		// The twin comes in its place, and is not probed.
		h.Guest.MustRun(t, "insmod /payload/twin.ko word=b")
		if moduleText(t, h, "twin") == at {
			same++
		}
		// And vuln beside it, elsewhere then.
		h.Guest.MustRun(t, "insmod /payload/vuln.ko")
		if beside := moduleText(t, h, "vuln"); beside == moduleText(t, h, "twin") {
			t.Errorf("round %d: both are at %s", round, beside)
		}
		if out := h.Guest.MustRun(t, "vuln benign"); !strings.Contains(out, "canary intact") {
			t.Errorf("round %d: the guest says %q", round, out)
		}
		h.Guest.MustRun(t, "rmmod vuln; rmmod twin")
		// A load that fails before its init runs frees its memory by another way.
		h.Guest.MustRun(t, "! insmod /payload/vuln.ko word=x 2> /dev/null")
		got := hitsOf(t, h)
		// insmod tries a load that failed a second time, by the older system call.
		// Of vuln_copy's three calls the stopgap refuses one at its entry; vuln_ioctl has
		// one for the canary after each as well.
		if got["vuln!vuln_init"] != 2*round || got["vuln!vuln_ioctl"] != 6*round || got["vuln!vuln_copy+4"] != 2*round || got["vuln!vuln_exit"] != 2*round || got["vuln!vuln_set"] != 3*round || got["vuln!vuln_copy"] != 3*round {
			t.Errorf("round %d: %v", round, got)
		}
		if got := statesOf(t, h); strings.Contains(got, "armed") {
			t.Errorf("round %d: %s", round, got)
		}
		idle(t, h)
	}
	t.Logf("the twin was loaded where vuln had been in %d of 3 rounds; the guest read vuln's code at its first place in %d", same, compared)
	if same == 0 || compared == 0 {
		t.Error("the modules were never where others had been: nothing was shown")
	}
	if n := strings.Count(h.MustRun(t, "hprobe findings"), "BLOCKED"); n != 3 {
		t.Errorf("%d findings", n)
	}
	// Added while it is loaded, and removed while it is.
	h.Guest.MustRun(t, "insmod /payload/vuln.ko")
	says(t, h, 0, "hprobe probe add -d guest --at 'vuln!vuln_ioctl+4'", "p7: armed in guest at vuln!vuln_ioctl+4 (0xffffffff")
	says(t, h, 3, "hprobe probe add -d guest --at 'vuln!vuln_iotcl'", `near it: "vuln_ioctl"`, "init_module")
	says(t, h, 3, "hprobe probe add -d guest --at 'vuln!vuln_device'", "no code")
	says(t, h, 0, "hprobe probe add -d guest --at 'vuln!init_module'", "p10: waiting in guest: its code ran when module")
	says(t, h, 0, "hprobe stopgap rm d6; for p in p1 p2 p3 p4 p5 p7 p10; do hprobe probe rm $p; done; hprobe status", "attached to no guest")
	if got := pageHash(t, h, moduleText(t, h, "vuln")); moduleText(t, h, "vuln") == vulnAt && got != vulnHash {
		t.Errorf("after removal the guest reads %s at %s, and %s without probes", got, vulnAt, vulnHash)
	}
	h.Guest.MustRun(t, "rmmod vuln")
	if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
		t.Errorf("dom0 sees %q after the end, the guest saw %q before", after, before)
	}
	alive(t, h)
}
