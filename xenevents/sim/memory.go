package sim

import (
	"encoding/binary"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// direct is an access that asks for nothing: through view 0, without rights, and
// leaving no accessed or dirty bits.
const direct xenevents.Access = 1 << 7

// read fills p from a guest virtual address, as a load does.
func (v *VCPU) read(at xenevents.GVA, p []byte) error {
	return v.access(at, p, xenevents.AccessR, func(mem, part []byte) { copy(part, mem) })
}

// fetch is read for instructions.
func (v *VCPU) fetch(at xenevents.GVA, p []byte) error {
	return v.access(at, p, xenevents.AccessX, func(mem, part []byte) { copy(part, mem) })
}

// write is read's counterpart.
func (v *VCPU) write(at xenevents.GVA, p []byte) error {
	return v.access(at, p, xenevents.AccessW, func(mem, part []byte) { copy(mem, part) })
}

func (v *VCPU) push(value uint64) error {
	return v.write(xenevents.GVA(v.regs.RSP-8), binary.LittleEndian.AppendUint64(nil, value))
}

func (v *VCPU) top() (uint64, error) {
	var b [8]byte
	err := v.read(xenevents.GVA(v.regs.RSP), b[:])
	return binary.LittleEndian.Uint64(b[:]), err
}

// access finds all pages before it moves anything: an access that crosses pages
// happens whole or not at all.
func (v *VCPU) access(at xenevents.GVA, p []byte, need xenevents.Access, move func(mem, part []byte)) error {
	type piece struct{ mem, part []byte }
	var pieces []piece
	for len(p) > 0 {
		gpa, err := v.walk(at, need)
		if err != nil {
			return err
		}
		f, err := v.phys(gpa, need, at, xenevents.FaultGLAValid|xenevents.FaultWithGLA)
		if err != nil {
			return err
		}
		n := min(len(p), int(xenevents.PageSize-gpa.Offset()))
		pieces = append(pieces, piece{f.bytes()[gpa.Offset():], p[:n]})
		p, at = p[n:], at+xenevents.GVA(n)
	}
	for _, x := range pieces {
		move(x.mem, x.part)
	}
	return nil
}

// walk translates an address by the guest's tables, which it sees through the
// vCPU's view as well.
func (v *VCPU) walk(at xenevents.GVA, need xenevents.Access) (xenevents.GPA, error) {
	table := xenevents.AddressSpaceOf(&v.regs).Root
	for level := 4; level >= 1; level-- {
		from := table + xenevents.GPA(uint64(at)>>(12+9*(level-1))&511*8)
		slot, err := v.tableEntry(from, need, xenevents.AccessR, at)
		if err != nil {
			return 0, err
		}
		e := binary.LittleEndian.Uint64(slot)
		if e&ptePresent == 0 || !at.Canonical() {
			return 0, fmt.Errorf("%v: %w", at, xenevents.ErrNotMapped)
		}
		leaf := level == 1 || level == 2 && e&pteLarge != 0
		bits := uint64(pteAccessed)
		if leaf && need == xenevents.AccessW {
			bits |= pteDirty
		}
		if e&bits != bits && need != direct {
			if slot, err = v.tableEntry(from, need, xenevents.AccessW, at); err != nil {
				return 0, err
			}
			binary.LittleEndian.PutUint64(slot, e|bits)
		}
		if leaf {
			mask := xenevents.GPA(1)<<(12+9*(level-1)) - 1
			return xenevents.GPA(e&pteAddr)&^mask | xenevents.GPA(at)&mask, nil
		}
		table = xenevents.GPA(e & pteAddr)
	}
	panic("unreachable: level 1 is a leaf")
}

func (v *VCPU) tableEntry(from xenevents.GPA, purpose, need xenevents.Access, at xenevents.GVA) ([]byte, error) {
	if purpose == direct {
		need = direct
	}
	f, err := v.phys(from, need, at, xenevents.FaultGLAValid|xenevents.FaultInGPT)
	if err != nil {
		return nil, err
	}
	return f.bytes()[from.Offset() : from.Offset()+8], nil
}

// phys finds the frame that the vCPU's view shows, or stops it at one whose rights
// forbid the access. Where nobody listens Xen gives the rights back instead.
func (v *VCPU) phys(at xenevents.GPA, need xenevents.Access, gla xenevents.GVA, fault xenevents.Fault) (*frame, error) {
	g := v.guest
	if v.emulate != nil || need == direct {
		if f := g.p2m[at.GFN()]; f != nil {
			return f, nil
		}
		return nil, fmt.Errorf("gfn %v: %w", at.GFN(), xenevents.ErrAbsent)
	}
	e, err := g.look(v.view, at.GFN())
	if err != nil || e.access&need == need {
		return e.frame, err
	}
	if g.events == nil {
		return e.frame, g.setAccess(v.view, at.GFN(), xenevents.AccessRWX)
	}
	tried := need
	if need == xenevents.AccessW {
		tried = xenevents.AccessRW
	}
	return nil, &stop{event: xenevents.Event{
		Kind: xenevents.KindMemAccess, GFN: at.GFN(), Offset: uint32(at.Offset()), GLA: gla, Access: tried, Fault: fault,
	}}
}
