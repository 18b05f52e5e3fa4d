package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

func (a *app) listProfiles(to *profileTarget) *cobra.Command {
	return &cobra.Command{Use: "ls", Short: "List the profiles in hprobed's folders", Args: exactly(), RunE: func(cmd *cobra.Command, _ []string) error {
		all, err := to.store().List(cmd.Context())
		if err != nil {
			return err
		}
		rows := [][]string{{"KERNEL", "CAPTURED FROM", "FILE"}}
		for i := range all {
			p := &all[i]
			if a.json {
				if err := a.value(profileLine{File: p.Name(), Kernel: p.Banner, Captured: p.Captured, Error: p.Error}); err != nil {
					return err
				}
				continue
			}
			kernel, captured := guestText(p.Banner), "-"
			if p.Error != "" {
				kernel = plain(p.Error)
			}
			if p.Captured != "" {
				captured = guestText(p.Captured)
			}
			rows = append(rows, []string{kernel, captured, guestText(p.Name())})
		}
		if a.json {
			return nil
		}
		return a.table(rows)
	}}
}

// profileLine is a profile for programs.
type profileLine struct {
	File     string `json:"file"`
	Symbols  int    `json:"symbols,omitempty"` // 0: the file was not read as a whole
	Kernel   string `json:"kernel"`
	BuildID  string `json:"build_id,omitempty"`
	Source   string `json:"source,omitempty"`
	Captured string `json:"captured,omitempty"` // the guest's UUID
	Error    string `json:"error,omitempty"`
	// Guests are those that were looked at, if any could be.
	Guests []fit `json:"guests,omitempty"`
}

// fit says whether a profile is of the kernel that a guest runs.
type fit struct {
	Domain string             `json:"domain"`
	ID     xenevents.DomainID `json:"id"`
	Fits   bool               `json:"fits"`
	Why    string             `json:"why,omitempty"` // it does not
}

func profileLineOf(file string, p *isf.Profile) profileLine {
	m := p.Meta()
	return profileLine{File: file, Symbols: p.NumSymbols(), Kernel: m.Banner, BuildID: m.BuildID, Source: m.Source, Captured: m.Captured}
}

func (a *app) checkProfile(to *profileTarget) *cobra.Command {
	return &cobra.Command{
		Use: "check FILE|DOMAIN", Short: "Check a profile, or say which one a guest gets", Args: exactly("FILE|DOMAIN"),
		Long: `check FILE reads all of a profile, says whether it is well-formed, and, in dom0, of which
running guests' kernel it is. check DOMAIN says which profile hprobed takes for a guest,
and why. What is a file, or has a profile's extension or a slash, is a FILE.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if isProfileFile(args[0]) {
				return a.checkFile(cmd.Context(), args[0])
			}
			return a.withDomain(cmd.Context(), args[0], func(dom xenevents.Domain, info *xenevents.DomainInfo) error {
				return a.checkDomain(cmd.Context(), to.store(), dom, info)
			})
		},
	}
}

func isProfileFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular() || strings.ContainsRune(name, filepath.Separator) || strings.HasSuffix(name, store.Ext) || strings.Contains(name, ".json")
}

func (a *app) checkFile(ctx context.Context, path string) error {
	p, err := isf.ReadFile(path)
	if err != nil {
		return err
	}
	if err := p.Check(); err != nil {
		return fmt.Errorf("profile %s: %w", path, err)
	}
	line := profileLineOf(path, p)
	noXen := a.withHost(ctx, func(h drivers.Host) (err error) {
		line.Guests, err = fits(ctx, h, p)
		return err
	})
	if a.json {
		return a.value(line)
	}
	fmt.Fprintf(a.out, "%s: well-formed: %s of %q, build id %q, made of %q\n", path, count(line.Symbols, "symbol"), line.Kernel, line.BuildID, line.Source)
	if line.Captured != "" {
		fmt.Fprintf(a.out, "  captured from the guest with UUID %s: hprobed takes it for no other\n", guestText(line.Captured))
	}
	for _, g := range line.Guests {
		why := "of its kernel"
		if !g.Fits {
			why = "no: " + g.Why
		}
		fmt.Fprintf(a.out, "  %s (%d): %s\n", guestText(g.Domain), g.ID, plain(why))
	}
	if noXen != nil {
		fmt.Fprintf(a.out, "  which guests it fits is not known: %v\n", noXen)
	}
	return nil
}

// fits tries a profile with each guest.
func fits(ctx context.Context, h drivers.Host, p *isf.Profile) ([]fit, error) {
	domains, err := h.Domains(ctx)
	if err != nil {
		return nil, err
	}
	var all []fit
	for i := range domains {
		d := &domains[i]
		f := fit{Domain: d.Name, ID: d.ID}
		if err := fitsOne(ctx, h, p, d); err != nil {
			f.Why = err.Error()
		}
		f.Fits = f.Why == ""
		all = append(all, f)
	}
	return all, nil
}

func fitsOne(ctx context.Context, h drivers.Host, p *isf.Profile, d *xenevents.DomainInfo) (err error) {
	if c := p.Meta().Captured; c != "" && c != d.UUIDString() {
		return errors.New("it was captured from another guest")
	}
	dom, err := h.Open(ctx, d.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dom.Close()) }()
	_, err = guestos.FindKernel(dom, int(d.MaxVCPU)+1, p)
	return err
}

// checkLine is what check says of a guest, for programs.
type checkLine struct {
	Domain string `json:"domain"`
	store.Found
	// Capture: there is none yet, and hprobed captures it, unless it was told not to.
	Capture bool `json:"capture"`
}

func (a *app) checkDomain(ctx context.Context, s *store.Store, dom xenevents.Domain, info *xenevents.DomainInfo) error {
	line := checkLine{Domain: info.Name}
	found, err := s.Find(ctx, dom, info)
	var none *store.NoProfileError
	switch {
	case errors.As(err, &none):
		line.Capture, line.Kernel, line.Passed = true, none.Kernel, none.Passed
		line.Why = fmt.Sprintf("no profile in %s has its banner: hprobed captures one from the guest, unless started with --capture=false", none.Folders)
	case err != nil:
		return err
	default:
		line.Found = *found
	}
	if a.json {
		return a.value(line)
	}
	if line.Capture {
		fmt.Fprintf(a.out, "%s: %s: %s\n", guestText(line.Domain), guestText(line.Kernel), line.Why)
	} else {
		fmt.Fprintf(a.out, "%s: %s: profile %s: %s\n", guestText(line.Domain), guestText(line.Kernel), guestText(line.From), line.Why)
	}
	for _, p := range line.Passed {
		fmt.Fprintf(a.out, "  not taken: %s\n", plain(p))
	}
	return nil
}
