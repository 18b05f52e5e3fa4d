package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/guestos"
)

// moduleLine is a module for programs.
type moduleLine struct {
	Name   string   `json:"name"`
	Size   uint64   `json:"size"`
	Refs   int32    `json:"refs"`
	Users  []string `json:"used_by"`
	State  string   `json:"state"`
	Base   string   `json:"address"`
	Taints string   `json:"taints"`
	Error  string   `json:"error,omitempty"`
}

func (a *app) modules() *cobra.Command {
	return a.lookCommand("modules DOMAIN", "List the modules of a guest's kernel", `modules lists the modules that a guest's kernel has loaded, as /proc/modules does in
the guest: name, size in bytes, by how much it is in use and by which modules, state,
address, and why it taints the kernel (O: built outside of its tree, E: not signed, …).
A module whose entry was taken out of the kernel's list is not seen.`,
		func(ctx context.Context, l *look, k *guestos.Kernel) error {
			all, err := k.Loaded(ctx)
			rows := [][]string{{"NAME", "SIZE", "REFS", "USED BY", "STATE", "ADDRESS", "TAINTS"}}
			for i := range all {
				m := &all[i]
				rows = append(rows, []string{guestText(m.Name), fmt.Sprint(m.Size), fmt.Sprint(m.Refs), strings.Join(each(m.Users, func(s *string) string { return guestText(*s) }), ","),
					m.State, fmt.Sprintf("%#x", m.Base), m.Taints})
			}
			return l.answer(struct {
				partialLine
				Modules []moduleLine `json:"modules"`
			}{partialOf(err), each(all, func(m *guestos.LoadedModule) moduleLine {
				return moduleLine{m.Name, m.Size, m.Refs, m.Users, m.State, fmt.Sprintf("%#x", m.Base), m.Taints, m.Why}
			})}, rows, err)
		})
}
