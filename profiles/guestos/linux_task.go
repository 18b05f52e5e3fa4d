package guestos

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Task is one thread of the guest. Comm is the guest's: quote it.
type Task struct {
	PID  uint32 // the thread's number
	TGID uint32 // the process's
	Comm string
}

// taskLayout is where a task's fields are.
type taskLayout struct {
	current         uint64 // of the per-CPU pointer to the running task, from GS
	pid, tgid, comm uint64
	err             error
	// What only some ask for has an error of its own.
	cred, uid, start uint64
	uidErr, startErr error
}

// perCPUOffsetLimit tells the two ways apart in which Linux links per-CPU
// variables: up to 6.14 at 0, so that a symbol is an offset from GS; since then
// at the kernel's own addresses, with GS's base holding the difference.
const perCPUOffsetLimit = 1 << 32

// commLen is TASK_COMM_LEN.
const commLen = 16

func (k *Kernel) findTaskLayout() (t taskLayout) {
	addr, err := k.Profile.Address("current_task")
	if errors.Is(err, isf.ErrNotFound) {
		// 6.2 to 6.14: a member of pcpu_hot.
		var at isf.Location
		if addr, err = k.Profile.Address("pcpu_hot"); err == nil {
			at, err = k.Profile.Field("pcpu_hot", "current_task")
			addr += at.Offset
		}
	}
	if err != nil {
		return taskLayout{err: err}
	}
	if addr >= perCPUOffsetLimit {
		addr += k.Slide
	}
	t.current = addr
	for _, f := range []struct {
		name string
		to   *uint64
	}{{"pid", &t.pid}, {"tgid", &t.tgid}, {"comm", &t.comm}} {
		at, err := k.Profile.Field("task_struct", f.name)
		if err != nil {
			return taskLayout{err: err}
		}
		*f.to = at.Offset
	}
	t.cred, t.uid, t.uidErr = k.findUID()
	// Time since boot: its name until 5.4 was another one. Where neither is
	// there, the time that leaves out the guest's suspends will do.
	at, err := k.anyField("task_struct", "start_boottime", "real_start_time", "start_time")
	t.start, t.startErr = at.Offset, err
	return t
}

// findUID finds the user by whose rights a task acts on others: a number in a
// struct, or, before 3.14 without CONFIG_UIDGID_STRICT_TYPE_CHECKS, by itself.
func (k *Kernel) findUID() (cred, uid uint64, err error) {
	at, err := k.Profile.Field("task_struct", "cred")
	if err != nil {
		return 0, 0, err
	}
	number, err := k.anyField("cred", "uid.val", "uid")
	return at.Offset, number.Offset, err
}

// anyField finds the first of several fields that the kernel has.
func (k *Kernel) anyField(of string, paths ...string) (at isf.Location, err error) {
	for _, p := range paths {
		if at, err = k.Profile.Field(of, p); err == nil {
			return at, nil
		}
	}
	return at, err
}

// Reader reads guest memory as a vCPU sees it.
type Reader func(p []byte, at xenevents.GVA) (int, error)

// Running is the task that a vCPU runs in the kernel. Each field is read when it
// is asked for; it is of use while the vCPU waits.
type Running struct {
	layout *taskLayout
	read   Reader
	gs     uint64
	task   uint64 // 0: not read yet
	buf    [commLen]byte
}

// Prepare looks up in the profile what Running, CurrentThread and CurrentTask need. The
// first hit would wait for it, some milliseconds.
func (k *Kernel) Prepare() { k.taskOnce.Do(func() { k.task = k.findTaskLayout() }) }

// Running finds the task of a vCPU, where its GS base is the kernel's.
func (k *Kernel) Running(regs *xenevents.Registers, read Reader) Running {
	k.Prepare()
	return Running{layout: &k.task, read: read, gs: kernelGS(regs)}
}

// kernelGS is the kernel's GS base.
func kernelGS(regs *xenevents.Registers) uint64 {
	if regs.CPL() != 0 {
		return regs.ShadowGS
	}
	return regs.GSBase
}

