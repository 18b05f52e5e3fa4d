package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

func (a *app) domainRelease() *cobra.Command {
	return &cobra.Command{
		Use: "release DOMAIN", Short: "Have hprobed take everything out of a guest, and leave it alone", Args: exactly("DOMAIN"), ValidArgsFunction: a.completeDomains,
		Long: `release takes all probes, stopgaps and policies out of a guest. hprobed then leaves it
alone until hprobe domain resume, or until it restarts. Do it before a live migration:
probes that were added by hand are gone, policies come back with resume.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(cmd.Context(), func(c *control.Client) error {
				r, err := c.ReleaseDomain(cmd.Context(), &controlapi.ReleaseDomainRequest{Domain: args[0]})
				if err != nil {
					return err
				}
				return a.showDomain(r.GetDomain(), "nothing of hprobed is in it any more")
			})
		},
	}
}

func (a *app) domainResume() *cobra.Command {
	return &cobra.Command{
		Use: "resume DOMAIN", Short: "Have hprobed watch a guest again that was released", Args: exactly("DOMAIN"), ValidArgsFunction: a.completeDomains,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withDaemon(cmd.Context(), func(c *control.Client) error {
				r, err := c.ResumeDomain(cmd.Context(), &controlapi.ResumeDomainRequest{Domain: args[0]})
				if err != nil {
					return err
				}
				return a.showDomain(r.GetDomain(), "policies come back (hprobe policy status)")
			})
		},
	}
}

func (a *app) showDomain(d *controlapi.Domain, text string) error {
	if a.json {
		return a.message(d)
	}
	_, err := fmt.Fprintf(a.out, "%s: %s\n", guestText(d.GetName()), text)
	return err
}
