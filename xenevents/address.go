package xenevents

import "fmt"

// PageShift and PageSize describe the 4 KiB frame, the only granularity in
// which Xen's altp2m views remap and protect guest memory.
const (
	PageShift = 12
	PageSize  = 1 << PageShift
	PageMask  = PageSize - 1
)

// GVA is a guest virtual address: it means something only together with an
// AddressSpace.
type GVA uint64

// GPA is a guest physical address, in bytes.
type GPA uint64

// GFN is a guest frame number: a GPA without its offset in the page.
type GFN uint64

// Page returns the address of the first byte of the page that holds a.
func (a GVA) Page() GVA { return a &^ PageMask }

// Offset returns a's offset in its page, in bytes.
func (a GVA) Offset() uint64 { return uint64(a) & PageMask }

// Canonical reports whether a is canonical for 4-level paging (48 bits).
func (a GVA) Canonical() bool {
	top := int64(a) >> 47
	return top == 0 || top == -1
}

func (a GVA) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// GFN returns the frame that holds a.
func (a GPA) GFN() GFN { return GFN(a >> PageShift) }

// Offset returns a's offset in its frame, in bytes.
func (a GPA) Offset() uint64 { return uint64(a) & PageMask }

func (a GPA) String() string { return fmt.Sprintf("%#x", uint64(a)) }

// GPA returns the address of the frame's first byte.
func (f GFN) GPA() GPA { return GPA(f) << PageShift }

func (f GFN) String() string { return fmt.Sprintf("%#x", uint64(f)) }

// PagingMode is how a vCPU translates guest virtual addresses.
type PagingMode uint8

// The paging modes that an AddressSpace can have.
const (
	PagingNone   PagingMode = iota // CR0.PG is clear: a GVA is a GPA
	PagingLegacy                   // 32-bit, 2 levels
	PagingPAE                      // 32-bit, 3 levels
	Paging4Level                   // 64-bit, 4 levels
	Paging5Level                   // 64-bit, 5 levels (CR4.LA57)
)

func (m PagingMode) String() string {
	switch m {
	case PagingNone:
		return "none"
	case PagingLegacy:
		return "legacy"
	case PagingPAE:
		return "pae"
	case Paging4Level:
		return "4-level"
	case Paging5Level:
		return "5-level"
	}
	return fmt.Sprintf("PagingMode(%d)", uint8(m))
}

// AddressSpace is a page-table root without PCID and flag bits, and the mode
// that says how to walk from it. It is comparable, and so serves as a map key.
// With KPTI a process has two: see profiles/guestos for how they belong together.
type AddressSpace struct {
	Root GPA
	Mode PagingMode
}

func (s AddressSpace) String() string { return fmt.Sprintf("%v(%v)", s.Root, s.Mode) }

// Architectural bits that decide the paging mode (Intel SDM vol. 3, 4.1).
const (
	CR0PG   = 1 << 31
	CR0WP   = 1 << 16
	CR4PAE  = 1 << 5
	CR4LA57 = 1 << 12
	EFERLMA = 1 << 10

	cr3Root64  = 0x000f_ffff_ffff_f000
	cr3RootPAE = 0xffff_ffe0
	cr3Root32  = 0xffff_f000
)

// AddressSpaceOf says in which address space a vCPU with these registers runs.
func AddressSpaceOf(r *Registers) AddressSpace {
	switch {
	case r.CR0&CR0PG == 0:
		return AddressSpace{Mode: PagingNone}
	case r.EFER&EFERLMA != 0 && r.CR4&CR4LA57 != 0:
		return AddressSpace{Root: GPA(r.CR3 & cr3Root64), Mode: Paging5Level}
	case r.EFER&EFERLMA != 0:
		return AddressSpace{Root: GPA(r.CR3 & cr3Root64), Mode: Paging4Level}
	case r.CR4&CR4PAE != 0:
		return AddressSpace{Root: GPA(r.CR3 & cr3RootPAE), Mode: PagingPAE}
	}
	return AddressSpace{Root: GPA(r.CR3 & cr3Root32), Mode: PagingLegacy}
}
