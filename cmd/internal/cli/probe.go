package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

const placeHelp = `A place is written like do_exit, do_exit+0x10, vuln!vuln_copy (a function of a
loaded module) or 0xffffffff81000000 (an address in the guest). It must be the first
byte of an instruction: at any other the guest would run something else.

With --pid it is an address in that process. The page need not be there: the probe
waits for it, follows it where the guest's kernel moves it, takes the hits of that
process alone, and ends with it.

` + imageHelp

func (a *app) probe() *cobra.Command {
	var req controlapi.AddProbeRequest
	var rule controlapi.Rule
	var imageFile string
	add := &cobra.Command{
		Use: "add --domain DOMAIN --at PLACE", Short: "Put a probe into a running guest", Args: exactly(),
		Long: "add puts a probe into a running guest. It counts its hits; hprobe trace shows\neach of them. The guest's vCPU waits for hprobed at each hit: think twice before\nyou probe what runs all the time.\n\n" + placeHelp + "\n\n" + ruleHelp,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			req.Rule = ruleOf(cmd, &rule)
			if req.Image, err = imagePlace(req.At, imageFile); err != nil {
				return err
			}
			return a.withDaemon(cmd.Context(), func(c controlapi.ControlClient) error {
				p, err := c.AddProbe(cmd.Context(), &req)
				if err != nil {
					return err
				}
				if a.json {
					return a.message(p)
				}
				_, err = fmt.Fprintln(a.out, addedText(p))
				return err
			})
		},
	}
	f := add.Flags()
	f.StringVarP(&req.Domain, "domain", "d", "", "the guest: its name, ID or UUID")
	f.StringVar(&req.At, "at", "", "where: symbol, symbol+0x10, module!symbol, address, image:PATH!symbol, image:PATH+0xOFFSET")
	f.StringVar(&req.Name, "name", "", "what to call it (default: its place)")
	f.BoolVar(&req.Returns, "return", false, "see what each call returns as well: only at a function's first instruction")
	ruleFlags(add, &rule)
	f.Uint32Var(&req.Pid, "pid", 0, "the process whose address it is (default: the kernel), or that runs the image")
	f.StringVar(&req.Comm, "comm", "", "of a place in an image: the name of the processes (default: all)")
	f.StringVar(&imageFile, "image-file", "", "of a place in an image: a copy of the guest's file, with its symbols")
	must(add, "domain", "at")

	var domain string
	ls := &cobra.Command{Use: "ls", Short: "List probes, those of stopgaps among them", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.withDaemon(cmd.Context(), func(c controlapi.ControlClient) error {
			r, err := c.ListProbes(cmd.Context(), &controlapi.ListProbesRequest{Domain: domain})
			if err != nil {
				return err
			}
			return a.showProbes(r)
		})
	}}
	ls.Flags().StringVarP(&domain, "domain", "d", "", "only of this guest")

	rm := &cobra.Command{Use: "rm ID", Short: "Take a probe out", Args: exactly("ID"), RunE: func(cmd *cobra.Command, args []string) error {
		return a.withDaemon(cmd.Context(), func(c controlapi.ControlClient) error {
			p, err := c.RemoveProbe(cmd.Context(), &controlapi.RemoveRequest{Id: args[0]})
			if err != nil {
				return err
			}
			if a.json {
				return a.message(p)
			}
			_, err = fmt.Fprintf(a.out, "%s: removed from %s after %s\n", p.GetId(), guestText(p.GetDomain()), count(p.GetHits(), "hit")+matchedText(p.GetMatches()))
			return err
		})
	}}
	return group("probe", "Put probes into guests, list them, take them out", add, ls, rm)
}

// must makes flags ones that have to be given.
func must(cmd *cobra.Command, flags ...string) {
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, f := range flags {
			if !cmd.Flags().Changed(f) {
				return fmt.Errorf("%w: say --%s (%s --help)", errUsage, f, cmd.CommandPath())
			}
		}
		return nil
	}
}

// placeOf is a probe's place, and whose.
func placeOf(p *controlapi.Probe) string {
	switch {
	case p.GetComm() != "":
		return fmt.Sprintf("%s of %s", p.GetAt(), guestText(p.GetComm()))
	case p.GetPid() == 0:
		return p.GetAt()
	}
	return fmt.Sprintf("%s of process %d", p.GetAt(), p.GetPid())
}

func (a *app) showProbes(r *controlapi.ListProbesResponse) error {
	if a.json {
		for _, p := range r.GetProbes() {
			if err := a.message(p); err != nil {
				return err
			}
		}
		return nil
	}
	return a.table(probeRows(r.GetProbes()))
}

// probeColumn is a column of probe ls. used says that a probe has something to show
// there; nil: it is always there.
type probeColumn struct {
	head string
	used func(p *controlapi.Probe) bool
	text func(p *controlapi.Probe) string
}

var probeColumns = []probeColumn{
	{"ID", nil, (*controlapi.Probe).GetId},
	{"DOMAIN", nil, func(p *controlapi.Probe) string { return guestText(p.GetDomain()) }},
	{"STATE", nil, func(p *controlapi.Probe) string {
		if p.GetDetail() != "" {
			return p.GetState() + " (" + p.GetDetail() + ")"
		}
		return p.GetState()
	}},
	{"HITS", nil, func(p *controlapi.Probe) string { return fmt.Sprint(p.GetHits()) }},
	{"RETURNS", (*controlapi.Probe).GetWithReturns, func(p *controlapi.Probe) string { return fmt.Sprint(p.GetReturns()) }},
	{"PASSED", func(p *controlapi.Probe) bool { return p.GetWithReturns() || p.GetPassed() > 0 }, func(p *controlapi.Probe) string { return fmt.Sprint(p.GetPassed()) }},
	{"MATCHED", ruled, func(p *controlapi.Probe) string { return fmt.Sprint(p.GetMatches().GetMatched()) }},
	{"ERRORS", ruled, func(p *controlapi.Probe) string { return fmt.Sprint(p.GetMatches().GetErrors()) }},
	{"PROCESSES", (*controlapi.Probe).GetInImage, func(p *controlapi.Probe) string { return fmt.Sprint(p.GetProcesses()) }},
	{"MISSED", func(p *controlapi.Probe) bool { return p.GetMissed() > 0 }, func(p *controlapi.Probe) string { return fmt.Sprintf("%d (%s)", p.GetMissed(), p.GetMissedWhy()) }},
	{"CHANGED", nil, func(p *controlapi.Probe) string { return fmt.Sprint(p.GetChanged()) }},
	{"STEP", nil, (*controlapi.Probe).GetStep},
	{"AT", nil, placeOf},
	{"FOR", nil, func(p *controlapi.Probe) string {
		if ruled(p) {
			return ruleText(p.GetRule(), p.GetMatches())
		}
		return p.GetDetector()
	}},
}

func ruled(p *controlapi.Probe) bool { return p.GetMatches() != nil }

// probeRows is the table of probe ls, with the columns that some probe needs.
func probeRows(all []*controlapi.Probe) [][]string {
	rows := make([][]string, len(all)+1)
	for _, c := range probeColumns {
		if c.used != nil && !slices.ContainsFunc(all, c.used) {
			continue
		}
		rows[0] = append(rows[0], c.head)
		for i, p := range all {
			cell := "-"
			if c.used == nil || c.used(p) {
				cell = c.text(p)
			}
			rows[i+1] = append(rows[i+1], cell)
		}
	}
	return rows
}
