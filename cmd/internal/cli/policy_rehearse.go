package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/cmd/internal/rehearsal"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents/replay"
)

// expectation is what findings are compared with.
type expectation struct {
	file   string // "": nothing
	update bool
}

// errOtherFindings is that the findings are not those that were expected; what differs was
// printed.
var errOtherFindings = errors.New("the findings are not those that were expected")

func (a *app) policyTest() *cobra.Command {
	var recording string
	var expect expectation
	var profiles profileTarget
	cmd := &cobra.Command{
		Use: "test FILE {--recording FILE | --lab --run COMMAND}", Short: "Try policies on a recording or in the lab, and compare what they find", Args: exactly("FILE"),
		Long: `test runs the policies of a file, prints their findings as hprobe findings does, and
with --expect compares them with those of a file that it or hprobe findings -o json
wrote; --update writes it. The time, the guest, the numbers of vCPUs and processes,
and addresses in facts are not compared. The exit status is 1 if the findings are
others.

With --recording it plays a file of hprobe record, on any machine that has the profile
of the guest's kernel in a folder --profiles. The guest is as it was: what a policy
denies or changes is said in its findings, and the recording goes on as before.
Where a policy looks at a place or at memory that the recording does not have, that
is said, and the exit status is 6: record again, with that policy.

With --lab it boots a real Xen host in software (hprobe lab --help), applies the
policies to hprobed there, and runs a shell command in the guest, with the programs of
--put-guest. It needs hprobed beside hprobe, and both to be static binaries.`,
	}
	lab := a.labFlags(cmd)
	f := cmd.Flags()
	f.StringVar(&recording, "recording", "", "play this `FILE` of hprobe record")
	f.StringVar(&expect.file, "expect", "", "`FILE` with the findings that there should be, a line of JSON each")
	f.BoolVar(&expect.update, "update", false, "write the findings to the file of --expect")
	profiles.foldersFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case (recording == "") == !lab.on:
			return fmt.Errorf("%w: %s takes --recording FILE or --lab (%[2]s --help)", errUsage, cmd.CommandPath())
		case lab.on != (lab.run != ""):
			return fmt.Errorf("%w: --lab and --run COMMAND go together", errUsage)
		case expect.update && expect.file == "":
			return fmt.Errorf("%w: --update writes the file of --expect: name one", errUsage)
		}
		all, err := a.readPolicies(args)
		if err != nil {
			return err
		}
		var found []*controlapi.Finding
		var partial error
		if lab.on {
			found, err = lab.test(cmd, args[0], all)
		} else {
			var played *rehearsal.Played
			if played, err = play(cmd.Context(), recording, profiles.store(), all); err == nil {
				for _, f := range played.Findings {
					found = append(found, control.FindingMessage(f))
				}
				partial = remarks(cmd.ErrOrStderr(), played)
			}
		}
		if err != nil {
			return err
		}
		return errors.Join(a.judge(cmd.ErrOrStderr(), found, &expect), partial)
	}
	return cmd
}

// play plays a recording to policies.
func play(ctx context.Context, file string, from *store.Store, all []*policy.Policy) (*rehearsal.Played, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%w: a recording: %w", errUsage, err)
	}
	defer f.Close()
	rec, err := replay.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	found, err := from.Find(ctx, rec.Play(replay.Options{}), &rec.Header.Domain)
	if err != nil {
		return nil, fmt.Errorf("no profile in %s is of the kernel that was recorded, %q: make one (hprobe profile build of its image), or copy it from where the guest is: %w", from.Folders(), rec.Header.About.Banner, err)
	}
	profile, err := isf.ReadFile(found.File)
	if err != nil {
		return nil, err
	}
	played, err := rehearsal.Play(ctx, rec, profile, all)
	if err != nil {
		if missing := (*replay.MissingError)(nil); errors.As(err, &missing) {
			err = fmt.Errorf("%w: record again, with this policy", err)
		}
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return played, nil
}

// remarks says what is to be known of a play. It returns an error that says so if the
// recording did not have all that the policies look at.
func remarks(out io.Writer, p *rehearsal.Played) error {
	note := func(format string, args ...any) { fmt.Fprintln(out, "note:", plain(fmt.Sprintf(format, args...))) }
	for _, why := range p.Needless {
		note("hprobed would not arm it in this guest: %s", why)
	}
	for i := range p.Probes {
		if pr := &p.Probes[i]; pr.Errors > 0 {
			note("policy %s, probe %s: %s, the last: %s", pr.Policy, pr.Name, count(pr.Errors, "error"), pr.LastError)
		}
	}
	if n := p.Stats.Unwanted; n > 0 {
		note("%s of the recording are where the policies have no probe", count(n, "event"))
	}
	var why []string
	for _, place := range p.Unrecorded {
		why = append(why, fmt.Sprintf("the recording was made without a probe at %s", place))
	}
	if n := p.Stats.Missing; n > 0 {
		why = append(why, fmt.Sprintf("%s of what is not there, the first: %v", count(n, "read"), p.Stats.FirstMissing))
	}
	if n := p.Stats.Older; n > 0 {
		why = append(why, fmt.Sprintf("%s of memory that was recorded at an earlier event only: it may have been another by then", count(n, "read")))
	}
	if len(why) == 0 {
		return nil
	}
	return &guestos.PartialError{Why: why}
}

// judge prints findings, and compares them with the expected ones.
func (a *app) judge(errs io.Writer, found []*controlapi.Finding, expect *expectation) error {
	for _, f := range found {
		var err error
		if a.json {
			err = a.message(f)
		} else {
			_, err = fmt.Fprintln(a.out, a.palette().findingLine(f))
		}
		if err != nil {
			return err
		}
	}
	end := count(len(found), "finding")
	switch {
	case expect.file == "":
	case expect.update:
		if err := writeExpected(expect.file, found); err != nil {
			return err
		}
		end += ", kept in " + expect.file
	default:
		wanted, err := readExpected(expect.file)
		if err != nil {
			return err
		}
		if diff := rehearsal.Compare(wanted, found); diff != "" {
			fmt.Fprintf(errs, "--- expected: %s\n+++ found: %s\n%s", count(len(wanted), "finding"), end, diff)
			return errOtherFindings
		}
		end += ", as expected"
	}
	if a.json {
		return nil
	}
	_, err := fmt.Fprintln(a.out, plain(end))
	return err
}

func readExpected(file string) ([]*controlapi.Finding, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("%w: expected findings (--update writes them): %w", errUsage, err)
	}
	defer f.Close()
	all, err := rehearsal.ReadFindings(f)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", errUsage, file, err)
	}
	return all, nil
}

func writeExpected(file string, found []*controlapi.Finding) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	to := &app{out: f}
	for _, one := range found {
		err = errors.Join(err, to.message(one))
	}
	return errors.Join(err, f.Close())
}
