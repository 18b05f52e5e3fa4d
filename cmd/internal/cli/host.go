package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// withHost runs f with the hypervisor: for what needs no hprobed.
func (a *app) withHost(ctx context.Context, f func(drivers.Host) error) error {
	host, _, err := drivers.Open(ctx, a.driver, drivers.Options{})
	if err != nil {
		return err
	}
	return errors.Join(f(host), host.Close())
}

func (a *app) domain() *cobra.Command {
	var dump string
	ls := &cobra.Command{Use: "ls", Short: "List the guests of this host", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		if dump != "" {
			return a.listDump(dump)
		}
		return a.withHost(cmd.Context(), func(h drivers.Host) error { return a.listDomains(cmd.Context(), h) })
	}}
	ls.Flags().StringVar(&dump, "dump", "", "list this `FILE`, a raw dump of a guest's memory, in place of the guests (needs LibVMI)")
	features := &cobra.Command{Use: "features DOMAIN", Short: "Show what can be done with a guest", Long: "features shows what hprobe found out about a guest, as doctor does, without a verdict.", Args: exactly("DOMAIN"), RunE: func(cmd *cobra.Command, args []string) error {
		return a.withHost(cmd.Context(), func(h drivers.Host) error {
			all, err := domainFeatures(cmd.Context(), h, args[0])
			if err != nil {
				return err
			}
			return a.showFeatures(all)
		})
	}}
	cmd := group("domain", "List guests, and show what can be done with one", ls, features, a.domainRelease(), a.domainResume())
	a.driverFlag(cmd)
	return cmd
}

// domainLine is a domain for programs.
type domainLine struct {
	ID       xenevents.DomainID `json:"id"`
	Name     string             `json:"name"`
	UUID     string             `json:"uuid"`
	Type     string             `json:"type"`
	State    string             `json:"state"`
	VCPUs    int                `json:"vcpus"`
	MemoryMB uint64             `json:"memory_mb"`
}

func domainLineOf(d *xenevents.DomainInfo) domainLine {
	l := domainLine{ID: d.ID, Name: d.Name, UUID: d.UUIDString(), Type: "pv", State: "running", VCPUs: d.VCPUs, MemoryMB: d.Pages / 256}
	if d.HVM {
		l.Type = "hvm/pvh"
	}
	switch {
	case d.Dying:
		l.State = "dying"
	case d.Shutdown:
		l.State = "shut down"
	case d.Paused:
		l.State = "paused"
	}
	return l
}

// listDump shows a memory dump as a domain: what is known of it.
func (a *app) listDump(path string) error {
	d, err := drivers.OpenDump(a.driver, path)
	if err != nil {
		return err
	}
	defer d.Close()
	l := domainLine{Name: filepath.Base(path), Type: "dump", State: "read-only", MemoryMB: d.Size() >> 20}
	if a.json {
		return a.value(l)
	}
	return a.table([][]string{{"NAME", "TYPE", "STATE", "MEMORY"}, {guestText(l.Name), l.Type, l.State, fmt.Sprintf("%d MiB", l.MemoryMB)}})
}

func (a *app) listDomains(ctx context.Context, h drivers.Host) error {
	all, err := h.Domains(ctx)
	if err != nil {
		return err
	}
	rows := [][]string{{"ID", "NAME", "TYPE", "STATE", "VCPUS", "MEMORY", "UUID"}}
	for i := range all {
		l := domainLineOf(&all[i])
		if a.json {
			if err := a.value(l); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{fmt.Sprint(l.ID), guestText(l.Name), l.Type, l.State, fmt.Sprint(l.VCPUs), fmt.Sprintf("%d MiB", l.MemoryMB), l.UUID})
	}
	if a.json {
		return nil
	}
	return a.table(rows)
}

