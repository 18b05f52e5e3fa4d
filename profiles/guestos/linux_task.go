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

// taskLayout is where a Task's fields are.
type taskLayout struct {
	current         uint64 // of the per-CPU pointer to the running task, from GS
	pid, tgid, comm uint64
	err             error
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
	return t
}

// CurrentThread is the number of the thread that a vCPU runs (Task.PID), for the
// price of two words. load reads one of guest memory as the vCPU sees it.
func (k *Kernel) CurrentThread(regs *xenevents.Registers, load func(xenevents.GVA) (uint64, error)) (uint32, error) {
	k.taskOnce.Do(func() { k.task = k.findTaskLayout() })
	l := &k.task
	if l.err != nil {
		return 0, fmt.Errorf("the running thread: %w", l.err)
	}
	task, err := load(xenevents.GVA(l.gs(regs) + l.current))
	if err != nil {
		return 0, fmt.Errorf("the running thread: %w", err)
	}
	pid, err := load(xenevents.GVA(task + l.pid))
	if err != nil {
		return 0, fmt.Errorf("the running thread: %w", err)
	}
	return uint32(pid), nil
}

// gs is the kernel's GS base.
func (l *taskLayout) gs(regs *xenevents.Registers) uint64 {
	if regs.CPL() != 0 {
		return regs.ShadowGS
	}
	return regs.GSBase
}

// CurrentTask finds the task that a vCPU runs in the kernel, where its GS base
// is the kernel's. read reads guest memory as the vCPU sees it.
func (k *Kernel) CurrentTask(regs *xenevents.Registers, read func([]byte, xenevents.GVA) (int, error)) (Task, error) {
	k.taskOnce.Do(func() { k.task = k.findTaskLayout() })
	l := &k.task
	if l.err != nil {
		return Task{}, fmt.Errorf("the running task: %w", l.err)
	}
	var b [commLen]byte
	if _, err := read(b[:8], xenevents.GVA(l.gs(regs)+l.current)); err != nil {
		return Task{}, fmt.Errorf("the running task: %w", err)
	}
	task := binary.LittleEndian.Uint64(b[:])
	var t Task
	for _, f := range []struct {
		at uint64
		to *uint32
	}{{l.pid, &t.PID}, {l.tgid, &t.TGID}} {
		if _, err := read(b[:4], xenevents.GVA(task+f.at)); err != nil {
			return Task{}, fmt.Errorf("the running task: %w", err)
		}
		*f.to = binary.LittleEndian.Uint32(b[:])
	}
	if _, err := read(b[:], xenevents.GVA(task+l.comm)); err != nil {
		return Task{}, fmt.Errorf("the running task: %w", err)
	}
	t.Comm = untilNUL(b[:])
	return t, nil
}
