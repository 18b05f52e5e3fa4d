package guestos

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Linux on x86-64 says for each address of its code how to get from there to the
// caller's frame, in tables sorted by address (CONFIG_UNWINDER_ORC;
// arch/x86/include/asm/orc_types.h, arch/x86/kernel/unwind_orc.c).

// orcReg is a register that a frame's place may be said by.
type orcReg uint8

const (
	orcUndefined orcReg = iota
	orcOther            // a number that is not known
	orcPrevSP
	orcAX
	orcDX
	orcDI
	orcBP
	orcSP
	orcR10
	orcR13
	orcBPIndirect
	orcSPIndirect
)

// orcNumbers are the two ways in which Linux numbers them (ORC_REG_*): up to 6.12 at
// least, and in 7.2.
var orcNumbers = [][]orcReg{
	{orcUndefined, orcPrevSP, orcDX, orcDI, orcBP, orcSP, orcR10, orcR13, orcBPIndirect, orcSPIndirect},
	{orcUndefined, orcAX, orcDX, orcSP, orcBP, orcDI, orcR10, orcR13, orcPrevSP, orcSPIndirect, orcBPIndirect},
}

// orcSamples are functions of C, at whose first instruction the caller's frame is at
// SP+8: no type says which numbers a kernel has.
var orcSamples = []string{"vfs_read", "do_sys_openat2", "schedule", "do_exit"}

// orcKind is what a frame is.
type orcKind uint8

const (
	orcUnknown orcKind = iota
	orcEnd             // the first of its stack
	orcCall
	orcRegs        // a struct pt_regs is there
	orcPartialRegs // the end of one is: what the processor itself pushes
)

// Sizes in bytes, of an entry and of the offset that says of which address it is; and
// how many a table may have: Linux has some half a million.
const (
	orcEntrySize = 6
	orcIPSize    = 4
	maxOrcs      = 1 << 23
)

// orc is one entry.
type orc struct {
	kind   orcKind
	spReg  orcReg
	bpReg  orcReg
	sp, bp int64 // offsets
}

// orcTable is where the entries of some code are in the guest.
type orcTable struct {
	ips, entries uint64
	n            uint32
}

// orcLayout is how the kernel writes its tables.
type orcLayout struct {
	err    error
	kernel orcTable
	text   [2]TextRange // of the kernel proper

	kinds         []orcKind // by type
	typePos       uint8
	typeMask      uint16
	endPos        int    // of the bit "end"; -1: there is a type for that
	ip, cs, sp    uint64 // in struct pt_regs
	bp, r10, r13  uint64
	di, dx, ax    uint64
	num           uint64 // in struct module
	orcs, orcIPs  uint64
	modulesHaveIt bool
	numbers       []orcReg
	// known are entries of the kernel proper, by address: a stack is seen again and
	// again, and a search takes twenty reads.
	known map[uint64]orc
}

const maxKnownOrcs = 4096

func (k *Kernel) orcs() (*orcLayout, error) {
	k.orcOnce.Do(func() {
		k.orc.known, k.orc.text = map[uint64]orc{}, k.codeRanges()
		if err := k.findOrcLayout(&k.orc); err != nil {
			k.orc.err = fmt.Errorf("this guest's kernel can't be unwound: %w", err)
		}
	})
	return &k.orc, k.orc.err
}

func (k *Kernel) findOrcLayout(l *orcLayout) error {
	table := func(name string) (from, to uint64, err error) {
		a, err := k.Address("__start_" + name)
		if err != nil {
			return 0, 0, err
		}
		b, err := k.Address("__stop_" + name)
		return uint64(a), uint64(b), err
	}
	ips, ipsEnd, err := table("orc_unwind_ip")
	if err != nil {
		return err
	}
	entries, entriesEnd, err := table("orc_unwind")
	if err != nil {
		return err
	}
	n := (ipsEnd - ips) / orcIPSize
	if n == 0 || n > maxOrcs || (entriesEnd-entries)/orcEntrySize != n {
		return fmt.Errorf("%d addresses and %d bytes of entries are no table", n, entriesEnd-entries)
	}
	l.kernel = orcTable{ips: ips, entries: entries, n: uint32(n)}
	if err := k.findOrcEntry(l); err != nil {
		return err
	}
	for name, to := range map[string]*uint64{"ip": &l.ip, "cs": &l.cs, "sp": &l.sp, "bp": &l.bp, "r10": &l.r10, "r13": &l.r13, "di": &l.di, "dx": &l.dx, "ax": &l.ax} {
		at, err := k.Profile.Field("pt_regs", name)
		if err != nil {
			return err
		}
		*to = at.Offset
	}
	l.modulesHaveIt = true
	for name, to := range map[string]*uint64{"arch.num_orcs": &l.num, "arch.orc_unwind": &l.orcs, "arch.orc_unwind_ip": &l.orcIPs} {
		at, err := k.Profile.Field("module", name)
		if err != nil {
			l.modulesHaveIt = false // nor modules, perhaps
			break
		}
		*to = at.Offset
	}
	return nil
}

