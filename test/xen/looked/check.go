package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What hprobe prints with -o json.
type (
	processes struct {
		Partial   bool
		Why       []string
		Processes []process
	}
	process struct {
		PID, TID, PPID, Threads uint32
		NSPids                  []uint32 `json:"ns_pids"`
		Comm, State             string
		Kernel                  bool
		UIDs, GIDs              [4]uint32
		Caps                    string `json:"cap_effective"`
		Started                 uint64 `json:"started_ns"`
		Namespaces              spaces
	}
	spaces struct{ PID, User, Mnt, Net, UTS, IPC, Cgroup, Time uint32 }
	region struct {
		Start, End, Rights, Device, Path string
		Offset, Inode                    uint64
		Deleted                          bool
	}
	regions struct {
		Partial bool
		Why     []string
		Maps    []region
	}
	openFile struct {
		FD          uint32
		Flags, Path string
		Position    uint64
		Deleted     bool
	}
	openFiles struct {
		Partial bool
		Why     []string
		Files   []openFile
	}
	module struct {
		Name, State, Address, Taints string
		Size                         uint64
		Refs                         int32
		UsedBy                       []string `json:"used_by"`
	}
	modules struct {
		Partial bool
		Why     []string
		Modules []module
	}
	record struct {
		Seq    uint64
		TimeNS uint64 `json:"time_ns"`
		Text   string
	}
	kernelLog struct {
		Partial bool
		Why     []string
		Log     []record
	}
)

// look is what hprobe said once.
type look struct {
	threads, one  processes
	memory, churn regions
	files         openFiles
	churned       openFiles
	modules       modules
	log           kernelLog
	mpid, fpid    uint32
	exits         [8]int
}

// lookAt has hprobe say all: of two processes that stay as they are, of one that never does.
func lookAt(ctx context.Context, memory, files, churn uint32) (l look, err error) {
	l.mpid, l.fpid = memory, files
	busy := fmt.Sprint(churn)
	for i, c := range []struct {
		into any
		args []string
	}{
		{&l.threads, []string{"ps", "guest", "--threads"}}, {&l.one, []string{"ps", "guest"}}, {&l.memory, []string{"maps", "guest", fmt.Sprint(memory)}},
		{&l.files, []string{"files", "guest", fmt.Sprint(files)}}, {&l.modules, []string{"modules", "guest"}}, {&l.log, []string{"dmesg", "guest"}},
		{&l.churn, []string{"maps", "guest", busy}}, {&l.churned, []string{"files", "guest", busy}},
	} {
		if l.exits[i], err = hprobe(ctx, c.into, c.args...); err != nil {
			return l, err
		}
	}
	return l, nil
}

// check compares a look with what the guest said before and after it.
func (r *Report) check(l *look, before, after *word, passing []span) {
	for i, partial := range []bool{l.threads.Partial, l.one.Partial, l.memory.Partial, l.files.Partial, l.modules.Partial, l.log.Partial, l.churn.Partial, l.churned.Partial} {
		switch {
		case l.exits[i] != map[bool]int{false: 0, true: 6}[partial]:
			r.wrong("exit status %d, partial %v", l.exits[i], partial)
		case partial && i < 6:
			r.wrong("answer %d is partial: %v", i, [][]string{l.threads.Why, l.one.Why, l.memory.Why, l.files.Why, l.modules.Why, l.log.Why}[i])
		case partial:
			r.Partial++
		}
	}
	r.checkThreads(l, before, after, passing)
	r.same("maps", lines(&l.memory), before.maps[l.mpid], after.maps[l.mpid], &r.Regions)
	var files []string
	for _, f := range l.files.Files {
		files = append(files, fmt.Sprintf("%d\t%s\t%d\t%s", f.FD, f.Flags, f.Position, withDeleted(f.Path, f.Deleted)))
	}
	r.same("files", files, before.files[l.fpid], after.files[l.fpid], &r.Files)
	r.same("modules", l.modules.lines(), before.modules, after.modules, &r.Modules)
	r.checkOrder(&l.churn)
	r.checkLog(&l.log)
}

