package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// Guest is what the profile of a running guest's kernel is made from.
type Guest interface {
	xenevents.Memory
	xenevents.VCPUs
	xenevents.Pauser
}

// What x86-64 Linux is linked to and where it may be (Documentation/arch/x86/x86_64/mm.rst,
// arch/x86/include/asm/page_64_types.h: KERNEL_IMAGE_SIZE with KASLR), and where _text
// is without a slide: CONFIG_PHYSICAL_START, which is 16 MiB unless somebody wants it
// otherwise (arch/x86/Kconfig). A slide is a multiple of CONFIG_PHYSICAL_ALIGN.
const (
	kernelEnd  = kernelText + 1<<30
	linkedText = kernelText + 16<<20
	slideStep  = 2 << 20
)

// What bounds the work on a guest, whose page tables may be anything.
const (
	maxVCPUs = 512
	// maxPages is how many entries of page tables are looked at, for mapped pages and
	// holes; a kernel has less than 20,000, most of them of 4 KiB.
	maxPages = 1 << 16
	// maxPieces is how many ranges with the same rights there are; a kernel has
	// about ten.
	maxPieces = 256
	// maxRead is how many bytes of whole pieces are read: a kernel has some 60 MiB.
	maxRead = 256 << 20
	// maxBTF and maxNotes are in bytes: of kernels they have 6 MiB and 512.
	maxBTF   = 16 << 20
	maxNotes = 64 << 10
	// minMapped is more than the page tables have, in bytes, that a process uses in
	// user mode under KPTI: two large pages of entry code (arch/x86/mm/pti.c).
	minMapped = 6 << 20
)

// ErrNoKernel says that a guest runs no kernel that a profile can be made of, as far as
// its vCPUs show.
var ErrNoKernel = errors.New("no kernel found in the guest's memory")

// FromGuest makes the profile of the kernel that a guest runs, from what is in the
// guest's memory, as FromFile would of its image: the slide of KASLR is taken off.
// It needs a kernel whose _text is linked to 0xffffffff81000000, as those of
// distributions are. info is the guest's: the profile says that it was captured from it.
//
// The guest is paused while its page tables are walked, for a few milliseconds, and
// runs while its memory is read: of that nothing changes once the kernel has started.
// It fails with ErrNoKernel where no vCPU runs a Linux kernel (yet), and with what
// FromFile says of an image without kallsyms or BTF.
func FromGuest(ctx context.Context, dom Guest, info *xenevents.DomainInfo) (*isf.Profile, error) {
	m, err := pausedKernel(ctx, dom, int(info.MaxVCPU)+1)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	p, err := m.profile(ctx, isf.Meta{Source: fmt.Sprintf("memory of domain %d (%s)", info.ID, info.Name), Captured: info.UUIDString()}, nil)
	if err != nil {
		return nil, fmt.Errorf("profile of the guest's kernel: %w", err)
	}
	return p, nil
}

// findKernel finds what a guest has mapped where kernels are, by the registers of the
// first vCPU that has one.
func findKernel(ctx context.Context, dom Guest, vcpus int) (*memory, error) {
	w := tableWalk{mem: guestmem.NewReader(dom), from: dom, left: maxPages}
	why := errors.New("no vCPU has a system call entry: is it booted?")
	for v := range min(vcpus, maxVCPUs) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		regs, err := dom.Registers(xenevents.VCPU(v))
		if err != nil && !errors.Is(err, xenevents.ErrVCPUDown) {
			return nil, err
		}
		if err != nil || regs.LSTAR == 0 {
			continue
		}
		if regs.LSTAR < kernelText || regs.LSTAR >= kernelEnd {
			why = fmt.Errorf("the system call entry is at %#x, where no x86-64 Linux is", regs.LSTAR)
			continue
		}
		spaces, err := guestmem.KernelSpaces(&regs)
		if err != nil {
			return nil, err
		}
		for _, space := range spaces {
			m, err := w.kernel(space, entryIs(regs.LSTAR))
			if err == nil && m.at(regs.LSTAR, 1) == nil {
				err = fmt.Errorf("the system call entry, %#x: %w", regs.LSTAR, xenevents.ErrNotMapped)
			}
			if err == nil {
				return m, nil
			}
			why = err
		}
	}
	return nil, fmt.Errorf("%w: %w", ErrNoKernel, why)
}

// tableWalk goes through the page tables of a guest, for as long as it has entries left.
type tableWalk struct {
	mem  *guestmem.Reader
	from xenevents.Memory
	left int
}

// physical is a piece's bytes: a range of the guest's physical memory.
type physical struct {
	mem xenevents.Memory
	at  xenevents.GPA
}

// ReadAt is io.ReaderAt's.
func (p physical) ReadAt(b []byte, off int64) (int, error) {
	return p.mem.ReadGPA(b, p.at+xenevents.GPA(off))
}

