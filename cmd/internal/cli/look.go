package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
)

const lookHelp = `It reads the guest's memory from dom0, and needs neither hprobed nor altp2m; a guest
that hprobed watches can be looked at as well. The guest runs on meanwhile: what
changes while it is read is read again. Needed is the profile of the guest's kernel
(hprobe profile build, or hprobe profile capture), in a folder --profiles.

Everything that is shown is the guest's word. Where its lists make no sense, have no
end, or change faster than they can be read, the answer is marked as partial, says
why, and the exit status is 6.`

// look is how a guest is looked at: what the commands that do so share.
type look struct {
	*app
	profiles profileTarget
	timeout  time.Duration
	pid      uint32 // where the command takes one
}

// lookCommand is one that looks at a guest: "maps DOMAIN PID".
func (a *app) lookCommand(use, short, long string, run func(context.Context, *look, *guestos.Kernel) error) *cobra.Command {
	l := &look{app: a}
	cmd := &cobra.Command{
		Use: use, Short: short, Long: long + "\n\n" + lookHelp, Args: exactly(strings.Fields(use)[1:]...),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if l.timeout <= 0 {
				return fmt.Errorf("%w: --timeout must be more than 0", errUsage)
			}
			if len(args) > 1 {
				if l.pid, err = pidArg(args[1]); err != nil {
					return err
				}
			}
			return a.withDomain(cmd.Context(), args[0], func(dom xenevents.Domain, info *xenevents.DomainInfo) error {
				k, err := findKernel(cmd.Context(), dom, info, l.profiles.store())
				if err != nil {
					return err
				}
				ctx, stop := context.WithTimeout(cmd.Context(), l.timeout)
				defer stop()
				return run(ctx, l, k)
			})
		},
	}
	l.profiles.foldersFlag(cmd)
	cmd.Flags().DurationVar(&l.timeout, "timeout", 10*time.Second, "how long to read the guest at most; what is found by then is a partial answer")
	a.driverFlag(cmd)
	return cmd
}

// findKernel finds a running guest's kernel by the profile of it.
func findKernel(ctx context.Context, dom xenevents.Domain, info *xenevents.DomainInfo, from *store.Store) (*guestos.Kernel, error) {
	found, err := from.Find(ctx, dom, info)
	if none := (*store.NoProfileError)(nil); errors.As(err, &none) {
		return nil, fmt.Errorf("%w: make one (hprobe profile capture %d, or hprobe profile build of its image)", err, info.ID)
	}
	if err != nil {
		return nil, err
	}
	p, err := isf.ReadFile(found.File)
	if err != nil {
		return nil, err
	}
	return guestos.FindKernel(dom, int(info.MaxVCPU)+1, p)
}

// answer prints what was found, as one object for programs or as a table, and marks it where
// it is partial.
func (l *look) answer(found any, rows [][]string, err error) error {
	var partial *guestos.PartialError
	if err != nil && !errors.As(err, &partial) {
		return err
	}
	if l.json {
		return errors.Join(l.value(found), err)
	}
	printed := l.table(rows)
	if partial != nil {
		_, markErr := fmt.Fprintf(l.out, "PARTIAL: %s\n", plain(partial.Reasons()))
		printed = errors.Join(printed, markErr)
	}
	return errors.Join(printed, err)
}

// partialLine is what every answer for programs says of itself.
type partialLine struct {
	Partial bool     `json:"partial"`
	Why     []string `json:"why,omitempty"`
	More    int      `json:"more_why,omitempty"` // how many reasons are left out
}

func partialOf(err error) (p partialLine) {
	if partial := (*guestos.PartialError)(nil); errors.As(err, &partial) {
		return partialLine{true, partial.Why, partial.More}
	}
	return p
}

// pidArg is a process's number on the command line.
func pidArg(s string) (uint32, error) {
	pid, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%w: %q is no process's number", errUsage, s)
	}
	return uint32(pid), nil
}

// sinceBoot is a time of a guest in the way of dmesg.
func sinceBoot(ns uint64) string { return fmt.Sprintf("%5d.%06d", ns/1e9, ns%1e9/1e3) }

// each makes one thing of another, for all of them; none is an empty list and not null.
func each[A, B any](all []A, of func(*A) B) []B {
	made := make([]B, len(all))
	for i := range all {
		made[i] = of(&all[i])
	}
	return made
}
