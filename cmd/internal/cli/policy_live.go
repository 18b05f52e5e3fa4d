package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

// livePolicies are the commands about the policies that hprobed has.
func (a *app) livePolicies() []*cobra.Command {
	return []*cobra.Command{a.policyApply(), a.policyRemove(), a.policyList(), a.policyStatus()}
}

// maxPolicyFile bounds a policy file, in bytes: hprobed takes no larger one.
const maxPolicyFile = 1 << 20

func (a *app) policyApply() *cobra.Command {
	var wait time.Duration
	cmd := &cobra.Command{
		Use: "apply FILE...", Short: "Have hprobed keep the policies of files (-: standard input)", Args: cobra.MinimumNArgs(1),
		Long: `apply gives the policies of files to hprobed. It takes all of a file, or none of it.
They are armed in the guests that they select, now and whenever one starts, and they
are kept: an hprobed that is started again has them. One that has the name of another
takes its place.

apply waits until each guest that runs now has what it can have, and says how that
went. The exit status is 1 if a policy could not be armed in one of them.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			texts := make([]string, len(args)) // before anything is applied
			for i, file := range args {
				text, err := readPolicyFile(cmd.InOrStdin(), file)
				if err != nil {
					return err
				}
				texts[i] = string(text)
			}
			return a.withDaemon(cmd.Context(), func(c *control.Client) error {
				var names []string
				for i, file := range args {
					r, err := c.ApplyPolicy(cmd.Context(), &controlapi.ApplyPolicyRequest{File: file, Document: texts[i]})
					if err != nil {
						return err
					}
					for _, p := range r.GetPolicies() {
						names = append(names, p.GetName())
					}
				}
				return a.awaitPolicies(cmd.Context(), c, names, wait)
			})
		},
	}
	cmd.Flags().DurationVar(&wait, "wait", time.Minute, "for how long to wait for the guests; 0: not at all")
	return cmd
}

func readPolicyFile(stdin io.Reader, file string) ([]byte, error) {
	in := stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, fmt.Errorf("%w: a policy: %w", errUsage, err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, maxPolicyFile+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("a policy: %w", err)
	case len(text) > maxPolicyFile:
		return nil, fmt.Errorf("%w: %s is larger than %d bytes, which no policy is", errUsage, file, maxPolicyFile)
	}
	return text, nil
}

// settled says whether it is known how a policy fares in a guest.
func settled(g *controlapi.PolicyGuest) bool { return g.GetState() != "new" }

// errNotArmed is that a policy is not where it should be; it was printed.
var errNotArmed = errors.New("not every policy is armed in every guest that it selects (hprobe policy status)")

// awaitPolicies shows how policies fare once that is known.
func (a *app) awaitPolicies(ctx context.Context, c *control.Client, names []string, limit time.Duration) error {
	failed := false
	for end := time.Now().Add(limit); len(names) > 0; {
		r, err := c.ListPolicies(ctx, &controlapi.ListPoliciesRequest{Name: names[0]})
		if err != nil {
			return err
		}
		p := r.GetPolicies()[0]
		open := 0
		for _, g := range p.GetGuests() {
			if !settled(g) {
				open++
			}
		}
		if open > 0 && time.Now().Before(end) {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(100 * time.Millisecond):
			}
			continue
		}
		names = names[1:]
		for _, g := range p.GetGuests() {
			failed = failed || g.GetState() == "failed"
		}
		if err := a.showApplied(p); err != nil {
			return err
		}
	}
	if failed {
		return errNotArmed
	}
	return nil
}

func (a *app) showApplied(p *controlapi.Policy) error {
	if a.json {
		return a.message(p)
	}
	line := fmt.Sprintf("%s (%s):", plain(p.GetName()), p.GetMode())
	if len(p.GetGuests()) == 0 {
		line += " no guest that runs now is selected; those that come will be"
	}
	for _, g := range p.GetGuests() {
		line += fmt.Sprintf("\n  %s: %s", guestText(g.GetDomain()), guestState(g))
	}
	_, err := fmt.Fprintln(a.out, line)
	return err
}

// guestState is how a policy fares in a guest, for people.
func guestState(g *controlapi.PolicyGuest) string {
	text := g.GetState()
	if text == "new" {
		text = "not there yet"
	}
	if g.GetDetail() != "" {
		text += ": " + plain(g.GetDetail())
	}
	return text
}

func (a *app) policyRemove() *cobra.Command {
	return &cobra.Command{Use: "rm NAME...", Short: "Take policies out of all guests", Args: cobra.MinimumNArgs(1), ValidArgsFunction: a.completePolicies,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(cmd.Context(), func(c *control.Client) error {
				for _, name := range args {
					r, err := c.RemovePolicy(cmd.Context(), &controlapi.RemovePolicyRequest{Name: name})
					if err != nil {
						return err
					}
					p := r.GetPolicy()
					if a.json {
						if err := a.message(p); err != nil {
							return err
						}
						continue
					}
					var found uint64
					for _, g := range p.GetGuests() {
						found += g.GetFindings()
					}
					if _, err := fmt.Fprintf(a.out, "%s: removed from %s, after %s\n", plain(p.GetName()), count(len(p.GetGuests()), "guest"), count(found, "finding")); err != nil {
						return err
					}
				}
				return nil
			})
		}}
}

// policies asks for those of a name (all for "") in a guest (all for "").
func (a *app) policies(ctx context.Context, name, domain string, f func(*controlapi.Policy) error) error {
	return a.withDaemon(ctx, func(c *control.Client) error {
		r, err := c.ListPolicies(ctx, &controlapi.ListPoliciesRequest{Name: name, Domain: domain})
		if err != nil {
			return err
		}
		for _, p := range r.GetPolicies() {
			if err := f(p); err != nil {
				return err
			}
		}
		return nil
	})
}

func (a *app) policyList() *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List the policies that hprobed has", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		rows := [][]string{{"NAME", "MODE", "EXPIRES", "GUESTS", "FINDINGS", "FROM", "TITLE"}}
		err := a.policies(cmd.Context(), "", "", func(p *controlapi.Policy) error {
			if a.json {
				return a.message(p)
			}
			armed, found := 0, uint64(0)
			for _, g := range p.GetGuests() {
				if g.GetState() == "armed" {
					armed++
				}
				found += g.GetFindings()
			}
			from := "hprobe policy apply"
			if p.GetConfigured() {
				from = p.GetFile()
			}
			rows = append(rows, []string{p.GetName(), p.GetMode(), cmp.Or(p.GetExpires(), "-"), fmt.Sprintf("%d of %d", armed, len(p.GetGuests())), fmt.Sprint(found), from, p.GetTitle()})
			return nil
		})
		if err != nil || a.json {
			return err
		}
		return a.table(rows)
	}}
}

func (a *app) policyStatus() *cobra.Command {
	var domain string
	cmd := &cobra.Command{Use: "status [NAME]", Short: "Show how policies fare in each guest, and their probes", Args: cobra.MaximumNArgs(1), ValidArgsFunction: a.completePolicies,
		Long: `status shows each policy, and each guest that it selects:

  armed      all its probes are at work
  partly     some of them see nothing at the moment; the detail says why
  waiting    for the guest's kernel, or for a module
  suspended  its probes were hit too often (their budget); they come back
  no need    the guest has what the policy stands in for (spec.unless)
  expired    its last day is over
  held       the guest was released (hprobe domain release)
  failed     it can't be armed there; hprobed tries again now and then`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := ""
			if len(args) == 1 {
				name = args[0]
			}
			return a.policies(cmd.Context(), name, domain, func(p *controlapi.Policy) error {
				if a.json {
					return a.message(p)
				}
				return a.showPolicy(p)
			})
		}}
	cmd.Flags().StringVarP(&domain, "domain", "d", "", "only in this guest")
	return cmd
}

