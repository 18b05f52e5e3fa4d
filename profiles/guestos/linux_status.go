package guestos

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
)

// Status is what the kernel keeps of a process, or of one of its threads: what
// /proc/PID/status says. All of it is the guest's.
type Status struct {
	PID    uint32 // the process's number, in the guest's first PID name space
	TID    uint32 // the thread's: that of the process for its first
	Parent uint32 // the parent process's number; 0 is none
	// Numbers are the thread's in all PID name spaces that it is in, the first one's first.
	Numbers []uint32
	Comm    string // quote it
	State   State
	Kernel  bool   // it is a thread of the kernel
	Threads uint32 // of the process
	// UID and GID are the real, effective, saved and file system's ones, in the guest's
	// first user name space.
	UID, GID   [4]uint32
	Caps       uint64 // the effective capabilities
	Started    uint64 // in nanoseconds since the guest's boot
	Namespaces Namespaces
	// Why says what of it could not be read; "" is nothing.
	Why string

	task uint64
}

// State is the letter that /proc has for what a thread does: R runs, S and D sleep, I is an
// idle thread of the kernel, T and t are stopped, P is parked, Z and X have ended.
type State byte

func (s State) String() string { return string(rune(s)) }

// The kernel's states (include/linux/sched.h, the same since Linux 4.14), of which those in
// reported have the letters of stateLetters, by their highest bit (fs/proc/array.c).
const (
	stateLetters = "RSDTtXZP"
	reported     = 0x7f
	sleepsDeep   = 0x2   // TASK_UNINTERRUPTIBLE
	noLoad       = 0x400 // TASK_NOLOAD
	lockWait     = 0x1000
	frozen       = 0x8000
)

func stateOf(state, exit uint32) State {
	switch {
	case state&(sleepsDeep|noLoad) == sleepsDeep|noLoad:
		return 'I'
	case state&(lockWait|frozen) != 0:
		return 'D'
	}
	return State(stateLetters[bits.Len32((state|exit)&reported)])
}

// kernelThread is PF_KTHREAD of a task's flags (include/linux/sched.h).
const kernelThread = 0x0020_0000

// maxLevels is how deep PID name spaces may nest (MAX_PID_NS_LEVEL).
const maxLevels = 32

// statusLayout is where the kernel keeps it.
type statusLayout struct {
	err error

	part                                                 part
	tasks, thread, pid, tgid, comm, state, exit, flags   uint64
	parent, signal, cred, number, nsproxy, started       uint64
	threadHead, threads                                  uint64 // of a signal_struct
	uids, gids                                           [4]uint64
	caps, userSpace                                      uint64 // of a cred
	level, numbers, numberSize, numberNr, numberIn, head uint64
	spaces                                               namespaceLayout
}

func (k *Kernel) statuses() (*statusLayout, error) {
	k.statusOnce.Do(func() { k.status.err = k.findStatusLayout(&k.status) })
	return &k.status, k.status.err
}