// pieces are the ranges that a space has mapped where kernels are, each with the same
// rights and in one range of physical memory, which the kernel is.
func (w *tableWalk) pieces(space xenevents.AddressSpace) ([]*piece, error) {
	var all []*piece
	var last guestmem.Translation
	for at := uint64(kernelText); at < kernelEnd; {
		if w.left--; w.left < 0 {
			return nil, errors.New("its page tables have more entries than a kernel's")
		}
		t, err := w.mem.Translate(space, xenevents.GVA(at))
		size := uint64(slideStep) // of what a table that can't be read would map
		var hole *guestmem.NotMappedError
		switch {
		case err == nil:
			size = t.PageSize
		case errors.As(err, &hole) && hole.Level >= 1 && hole.Level <= 3:
			size = 1 << (12 + 9*(hole.Level-1))
		case hole != nil:
			return nil, err // nothing at all is there
		}
		next := at&^(size-1) + size
		if err == nil {
			p := len(all) - 1
			if p >= 0 && all[p].addr+all[p].size == at && last.GPA+xenevents.GPA(last.PageSize) == t.GPA && last.NX == t.NX && last.Writable == t.Writable {
				all[p].size += next - at
			} else if len(all) == maxPieces {
				return nil, errors.New("it has more ranges mapped than a kernel")
			} else {
				all = append(all, &piece{name: fmt.Sprintf("memory at %#x", at), addr: at, size: next - at, data: physical{w.from, t.GPA}, mapped: true, symbols: true})
				all[len(all)-1].rank(&t)
			}
			last = t
		}
		at = next
	}
	return all, nil
}

// rank says in which order the pieces are searched for the table of symbols, which is in
// read-only data; while the kernel starts, all may be of the same kind.
func (p *piece) rank(t *guestmem.Translation) {
	switch {
	case t.NX && !t.Writable:
		p.order = 0
	case t.NX:
		p.order = 1
	default:
		p.order = 2
	}
}

// kernel is the kernel that a space maps, as far as its page tables show. fits says
// whether the symbols that will be found in it, where they are, are its own.
func (w *tableWalk) kernel(space xenevents.AddressSpace, fits func([]isf.Symbol) error) (*memory, error) {
	pieces, err := w.pieces(space)
	if err != nil {
		return nil, err
	}
	total := uint64(0)
	for _, p := range pieces {
		total += p.size
	}
	if total < minMapped {
		return nil, fmt.Errorf("only %d bytes are mapped where the kernel is", total)
	}
	slices.SortStableFunc(pieces, func(a, b *piece) int { return a.order - b.order })
	return &memory{pieces: pieces, left: maxRead, located: func(m *memory, symbols []isf.Symbol) error { return m.locate(symbols, fits) }}, nil
}

// entryIs has symbols fit a kernel, where they were found, by what LSTAR points to (arch/x86/kernel/cpu/common.c, syscall_init). Since
// Linux 4.20 it is in the kernel itself.
func entryIs(lstar uint64) func([]isf.Symbol) error {
	return func(symbols []isf.Symbol) error {
		if !slices.Contains(symbols, isf.Symbol{Name: "entry_SYSCALL_64", Addr: lstar}) {
			return fmt.Errorf("kallsyms: the system call entry is at %#x, and by the table it is not: the table is of another kernel", lstar)
		}
		return nil
	}
}

// locate finds the slide by where _text is, takes it off the symbols, if they fit, and
// finds by these what an image has sections for.
func (m *memory) locate(symbols []isf.Symbol, fits func([]isf.Symbol) error) error {
	text, ok := addressOf(symbols, "_text")
	if !ok {
		return errors.New("kallsyms: no _text in it")
	}
	if m.slide = text - linkedText; m.slide%slideStep != 0 || m.slide >= kernelEnd-linkedText {
		return fmt.Errorf("_text is at %#x, which is no place that KASLR moves one from %#x to", text, uint64(linkedText))
	}
	if err := fits(symbols); err != nil {
		return err
	}
	for i := range symbols {
		// What is lower is a number, or an offset in the per-CPU memory of kernels
		// before Linux 6.15: KASLR moves neither.
		if symbols[i].Addr >= kernelText {
			symbols[i].Addr -= m.slide
		}
	}
	// include/asm-generic/vmlinux.lds.h has these symbols.
	if notes := m.between(symbols, ".notes", "__start_notes", "__stop_notes", maxNotes); notes != nil {
		notes.notes = true
		m.pieces = append(m.pieces, notes)
	}
	if types := m.between(symbols, ".BTF", "__start_BTF", "__stop_BTF", maxBTF); types != nil {
		m.pieces = append(m.pieces, types)
	}
	return nil
}

// between is the part of a piece that is between two symbols, or nil.
func (m *memory) between(symbols []isf.Symbol, name, from, to string, most uint64) *piece {
	start, ok := addressOf(symbols, from)
	end, ok2 := addressOf(symbols, to)
	if !ok || !ok2 || end <= start || end-start > most {
		return nil
	}
	start, end = start+m.slide, end+m.slide
	for _, p := range m.pieces {
		if start >= p.addr && end-p.addr <= p.size {
			return &piece{name: name, addr: start, size: end - start, data: io.NewSectionReader(p.data, int64(start-p.addr), int64(end-start))}
		}
	}
	return nil
}