func (a *app) showPolicy(p *controlapi.Policy) error {
	head := fmt.Sprintf("%s  %s", plain(p.GetName()), p.GetMode())
	if p.GetExpires() != "" {
		head += "  until " + p.GetExpires()
	}
	if p.GetTitle() != "" {
		head += "  " + plain(p.GetTitle())
	}
	if _, err := fmt.Fprintln(a.out, head); err != nil {
		return err
	}
	if len(p.GetGuests()) == 0 {
		_, err := fmt.Fprintln(a.out, "  no guest that runs now is selected")
		return err
	}
	for _, g := range p.GetGuests() {
		if _, err := fmt.Fprintf(a.out, "  %s  %s\n", guestText(g.GetDomain()), guestState(g)); err != nil {
			return err
		}
		if len(g.GetProbes()) == 0 {
			continue
		}
		rows := [][]string{{"    PROBE", "STATE", "HITS", "MATCHED", "ERRORS", "AT"}}
		for _, pr := range g.GetProbes() {
			rows = append(rows, []string{"    " + strings.TrimPrefix(pr.GetId(), p.GetName()+"."), pr.GetState(), fmt.Sprint(pr.GetHits()), fmt.Sprint(pr.GetMatches().GetMatched()), fmt.Sprint(pr.GetMatches().GetErrors()), pr.GetAt()})
		}
		if err := a.table(rows); err != nil {
			return err
		}
	}
	return nil
}
