package guestos

import (
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// maxProcesses bounds the guest's list of processes.
const maxProcesses = 1 << 16

// Process is a process of the guest. Comm is the guest's: quote it.
type Process struct {
	PID  uint32 // in the guest's first PID name space
	Comm string // of its first thread
	// Space is its page-table root, with KPTI the kernel's of the two. A thread of
	// the kernel has none: Mode is PagingNone.
	Space xenevents.AddressSpace
}

// errEnough ends a walk early.
var errEnough = errors.New("enough")

// Process finds a running process by its number.
func (k *Kernel) Process(pid uint32) (found Process, err error) {
	err = k.processes(func(p *process) error {
		if p.pid != pid {
			return nil
		}
		if found, err = k.describe(p); err != nil {
			return err
		}
		return errEnough
	})
	switch {
	case errors.Is(err, errEnough):
		return found, nil
	case err == nil:
		err = &absentError{fmt.Sprintf("no process %d runs in the guest", pid)}
	}
	return Process{}, err
}

// ProcessesCalled finds the running processes with a name, cut off after 15 bytes as
// the kernel does: at most limit.
func (k *Kernel) ProcessesCalled(comm string, limit int) (all []Process, err error) {
	comm = CommOf(comm)
	err = k.processes(func(p *process) error {
		if len(all) >= limit {
			return errEnough
		}
		one, err := k.describe(p)
		if err != nil || one.Comm != comm {
			return err
		}
		all = append(all, one)
		return nil
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	return all, err
}

// CommOf is what the kernel keeps of a name.
func CommOf(name string) string { return name[:min(len(name), commLen-1)] }

type process struct {
	task uint64
	pid  uint32
}

// processes walks the kernel's list of processes. The guest runs on meanwhile: one
// that begins or ends may be missed.
func (k *Kernel) processes(each func(*process) error) error {
	k.Prepare()
	if k.task.err != nil {
		return k.task.err
	}
	tasks, err := k.Profile.Field("task_struct", "tasks")
	if err != nil {
		return err
	}
	first, err := k.Address("init_task")
	if err != nil {
		return err
	}
	head := uint64(first) + tasks.Offset
	at := head
	for range maxProcesses {
		if at, err = k.read64(at); err != nil {
			return fmt.Errorf("the guest's list of processes: %w", err)
		}
		if at == head {
			return nil
		}
		p := process{task: at - tasks.Offset}
		if p.pid, err = k.read32(p.task + k.task.tgid); err != nil {
			return fmt.Errorf("the guest's list of processes: %w", err)
		}
		if err := each(&p); err != nil {
			return err
		}
	}
	return fmt.Errorf("the guest's list of processes has no end: %d were looked at", maxProcesses)
}

func (k *Kernel) describe(p *process) (d Process, err error) {
	d.PID = p.pid
	if d.Comm, err = k.text(p.task+k.task.comm, commLen); err != nil {
		return d, fmt.Errorf("process %d: %w", p.pid, err)
	}
	mmAt, err := k.Profile.Field("task_struct", "mm")
	if err != nil {
		return d, err
	}
	pgdAt, err := k.Profile.Field("mm_struct", "pgd")
	if err != nil {
		return d, err
	}
	mm, err := k.read64(p.task + mmAt.Offset)
	if err != nil {
		return d, fmt.Errorf("process %d: %w", p.pid, err)
	}
	if mm == 0 {
		return d, nil
	}
	pgd, err := k.read64(mm + pgdAt.Offset)
	if err != nil {
		return d, fmt.Errorf("process %d: %w", p.pid, err)
	}
	t, err := k.mem.Translate(k.Space, xenevents.GVA(pgd))
	if err != nil {
		return d, fmt.Errorf("the page-table root of process %d: %w", p.pid, err)
	}
	d.Space = xenevents.AddressSpace{Root: t.GPA &^ xenevents.PageMask, Mode: k.Space.Mode}
	return d, nil
}

// Read reads the kernel's memory, also where a vCPU that runs user code does not map
// it (KPTI).
func (k *Kernel) Read(p []byte, at xenevents.GVA) (int, error) {
	return k.mem.ReadGVA(k.Space, p, at)
}
