package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/guestos"
)

// regionLine is a range of a process's memory for programs.
type regionLine struct {
	Start   string `json:"start"`
	End     string `json:"end"`
	Rights  string `json:"rights"`
	Offset  uint64 `json:"offset"`
	Device  string `json:"device"`
	Inode   uint64 `json:"inode"`
	Path    string `json:"path,omitempty"`
	Deleted bool   `json:"deleted,omitempty"`
}

func (a *app) maps() *cobra.Command {
	return a.lookCommand("maps DOMAIN PID", "List the memory of a process of a guest", `maps lists the memory of a process as /proc/PID/maps does in the guest: addresses,
rights, offset in the file, device, inode, file. PID is the process's number in the
guest's first PID name space, as hprobe ps shows it. The kernel's [vsyscall] is in no
process's list, and names that a process gave to memory that is no file's are not shown.
A thread of the kernel has no memory of its own.`,
		func(ctx context.Context, l *look, k *guestos.Kernel) error {
			all, err := k.Regions(ctx, l.pid)
			rows := [][]string{{"START", "END", "RIGHTS", "OFFSET", "DEVICE", "INODE", "FILE"}}
			for i := range all {
				r := &all[i]
				rows = append(rows, []string{fmt.Sprintf("%08x", uint64(r.Start)), fmt.Sprintf("%08x", uint64(r.End)), r.Rights.String(), fmt.Sprintf("%08x", r.Offset),
					r.File.Device.String(), fmt.Sprint(r.File.Inode), fileText(&r.File)})
			}
			return l.answer(struct {
				partialLine
				Maps []regionLine `json:"maps"`
			}{partialOf(err), each(all, func(r *guestos.Region) regionLine {
				return regionLine{r.Start.String(), r.End.String(), r.Rights.String(), r.Offset, r.File.Device.String(), r.File.Inode, r.File.Path, r.File.Deleted}
			})}, rows, err)
		})
}

// fileText is a guest's file for people; none is no text.
func fileText(n *guestos.FileName) string {
	if n.Path == "" {
		return ""
	}
	text := guestText(n.Path)
	if n.Deleted {
		text += " (deleted)"
	}
	return text
}