// CurrentThread is the number of the thread that a vCPU runs (Task.PID), for the
// price of two words. load reads one of guest memory as the vCPU sees it: with KPTI a
// program does not see the kernel, so where one runs the kernel's own tables are used.
func (k *Kernel) CurrentThread(regs *xenevents.Registers, load func(xenevents.GVA) (uint64, error)) (uint32, error) {
	k.Prepare()
	l := &k.task
	if regs.CPL() != 0 {
		load = k.loadWord
	}
	if l.err != nil {
		return 0, fmt.Errorf("the running thread: %w", l.err)
	}
	task, err := load(xenevents.GVA(kernelGS(regs) + l.current))
	if err != nil {
		return 0, fmt.Errorf("the running thread: %w", err)
	}
	pid, err := load(xenevents.GVA(task + l.pid))
	if err != nil {
		return 0, fmt.Errorf("the running thread: %w", err)
	}
	return uint32(pid), nil
}

// Address is where the task_struct is.
func (r *Running) Address() (uint64, error) {
	if r.layout.err != nil {
		return 0, fmt.Errorf("the running task: %w", r.layout.err)
	}
	if r.task == 0 {
		if _, err := r.read(r.buf[:8], xenevents.GVA(r.gs+r.layout.current)); err != nil {
			return 0, fmt.Errorf("the running task: %w", err)
		}
		r.task = binary.LittleEndian.Uint64(r.buf[:8])
	}
	return r.task, nil
}

func (r *Running) field(n int, offset uint64) ([]byte, error) {
	if _, err := r.Address(); err != nil {
		return nil, err
	}
	if _, err := r.read(r.buf[:n], xenevents.GVA(r.task+offset)); err != nil {
		return nil, fmt.Errorf("the running task: %w", err)
	}
	return r.buf[:n], nil
}

func (r *Running) number(offset uint64) (uint32, error) {
	b, err := r.field(4, offset)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(b), nil
}

// PID is the process's number, in the guest's first PID name space: what Linux
// calls a tgid.
func (r *Running) PID() (uint32, error) { return r.number(r.layout.tgid) }

// TID is the thread's: what Linux calls a pid.
func (r *Running) TID() (uint32, error) { return r.number(r.layout.pid) }

// Comm is the thread's name. It is the guest's: quote it.
func (r *Running) Comm() (string, error) {
	b, err := r.field(commLen, r.layout.comm)
	return untilNUL(b), err
}

// UID is the real user, in the guest's first user name space.
func (r *Running) UID() (uint32, error) {
	if r.layout.uidErr != nil {
		return 0, fmt.Errorf("the running task: %w", r.layout.uidErr)
	}
	b, err := r.field(8, r.layout.cred)
	if err != nil {
		return 0, err
	}
	cred := binary.LittleEndian.Uint64(b)
	if _, err := r.read(r.buf[:4], xenevents.GVA(cred+r.layout.uid)); err != nil {
		return 0, fmt.Errorf("the running task's user: %w", err)
	}
	return binary.LittleEndian.Uint32(r.buf[:4]), nil
}

// StartTime is when the thread was started, in nanoseconds since the guest's boot:
// with PID it tells two processes apart that had one number.
func (r *Running) StartTime() (uint64, error) {
	if r.layout.startErr != nil {
		return 0, fmt.Errorf("the running task: %w", r.layout.startErr)
	}
	b, err := r.field(8, r.layout.start)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// CurrentTask finds the task that a vCPU runs in the kernel, where its GS base
// is the kernel's. read reads guest memory as the vCPU sees it.
func (k *Kernel) CurrentTask(regs *xenevents.Registers, read func([]byte, xenevents.GVA) (int, error)) (t Task, err error) {
	r := k.Running(regs, read)
	if t.PID, err = r.TID(); err != nil {
		return Task{}, err
	}
	if t.TGID, err = r.PID(); err != nil {
		return Task{}, err
	}
	if t.Comm, err = r.Comm(); err != nil {
		return Task{}, err
	}
	return t, nil
}
