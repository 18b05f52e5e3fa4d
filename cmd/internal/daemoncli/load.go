package daemoncli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/config"
	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// load reads the configuration, and has the flags that were given count before it. At the
// default place none is needed.
func (o *options) load(cmd *cobra.Command) (*config.Config, error) {
	given := cmd.Flags().Changed
	c, err := config.Load(o.config)
	if errors.Is(err, os.ErrNotExist) && !given("config") {
		c, err = &config.Config{}, nil
	}
	if err != nil {
		return nil, err
	}
	o.override(c, given)
	return c, nil
}

func (o *options) override(c *config.Config, given func(string) bool) {
	set := func(flag string, to *string, value, otherwise string) {
		if given(flag) {
			*to = value
		}
		*to = cmp.Or(*to, otherwise)
	}
	set("socket", &c.Socket, o.socket, control.DefaultSocket)
	set("driver", &c.Driver, o.driver, drivers.Auto)
	c.State = cmp.Or(c.State, config.DefaultState)
	if given("poll") {
		c.Poll = o.poll
	}
	if given("verbose") {
		c.Verbose = o.verbose
	}
	if given("profiles") {
		c.Profiles = o.profiles.folders
	}
	if len(c.Profiles) == 0 {
		c.Profiles = []string{store.DefaultFolder}
	}
	if given("capture") || c.Capture == nil {
		c.Capture = &o.profiles.capture
	}
}

// told says that a configuration is right, and what it makes hprobed do.
func told(out io.Writer, c *config.Config) error {
	text := "the configuration is right:"
	for _, p := range c.Read {
		mode := "observe"
		if p.Enforces() {
			mode = "enforce"
		}
		text += fmt.Sprintf("\n  policy %s (%s, %s)", p.Name(), mode, p.File())
	}
	if len(c.Read) == 0 {
		text += "\n  no policy: no guest is watched until hprobe asks"
	}
	for i := range c.Findings {
		text += fmt.Sprintf("\n  findings go to %s", c.Findings[i].Where())
	}
	if _, err := fmt.Fprintln(out, text); err != nil {
		return fmt.Errorf("standard output: %w", err)
	}
	return nil
}

// keptPolicies is the folder of policies that hprobe applied.
func keptPolicies(c *config.Config) string { return filepath.Join(c.State, "policies") }