func (r *Report) same(what string, got, before, after []string, n *int) {
	if !slices.Equal(before, after) {
		r.wrong("the guest's own %s changed: %q, %q", what, before, after)
	}
	for i := range max(len(got), len(before)) {
		switch {
		case i >= len(got):
			r.wrong("%s: nothing of %q", what, before[i])
		case i >= len(before) || got[i] != before[i]:
			r.wrong("%s: %q, not %q", what, got[i], before[min(i, len(before)-1)])
		default:
			*n++
		}
	}
}

func withDeleted(path string, deleted bool) string {
	if deleted {
		return path + " (deleted)"
	}
	return path
}

// lines are those of /proc/PID/maps.
func lines(l *regions) (all []string) {
	for _, m := range l.Maps {
		start, _ := strconv.ParseUint(m.Start, 0, 64)
		end, _ := strconv.ParseUint(m.End, 0, 64)
		line := fmt.Sprintf("%08x-%08x %s %08x %s %d ", start, end, m.Rights, m.Offset, m.Device, m.Inode)
		if m.Path != "" {
			line = fmt.Sprintf("%-73s%s", line, strings.ReplaceAll(withDeleted(m.Path, m.Deleted), "\n", `\012`))
		}
		all = append(all, strings.TrimRight(line, " "))
	}
	return all
}

// lines are those of /proc/modules.
func (l *modules) lines() (all []string) {
	for _, m := range l.Modules {
		users := "-"
		if len(m.UsedBy) > 0 {
			users = strings.Join(m.UsedBy, ",") + ","
		}
		line := fmt.Sprintf("%s %d %d %s %s 0x%016s", m.Name, m.Size, m.Refs, users, m.State, strings.TrimPrefix(m.Address, "0x"))
		if m.Taints != "" {
			line += " (" + m.Taints + ")"
		}
		all = append(all, line)
	}
	return all
}

// checkOrder: what is said of memory that changes all the time makes sense in itself.
func (r *Report) checkOrder(l *regions) {
	var last uint64
	for _, m := range l.Maps {
		start, _ := strconv.ParseUint(m.Start, 0, 64)
		end, _ := strconv.ParseUint(m.End, 0, 64)
		if !l.Partial && (start < last || end <= start) {
			r.wrong("churn's memory: from %s to %s behind %#x", m.Start, m.End, last)
		}
		last = end
	}
	if len(l.Maps) < 8 && !l.Partial {
		r.wrong("churn's memory: %+v", l.Maps)
	}
}

// checkThreads: each thread that was there before and after is there, as it was; and each
// that is there was, or is one of those that came and went.
func (r *Report) checkThreads(l *look, before, after *word, passing []span) {
	if len(l.one.Processes) < 20 {
		r.wrong("only %d processes", len(l.one.Processes))
	}
	for i, list := range [][]process{l.threads.Processes, l.one.Processes} {
		found := map[uint32]*process{}
		for i := range list {
			p := &list[i]
			if found[p.TID] != nil {
				r.wrong("thread %d is there twice", p.TID)
			}
			found[p.TID] = p
			if !before.has(p) && !after.has(p) {
				r.Passing++
				r.checkPassing(p, before, after, passing)
			}
		}
		for tid, t := range before.threads {
			last := after.threads[tid]
			if last == nil || last.started != t.started {
				continue
			}
			if p := found[tid]; p != nil {
				r.checkThread(p, t, last)
				r.Threads++
			} else if i == 0 || t.tid == t.pid {
				r.wrong("thread %d (%q) is not there", tid, t.comm)
			}
		}
	}
}

func (w *word) has(p *process) bool {
	t := w.threads[p.TID]
	return t != nil && t.started == p.Started/1e7
}

