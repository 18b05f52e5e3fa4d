package build

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// What bounds the search of a dump, which may be full of what looks like page tables:
// entries of those in all, and kernels that are read.
const (
	maxSearch  = 16 * maxPages
	maxKernels = 8
)

// Dump is of what a profile says that it was captured (isf.Meta) that was made of a dump,
// in place of a guest's UUID: nothing says whose that is.
const Dump = "dump"

// FromDump makes the profile of the kernel in a dump of a guest's memory, as FromGuest
// does of a guest that runs. A dump has no registers that say where the kernel and its
// page tables are, so those are searched for: see dumpSearch. The dump belongs to
// FromDump until it returns; nothing may write to it meanwhile. source is what the
// profile says that it is of.
//
// Where there is more than one kernel (of before and after kexec, say), it is the one
// whose page tables come first. It fails with ErrNoKernel where there is none, and with
// what FromFile says of an image without kallsyms or BTF.
func FromDump(ctx context.Context, dump xenevents.Memory, source string) (*isf.Profile, error) {
	top, err := dump.MaxGFN()
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	s := dumpSearch{dump: dump, read: guestmem.NewReader(dump), top: top, left: maxSearch, seen: map[xenevents.GPA]bool{}}
	p, err := s.profile(ctx, source)
	if err != nil {
		return nil, fmt.Errorf("profile of the kernel in a dump: %w", err)
	}
	return p, nil
}

// dumpSearch looks for the kernel in a dump: for a page that is the root of page tables
// which map one. Every process has such a page, and the kernel itself; they share the
// tables below, which map the same kernel at the same addresses. Each such table is
// looked at once.
//
// With five levels of tables the root itself does not do for a walk of four, but the
// table that its last entry points to does.
type dumpSearch struct {
	dump xenevents.Memory
	read *guestmem.Reader
	top  xenevents.GFN
	left int // entries of page tables, of maxSearch
	seen map[xenevents.GPA]bool
}

func (s *dumpSearch) profile(ctx context.Context, source string) (*isf.Profile, error) {
	var magic [len(elf.ELFMAG)]byte
	if _, err := s.dump.ReadGPA(magic[:], 0); err == nil && string(magic[:]) == elf.ELFMAG {
		return nil, fmt.Errorf("%w: it is an ELF file, as xl dump-core makes, and no raw dump; %s", ErrNoKernel, rawDump)
	}
	// What is wrong with the first kernel, or else with the last tables that map none.
	var broken error
	why := fmt.Errorf("none of its %d pages is the root of an x86-64 Linux's page tables", uint64(s.top)+1)
	for gfn, kernels := xenevents.GFN(0), 0; gfn <= s.top && kernels < maxKernels; gfn++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if !s.isRoot(gfn.GPA()) {
			continue
		}
		m, err := s.kernel(gfn.GPA())
		if err != nil {
			why = fmt.Errorf("the page tables at %v: %w", gfn.GPA(), err)
			if s.left <= 0 {
				break
			}
			continue
		}
		kernels++
		p, err := m.profile(ctx, isf.Meta{Source: source, Captured: Dump}, nil)
		if err == nil || ctx.Err() != nil {
			return p, err
		}
		if broken == nil {
			broken = fmt.Errorf("the kernel that the page tables at %v map: %w", gfn.GPA(), err)
		}
	}
	if broken != nil {
		return nil, broken
	}
	return nil, fmt.Errorf("%w: %w; %s", ErrNoKernel, why, rawDump)
}

const rawDump = "it must be all of a guest's physical memory as it is, from address 0 on, without headers and with nothing left out"

// The last entry of a root is for the highest 512 GiB of addresses, and the last but one
// of the table there for the GiB that the kernel is in.
const (
	rootEntry   = 511 * 8
	kernelEntry = 510 * 8
)

// isRoot says whether a page looks like the root of page tables that were not seen yet
// and have something mapped where kernels are.
func (s *dumpSearch) isRoot(page xenevents.GPA) bool {
	table, ok := s.table(page + rootEntry)
	if !ok || s.seen[table] {
		return false
	}
	if _, ok := s.table(table + kernelEntry); !ok {
		return false
	}
	s.seen[table] = true
	return true
}

// table is the table in the dump that an entry points to, if it does.
func (s *dumpSearch) table(entry xenevents.GPA) (xenevents.GPA, bool) {
	// Without paging an address is a physical one.
	e, err := s.read.ReadUint64(xenevents.AddressSpace{}, xenevents.GVA(entry))
	if err != nil || e&(entryPresent|entryLarge) != entryPresent {
		return 0, false
	}
	table := xenevents.GPA(e & entryAddress)
	return table, table.GFN() <= s.top
}

// Bits of a page-table entry (Intel SDM vol. 3, 4.5).
const (
	entryPresent = 1 << 0
	entryLarge   = 1 << 7
	entryAddress = 0x000f_ffff_ffff_f000
)

func (s *dumpSearch) kernel(root xenevents.GPA) (*memory, error) {
	space := xenevents.AddressSpace{Root: root, Mode: xenevents.Paging4Level}
	most := min(s.left, maxPages)
	w := tableWalk{mem: s.read, from: s.dump, left: most}
	m, err := w.kernel(space, func(symbols []isf.Symbol) error { return s.baseIs(space, symbols) })
	s.left -= most - w.left
	if s.left <= 0 {
		return nil, errors.New("with those before, more page tables than a guest has look like a kernel's")
	}
	return m, err
}

// baseIs has symbols fit a kernel by what that itself takes for its physical place: its
// variable phys_base is what __pa adds to an address less 0xffffffff80000000
// (arch/x86/include/asm/page_64.h). The page tables must have it there as well.
func (s *dumpSearch) baseIs(space xenevents.AddressSpace, symbols []isf.Symbol) error {
	at, ok := addressOf(symbols, "phys_base")
	if !ok {
		return errors.New("kallsyms: no phys_base in it")
	}
	t, err := s.read.Translate(space, xenevents.GVA(at))
	if err != nil {
		return fmt.Errorf("phys_base: %w", err)
	}
	base, err := s.read.ReadUint64(space, xenevents.GVA(at))
	if err != nil {
		return fmt.Errorf("phys_base: %w", err)
	}
	if own := xenevents.GPA(at - kernelText + base); own != t.GPA {
		return fmt.Errorf("kallsyms: phys_base is at %v, and by what is there at %v: the table is of another kernel", t.GPA, own)
	}
	return nil
}
