package guestos

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// The guest's mappings are the guest's: what a process may have at most.
const (
	maxMappings   = 1 << 16 // vm.max_map_count is 65,530
	maxTreeDepth  = 16
	mapleNodeSize = 256 // bytes; a node's address is a multiple of it
	maxVMASize    = 1 << 10
)

// vmExec is VM_EXEC of vm_flags (include/linux/mm.h).
const vmExec = 1 << 2

// Memory is the address of a process's struct mm_struct; 0 is that of a thread of
// the kernel, which has none.
type Memory uint64

// Mapping is a range of a process's memory (struct vm_area_struct).
type Mapping struct {
	Memory     Memory
	Start, End xenevents.GVA // End is the first address behind it
	Offset     uint64        // in the file, of Start, in bytes
	Exec       bool
	File       File // 0: it is no file's

	at, flags uint64 // of its struct, and what that has of its rights
}

// At is where a place of the file is in this mapping, if it is.
func (m *Mapping) At(offset uint64) (xenevents.GVA, bool) {
	if offset < m.Offset || offset-m.Offset >= uint64(m.End-m.Start) {
		return 0, false
	}
	return m.Start + xenevents.GVA(offset-m.Offset), true
}

// mappingLayout is where the kernel keeps mappings, by its profile.
type mappingLayout struct {
	err error

	pgd                                  uint64
	start, end, flags, pgoff, file, owns uint64
	vmaSize                              int
	// Up to 6.0 the mappings are in a list, since then in a tree of ranges.
	tree        bool
	first, next uint64
	root        uint64
	nodes       map[uint64]nodeLayout // by maple_type

	tasksMM, tgid, comm, leader, started uint64
}

// nodeLayout is where a node of the tree has its limits and what is below them.
type nodeLayout struct {
	leaf          bool
	pivot, slot   uint64
	pivots, slots int
}

func (k *Kernel) mappings() (*mappingLayout, error) {
	k.mappingOnce.Do(func() {
		k.mapping.err = k.findMappingLayout(&k.mapping)
	})
	return &k.mapping, k.mapping.err
}

func (k *Kernel) findMappingLayout(l *mappingLayout) error {
	for _, f := range []struct {
		of, path string
		to       *uint64
	}{
		{"mm_struct", "pgd", &l.pgd}, {"vm_area_struct", "vm_start", &l.start}, {"vm_area_struct", "vm_end", &l.end}, {"vm_area_struct", "vm_flags", &l.flags},
		{"vm_area_struct", "vm_pgoff", &l.pgoff}, {"vm_area_struct", "vm_file", &l.file}, {"vm_area_struct", "vm_mm", &l.owns},
		{"task_struct", "mm", &l.tasksMM}, {"task_struct", "tgid", &l.tgid}, {"task_struct", "comm", &l.comm}, {"task_struct", "group_leader", &l.leader},
	} {
		at, err := k.Profile.Field(f.of, f.path)
		if err != nil {
			return err
		}
		*f.to = at.Offset
	}
	started, err := k.anyField("task_struct", "start_boottime", "real_start_time", "start_time")
	if err != nil {
		return err
	}
	l.started = started.Offset
	last := max(l.start, l.end, l.flags, l.pgoff, l.file, l.owns) + 8
	if last > maxVMASize {
		return fmt.Errorf("the profile's vm_area_struct has %d bytes", last)
	}
	l.vmaSize = int(last)
	if at, err := k.Profile.Field("mm_struct", "mmap"); err == nil {
		next, err := k.Profile.Field("vm_area_struct", "vm_next")
		l.first, l.next = at.Offset, next.Offset
		return err
	}
	return k.findTreeLayout(l)
}

func (k *Kernel) findTreeLayout(l *mappingLayout) error {
	at, err := k.Profile.Field("mm_struct", "mm_mt.ma_root")
	if err != nil {
		return err
	}
	l.tree, l.root, l.nodes = true, at.Offset, map[uint64]nodeLayout{}
	kinds, err := k.Profile.EnumType("maple_type")
	if err != nil {
		return err
	}
	for _, n := range []struct {
		kind, node string
		leaf       bool
	}{{"maple_leaf_64", "maple_range_64", true}, {"maple_range_64", "maple_range_64", false}, {"maple_arange_64", "maple_arange_64", false}} {
		kind, ok := kinds.Constants[n.kind]
		if !ok {
			return fmt.Errorf("the profile's maple_type has no %s", n.kind)
		}
		pivot, err := k.Profile.Field(n.node, "pivot")
		if err != nil {
			return err
		}
		slot, err := k.Profile.Field(n.node, "slot")
		if err != nil {
			return err
		}
		one := nodeLayout{n.leaf, pivot.Offset, slot.Offset, int(min(pivot.Type.Count, 64)), int(min(slot.Type.Count, 64))}
		if one.pivot+8*uint64(one.pivots) > mapleNodeSize || one.slot+8*uint64(one.slots) > mapleNodeSize || one.slots == 0 {
			return fmt.Errorf("the profile's %s is no node of %d bytes", n.node, mapleNodeSize)
		}
		l.nodes[uint64(kind)] = one
	}
	return nil
}

