package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/rehearsal"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// recordLine is a recording, for programs.
type recordLine struct {
	File     string  `json:"file"`
	Domain   string  `json:"domain"`
	Seconds  float64 `json:"seconds"`
	Events   uint64  `json:"events"`
	Findings uint64  `json:"findings"`
	Early    string  `json:"early,omitempty"`
}

func (a *app) record() *cobra.Command {
	var files []string
	var to string
	var limit time.Duration
	var profiles profileTarget
	cmd := &cobra.Command{
		Use: "record DOMAIN --policy FILE --to FILE", Short: "Record what a guest does where policies look, to test policies with", Args: exactly("DOMAIN"),
		Long: `record puts the probes of policies into a guest, and writes all that they see of it to a
file: the events with their registers, and the memory that the policies read for them.
hprobe policy test plays that to policies later, anywhere, without Xen and the guest.

It ends with Ctrl-C, after --for, when the guest ends, or when the recording is as
large as it may be; nothing is left in the guest then. The policies only observe,
whatever their mode, and are recorded also where the guest needs no such policy
(spec.unless). It needs no hprobed, and a guest that hprobed watches can't be recorded:
hprobe domain release has hprobed leave it alone.

A recording has no events of places where it was made without a probe: record with all
policies that are to be tried on it. It holds memory of the guest, secrets among it:
keep it as you would keep a dump.`,
		ValidArgsFunction: a.completeDomains,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(files) == 0 || to == "" || limit < 0 {
				return fmt.Errorf("%w: %s takes --policy FILE and --to FILE (%[2]s --help)", errUsage, cmd.CommandPath())
			}
			all, err := a.readPolicies(files)
			if err != nil {
				return err
			}
			return a.withHost(cmd.Context(), func(h drivers.Host) (err error) {
				info, err := xenevents.FindDomain(cmd.Context(), h, args[0])
				if err != nil {
					return err
				}
				dom, err := h.Open(cmd.Context(), info.ID)
				if err != nil {
					return err
				}
				defer func() { err = errors.Join(err, dom.Close()) }() // twice is harmless
				kernel, err := findKernel(cmd.Context(), dom, &info, profiles.store())
				if err != nil {
					return fmt.Errorf("domain %d: %w", info.ID, err)
				}
				file, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
				if err != nil {
					return err
				}
				r := rehearsal.Recorder{Policies: all, To: file, Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))}
				ctx, began := cmd.Context(), time.Now()
				r.Armed = func() {
					began = time.Now()
					fmt.Fprintf(cmd.ErrOrStderr(), "recording %s: Ctrl-C ends it\n", guestText(info.Name))
				}
				if limit > 0 {
					var stop context.CancelFunc
					ctx, stop = context.WithTimeout(ctx, limit)
					defer stop()
				}
				done, err := r.Record(ctx, dom, kernel)
				if err = errors.Join(err, file.Close()); err != nil {
					err = errors.Join(err, os.Remove(to)) // it is none
					return fmt.Errorf("domain %d: %w", info.ID, err)
				}
				return a.showRecorded(&recordLine{to, info.Name, time.Since(began).Seconds(), done.Events, done.Findings, done.Early})
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&files, "policy", nil, "`FILE` of policies whose probes are recorded; again for more")
	f.StringVar(&to, "to", "", "`FILE` to write the recording to")
	f.DurationVar(&limit, "for", 0, "end after so long; 0: with Ctrl-C")
	profiles.foldersFlag(cmd)
	a.driverFlag(cmd)
	return cmd
}

func (a *app) showRecorded(l *recordLine) error {
	if a.json {
		return a.value(l)
	}
	early := ""
	if l.Early != "" {
		early = "; it ended early: " + plain(l.Early)
	}
	_, err := fmt.Fprintf(a.out, "%s: %s of %s in %.1f s, and %s%s\n", plain(l.File), count(l.Events, "event"), guestText(l.Domain), l.Seconds, count(l.Findings, "finding"), early)
	return err
}

// readPolicies reads files, all or none. What is wrong with them it prints.
func (a *app) readPolicies(files []string) (all []*policy.Policy, err error) {
	err = a.eachPolicy(files, func(_ int, _ string, p *policy.Policy) error {
		all = append(all, p)
		return nil
	})
	return all, err
}
