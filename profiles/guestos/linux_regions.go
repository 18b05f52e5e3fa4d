package guestos

import (
	"context"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Region is a range of a process's memory: a line of /proc/PID/maps.
type Region struct {
	Start, End xenevents.GVA // End is the first address behind it
	Rights     Rights
	Offset     uint64 // in the file, of Start, in bytes
	// File is the file that is mapped; its Path is "[heap]" and the like where it is none
	// but has a use, and "" where it has none.
	File FileName
}

// Rights are VM_READ, VM_WRITE, VM_EXEC and VM_SHARED of vm_flags (include/linux/mm.h).
type Rights uint8

// String writes them as /proc/PID/maps does: "r-xp".
func (r Rights) String() string {
	s := []byte("---p")
	for i, c := range "rwx" {
		if r&(1<<i) != 0 {
			s[i] = byte(c)
		}
	}
	if r&8 != 0 {
		s[3] = 's'
	}
	return string(s)
}

// regionLayout is where the kernel keeps what names memory that is no file's.
type regionLayout struct {
	err error

	ops, private         uint64 // of a vm_area_struct
	special              uint64 // the operations of memory that the kernel maps for a program
	specialName          uint64
	startBrk, brk, stack uint64
	owner                uint64 // of the lock that writers of the mappings hold
}

func (k *Kernel) regions() (*regionLayout, error) {
	k.regionOnce.Do(func() { k.region.err = k.findRegionLayout(&k.region) })
	return &k.region, k.region.err
}

func (k *Kernel) findRegionLayout(l *regionLayout) error {
	if _, err := k.mappings(); err != nil {
		return err
	}
	special, err := k.Address("special_mapping_vmops")
	if err != nil {
		return err
	}
	l.special = uint64(special)
	var lock uint64
	if err := k.locateSome(want(&lock, "mm_struct", "mmap_lock", "mmap_sem"), want(&l.owner, "rw_semaphore", "owner")); err != nil {
		return err
	}
	if l.owner != noField && lock != noField { // a real-time kernel has another lock
		l.owner += lock
	}
	return k.locate(want(&l.ops, "vm_area_struct", "vm_ops"), want(&l.private, "vm_area_struct", "vm_private_data"), want(&l.specialName, "vm_special_mapping", "name"),
		want(&l.startBrk, "mm_struct", "start_brk"), want(&l.brk, "mm_struct", "brk"), want(&l.stack, "mm_struct", "start_stack"))
}

// maxNames bounds how many bytes the names in one answer have.
const maxNames = 16 << 20

// Regions reads the memory of a process as /proc/PID/maps shows it, but for the kernel's own
// [vsyscall], which is in no process's list. It does not hold the guest: it reads until
// twice the same is there. With a *PartialError comes what was found; a context's deadline
// makes one. A thread of the kernel has none.
func (k *Kernel) Regions(ctx context.Context, pid uint32) ([]Region, error) {
	l, err := k.regions()
	if err != nil {
		return nil, err
	}
	return ofProcess(ctx, k, pid, "the memory of the process", func(p *Status) ([]Region, error) { return k.readRegions(ctx, l, p) }, func(x, y Region) bool { return x == y })
}

// readRegions reads all once: it fails where anything of it can't be read.
func (k *Kernel) readRegions(ctx context.Context, l *regionLayout, p *Status) (all []Region, err error) {
	mm, err := k.read64(p.task + k.mapping.tasksMM)
	if err != nil || mm == 0 {
		return nil, err
	}
	var bounds [3]uint64
	for i, at := range []uint64{l.startBrk, l.brk, l.stack} {
		if bounds[i], err = k.read64(mm + at); err != nil {
			return nil, err
		}
	}
	if err := k.unlocked(l, mm); err != nil {
		return nil, err
	}
	names := fileNames{k: k}
	err = k.Mappings(Memory(mm), func(m *Mapping) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		one := Region{Start: m.Start, End: m.End, Rights: Rights(m.flags & 0xf)}
		var err error
		if m.File != 0 {
			one.Offset = m.Offset
			one.File, err = names.of(m.File)
		} else {
			one.File.Path, err = k.use(l, m, bounds)
		}
		all = append(all, one)
		return err
	})
	if err != nil {
		return all, err
	}
	return all, k.unchanged(p)
}