func (k *Kernel) findStatusLayout(l *statusLayout) error {
	first, err := k.Address("init_task")
	if err != nil {
		return err
	}
	const task = "task_struct"
	if err := k.locate(want(&l.tasks, task, "tasks"), want(&l.thread, task, "thread_node"), want(&l.pid, task, "pid"), want(&l.tgid, task, "tgid"),
		want(&l.comm, task, "comm"), want(&l.state, task, "__state", "state"), want(&l.exit, task, "exit_state"), want(&l.flags, task, "flags"),
		want(&l.parent, task, "real_parent"), want(&l.signal, task, "signal"), want(&l.cred, task, "real_cred"),
		want(&l.number, task, "thread_pid"), want(&l.nsproxy, task, "nsproxy"), want(&l.started, task, "start_boottime", "real_start_time", "start_time"),
		want(&l.threadHead, "signal_struct", "thread_head"), want(&l.threads, "signal_struct", "nr_threads"),
		want(&l.caps, "cred", "cap_effective"), want(&l.userSpace, "cred", "user_ns"),
		want(&l.level, "pid", "level"), want(&l.numbers, "pid", "numbers"), want(&l.numberNr, "upid", "nr"), want(&l.numberIn, "upid", "ns")); err != nil {
		return err
	}
	for i, which := range []string{"", "e", "s", "fs"} {
		if err := k.locate(want(&l.uids[i], "cred", which+"uid.val", which+"uid"), want(&l.gids[i], "cred", which+"gid.val", which+"gid")); err != nil {
			return err
		}
	}
	if l.numberSize, err = k.Profile.SizeOf(isf.Type{Kind: isf.Struct, Name: "upid"}); err != nil {
		return err
	}
	if l.numberSize > 64 || max(l.numberNr, l.numberIn)+8 > l.numberSize+4 {
		return fmt.Errorf("the profile's upid has %d bytes", l.numberSize)
	}
	l.head = uint64(first) + l.tasks
	if l.part, err = partOf(l.tasks, l.tasks+8, l.thread, l.thread+8, l.pid, l.tgid, l.comm, l.comm+commLen-8, l.state, l.exit, l.flags,
		l.parent, l.signal, l.cred, l.number, l.nsproxy, l.started); err != nil {
		return err
	}
	return k.findNamespaceLayout(&l.spaces)
}

// Statuses reads what the guest's kernel has of all processes, and with threads of each of
// their threads, in the order of its lists. It does not hold the guest: what is there from
// the call's beginning to its end is in the answer, and what comes or goes meanwhile may
// be. With a *PartialError comes what was found; a context's deadline makes one.
func (k *Kernel) Statuses(ctx context.Context, threads bool) ([]Status, error) {
	l, err := k.statuses()
	if err != nil {
		return nil, err
	}
	var r reasons
	all, err := k.taskList("the list of processes", l.head, l.tasks, func(task uint64) (Status, error) { return k.statusAt(ctx, l, task) }).all(ctx, &r)
	if err != nil {
		return nil, err
	}
	if threads {
		if all, err = k.withThreads(ctx, l, &r, all); err != nil {
			return nil, err
		}
	}
	for i := range all {
		if s := &all[i]; s.Why != "" {
			r.add("of process %d: %s", s.PID, s.Why)
		}
	}
	return all, r.err()
}

// taskList is a list of tasks, by where in them their places in it are.
func (k *Kernel) taskList(what string, head, node uint64, read func(task uint64) (Status, error)) *list[Status] {
	return &list[Status]{k: k, what: what, head: head, limit: maxProcesses,
		read: func(at uint64) (Status, error) { return read(at - node) },
		same: func(at uint64, was Status) bool {
			now, err := k.identity(at - node)
			return err == nil && now == (identity{was.TID, was.Started})
		}}
}

// identity tells a task from all others.
type identity struct {
	tid     uint32
	started uint64
}

func (k *Kernel) identity(task uint64) (id identity, err error) {
	if id.tid, err = k.read32(task + k.status.pid); err == nil {
		id.started, err = k.read64(task + k.status.started)
	}
	return id, err
}

// withThreads puts behind each process its other threads.
func (k *Kernel) withThreads(ctx context.Context, l *statusLayout, r *reasons, processes []Status) (all []Status, err error) {
	for i := range processes {
		p := &processes[i]
		all = append(all, *p)
		if p.Threads < 2 {
			continue
		}
		signal, err := k.read64(p.task + l.signal)
		if err != nil {
			continue // it ended
		}
		if len(all) > maxProcesses {
			r.add("there are more than %d threads", maxProcesses)
			break
		}
		own := reasons{waited: r.waited}
		threads, err := k.taskList(fmt.Sprintf("the list of threads of process %d", p.PID), signal+l.threadHead, l.thread,
			func(task uint64) (Status, error) { return k.statusAt(ctx, l, task) }).all(ctx, &own)
		r.waited = own.waited
		if err != nil {
			return nil, err
		}
		if now, err := k.identity(p.task); err != nil || now != (identity{p.TID, p.Started}) {
			continue // it ended meanwhile, and its list is none
		}
		for _, why := range own.Why {
			r.add("%s", why)
		}
		all = append(all, slices.DeleteFunc(threads, func(t Status) bool { return t.TID == p.TID })...)
	}
	return all, nil
}

