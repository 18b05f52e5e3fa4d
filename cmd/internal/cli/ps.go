package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/guestos"
)

// processLine is a process, or one of its threads, for programs.
type processLine struct {
	PID        uint32    `json:"pid"`
	TID        uint32    `json:"tid"`
	Parent     uint32    `json:"ppid"`
	Numbers    []uint32  `json:"ns_pids"`
	Comm       string    `json:"comm"`
	State      string    `json:"state"`
	Kernel     bool      `json:"kernel"`
	Threads    uint32    `json:"threads"`
	UIDs       [4]uint32 `json:"uids"` // real, effective, saved, file system
	GIDs       [4]uint32 `json:"gids"`
	Caps       string    `json:"cap_effective"`
	Started    uint64    `json:"started_ns"`
	Namespaces struct {
		PID    uint32 `json:"pid"`
		User   uint32 `json:"user"`
		Mount  uint32 `json:"mnt"`
		Net    uint32 `json:"net"`
		UTS    uint32 `json:"uts"`
		IPC    uint32 `json:"ipc"`
		Cgroup uint32 `json:"cgroup"`
		Time   uint32 `json:"time"`
	} `json:"namespaces"`
	Error string `json:"error,omitempty"`
}

func processLineOf(s *guestos.Status) processLine {
	l := processLine{PID: s.PID, TID: s.TID, Parent: s.Parent, Numbers: s.Numbers, Comm: s.Comm, State: s.State.String(), Kernel: s.Kernel, Threads: s.Threads,
		UIDs: s.UID, GIDs: s.GID, Caps: fmt.Sprintf("%#x", s.Caps), Started: s.Started, Error: s.Why}
	n := &l.Namespaces
	n.PID, n.User, n.Mount, n.Net = s.Namespaces.PID, s.Namespaces.User, s.Namespaces.Mount, s.Namespaces.Net
	n.UTS, n.IPC, n.Cgroup, n.Time = s.Namespaces.UTS, s.Namespaces.IPC, s.Namespaces.Cgroup, s.Namespaces.Time
	return l
}

func (a *app) ps() *cobra.Command {
	var threads, spaces bool
	cmd := a.lookCommand("ps DOMAIN", "List the processes of a guest", `ps lists the processes of a guest as its kernel has them, threads of the kernel
(in brackets) among them: number, parent, user (effective), state, how many threads,
when it started (in seconds since the guest's boot), name. With --ns it shows by their
inode numbers, as the links in /proc/PID/ns do, the name spaces that are not those of
the guest's first process, and the process's number in its own PID name space.
A process whose entry was taken out of the kernel's list is not seen.`,
		func(ctx context.Context, l *look, k *guestos.Kernel) error {
			all, err := k.Statuses(ctx, threads)
			head := []string{"PID", "PPID", "UID", "STATE", "THREADS", "STARTED", "NAME"}
			if threads {
				head = append([]string{"PID", "TID"}, head[1:]...)
			}
			if spaces {
				head = append(head, "NAME SPACES")
			}
			rows := [][]string{head}
			for i := range all {
				rows = append(rows, processRow(&all[i], &all[0], threads, spaces))
			}
			return l.answer(struct {
				partialLine
				Processes []processLine `json:"processes"`
			}{partialOf(err), each(all, processLineOf)}, rows, err)
		})
	cmd.Flags().BoolVarP(&threads, "threads", "T", false, "list each thread")
	cmd.Flags().BoolVar(&spaces, "ns", false, "show the name spaces that are not the first process's")
	return cmd
}

func processRow(s, first *guestos.Status, threads, spaces bool) []string {
	name := guestText(s.Comm)
	if s.Kernel {
		name = "[" + name + "]"
	}
	row := []string{fmt.Sprint(s.PID)}
	if threads {
		row = append(row, fmt.Sprint(s.TID))
	}
	row = append(row, fmt.Sprint(s.Parent), fmt.Sprint(s.UID[1]), s.State.String(), fmt.Sprint(s.Threads), sinceBoot(s.Started), name)
	if spaces {
		row = append(row, spacesText(s, first))
	}
	return row
}

// spacesText are the name spaces that a process does not share with the first one.
func spacesText(s, first *guestos.Status) string {
	var text []string
	own, shared := &s.Namespaces, &first.Namespaces
	for _, one := range []struct {
		name        string
		own, shared uint32
	}{{"pid", own.PID, shared.PID}, {"user", own.User, shared.User}, {"mnt", own.Mount, shared.Mount}, {"net", own.Net, shared.Net},
		{"uts", own.UTS, shared.UTS}, {"ipc", own.IPC, shared.IPC}, {"cgroup", own.Cgroup, shared.Cgroup}, {"time", own.Time, shared.Time}} {
		if one.own == one.shared || one.own == 0 {
			continue
		}
		space := fmt.Sprintf("%s:[%d]", one.name, one.own)
		if n := len(s.Numbers); one.name == "pid" && n > 0 {
			space += fmt.Sprintf(" (%d there)", s.Numbers[n-1])
		}
		text = append(text, space)
	}
	return strings.Join(text, " ")
}