// errMappings says that the guest's mappings are none that Linux makes.
var errMappings = errors.New("the guest's mappings make no sense")

// Mapping reads one, by the address of its struct.
func (k *Kernel) Mapping(vma uint64) (m Mapping, err error) {
	l, err := k.mappings()
	if err != nil {
		return m, err
	}
	var room [maxVMASize]byte
	b := room[:l.vmaSize]
	if _, err := k.mem.ReadGVA(k.Space, b, xenevents.GVA(vma)); err != nil {
		return m, fmt.Errorf("a mapping of the guest: %w", err)
	}
	get := func(at uint64) uint64 { return binary.LittleEndian.Uint64(b[at:]) }
	m = Mapping{Memory: Memory(get(l.owns)), Start: xenevents.GVA(get(l.start)), End: xenevents.GVA(get(l.end)), Offset: get(l.pgoff) << xenevents.PageShift,
		Exec: get(l.flags)&vmExec != 0, File: File(get(l.file)), at: vma, flags: get(l.flags)}
	if m.Start >= m.End || m.End >= 1<<63 {
		return m, fmt.Errorf("%w: one from %v to %v", errMappings, m.Start, m.End)
	}
	return m, nil
}

// Mappings calls each with the mappings of a process. What the guest changes
// meanwhile may be missed: who must know all has it paused.
func (k *Kernel) Mappings(mm Memory, each func(*Mapping) error) error {
	l, err := k.mappings()
	if err != nil || mm == 0 {
		return err
	}
	one := func(vma uint64) error {
		m, err := k.Mapping(vma)
		if err != nil {
			return err
		}
		if m.Memory != mm {
			return fmt.Errorf("%w: one of another process", errMappings)
		}
		return each(&m)
	}
	if !l.tree {
		return k.listed(l, mm, one)
	}
	w := treeWalk{k: k, l: l, each: one}
	root, err := k.read64(uint64(mm) + l.root)
	if err != nil {
		return fmt.Errorf("the guest's mappings: %w", err)
	}
	return w.node(root, ^uint64(0), 0)
}

func (k *Kernel) listed(l *mappingLayout, mm Memory, each func(uint64) error) error {
	at, err := k.read64(uint64(mm) + l.first)
	for range maxMappings {
		if err != nil {
			return fmt.Errorf("the guest's mappings: %w", err)
		}
		if at == 0 {
			return nil
		}
		if err := each(at); err != nil {
			return err
		}
		at, err = k.read64(at + l.next)
	}
	return fmt.Errorf("%w: their list has no end", errMappings)
}

// treeWalk goes through a maple tree (include/linux/maple_tree.h). An entry of it is
// a node if its low two bits are 2 (the root) or the tree says so (below); the node's
// kind is in bits 3 to 6.
type treeWalk struct {
	k    *Kernel
	l    *mappingLayout
	each func(vma uint64) error
	seen int
}

func (w *treeWalk) node(entry, limit uint64, depth int) error {
	if entry&^uint64(mapleNodeSize-1) == 0 {
		return nil
	}
	n, b, err := w.k.treeNode(w.l, entry, depth)
	if err != nil {
		return err
	}
	for i := range n.slots {
		last := limit
		if i < n.pivots {
			last = binary.LittleEndian.Uint64(b[n.pivot+8*uint64(i):])
		}
		if last == 0 && i > 0 || last > limit {
			return nil // what follows is unused, or the node's own bookkeeping
		}
		if w.seen++; w.seen > 2*maxMappings {
			return fmt.Errorf("%w: there is no end to them", errMappings)
		}
		below := binary.LittleEndian.Uint64(b[n.slot+8*uint64(i):])
		if !n.leaf {
			err = w.node(below, last, depth+1)
		} else if isPointer(below) {
			err = w.each(below)
		}
		if err != nil {
			return err
		}
		if last == limit {
			return nil
		}
	}
	return nil
}

// isPointer says whether a tree's entry points to something: there are others, for
// holes that are kept.
func isPointer(entry uint64) bool { return entry&3 == 0 && entry > xenevents.PageSize }

func (k *Kernel) treeNode(l *mappingLayout, entry uint64, depth int) (n nodeLayout, b *[mapleNodeSize]byte, err error) {
	n, ok := l.nodes[entry>>3&0xf]
	if !ok || depth >= maxTreeDepth {
		return n, nil, fmt.Errorf("%w: a node of kind %d, %d levels deep", errMappings, entry>>3&0xf, depth)
	}
	b = &[mapleNodeSize]byte{}
	if _, err := k.mem.ReadGVA(k.Space, b[:], xenevents.GVA(entry&^uint64(mapleNodeSize-1))); err != nil {
		return n, nil, fmt.Errorf("the guest's mappings: %w", err)
	}
	return n, b, nil
}

