package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/build"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
)

func (a *app) profile() *cobra.Command {
	dir := store.DefaultFolder
	var to string
	mk := &cobra.Command{
		Use: "build VMLINUZ", Short: "Make the profile of a guest's kernel from its image", Args: exactly("VMLINUZ"),
		Long: `build makes a profile (symbols and types) from a kernel image as distributions ship
it: /boot/vmlinuz-… of the guest, or a vmlinux. It needs no debug package, no root
and no Xen. The profile goes to hprobed's folder (--profiles), or to a file (--to);
one called .json or .json.xz is an ISF file, the form that Volatility 3 has.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if to != "" {
				if _, err := writerOf(to); err != nil { // before the work
					return err
				}
			}
			p, err := build.FromFile(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if to == "" {
				if to, err = store.Open(dir).Add(p); err != nil {
					return err
				}
			} else if err := writeProfile(to, p); err != nil {
				return err
			}
			if a.json {
				return a.value(profileLine{to, p.NumSymbols(), p.Meta().Banner, ""})
			}
			_, err = fmt.Fprintf(a.out, "%s: %s of %q\n", to, count(p.NumSymbols(), "symbol"), p.Meta().Banner)
			return err
		},
	}
	mk.Flags().StringVar(&to, "to", "", "file to write instead: .json or .json.xz (ISF), or .hprofile (compact)")
	ls := &cobra.Command{Use: "ls", Short: "List the profiles in hprobed's folder", Args: exactly(), RunE: func(*cobra.Command, []string) error {
		files, err := store.Open(dir).Files()
		if err != nil {
			return err
		}
		rows := [][]string{{"SYMBOLS", "KERNEL", "FILE"}}
		for _, f := range files {
			p, err := isf.ReadFile(f)
			if a.json {
				if err := a.value(profileLineOf(f, p, err)); err != nil {
					return err
				}
				continue
			}
			if err != nil {
				rows = append(rows, []string{"?", err.Error(), f})
				continue
			}
			rows = append(rows, []string{fmt.Sprint(p.NumSymbols()), guestText(p.Meta().Banner), f})
		}
		if a.json {
			return nil
		}
		return a.table(rows)
	}}
	c := group("profile", "Make and list profiles: symbols and types of guests' kernels", mk, ls)
	c.PersistentFlags().StringVar(&dir, "profiles", dir, "hprobed's folder of profiles")
	return c
}

// profileLine is a profile for programs.
type profileLine struct {
	File    string `json:"file"`
	Symbols int    `json:"symbols"`
	Kernel  string `json:"kernel"`
	Error   string `json:"error,omitempty"`
}

func profileLineOf(file string, p *isf.Profile, err error) profileLine {
	if err != nil {
		return profileLine{File: file, Error: err.Error()}
	}
	return profileLine{File: file, Symbols: p.NumSymbols(), Kernel: p.Meta().Banner}
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
