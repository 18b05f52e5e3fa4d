package daemoncli

import (
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/cmd/internal/config"
	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/profiles/store"
)

// TestFlagsCountBeforeTheFile: what a flag says counts, then the file, then the default.
func TestFlagsCountBeforeTheFile(t *testing.T) {
	no := false
	o := &options{socket: "/flag", driver: "native", poll: 7, verbose: true, profiles: profileOptions{folders: []string{"/flag"}, capture: true}}
	file := func() *config.Config {
		return &config.Config{Socket: "/file", Driver: "libvmi", Poll: 9, State: "/state", Profiles: []string{"/file"}, Capture: &no}
	}
	c := file()
	o.override(c, func(string) bool { return true })
	if c.Socket != "/flag" || c.Driver != "native" || c.Poll != 7 || !c.Verbose || !slices.Equal(c.Profiles, []string{"/flag"}) || !*c.Capture || c.State != "/state" {
		t.Errorf("%+v", c)
	}
	c = file()
	o.override(c, func(string) bool { return false })
	if c.Socket != "/file" || c.Driver != "libvmi" || c.Poll != 9 || c.Verbose || !slices.Equal(c.Profiles, []string{"/file"}) || *c.Capture {
		t.Errorf("%+v", c)
	}
	c = &config.Config{}
	o.override(c, func(string) bool { return false })
	if c.Socket != control.DefaultSocket || c.Driver != "auto" || c.Poll != 0 || !slices.Equal(c.Profiles, []string{store.DefaultFolder}) || !*c.Capture || c.State != config.DefaultState {
		t.Errorf("%+v", c)
	}
}

// TestTold: --check says what the configuration makes hprobed do.
func TestTold(t *testing.T) {
	var out strings.Builder
	if err := told(&out, &config.Config{}); err != nil || !strings.Contains(out.String(), "no policy: no guest is watched until hprobe asks") {
		t.Errorf("%q, %v", out.String(), err)
	}
	out.Reset()
	if err := told(&out, &config.Config{Read: policy.Stock()[:1]}); err != nil || !strings.Contains(out.String(), "policy bpf (observe, stock/bpf.yaml)") {
		t.Errorf("%q, %v", out.String(), err)
	}
}
