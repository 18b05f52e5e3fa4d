package replay

import (
	"encoding/binary"
	"errors"

	"github.com/hprobe/hprobe/xenevents"
)

// words are the 64-bit registers of a set, in the order of a recording.
func words(r *xenevents.Registers) [34]*uint64 {
	return [34]*uint64{
		&r.RAX, &r.RCX, &r.RDX, &r.RBX, &r.RSP, &r.RBP, &r.RSI, &r.RDI,
		&r.R8, &r.R9, &r.R10, &r.R11, &r.R12, &r.R13, &r.R14, &r.R15,
		&r.RIP, &r.RFLAGS, &r.CR0, &r.CR2, &r.CR3, &r.CR4, &r.DR6, &r.DR7,
		&r.EFER, &r.STAR, &r.LSTAR, &r.SysenterCS, &r.SysenterESP, &r.SysenterEIP,
		&r.FSBase, &r.GSBase, &r.ShadowGS, &r.GDTRBase,
	}
}

// registersSize is of a set of registers, in bytes.
const registersSize = 34*8 + 2*2

func appendRegisters(b []byte, r *xenevents.Registers) []byte {
	for _, w := range words(r) {
		b = binary.LittleEndian.AppendUint64(b, *w)
	}
	b = binary.LittleEndian.AppendUint16(b, r.CS)
	return binary.LittleEndian.AppendUint16(b, r.SS)
}

func registersOf(b []byte) (r xenevents.Registers) {
	for _, w := range words(&r) {
		*w = binary.LittleEndian.Uint64(b)
		b = b[8:]
	}
	r.CS, r.SS = binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:])
	return r
}

// numbers are the fields of an event that are at most 32 bits, and those of 64.
const eventSize = 8 + registersSize + 5 + 6*4 + 4*8

// appendEvent writes one; its Cookie is the driver's, and nobody else's.
func appendEvent(b []byte, ticks uint64, e *xenevents.Event) []byte {
	b = binary.LittleEndian.AppendUint64(b, ticks)
	b = appendRegisters(b, &e.Regs)
	flags := byte(e.Access) << 1
	if e.Paused {
		flags |= 1
	}
	b = append(b, byte(e.Kind), flags, byte(e.Fault), e.InsnLen, e.IntType)
	for _, n := range [...]uint32{uint32(e.VCPU), uint32(e.View), e.Offset, e.Index, e.Leaf, e.Subleaf} {
		b = binary.LittleEndian.AppendUint32(b, n)
	}
	for _, n := range [...]uint64{uint64(e.GFN), uint64(e.GLA), e.New, e.Old} {
		b = binary.LittleEndian.AppendUint64(b, n)
	}
	return b
}

func eventOf(b []byte) (ticks uint64, e xenevents.Event, err error) {
	if len(b) != eventSize {
		return 0, e, errors.New("an event of another size")
	}
	ticks = binary.LittleEndian.Uint64(b)
	e.Regs = registersOf(b[8:])
	b = b[8+registersSize:]
	e.Kind, e.Paused, e.Access, e.Fault, e.InsnLen, e.IntType = xenevents.Kind(b[0]), b[1]&1 != 0, xenevents.Access(b[1]>>1), xenevents.Fault(b[2]), b[3], b[4]
	var small [6]uint32
	for i := range small {
		small[i] = binary.LittleEndian.Uint32(b[5+4*i:])
	}
	b = b[5+4*len(small):]
	e.VCPU, e.View, e.Offset, e.Index, e.Leaf, e.Subleaf = xenevents.VCPU(small[0]), xenevents.View(small[1]), small[2], small[3], small[4], small[5]
	e.GFN, e.GLA = xenevents.GFN(binary.LittleEndian.Uint64(b)), xenevents.GVA(binary.LittleEndian.Uint64(b[8:]))
	e.New, e.Old = binary.LittleEndian.Uint64(b[16:]), binary.LittleEndian.Uint64(b[24:])
	switch {
	case e.VCPU >= maxVCPUs, e.GFN >= maxGFN:
		return 0, e, errors.New("an event of a vCPU or a frame that no guest has")
	case e.Kind > xenevents.KindOther:
		return 0, e, errors.New("an event of a kind that there is not")
	}
	return ticks, e, nil
}
