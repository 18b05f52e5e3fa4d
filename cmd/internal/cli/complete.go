package cli

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/profiles/isf"
)

// completeLimit is how long a shell waits for the names of what there is.
const completeLimit = 2 * time.Second

// complete completes with what hprobed has, or with nothing where none answers.
func (a *app) complete(prefix string, ask func(context.Context, *control.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.Background(), completeLimit)
	defer cancel()
	var fit []string
	err := a.withDaemon(ctx, func(c *control.Client) error {
		all, err := ask(ctx, c)
		for _, one := range all {
			// A name of a guest's may be anything: a shell must not be told of those.
			if strings.HasPrefix(one, prefix) && guestText(one) == one {
				fit = append(fit, one)
			}
		}
		return err
	})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return fit, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) completePolicies(_ *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.complete(prefix, func(ctx context.Context, c *control.Client) (all []string, err error) {
		r, err := c.ListPolicies(ctx, &controlapi.ListPoliciesRequest{})
		for _, p := range r.GetPolicies() {
			all = append(all, p.GetName())
		}
		return all, err
	})
}

func (a *app) completeDomains(_ *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.complete(prefix, func(ctx context.Context, c *control.Client) (all []string, err error) {
		r, err := c.ListDomains(ctx, &controlapi.ListDomainsRequest{})
		for _, d := range r.GetDomains() {
			all = append(all, d.GetName())
		}
		return all, err
	})
}

// completer completes the value of a flag.
type completer = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective)

func (a *app) completeDomainFlag(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	return a.completeDomains(cmd, nil, prefix)
}

// completeAll has guests and places completed in every command below one that has a flag
// for them.
func (a *app) completeAll(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		a.completeAll(sub)
	}
	for flag, f := range map[string]completer{"domain": a.completeDomainFlag, "at": a.completeAt} {
		if cmd.LocalFlags().Lookup(flag) == nil {
			continue
		}
		if err := cmd.RegisterFlagCompletionFunc(flag, f); err != nil {
			panic(err) // it has the flag
		}
	}
}

func (a *app) completeProbes(_ *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return a.complete(prefix, func(ctx context.Context, c *control.Client) (all []string, err error) {
		r, err := c.ListProbes(ctx, &controlapi.ListProbesRequest{})
		for _, p := range r.GetProbes() {
			if p.GetDetector() == "" {
				all = append(all, p.GetId())
			}
		}
		return all, err
	})
}

// maxSymbols is how many places a shell is offered.
const maxSymbols = 200

// completeAt completes a place with the symbols of the guest's kernel: by the profile that
// hprobed has found for it.
func (a *app) completeAt(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
	domain, _ := cmd.Flags().GetString("domain")
	var file string
	_, _ = a.complete("", func(ctx context.Context, c *control.Client) ([]string, error) {
		s, err := c.GetStatus(ctx, &controlapi.GetStatusRequest{})
		for _, one := range s.GetSessions() {
			if one.GetDomain() == domain {
				file = one.GetProfileFile()
			}
		}
		return nil, err
	})
	p, err := isf.ReadFile(file)
	if err != nil || prefix == "" {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var all []string
	for i := range p.NumSymbols() {
		name := p.SymbolAt(i).Name
		if strings.HasPrefix(name, prefix) && guestText(name) == name {
			if all = append(all, name); len(all) == maxSymbols {
				break
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all), cobra.ShellCompDirectiveNoFileComp
}
