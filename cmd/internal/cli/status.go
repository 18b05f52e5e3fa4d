package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/cmd/internal/version"
)

func (a *app) status() *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show what hprobed is doing", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.withDaemon(cmd.Context(), func(c *control.Client) error {
			s, err := c.GetStatus(cmd.Context(), &controlapi.GetStatusRequest{})
			if err != nil {
				return err
			}
			if a.json {
				return a.message(s)
			}
			fmt.Fprintf(a.out, "hprobed %s, driver %s, %s; %s, %d lost%s\n", s.GetVersion(), s.GetDriver(), s.GetHypervisor(), count(s.GetFindings(), "finding"), s.GetDropped(), listeners(s))
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

// listeners says who looks on at the moment; "": nobody.
func listeners(s *controlapi.GetStatusResponse) (text string) {
	if n := s.GetTraces(); n > 0 {
		text += "; " + count(n, "trace")
	}
	if n := s.GetFollowers(); n > 0 {
		text += fmt.Sprintf("; findings are followed by %d", n)
	}
	return text
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Show the versions of hprobe and of the hprobed that runs", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		v := versions{Hprobe: version.String()}
		err := a.withDaemon(cmd.Context(), func(c *control.Client) error {
			s, err := c.GetStatus(cmd.Context(), &controlapi.GetStatusRequest{})
			v.Hprobed, v.Driver, v.Hypervisor = s.GetVersion(), s.GetDriver(), s.GetHypervisor()
			return err
		})
		switch {
		case err != nil && !errors.Is(err, control.ErrNoDaemon):
			return err
		case a.json:
			return a.value(v)
		}
		text := "hprobe  " + v.Hprobe + "\nhprobed does not run"
		if v.Hprobed != "" {
			text = fmt.Sprintf("hprobe  %s\nhprobed %s, driver %s, %s", v.Hprobe, plain(v.Hprobed), plain(v.Driver), plain(v.Hypervisor))
		}
		_, err = fmt.Fprintln(a.out, text)
		return err
	}}
}

// versions are those of what runs, for programs. Where no hprobed does the others are empty.
type versions struct {
	Hprobe     string `json:"hprobe"`
	Hprobed    string `json:"hprobed"`
	Driver     string `json:"driver"`
	Hypervisor string `json:"hypervisor"`
}