// MappingAt finds the mapping that holds an address; false where there is none.
func (k *Kernel) MappingAt(mm Memory, at xenevents.GVA) (m Mapping, found bool, err error) {
	l, err := k.mappings()
	if err != nil || mm == 0 {
		return m, false, err
	}
	var vma uint64
	if l.tree {
		vma, err = k.treeFind(l, mm, uint64(at))
	} else {
		err = k.Mappings(mm, func(x *Mapping) error {
			if at < x.Start || at >= x.End {
				return nil
			}
			m, found = *x, true
			return errEnough
		})
		if errors.Is(err, errEnough) {
			err = nil
		}
		return m, found, err
	}
	if err != nil || vma == 0 {
		return m, false, err
	}
	m, err = k.Mapping(vma)
	return m, err == nil && m.Memory == mm && at >= m.Start && at < m.End, err
}

func (k *Kernel) treeFind(l *mappingLayout, mm Memory, at uint64) (vma uint64, err error) {
	entry, err := k.read64(uint64(mm) + l.root)
	if err != nil {
		return 0, fmt.Errorf("the guest's mappings: %w", err)
	}
	for depth := 0; entry&^uint64(mapleNodeSize-1) != 0; depth++ {
		n, b, err := k.treeNode(l, entry, depth)
		if err != nil {
			return 0, err
		}
		i := 0
		for i < n.pivots {
			last := binary.LittleEndian.Uint64(b[n.pivot+8*uint64(i):])
			if at <= last || last == 0 && i > 0 {
				break
			}
			i++
		}
		if i >= n.slots {
			return 0, nil
		}
		entry = binary.LittleEndian.Uint64(b[n.slot+8*uint64(i):])
		if n.leaf {
			if !isPointer(entry) {
				return 0, nil
			}
			return entry, nil
		}
	}
	return 0, nil
}

// SpaceOf is the address space of a process, with KPTI the kernel's of the two.
func (k *Kernel) SpaceOf(mm Memory) (s xenevents.AddressSpace, err error) {
	l, err := k.mappings()
	if err != nil {
		return s, err
	}
	pgd, err := k.read64(uint64(mm) + l.pgd)
	if err != nil {
		return s, fmt.Errorf("the memory of a process: %w", err)
	}
	t, err := k.mem.Translate(k.Space, xenevents.GVA(pgd))
	if err != nil {
		return s, fmt.Errorf("the page-table root of a process: %w", err)
	}
	return xenevents.AddressSpace{Root: t.GPA &^ xenevents.PageMask, Mode: k.Space.Mode}, nil
}

// Owner is a process and its memory.
type Owner struct {
	PID    uint32 // in the guest's first PID name space
	Comm   string // of its first thread; it is the guest's: quote it
	Memory Memory // 0: a thread of the kernel
	// Started is when, in nanoseconds since the guest's boot: with PID it tells two
	// processes apart that had one number.
	Started uint64
}

// OwnerOf reads that of a thread, by the address of its struct task_struct.
func (k *Kernel) OwnerOf(task uint64) (o Owner, err error) {
	l, err := k.mappings()
	if err != nil {
		return o, err
	}
	mm, err := k.read64(task + l.tasksMM) // of the first thread it goes when that ends
	if err != nil {
		return o, fmt.Errorf("a task of the guest: %w", err)
	}
	o.Memory = Memory(mm)
	if task, err = k.read64(task + l.leader); err != nil {
		return o, fmt.Errorf("a task of the guest: %w", err)
	}
	if o.Started, err = k.read64(task + l.started); err != nil {
		return o, fmt.Errorf("a task of the guest: %w", err)
	}
	if o.PID, err = k.read32(task + l.tgid); err != nil {
		return o, fmt.Errorf("a task of the guest: %w", err)
	}
	if o.Comm, err = k.text(task+l.comm, commLen); err != nil {
		return o, fmt.Errorf("a task of the guest: %w", err)
	}
	return o, nil
}

// RunningOwner is the process that a vCPU runs.
func (k *Kernel) RunningOwner(regs *xenevents.Registers) (o Owner, err error) {
	k.Prepare()
	if k.task.err != nil {
		return o, k.task.err
	}
	task, err := k.read64(kernelGS(regs) + k.task.current)
	if err != nil {
		return o, fmt.Errorf("the running task: %w", err)
	}
	return k.OwnerOf(task)
}

// Owners calls each with all processes that have memory of their own, and goes on
// past those that can't be read.
func (k *Kernel) Owners(each func(*Owner) error) error {
	return k.processes(func(p *process) error {
		o, err := k.OwnerOf(p.task)
		if err != nil || o.Memory == 0 { // it may have ended just now
			return nil
		}
		return each(&o)
	})
}

// ReadIn reads a process's memory, where the guest has it.
func (k *Kernel) ReadIn(space xenevents.AddressSpace, p []byte, at xenevents.GVA) (int, error) {
	return k.mem.ReadGVA(space, p, at)
}