// withDomain runs f with an open guest.
func (a *app) withDomain(ctx context.Context, name string, f func(xenevents.Domain, *xenevents.DomainInfo) error) error {
	return a.withHost(ctx, func(h drivers.Host) (err error) {
		info, err := xenevents.FindDomain(ctx, h, name)
		if err != nil {
			return err
		}
		dom, err := h.Open(ctx, info.ID)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, dom.Close()) }()
		if err := f(dom, &info); err != nil {
			return fmt.Errorf("domain %d: %w", info.ID, err)
		}
		return nil
	})
}

func domainFeatures(ctx context.Context, h drivers.Host, name string) (f []xenevents.Feature, err error) {
	info, err := xenevents.FindDomain(ctx, h, name)
	if err != nil {
		return nil, err
	}
	dom, err := h.Open(ctx, info.ID)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dom.Close()) }()
	p, ok := dom.(xenevents.Prober)
	if !ok {
		return nil, &xenevents.UnsupportedError{Feature: "asking for features with driver " + h.Name()}
	}
	return p.Features(ctx)
}

// driverFlag is for what speaks to Xen itself.
func (a *app) driverFlag(cmd *cobra.Command) {
	cmd.PersistentFlags().StringVar(&a.driver, "driver", drivers.Auto, "how to speak to Xen: libvmi, native, or auto (libvmi where hprobe was built with it and it is installed)")
}

func (a *app) doctor() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor [DOMAIN]",
		Short: "Say what is missing on this host, or for a guest, and the line that adds it",
		Long: `doctor tries out what hprobe needs of this host, and of a guest if one is named,
and prints the exact line to add where something is missing. It leaves both as they
were; the guest stands still for a moment while doctor opens its monitor ring, as
only that shows that nobody else has it. A guest that hprobed watches already is one
with another monitor, so ask before. The exit status is 4 if something is in the way.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withHost(cmd.Context(), func(h drivers.Host) error {
				all, err := h.Features(cmd.Context())
				if err != nil {
					return err
				}
				if len(args) == 1 {
					more, err := domainFeatures(cmd.Context(), h, args[0])
					if err != nil {
						return err
					}
					all = append(all, more...)
				}
				if err := a.showFeatures(all); err != nil {
					return err
				}
				for i := range all {
					if all[i].Blocks() {
						return errBlocked
					}
				}
				if !a.json {
					fmt.Fprintln(a.out, "\nNothing is in the way.")
				}
				return nil
			})
		},
	}
	a.driverFlag(cmd)
	return cmd
}

// featureLine is a feature for programs.
type featureLine struct {
	Name   string `json:"name"`
	Title  string `json:"title"`
	Answer string `json:"answer"`
	Need   string `json:"need"`
	Blocks bool   `json:"blocks"`
	Detail string `json:"detail,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

var needs = map[xenevents.Need]string{xenevents.Optional: "optional", xenevents.Required: "required", xenevents.Refused: "refused"}

func (a *app) showFeatures(all []xenevents.Feature) error {
	for i := range all {
		f := &all[i]
		if a.json {
			l := featureLine{f.Name, f.Title, f.Answer.String(), needs[f.Need], f.Blocks(), f.Detail, f.Fix}
			if err := a.value(l); err != nil {
				return err
			}
			continue
		}
		mark := map[bool]string{true: "BAD ", false: "ok  "}[f.Blocks()]
		switch {
		case f.Answer == xenevents.CannotTell:
			mark = "?   "
		case f.Need == xenevents.Optional && f.Answer == xenevents.No:
			mark = "-   "
		}
		fmt.Fprintf(a.out, "%s  %-52s %s\n", mark, f.Title, f.Answer)
		if f.Detail != "" && (f.Blocks() || f.Answer != xenevents.Yes) {
			fmt.Fprintf(a.out, "      %s\n", f.Detail)
		}
		if f.Fix != "" {
			fmt.Fprintf(a.out, "      to do: %s\n", f.Fix)
		}
	}
	return nil
}