// findOrcEntry makes sure that an entry is written in one of the two ways that are
// known: the type, of 2 bits, has had others before it since 6.4, and 3 bits.
func (k *Kernel) findOrcEntry(l *orcLayout) error {
	bits := func(name string) (isf.Type, error) {
		at, err := k.Profile.Field("orc_entry", name)
		if err == nil && at.Offset == 2 { // some say it of a word that begins earlier
			at.Type.BitPos -= 16
			at.Offset = 4
		}
		if err == nil && (at.Offset != 4 || at.Type.Kind != isf.Bitfield || at.Type.BitPos > 15) {
			err = fmt.Errorf("orc_entry.%s is not where it is in any Linux that is known", name)
		}
		return at.Type, err
	}
	kind, err := bits("type")
	if err != nil {
		return err
	}
	l.typePos, l.typeMask = kind.BitPos, 1<<kind.BitLen-1
	l.endPos = -1
	switch kind.BitLen {
	case 2:
		l.kinds = []orcKind{orcCall, orcRegs, orcPartialRegs, orcUnknown}
		end, err := bits("end")
		if err != nil {
			return err
		}
		l.endPos = int(end.BitPos)
	case 3:
		l.kinds = []orcKind{orcUnknown, orcEnd, orcCall, orcRegs, orcPartialRegs, orcUnknown, orcUnknown, orcUnknown}
	default:
		return fmt.Errorf("orc_entry.type has %d bits, and not 2 or 3", kind.BitLen)
	}
	return nil
}

// decode reads an entry.
func (l *orcLayout) decode(b []byte) orc {
	bits := binary.LittleEndian.Uint16(b[4:])
	o := orc{
		kind:  l.kinds[bits>>l.typePos&l.typeMask],
		spReg: l.reg(bits & 15), bpReg: l.reg(bits >> 4 & 15),
		sp: int64(int16(binary.LittleEndian.Uint16(b))), bp: int64(int16(binary.LittleEndian.Uint16(b[2:]))),
	}
	if l.endPos >= 0 && o.spReg == orcUndefined {
		if o.kind = orcUnknown; bits>>l.endPos&1 != 0 {
			o.kind = orcEnd
		}
	}
	return o
}

func (l *orcLayout) reg(number uint16) orcReg {
	if int(number) < len(l.numbers) {
		return l.numbers[number]
	}
	return orcOther
}

// findOrcNumbers finds which numbers the kernel has.
func (k *Kernel) findOrcNumbers(l *orcLayout) error {
	for _, name := range orcSamples {
		at, err := k.Address(name)
		if err != nil || !l.in(uint64(at)) {
			continue
		}
		for _, l.numbers = range orcNumbers {
			o, err := k.searchOrcs(l, l.kernel, uint64(at))
			if err != nil {
				l.numbers = nil
				return err
			}
			if o.kind == orcCall && o.spReg == orcSP && o.sp == 8 {
				return nil
			}
		}
	}
	l.numbers = nil
	return errors.New("this guest's kernel can't be unwound: it numbers registers in no way that is known")
}

// orcAt finds the entry of an address of code.
func (k *Kernel) orcAt(l *orcLayout, at uint64) (o orc, err error) {
	if o, ok := l.known[at]; ok {
		return o, nil
	}
	t, kernel := l.kernel, true
	if !l.in(at) {
		kernel = false
		if t, err = k.moduleOrcs(l, xenevents.GVA(at)); err != nil {
			return o, err
		}
	}
	if o, err = k.searchOrcs(l, t, at); err != nil || !kernel {
		return o, err
	}
	if len(l.known) >= maxKnownOrcs {
		clear(l.known)
	}
	l.known[at] = o
	return o, nil
}

// codeRanges are the code of the kernel proper, and that of its start, which goes.
func (k *Kernel) codeRanges() (all [2]TextRange) {
	for i, names := range [...][2]string{{"_stext", "_etext"}, {"_sinittext", "_einittext"}} {
		from, err := k.Address(names[0])
		to, err2 := k.Address(names[1])
		if err == nil && err2 == nil {
			all[i] = TextRange{from, to}
		}
	}
	return all
}

// in says whether an address is in the kernel proper.
func (l *orcLayout) in(at uint64) bool {
	return l.text[0].Holds(xenevents.GVA(at)) || l.text[1].Holds(xenevents.GVA(at))
}

// searchOrcs finds the last entry that is not behind an address.
func (k *Kernel) searchOrcs(l *orcLayout, t orcTable, at uint64) (o orc, err error) {
	below, above := uint32(0), t.n // the entries before below are not behind at, those from above on are
	for below < above {
		middle := below + (above-below)/2
		place := t.ips + uint64(middle)*orcIPSize
		offset, err := k.read32(place)
		if err != nil {
			return o, fmt.Errorf("the kernel's unwind tables: %w", err)
		}
		if place+uint64(int64(int32(offset))) <= at {
			below = middle + 1
		} else {
			above = middle
		}
	}
	if below == 0 {
		return o, nil
	}
	var b [orcEntrySize]byte
	if _, err := k.mem.ReadGVA(k.Space, b[:], xenevents.GVA(t.entries+uint64(below-1)*orcEntrySize)); err != nil {
		return o, fmt.Errorf("the kernel's unwind tables: %w", err)
	}
	return l.decode(b[:]), nil
}

// moduleOrcs finds the tables of the module that has code at an address.
func (k *Kernel) moduleOrcs(l *orcLayout, at xenevents.GVA) (t orcTable, err error) {
	if !l.modulesHaveIt {
		return t, fmt.Errorf("%v is not in the kernel proper", at)
	}
	m, err := k.ModuleOf(at)
	if err != nil {
		return t, err
	}
	if t.n, err = k.read32(m.at + l.num); err != nil {
		return t, err
	}
	if t.entries, err = k.read64(m.at + l.orcs); err != nil {
		return t, err
	}
	if t.ips, err = k.read64(m.at + l.orcIPs); err != nil {
		return t, err
	}
	if t.n == 0 || t.n > maxOrcs {
		return t, fmt.Errorf("module %q has %d unwind entries", m.Name, t.n)
	}
	return t, nil
}