// statusAt reads one task. What is torn is read anew; what can't be read is in Why.
func (k *Kernel) statusAt(ctx context.Context, l *statusLayout, task uint64) (s Status, err error) {
	s.task = task
	for range tries {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		before, err := k.record(l.part, task)
		if err != nil {
			return s, err
		}
		s = k.decodeStatus(l, task, &before)
		why := k.follow(l, &before, &s)
		after, err := k.record(l.part, task)
		if err != nil {
			return s, err
		}
		if l.same(&before, &after) {
			s.Why = why
			return s, nil
		}
	}
	s.Why = errChanged.Error()
	return s, nil
}

// same says whether two reads are of the same task with the same belongings. These do not
// change while they are somebody's, but are another one's when they are no longer his.
func (l *statusLayout) same(a, b *record) bool {
	for _, at := range []uint64{l.parent, l.signal, l.cred, l.number, l.nsproxy, l.started, l.comm, l.comm + 8} {
		if a.u64(at) != b.u64(at) {
			return false
		}
	}
	return a.u32(l.pid) == b.u32(l.pid) && a.u32(l.tgid) == b.u32(l.tgid)
}

func (k *Kernel) decodeStatus(l *statusLayout, task uint64, b *record) Status {
	comm := b.b[l.comm-b.from:][:commLen]
	return Status{PID: b.u32(l.tgid), TID: b.u32(l.pid), Comm: untilNUL(bytes.Clone(comm)), State: stateOf(b.u32(l.state), b.u32(l.exit)),
		Kernel: b.u32(l.flags)&kernelThread != 0, Started: b.u64(l.started), task: task}
}

// follow reads what is not in the task itself, all that can be read of it.
func (k *Kernel) follow(l *statusLayout, b *record, s *Status) (why string) {
	var all []string
	failed := func(what string, err error) {
		if err != nil {
			all = append(all, fmt.Sprintf("its %s: %v", what, err))
		}
	}
	var err error
	s.Parent, err = k.read32(b.u64(l.parent) + l.tgid)
	failed("parent", err)
	s.Threads, err = k.read32(b.u64(l.signal) + l.threads)
	failed("threads", err)
	failed("credentials", k.credentials(l, b.u64(l.cred), s))
	failed("numbers", k.numbers(l, b.u64(l.number), s))
	failed("name spaces", k.namespaces(&l.spaces, b.u64(l.nsproxy), &s.Namespaces))
	return strings.Join(all, ", ")
}

func (k *Kernel) credentials(l *statusLayout, cred uint64, s *Status) error {
	for i := range 4 {
		var err error
		if s.UID[i], err = k.read32(cred + l.uids[i]); err != nil {
			return err
		}
		if s.GID[i], err = k.read32(cred + l.gids[i]); err != nil {
			return err
		}
	}
	var err error
	if s.Caps, err = k.read64(cred + l.caps); err != nil {
		return err
	}
	space, err := k.read64(cred + l.userSpace)
	if err != nil {
		return err
	}
	s.Namespaces.User, err = k.read32(space + l.spaces.user)
	return err
}

// numbers reads a thread's struct pid: its number in each PID name space, the innermost of
// which is its own. One that has ended has none.
func (k *Kernel) numbers(l *statusLayout, pid uint64, s *Status) error {
	if pid == 0 {
		return nil
	}
	level, err := k.read32(pid + l.level)
	if err != nil {
		return err
	}
	if level > maxLevels {
		return fmt.Errorf("they are of %d PID name spaces", level)
	}
	for i := range uint64(level) + 1 {
		at := pid + l.numbers + i*l.numberSize
		n, err := k.read32(at + l.numberNr)
		if err != nil {
			return err
		}
		s.Numbers = append(s.Numbers, n)
		if i < uint64(level) {
			continue
		}
		space, err := k.read64(at + l.numberIn)
		if err != nil {
			return err
		}
		s.Namespaces.PID, err = k.read32(space + l.spaces.pid)
		return err
	}
	return nil
}
