package xen

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	"github.com/hprobe/hprobe/test/lab"
)

// What a capture may take, in ticks, of a host of 3 GHz: 5 s of its time, of which the
// guest stands still for 10 ms.
const (
	captureTicks = 5 * 3_000_000_000
	pauseTicks   = 30_000_000
)

// captureLimit is of real time. A dump of all memory takes as long as the capture, and a
// busy machine may give the emulator little time.
const captureLimit = 15 * time.Minute

// TestCapture: the profile that hprobe profile capture makes of a running guest's kernel is
// the one that profile build makes of its image, symbol for symbol and type for type. None
// of it is in what a kernel frees or changes once it has started.
func TestCapture(t *testing.T) {
	t.Parallel()
	for _, cfg := range first(1, hosts()...) {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := lab.Copy(t, cfg, binary(t, "cmd/hprobe"), binary(t, "test/xen/captured"), profile(t, cfg.Guest), inGuest(binary(t, "test/xen/truth")))
			r := capture(t, h, "")
			t.Logf("the guest was paused for %d ticks", r.Paused)
			if r.Paused > pauseTicks || r.Pauses != 1 {
				t.Errorf("%d pauses of %d ticks in all: it may be one of %d", r.Pauses, r.Paused, pauseTicks)
			}
			says(t, h, 3, "hprobe profile capture nosuch", "nosuch")
			kernelSaysSo(t, h, cfg)
			alive(t, h)
		})
	}
}

// TestCaptureDump: the same profile comes of a dump of the guest's memory, in which the
// kernel has to be searched for, at whatever place KASLR has put it.
func TestCaptureDump(t *testing.T) {
	t.Parallel()
	for _, cfg := range first(2, hosts()...) {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			hprobe := lab.File{Name: "hprobe", Source: lab.GoBinaryLibVMI(t, module+"cmd/hprobe")}
			h := lab.Copy(t, cfg, hprobe, binary(t, "test/xen/captured"), profile(t, cfg.Guest))
			capture(t, h, "-dump /tmp/dump ")
			says(t, h, 4, "hprobe profile capture --driver native --dump /tmp/dump --to /tmp/x.hprofile", "--driver libvmi")
			// What is not all there (of the dump only its first MiB is left), or not memory.
			says(t, h, 0, "hprobe domain ls --dump /tmp/dump", "1 MiB", "read-only")
			says(t, h, 1, "hprobe profile capture --dump /tmp/dump --to /tmp/x.hprofile", "/tmp/dump", "no kernel found", "nothing left out")
			says(t, h, 1, "hprobe profile capture --dump /payload/hprobe --to /tmp/x.hprofile", "an ELF file")
			alive(t, h)
		})
	}
}

// captured is what test/xen/captured prints.
type captured struct {
	Ticks, CPUTicks, Paused uint64
	Memory                  int64
	Pauses, Symbols         int
	Differs, Source         string
}

// capture has hprobe capture the guest's kernel, and checks that the profile is the image's
// and what it took.
func capture(t *testing.T, h *lab.Host, flags string) (r captured) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), captureLimit)
	defer cancel()
	res, err := h.Run(ctx, "captured "+flags+"guest /tmp/captured.hprofile /payload/profiles/guest.hprofile")
	if err == nil {
		err = json.Unmarshal([]byte(res.Output), &r)
	}
	if err != nil {
		t.Fatalf("%q: %v", res.Output, err)
	}
	if r.Differs != "" || r.Symbols < 50_000 {
		t.Errorf("the profile is not the image's: %s (%d symbols)", r.Differs, r.Symbols)
	}
	t.Logf("%d symbols of the %s: %d ticks, of which %d in hprobe; %d KiB of memory", r.Symbols, r.Source, r.Ticks, r.CPUTicks, r.Memory)
	if r.CPUTicks > captureTicks {
		t.Errorf("%s: it may take %d ticks", res.Output, uint64(captureTicks))
	}
	return r
}

// inGuest puts a file there.
func inGuest(f lab.File) lab.File {
	f.Guest = true
	return f
}

// kernelSaysSo compares the profile of a kernel's image with what the running kernel says
// of itself: every symbol's address, and of every struct and union the size and where each
// member and bit field is.
func kernelSaysSo(t *testing.T, h *lab.Host, cfg lab.Config) {
	t.Helper()
	said := h.Guest.MustRun(t, "truth guest")
	path := filepath.Join(t.TempDir(), "guest.json")
	if err := os.WriteFile(path, []byte(said), 0o600); err != nil {
		t.Fatal(err)
	}
	program, err := lab.BuildGo(t.Context(), module+"test/xen/truth")
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), program, "profile", profile(t, cfg.Guest).Source, path).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	type report struct {
		Symbols, Structs       string
		NumSymbols, NumStructs int
		Unclear                []uint32
	}
	var guest, ours report
	if err := errors.Join(json.Unmarshal([]byte(said), &guest), json.Unmarshal(out, &ours)); err != nil {
		t.Fatalf("%v: %q, %q", err, said, out)
	}
	t.Logf("the kernel has %d symbols and %d structs and unions, and %d names that are of several", guest.NumSymbols, guest.NumStructs, len(guest.Unclear))
	if guest.Unclear = nil; !reflect.DeepEqual(guest, ours) || guest.NumSymbols < 50_000 || guest.NumStructs < 5_000 {
		t.Errorf("the kernel says\n%+v\nand the profile\n%+v", guest, ours)
	}
}
