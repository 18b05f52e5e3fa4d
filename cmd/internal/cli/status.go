package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

func (a *app) status() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show what hprobed is doing", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.withDaemon(cmd.Context(), func(c controlapi.ControlClient) error {
			s, err := c.Status(cmd.Context(), &controlapi.StatusRequest{})
			if err != nil {
				return err
			}
			if a.json {
				return a.message(s)
			}
			fmt.Fprintf(a.out, "hprobed %s, driver %s, %s; %s, %d lost\n", s.GetVersion(), s.GetDriver(), s.GetHypervisor(), count(s.GetFindings(), "finding"), s.GetDropped())
			if len(s.GetSessions()) == 0 {
				fmt.Fprintln(a.out, "attached to no guest")
			}
			for _, one := range s.GetSessions() {
				var events []string
				for _, kind := range slices.Sorted(maps.Keys(one.GetEvents())) {
					events = append(events, fmt.Sprintf("%d %s", one.GetEvents()[kind], kind))
				}
				if events == nil {
					events = []string{"none yet"}
				}
				fmt.Fprintf(a.out, "\n%s (%d)\n  kernel  %s\n  profile %s: %s\n  KASLR   %#x\n  probes  %d, in %s\n  events  %s\n", guestText(one.GetDomain()), one.GetDomainId(),
					guestText(one.GetKernel()), one.GetProfile(), one.GetProfileWhy(), one.GetSlide(), one.GetProbes(), count(one.GetShadowPages(), "hidden page"), strings.Join(events, ", "))
			}
			return nil
		})
	}}
}
