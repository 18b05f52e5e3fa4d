package xen

import (
	"encoding/json"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// What a capture may take, in ticks, of a host of 3 GHz: 5 s of its time, of which the
// guest stands still for 10 ms.
const (
	captureTicks = 5 * 3_000_000_000
	pauseTicks   = 30_000_000
)

// TestCapture: the profile that hprobe profile capture makes of a running guest's kernel is
// the one that profile build makes of its image, symbol for symbol and type for type. None
// of it is in what a kernel frees or changes once it has started.
func TestCapture(t *testing.T) {
	t.Parallel()
	for _, cfg := range first(2, hosts()...) {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := lab.Copy(t, cfg, binary(t, "cmd/hprobe"), binary(t, "test/xen/captured"), profile(t, cfg.Guest))
			out := h.MustRun(t, "captured guest /tmp/captured.hprofile /payload/profiles/guest.hprofile")
			var r struct {
				Ticks, CPUTicks, Paused uint64
				Memory                  int64
				Pauses, Symbols         int
				Differs, Source         string
			}
			if err := json.Unmarshal([]byte(out), &r); err != nil {
				t.Fatalf("%q: %v", out, err)
			}
			if r.Differs != "" || r.Symbols < 50_000 {
				t.Errorf("the profile is not the image's: %s (%d symbols)", r.Differs, r.Symbols)
			}
			t.Logf("%d symbols of the %s: %d ticks, of which %d in hprobe; the guest was paused for %d; %d KiB of memory", r.Symbols, r.Source, r.Ticks, r.CPUTicks, r.Paused, r.Memory)
			if r.CPUTicks > captureTicks || r.Paused > pauseTicks || r.Pauses != 1 {
				t.Errorf("%s: it may take %d ticks, with one pause of %d", out, uint64(captureTicks), pauseTicks)
			}
			says(t, h, 3, "hprobe profile capture nosuch", "nosuch")
			alive(t, h)
		})
	}
}
