package cli

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/cmd/internal/labcli"
	"github.com/hprobe/hprobe/cmd/internal/rehearsal"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/profiles/build"
	"github.com/hprobe/hprobe/test/lab"
)

// labTest is how policies are tried in the lab.
type labTest struct {
	on  bool
	run string
	of  *labcli.Copies
}

func (a *app) labFlags(cmd *cobra.Command) *labTest {
	t := &labTest{}
	cmd.Flags().BoolVar(&t.on, "lab", false, "try the policies in the lab")
	cmd.Flags().StringVar(&t.run, "run", "", "shell `COMMAND` to run in the lab's guest")
	t.of = labcli.CopyFlags(cmd)
	return t
}

// labLimit bounds each command in the lab.
const labLimit = 10 * time.Minute

// The lab's dom0 for a test of policies: hprobed, and what its policies are to be armed in.
const (
	labStart = `hprobed --profiles /payload/profiles > /tmp/hprobed.log 2>&1 & n=0
until hprobe status > /dev/null 2>&1; do n=$((n+1)); [ $n -lt 300 ] || { cat /tmp/hprobed.log; exit 1; }; sleep 0.1; done
hprobe policy apply /payload/policy.yaml || exit 1
hprobe policy status
if hprobe -o json policy status | grep '"guests"' | grep -v '"state": *"armed"'; then exit 1; fi`
	labEnd = `hprobe findings -o json`
)

// test applies a file of policies in a copy of a host, runs the command in its guest, and
// returns what was found.
func (t *labTest) test(cmd *cobra.Command, file string, all []*policy.Policy) ([]*controlapi.Finding, error) {
	ctx, say := cmd.Context(), cmd.ErrOrStderr()
	files, err := t.files(ctx, file)
	if err != nil {
		return nil, err
	}
	h, err := t.of.Open(cmd, files...)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	guest := policy.Guest{Name: "guest", OS: "linux"}
	for _, p := range all {
		if !p.Selects(guest) {
			return nil, fmt.Errorf("policy %s: spec.domains does not select the lab's guest, whose name is %q", p.Name(), guest.Name)
		}
	}
	in := func(run func(context.Context, string) (lab.Result, error), script string) (lab.Result, error) {
		ctx, stop := context.WithTimeout(ctx, labLimit)
		defer stop()
		return run(ctx, script)
	}
	res, err := in(h.Run, labStart)
	switch {
	case err != nil:
		return nil, err
	case res.Exit != 0:
		return nil, fmt.Errorf("the policies are not armed in the lab: %s", res.Output)
	}
	if res, err = in(h.Guest.Run, t.run); err != nil {
		return nil, err
	}
	fmt.Fprintf(say, "%s\n(exit status %d)\n", plainLines(res.Output), res.Exit)
	if res, err = in(h.Run, labEnd); err != nil {
		return nil, err
	}
	found, err := rehearsal.ReadFindings(bytes.NewReader([]byte(res.Output)))
	if err != nil {
		return nil, fmt.Errorf("hprobed's findings in the lab: %w: %s", err, res.Output)
	}
	return found, nil
}

// files are what dom0 needs.
func (t *labTest) files(ctx context.Context, policies string) ([]lab.File, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	daemon := filepath.Join(filepath.Dir(self), "hprobed")
	if _, err := os.Stat(daemon); err != nil {
		return nil, fmt.Errorf("the lab needs hprobed beside hprobe (make build): %w", err)
	}
	image, _, err := lab.GuestKernel(ctx, t.of.Config.Guest)
	if err != nil {
		return nil, err
	}
	profile, err := build.FromFile(ctx, image)
	if err != nil {
		return nil, err
	}
	var packed bytes.Buffer
	if err := profile.WriteCompact(&packed); err != nil {
		return nil, err
	}
	return []lab.File{{Name: "hprobe", Source: self}, {Name: "hprobed", Source: daemon}, {Name: "policy.yaml", Source: policies}, {Name: "profiles/guest.hprofile", Data: packed.Bytes()}}, nil
}
