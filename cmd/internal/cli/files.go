package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/guestos"
)

// openFileLine is an open file for programs.
type openFileLine struct {
	FD       uint32 `json:"fd"`
	Flags    string `json:"flags"`
	Position uint64 `json:"position"`
	Device   string `json:"device"`
	Inode    uint64 `json:"inode"`
	Path     string `json:"path"`
	Deleted  bool   `json:"deleted,omitempty"`
}

func (a *app) files() *cobra.Command {
	return a.lookCommand("files DOMAIN PID", "List the open files of a process of a guest", `files lists what files a process has open: number, whether for reading or writing, the
flags of open(2) in octal and the position in bytes as /proc/PID/fdinfo has them,
device, inode, and the file as the links in /proc/PID/fd have it. PID is the process's
number in the guest's first PID name space, as hprobe ps shows it.`,
		func(ctx context.Context, l *look, k *guestos.Kernel) error {
			all, err := k.OpenFiles(ctx, l.pid)
			rows := [][]string{{"FD", "FOR", "FLAGS", "POSITION", "DEVICE", "INODE", "FILE"}}
			for i := range all {
				f := &all[i]
				rows = append(rows, []string{fmt.Sprint(f.FD), accessText(f.Flags), flagsText(f.Flags), fmt.Sprint(f.Position), f.File.Device.String(), fmt.Sprint(f.File.Inode), fileText(&f.File)})
			}
			return l.answer(struct {
				partialLine
				Files []openFileLine `json:"files"`
			}{partialOf(err), each(all, func(f *guestos.OpenFile) openFileLine {
				return openFileLine{f.FD, flagsText(f.Flags), f.Position, f.File.Device.String(), f.File.Inode, f.File.Path, f.File.Deleted}
			})}, rows, err)
		})
}

func flagsText(flags uint32) string { return fmt.Sprintf("0%o", flags) }

// accessText says what a file is open for: O_ACCMODE of open(2).
func accessText(flags uint32) string { return [...]string{"r", "w", "rw", "-"}[flags&3] }
