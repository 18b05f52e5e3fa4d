package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/build"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// profileTarget is where a profile that was made goes: a file, or the first of folders.
type profileTarget struct {
	folders []string
	file    string
}

func (t *profileTarget) store() *store.Store { return store.Open(t.folders[0], t.folders[1:]...) }

// foldersFlag is for what looks for profiles.
func (t *profileTarget) foldersFlag(cmd *cobra.Command) {
	cmd.PersistentFlags().StringArrayVar(&t.folders, "profiles", []string{store.DefaultFolder}, "`FOLDER` of profiles, as hprobed has it; again for more. New profiles go to the first")
}

// flag is for a command that makes a profile.
func (t *profileTarget) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.file, "to", "", "file to write instead: .json or .json.xz (ISF), or .hprofile (compact)")
}

// makeProfile runs f, and puts the profile that it makes where it is to go.
func (a *app) makeProfile(t *profileTarget, f func() (*isf.Profile, error)) error {
	if t.file != "" {
		if _, err := writerOf(t.file); err != nil { // before the work
			return err
		}
	}
	p, err := f()
	if err != nil {
		return err
	}
	to := t.file
	if to == "" {
		if to, err = t.store().Add(p); err != nil {
			return err
		}
	} else if err := writeProfile(to, p); err != nil {
		return err
	}
	if a.json {
		return a.value(profileLineOf(to, p))
	}
	_, err = fmt.Fprintf(a.out, "%s: %s of %q\n", to, count(p.NumSymbols(), "symbol"), p.Meta().Banner)
	return err
}

// captureProfile makes the profile of a guest's kernel from its memory.
func (a *app) captureProfile(ctx context.Context, name string) (p *isf.Profile, err error) {
	err = a.withDomain(ctx, name, func(dom xenevents.Domain, info *xenevents.DomainInfo) (err error) {
		p, err = build.FromGuest(ctx, dom, info)
		return err
	})
	return p, err
}

// captureDump makes the profile of the kernel in a memory dump.
func (a *app) captureDump(ctx context.Context, path string) (*isf.Profile, error) {
	d, err := drivers.OpenDump(a.driver, path)
	if err != nil {
		return nil, err
	}
	p, err := build.FromDump(ctx, d, "memory dump "+filepath.Base(path))
	if err = errors.Join(err, d.Close()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func (a *app) profile() *cobra.Command {
	var to profileTarget
	var modules []string
	mk := &cobra.Command{
		Use: "build VMLINUZ|FOLDER|DEB", Short: "Make the profile of a guest's kernel from its image", Args: exactly("VMLINUZ|FOLDER|DEB"),
		Long: `build makes a profile (symbols and types) from a kernel image as distributions ship
it: /boot/vmlinuz-… of the guest, or a vmlinux; from a Debian package with one
(linux-image-….deb), or a folder: such a package unpacked, or the guest's /. It needs no
debug package, no root and no Xen.

With --module the types and prototypes of modules that the package or folder has are in
the profile as well. Those of all of a distribution's modules (--module all) make it five
times as large. The profile goes to hprobed's folder (--profiles), or to a file (--to);
one called .json or .json.xz is an ISF file, the form that Volatility 3 has.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.makeProfile(&to, func() (*isf.Profile, error) { return build.FromFile(cmd.Context(), args[0], modules...) })
		},
	}
	var dump string
	capture := &cobra.Command{
		Use: "capture {DOMAIN | --dump FILE}", Short: "Make the profile of a guest's kernel from the running guest, or from a memory dump",
		Args: func(cmd *cobra.Command, args []string) error {
			if dump != "" {
				return exactly()(cmd, args)
			}
			return exactly("DOMAIN (or --dump FILE)")(cmd, args)
		},
		Long: `capture makes the profile that build makes of a kernel's image from the memory of a
guest that runs the kernel, where that is at hand and the image is not. It needs no
file of the guest's, and takes KASLR's slide off. It runs in dom0, and needs neither
hprobed nor altp2m. The guest runs meanwhile, but for some milliseconds in which its
page tables are read. It takes the guest's word for everything: a profile of a guest
that may have been broken into is better made from the distribution's image.

With --dump it does so from a raw dump of a guest's memory: all of it, from address 0
on, without headers and with nothing left out. It opens that by LibVMI, read only, and
runs anywhere. A dump has no registers, so the kernel is searched for; where a dump
has two, of before and after kexec, it may be the older one.

The kernel must be linked to run at 16 MiB (CONFIG_PHYSICAL_START=0x1000000), as
those of distributions are, and have BTF and kallsyms. The profile goes to where
build puts it. hprobed takes it for this guest alone, and makes one by itself where it
has none.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.makeProfile(&to, func() (*isf.Profile, error) {
				if dump != "" {
					return a.captureDump(cmd.Context(), dump)
				}
				return a.captureProfile(cmd.Context(), args[0])
			})
		},
	}
	to.flag(mk)
	mk.Flags().StringArrayVar(&modules, "module", nil, "add the types of this `MODULE` (nf_tables); again for more; all: of all modules")
	to.flag(capture)
	capture.Flags().StringVar(&dump, "dump", "", "take this `FILE`, a raw dump of a guest's memory, in place of a guest (needs LibVMI)")
	a.driverFlag(capture)
	check := a.checkProfile(&to)
	a.driverFlag(check)
	c := group("profile", "Make, list and check profiles: symbols and types of guests' kernels", mk, capture, a.listProfiles(&to), check)
	to.foldersFlag(c)
	return c
}

// writerOf says in which form to write a profile, by the file's name.
func writerOf(path string) (func(*isf.Profile, io.Writer) error, error) {
	switch {
	case strings.HasSuffix(path, store.Ext):
		return (*isf.Profile).WriteCompact, nil
	case strings.HasSuffix(path, ".json.xz"):
		return (*isf.Profile).WriteJSONXZ, nil
	case strings.HasSuffix(path, ".json"):
		return (*isf.Profile).WriteJSON, nil
	}
	return nil, fmt.Errorf("%w: what is %s to be? .json, .json.xz or %s", errUsage, path, store.Ext)
}

func writeProfile(path string, p *isf.Profile) error {
	write, err := writerOf(path)
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(write(p, f), f.Close())
}
