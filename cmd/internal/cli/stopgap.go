package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/builtin/stopgap"
)

func (a *app) stopgap() *cobra.Command {
	var req controlapi.AddStopgapRequest
	add := &cobra.Command{
		Use: "add NAME --domain DOMAIN [--fix]", Short: "Watch for the use of a vulnerability, or stop it", Args: exactly("NAME"),
		Long: `add watches the one function that an exploit must call, and tells attempts by a
length that no honest caller passes. By default it reports them (read-only); with
--fix it also refuses them: the function does not run, its caller gets an error,
and the guest goes on. hprobe stopgap rules lists the vulnerabilities that
hprobe knows by name. For another one say where the length is:

  hprobe stopgap add vuln --domain guest --at 'vuln!vuln_copy' \
      --length '[arg0+8]' --limit 0x1001 --errno EINVAL --fix

--length is arg0 to arg5 for an argument of the function, [arg0+8] for the 8 bytes
in the guest's memory at an argument plus an offset, [[arg0]+8] through a pointer.
--at is the function: a symbol, or module!symbol for one of a module, loaded or
to come. caller:callee is the place where one function of the kernel calls another,
for one that is called from elsewhere as well.

hprobed looks when the function is entered. A program that changes a length in its
own memory after that, from another thread, gets past: take a function that is
called with the kernel's copy, as vmsplice's rule does beside. A call whose length is
in memory that is not there at the moment runs, and is reported. An attempt whose
return address can't be read runs, too: its finding says REPORTED, not BLOCKED.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			req.Name = args[0]
			return a.withDaemon(cmd.Context(), func(c *control.Client) error {
				r, err := c.AddStopgap(cmd.Context(), &req)
				if err != nil {
					return err
				}
				d := r.GetDetector()
				if a.json {
					return a.message(d)
				}
				_, err = fmt.Fprintf(a.out, "%s: %s watches %s, %s mode: %s\n", d.GetId(), plain(d.GetName()), guestText(d.GetDomain()), d.GetMode(), plain(d.GetWhat()))
				for _, p := range d.GetProbes() {
					if p.GetState() == "waiting" {
						_, err2 := fmt.Fprintf(a.out, "%s: waiting: %s\n", d.GetId(), plain(p.GetDetail()))
						err = errors.Join(err, err2)
					}
				}
				return err
			})
		},
	}
	f := add.Flags()
	f.StringVarP(&req.Domain, "domain", "d", "", "the guest: its name, ID or UUID")
	f.BoolVar(&req.Fix, "fix", false, "refuse attempts (default: only report them)")
	f.Uint64Var(&req.Limit, "limit", 0, "the least length that is an attempt, in bytes (default: the rule's)")
	f.StringVar(&req.Errno, "errno", "", "what a refused call returns, like EFAULT (default: the rule's)")
	f.StringVar(&req.At, "at", "", "of a new rule: the function, as symbol, module!symbol or caller:callee")
	f.StringVar(&req.Length, "length", "", "of a new rule: where the length is, like arg1 or [arg0+8]")
	must(add, "domain")

	var domain string
	ls := &cobra.Command{Use: "ls", Short: "List the stopgaps at work", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.withDaemon(cmd.Context(), func(c *control.Client) error {
			r, err := c.ListDetectors(cmd.Context(), &controlapi.ListDetectorsRequest{Domain: domain})
			if err != nil {
				return err
			}
			return a.showDetectors(r)
		})
	}}
	ls.Flags().StringVarP(&domain, "domain", "d", "", "only of this guest")

	rm := &cobra.Command{Use: "rm ID", Short: "Take a stopgap out", Args: exactly("ID"), RunE: func(cmd *cobra.Command, args []string) error {
		return a.withDaemon(cmd.Context(), func(c *control.Client) error {
			r, err := c.RemoveDetector(cmd.Context(), &controlapi.RemoveDetectorRequest{Id: args[0]})
			if err != nil {
				return err
			}
			d := r.GetDetector()
			if a.json {
				return a.message(d)
			}
			_, err = fmt.Fprintf(a.out, "%s: %s removed from %s; it saw %s in %s\n", d.GetId(), plain(d.GetName()), guestText(d.GetDomain()), count(d.GetFindings(), "attempt"), count(calls(d), "call"))
			return err
		})
	}}
	rules := &cobra.Command{Use: "rules", Short: "List the vulnerabilities that hprobe knows by name", Args: exactly(), RunE: func(*cobra.Command, []string) error {
		rows := [][]string{{"NAME", "AT", "LIMIT", "ERRNO", "WHAT"}}
		for _, r := range stopgap.Rules() {
			if a.json {
				if err := a.value(ruleLine{r.Name, r.At, r.Limit, r.Errno.String(), r.Title}); err != nil {
					return err
				}
				continue
			}
			rows = append(rows, []string{r.Name, r.At, fmt.Sprintf("%#x", r.Limit), r.Errno.String(), r.Title})
		}
		if a.json {
			return nil
		}
		return a.table(rows)
	}}
	return group("stopgap", "Stop a vulnerability from being used until the patch is in", add, ls, rm, rules)
}

// ruleLine is a stopgap's rule for programs.
type ruleLine struct {
	Name  string `json:"name"`
	At    string `json:"at"`
	Limit uint64 `json:"limit"`
	Errno string `json:"errno"`
	What  string `json:"what"`
}

// calls are the hits of a stopgap's first probe: the others see the same calls later.
func calls(d *controlapi.Detector) uint64 {
	if all := d.GetProbes(); len(all) > 0 {
		return all[0].GetHits()
	}
	return 0
}

func (a *app) showDetectors(r *controlapi.ListDetectorsResponse) error {
	rows := [][]string{{"ID", "DOMAIN", "NAME", "MODE", "CALLS", "ATTEMPTS", "WHAT"}}
	for _, d := range r.GetDetectors() {
		if a.json {
			if err := a.message(d); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{d.GetId(), guestText(d.GetDomain()), d.GetName(), d.GetMode(), fmt.Sprint(calls(d)), fmt.Sprint(d.GetFindings()), d.GetWhat()})
	}
	if a.json {
		return nil
	}
	return a.table(rows)
}