// unlocked fails where the guest is changing a process's mappings. A vCPU that does not run
// may do so for a while: then they are twice the same, and half done.
//
// The owner of the lock is a writer if its lowest bit is 0 (kernel/locking/rwsem.c; before
// 5.3 linux/rwsem.h), and nobody is 0.
func (k *Kernel) unlocked(l *regionLayout, mm uint64) error {
	if l.owner == noField {
		return nil
	}
	owner, err := k.read64(mm + l.owner)
	if err == nil && owner != 0 && owner&1 == 0 {
		err = errChanged
	}
	return err
}

// use is what memory that is no file's is for, as the kernel's arch_vma_name and
// show_map_vma say it.
func (k *Kernel) use(l *regionLayout, m *Mapping, bounds [3]uint64) (string, error) {
	ops, err := k.read64(m.at + l.ops)
	if err != nil {
		return "", err
	}
	if ops == l.special {
		special, err := k.read64(m.at + l.private)
		if err != nil {
			return "", err
		}
		name, err := k.read64(special + l.specialName)
		if err != nil {
			return "", err
		}
		return k.text(name, 64)
	}
	startBrk, brk, stack := xenevents.GVA(bounds[0]), xenevents.GVA(bounds[1]), xenevents.GVA(bounds[2])
	switch {
	case m.Start < brk && m.End > startBrk:
		return "[heap]", nil
	case m.Start <= stack && m.End >= stack:
		return "[stack]", nil
	}
	return "", nil
}

// fileNames are the names of files, each read once.
type fileNames struct {
	k     *Kernel
	known map[File]FileName
	bytes int
}

var errNames = errors.New("the names of its files are too long")

func (n *fileNames) of(f File) (FileName, error) {
	if name, ok := n.known[f]; ok {
		return name, nil
	}
	name, err := n.k.FileName(f)
	if err != nil {
		return name, err
	}
	if n.bytes += len(name.Path); n.bytes > maxNames {
		return name, errNames
	}
	if n.known == nil {
		n.known = map[File]FileName{}
	}
	n.known[f] = name
	return name, nil
}

// findTask finds a process by its number in the guest's first PID name space.
func (k *Kernel) findTask(ctx context.Context, r *reasons, pid uint32) (*Status, error) {
	l, err := k.statuses()
	if err != nil {
		return nil, err
	}
	all, err := k.taskList("the list of processes", l.head, l.tasks, func(task uint64) (Status, error) {
		id, err := k.identity(task)
		return Status{TID: id.tid, Started: id.started, task: task}, err
	}).all(ctx, r)
	if err != nil {
		return nil, err
	}
	for i := range all {
		if all[i].TID == pid {
			return &all[i], nil
		}
	}
	if err := r.err(); err != nil {
		return nil, fmt.Errorf("no process %d was found in the guest: %w", pid, err)
	}
	return nil, &absentError{fmt.Sprintf("no process %d runs in the guest", pid)}
}

// unchanged fails where a process is not there any more: what was read of it may be
// another's.
func (k *Kernel) unchanged(p *Status) error {
	if now, err := k.identity(p.task); err != nil || now != (identity{p.TID, p.Started}) {
		return &absentError{fmt.Sprintf("process %d ended while it was read", p.TID)}
	}
	return nil
}

// result is the error of an answer: a process that is gone has none, and else what went
// wrong makes it partial.
func (r *reasons) result(ctx context.Context, what string, err error) error {
	switch {
	case errors.Is(err, ErrAbsent), errors.Is(err, isf.ErrNotFound), errors.Is(err, context.Canceled):
		return err
	case ctx.Err() != nil:
		if stop, err := r.ended(ctx, what); !stop {
			return err
		}
	case err != nil:
		r.add("%s: %v", what, err)
	}
	return r.err()
}
