package cli

import (
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

const placeHelp = `A place is written like do_exit, do_exit+0x10, vuln!vuln_copy (a function of a
module) or 0xffffffff81000000 (an address in the guest). It must be the first
byte of an instruction: at any other the guest would run something else.

A module need not be loaded: the probe waits, is armed when the module is in place
and has run nothing yet, waits again when it is unloaded, and so on.

With --syscall there is no place, but a set of system calls, native ones and those of
32-bit programs by the names that they have there: openat,execve; all; or
'all,!read,!write' (in quotes: a ! means something to a shell). Each call that is in
the set waits for hprobed, others cost nothing. A rule may say syscall.name, syscall.nr
and syscall.compat; arguments go by their names where the set is one call, else they are
arg0 to arg5.

With --pid it is an address in that process. The page need not be there: the probe
waits for it, follows it where the guest's kernel moves it, takes the hits of that
process alone, and ends with it.

` + imageHelp

func (a *app) probe() *cobra.Command {
	var req controlapi.AddProbeRequest
	var rule controlapi.Rule
	var source controlapi.Source
	var files imageFiles
	add := &cobra.Command{
		Use: "add --domain DOMAIN (--at PLACE | --syscall NAME,… | --register R | --cpuid LEAF | --memory RANGE)", Short: "Put a probe into a running guest", Args: exactly(),
		Long: "add puts a probe into a running guest. It counts its hits; hprobe trace shows\neach of them. The guest's vCPU waits for hprobed at each hit: think twice before\nyou probe what runs all the time.\n\n" + placeHelp + "\n\n" + sourceHelp + "\n\n" + ruleHelp,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			req.Rule = ruleOf(cmd, &rule)
			if req.Source, err = sourceOf(cmd, &source); err != nil {
				return err
			}
			var notes []string
			if req.Image, notes, err = files.place(req.At); err != nil {
				return err
			}
			return a.withDaemon(cmd.Context(), func(c *control.Client) error {
				r, err := c.AddProbe(cmd.Context(), &req)
				if err != nil {
					return err
				}
				p := r.GetProbe()
				for _, note := range notes {
					fmt.Fprintln(cmd.ErrOrStderr(), "hprobe: note:", plain(note))
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
	f.StringVar(&req.At, "at", "", "where: symbol, symbol+0x10, module!symbol, caller:callee, address, image:PATH!symbol, image:PATH!file.c:123, image:PATH+0xOFFSET")
	f.StringVar(&req.Stack, "stack", "", "show with each hit who called whom: kernel, user (by frame pointers), or all")
	f.StringVar(&req.Name, "name", "", "what to call it (default: its place)")
	f.BoolVar(&req.Returns, "return", false, "see what each call returns as well: only at a function's first instruction")
	ruleFlags(add, &rule)
	f.Uint32Var(&req.Pid, "pid", 0, "the process whose address it is (default: the kernel), or that runs the image")
	f.StringVar(&req.Comm, "comm", "", "of a place in an image: the name of the processes (default: all)")
	f.StringVar(&files.program, "image-file", "", "of a place in an image: a copy of the guest's file, with its symbols")
	f.StringVar(&files.debug, "debug-file", "", "with --image-file: the file that its debug information was split into")
	sourceFlags(add, &source)
	f.StringSliceVar(&req.Syscalls, "syscall", nil, "in place of --at: system calls: openat,execve, or all, or 'all,!read,!write'")
	f.Uint64Var(&req.MaxHits, "max-hits", 0, "suspend it for a while after so many hits in a second (default 25000)")
	f.Uint32Var(&req.MaxStall, "max-stall", 0, "the same when vCPUs waited for it for so many percent of a second (default 25)")
	must(add, "domain")

	var domain string
	ls := &cobra.Command{Use: "ls", Short: "List probes, those of stopgaps among them", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		return a.withDaemon(cmd.Context(), func(c *control.Client) error {
			r, err := c.ListProbes(cmd.Context(), &controlapi.ListProbesRequest{Domain: domain})
			if err != nil {
				return err
			}
			return a.showProbes(r)
		})
	}}
	ls.Flags().StringVarP(&domain, "domain", "d", "", "only of this guest")

	rm := &cobra.Command{Use: "rm ID", Short: "Take a probe out", Args: exactly("ID"), ValidArgsFunction: a.completeProbes, RunE: func(cmd *cobra.Command, args []string) error {
		return a.withDaemon(cmd.Context(), func(c *control.Client) error {
			r, err := c.RemoveProbe(cmd.Context(), &controlapi.RemoveProbeRequest{Id: args[0]})
			if err != nil {
				return err
			}
			p := r.GetProbe()
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

// addedText is what add says of a probe.
func addedText(p *controlapi.Probe) string {
	id, guest, at := p.GetId(), guestText(p.GetDomain()), plain(p.GetAt())
	waits := p.GetState() == "waiting"
	switch {
	case p.GetSource() != nil:
		return fmt.Sprintf("%s: watching %s in %s", id, at, guest)
	case len(p.GetSyscalls()) > 0:
		return fmt.Sprintf("%s: %s in %s at %s of %s", id, p.GetState(), guest, count(p.GetPlaces(), "place"), count(p.GetSyscallCount(), "system call"))
	case p.GetInImage() && waits:
		return fmt.Sprintf("%s: waiting in %s for a process that runs %s (%#x of the file): %s", id, guest, at, p.GetOffset(), processesText(p))
	case p.GetInImage():
		return fmt.Sprintf("%s: %s in %s at %s (%#x of the file), on %q, stepped over by %s: %s", id, p.GetState(), guest, at, p.GetOffset(), p.GetInstruction(), p.GetStep(), processesText(p))
	case waits && p.GetPid() == 0:
		return fmt.Sprintf("%s: waiting in %s: %s", id, guest, plain(p.GetDetail()))
	case waits:
		return fmt.Sprintf("%s: waiting in %s for the page of %s in process %d", id, guest, at, p.GetPid())
	}
	return fmt.Sprintf("%s: armed in %s at %s (%#x), on %q, stepped over by %s", id, guest, at, p.GetAddress(), p.GetInstruction(), p.GetStep())
}

// stepOf is how a probe steps over its instruction, if it has one.
func stepOf(p *controlapi.Probe) string {
	if p.GetSource() != nil {
		return "-"
	}
	return p.GetStep()
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
	{"STEP", nil, stepOf},
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
