package xen

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// daemonMemory is how much memory hprobed may have had at most, in KiB, whatever it takes
// to find a profile.
const daemonMemory = 64 << 10

// isfOf makes an ISF file of a guest's kernel, as Volatility has them: in dom0 as
// /payload/NAME.
func isfOf(t *testing.T, linux, name string) lab.File {
	t.Helper()
	ctx := context.Background()
	kernel, _, err := lab.GuestKernel(ctx, linux)
	if err != nil {
		t.Fatal(err)
	}
	hprobe, err := lab.BuildGo(ctx, module+"cmd/hprobe")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.json.xz")
	if out, err := exec.CommandContext(ctx, hprobe, "profile", "build", "--to", path, kernel).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return lab.File{Name: name, Source: path}
}

// TestProfiles: hprobed finds the profile of a guest's kernel by itself, and says which
// one it took and why, also of a guest that is busy. With none it captures one.
func TestProfiles(t *testing.T) {
	t.Parallel()
	for _, cfg := range first(1, plain, smp, older, oldest) {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			another := map[bool]string{true: "5.10", false: "6.1"}[cfg.Guest == "6.1"]
			h := lab.Copy(t, cfg, binary(t, "cmd/hprobe"), binary(t, "cmd/hprobed"), profile(t, cfg.Guest), program(t, "calls"),
				isfOf(t, cfg.Guest, "symbols/linux/debian/guest.json.xz"), isfOf(t, another, "other/linux/another.json.xz"))
			profilesCaptured(t, h, cfg)
			if full { // an ISF file takes an emulated CPU minutes
				profilesOfISF(t, h, cfg)
			}
			profilesCompact(t, h, cfg)
			profilesChecked(t, h)
			alive(t, h)
		})
	}
}

// armed arms a probe, has the guest hit it, takes it out, and with it leaves the guest.
func armed(t *testing.T, h *lab.Host, cfg lab.Config, why ...string) {
	t.Helper()
	// To make a profile takes an emulated CPU minutes, more than a command has.
	h.MustRun(t, "rm -f /tmp/added; (hprobe probe add -d guest --at __x64_sys_getpriority > /tmp/add.log 2>&1; echo > /tmp/added) > /dev/null 2>&1 &")
	for h.MustRun(t, "n=0; until [ -e /tmp/added ] || [ $n -gt 20 ]; do n=$((n+1)); sleep 0.1; done; ls /tmp/added 2> /dev/null || true") == "" {
		if t.Context().Err() != nil {
			t.Fatal(t.Context().Err())
		}
	}
	says(t, h, 0, "cat /tmp/add.log", "armed in guest")
	says(t, h, 0, "hprobe status; cat /tmp/hprobed.log", why...)
	c := call(t, h, 20, cfg.VCPUs)
	says(t, h, 0, "hprobe probe rm $(hprobe probe ls | tail -n 1 | cut -d ' ' -f 1)", fmt.Sprintf("after %d hits", c.calls))
	says(t, h, 0, "hprobe status", "attached to no guest")
}

func profilesCaptured(t *testing.T, h *lab.Host, cfg lab.Config) {
	t.Helper()
	// Nothing, and one of another kernel.
	h.MustRun(t, startDaemon("--profiles /tmp/own --profiles /payload/other"))
	armed(t, h, cfg, "captured from the guest: no profile in /tmp/own or /payload/other has its banner", "file=/tmp/own/captured/")
	armed(t, h, cfg, "captured from the guest before: no profile in")
	small(t, h)
	h.MustRun(t, stopDaemon)
}

// profilesOfISF: files come before what was captured.
func profilesOfISF(t *testing.T, h *lab.Host, cfg lab.Config) {
	t.Helper()
	h.MustRun(t, startDaemon("--profiles /tmp/own --profiles /payload/other --profiles /payload/symbols"))
	armed(t, h, cfg, "/payload/symbols/linux/debian/guest.json.xz", "its banner and build id are the guest's")
	armed(t, h, cfg, "/payload/symbols/linux/debian/guest.json.xz")
	small(t, h)
	says(t, h, 0, "ls /tmp/own/converted | wc -l", "1")
	h.MustRun(t, stopDaemon)
}

// profilesCompact: the form that hprobe writes, where nothing can be written; and what is
// not taken where nothing may be made.
func profilesCompact(t *testing.T, h *lab.Host, cfg lab.Config) {
	t.Helper()
	h.MustRun(t, startDaemon("--capture=false --profiles /payload/profiles"))
	// Each vCPU is in a program, where KPTI has it on tables without the kernel.
	h.Guest.MustRun(t, fmt.Sprintf("for i in $(seq %d); do (while :; do :; done) > /dev/null 2>&1 & echo $! >> /tmp/busy; done", cfg.VCPUs))
	armed(t, h, cfg, "/payload/profiles/guest.hprofile", "its banner and build id are the guest's")
	h.Guest.MustRun(t, "kill $(cat /tmp/busy)")
	small(t, h)
	// Another guest's word is none.
	says(t, h, 0, `mkdir /tmp/theirs; cp /tmp/own/captured/*.hprofile /tmp/theirs/x.hprofile; hprobe profile ls --profiles /tmp/theirs
uuid=$(xl vm-list | awk '$3 == "guest" {print $1}'); sed -i "s/$uuid/00000000-1111-2222-3333-444444444444/" /tmp/theirs/x.hprofile; hprobe profile ls --profiles /tmp/theirs`, "00000000-1111-2222-3333-444444444444")
	h.MustRun(t, stopDaemon+startDaemon("--capture=false --profiles /tmp/theirs"))
	says(t, h, 1, "hprobe probe add -d guest --at do_exit", "no profile in /tmp/theirs is of the guest's kernel", "Linux version "+cfg.Guest, "x.hprofile: it was captured from another guest", "hprobe profile build")
	h.MustRun(t, stopDaemon)
}

func profilesChecked(t *testing.T, h *lab.Host) {
	t.Helper()
	says(t, h, 0, "hprobe profile check /payload/profiles/guest.hprofile", "well-formed", "guest (1): of its kernel")
	says(t, h, 0, "hprobe profile check guest --profiles /tmp/none --profiles /payload/profiles", "profile /payload/profiles/guest.hprofile: its banner and build id are the guest's")
	says(t, h, 0, "hprobe profile check guest -o json --profiles /tmp/theirs", `"capture":true`, "no profile in /tmp/theirs has its banner")
	says(t, h, 0, "hprobe profile ls --profiles /tmp/own --profiles /payload/other --profiles /payload/symbols", "/tmp/own/captured/", "/payload/other/linux/another.json.xz", "/payload/symbols/linux/debian/guest.json.xz")
	says(t, h, 3, "hprobe profile check nobody", `"guest" (1)`)
}

// small makes sure that hprobed itself has not needed much memory.
func small(t *testing.T, h *lab.Host) {
	t.Helper()
	var most int
	out := h.MustRun(t, "grep VmHWM /proc/$(cat /tmp/hprobed.pid)/status")
	if _, err := fmt.Sscanf(out, "VmHWM: %d kB", &most); err != nil || most > daemonMemory {
		t.Errorf("hprobed had %q (%v) of memory, and may have %d kB", out, err, daemonMemory)
	}
	t.Logf("hprobed had %d KiB of memory at most", most)
}
