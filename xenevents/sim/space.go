package sim

import (
	"encoding/binary"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// Bits of a page-table entry (Intel SDM vol. 3, 4.5).
const (
	ptePresent  = 1 << 0
	pteWritable = 1 << 1
	pteAccessed = 1 << 5
	pteDirty    = 1 << 6
	pteLarge    = 1 << 7
	pteAddr     = 0x000f_ffff_ffff_f000
)

// Space is an address space of the guest: 4-level page tables in its memory.
// Everything in it may be read, written and run; there are no user pages.
type Space struct {
	guest *Guest
	root  xenevents.GFN
}

// NewSpace makes an empty one.
func (g *Guest) NewSpace() *Space {
	g.mu.Lock()
	defer g.mu.Unlock()
	return &Space{guest: g, root: g.frame()}
}

// CR3 is the root's address.
func (s *Space) CR3() uint64 { return uint64(s.root.GPA()) }

// AddressSpace is s in the field's words.
func (s *Space) AddressSpace() xenevents.AddressSpace {
	return xenevents.AddressSpace{Root: s.root.GPA(), Mode: xenevents.Paging4Level}
}

// Map lets a page of 4 KiB be at an address.
func (s *Space) Map(at xenevents.GVA, gfn xenevents.GFN) {
	s.set(at, 1, uint64(gfn.GPA())|ptePresent|pteWritable)
}

// MapLarge lets a page of 2 MiB be at an address; gfn is its first frame.
func (s *Space) MapLarge(at xenevents.GVA, gfn xenevents.GFN) {
	if gfn%superpage != 0 || at%(superpage*xenevents.PageSize) != 0 {
		panic(fmt.Sprintf("sim: %v to %v is no large page", at, gfn))
	}
	s.set(at, 2, uint64(gfn.GPA())|ptePresent|pteWritable|pteLarge)
}

// Unmap takes a page of 4 KiB away.
func (s *Space) Unmap(at xenevents.GVA) { s.set(at, 1, 0) }

// Page gives the space a fresh frame at an address, with content at its start.
func (s *Space) Page(at xenevents.GVA, content ...byte) xenevents.GFN {
	gfn := s.guest.Frame()
	s.Map(at, gfn)
	s.guest.Poke(gfn.GPA(), content)
	return gfn
}

// set writes the entry of the given level (1: of a 4 KiB page), with the tables
// above it.
func (s *Space) set(at xenevents.GVA, level int, value uint64) {
	s.guest.mu.Lock()
	defer s.guest.mu.Unlock()
	table := s.root
	for l := 4; l > level; l-- {
		slot := s.guest.entry(table, at, l)
		e := binary.LittleEndian.Uint64(slot)
		if e&pteLarge != 0 {
			panic(fmt.Sprintf("sim: %v is in a large page", at))
		}
		if e&ptePresent == 0 {
			e = uint64(s.guest.frame().GPA()) | ptePresent | pteWritable
			binary.LittleEndian.PutUint64(slot, e)
		}
		table = xenevents.GPA(e & pteAddr).GFN()
	}
	binary.LittleEndian.PutUint64(s.guest.entry(table, at, level), value)
}

// Tables returns the tables on the walk to an address, root first, as far as they
// are there.
func (s *Space) Tables(at xenevents.GVA) []xenevents.GFN {
	s.guest.mu.Lock()
	defer s.guest.mu.Unlock()
	all := []xenevents.GFN{s.root}
	for l := 4; l > 1; l-- {
		e := binary.LittleEndian.Uint64(s.guest.entry(all[len(all)-1], at, l))
		if e&ptePresent == 0 || e&pteLarge != 0 {
			break
		}
		all = append(all, xenevents.GPA(e&pteAddr).GFN())
	}
	return all
}

// entry is the memory of the table entry that an address is translated by.
func (g *Guest) entry(table xenevents.GFN, at xenevents.GVA, level int) []byte {
	n := uint64(at) >> (12 + 9*(level-1)) & 511
	return g.p2m[table].bytes()[n*8 : n*8+8]
}