// checkPassing: one that the guest named neither before nor after was made between.
func (r *Report) checkPassing(p *process, before, after *word, passing []span) {
	if slices.ContainsFunc(passing, func(s span) bool { return p.TID >= s.from && p.TID <= s.to }) {
		return
	}
	// A thread of the kernel, or one of the guest's own: its shell's, who counts seconds.
	from, to := before.newest(), after.newest()
	if started := p.Started / 1e7; started < from || started > to {
		r.wrong("thread %d (%q, of %d) started at %d, which is not from %d to %d", p.TID, p.Comm, p.PPID, started, from, to)
	}
}

// newest is when the last process of all started: the one that asked.
func (w *word) newest() (last uint64) {
	for _, t := range w.threads {
		last = max(last, t.started)
	}
	return last
}

// atWork are the names of what does not always sleep.
var atWork = []string{"init", "agent", "sh", "sleep", "procs", "load", "churn"}

func (r *Report) checkThread(p *process, before, after *thread) {
	n := &p.Namespaces
	got := map[string]string{"pid": fmt.Sprint(p.PID), "comm": p.Comm, "ppid": fmt.Sprint(p.PPID), "uids": list(p.UIDs[:]), "gids": list(p.GIDs[:]), "numbers": list(p.NSPids),
		"threads": fmt.Sprint(p.Threads), "caps": p.Caps, "name spaces": list([]uint32{n.PID, n.User, n.Mnt, n.Net, n.UTS, n.IPC, n.Cgroup, n.Time})}
	for name, was := range before.fields {
		is := got[name]
		switch {
		case was != after.fields[name]:
		case name == "comm" && p.Kernel && strings.HasPrefix(was, is): // /proc says of a worker what it works on
		case name == "comm" && strings.ToValidUTF8(was, "\ufffd") == is: // JSON has no other bytes
		case is != was:
			r.wrong("thread %d (%q): %s is %q, not %q", p.TID, before.comm, name, is, was)
		}
	}
	if !p.Kernel && !slices.Contains(atWork, p.Comm) && p.State != before.state[:1] {
		r.wrong("thread %d (%q): its state is %s, not %s", p.TID, before.comm, p.State, before.state)
	}
}

func list(all []uint32) string { return strings.Trim(fmt.Sprint(all), "[]") }

// log compares the log with the guest's, while nothing is printed.
func (r *Report) log(ctx context.Context) error {
	want, err := guest(ctx, "dmesg")
	if err != nil {
		return err
	}
	var l kernelLog
	if _, err := hprobe(ctx, &l, "dmesg", "guest"); err != nil {
		return err
	}
	var got []string
	for _, one := range l.Log {
		for line := range strings.SplitSeq(one.Text, "\n") {
			got = append(got, fmt.Sprintf("[%5d.%06d] %s", one.TimeNS/1e9, one.TimeNS%1e9/1e3, line))
		}
	}
	said := strings.Split(strings.TrimSuffix(want, "\n"), "\n")
	if len(got) > len(said) && len(got) > 300 { // the guest's dmesg has room for the last ones only
		got = got[len(got)-len(said):]
	}
	r.same("log", got, said, said, &r.LogRecords)
	return nil
}

// checkLog: no record is torn, and none is missing, but among the last, which were being
// written.
func (r *Report) checkLog(l *kernelLog) {
	for i, one := range l.Log {
		if i > 0 && one.Seq != l.Log[i-1].Seq+1 && i < len(l.Log)-8 {
			r.wrong("log: record %d comes behind %d", one.Seq, l.Log[i-1].Seq)
		}
		var n int
		if _, err := fmt.Sscanf(one.Text, "props %d", &n); err != nil {
			continue
		}
		if want := fmt.Sprintf("props %d %s", n, strings.Repeat(".", 10+(n/4*7+n%4)%300)); one.Text != want {
			r.wrong("log: record %d is %q", one.Seq, one.Text)
		}
		r.LogRecords++
	}
}
