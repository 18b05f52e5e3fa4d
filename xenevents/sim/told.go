package sim

import "github.com/hprobe/hprobe/xenevents"

// WriteCR3 switches to another address space.
func WriteCR3(value uint64) Step { return WriteCR(3, value) }

// WriteCR writes CR0, CR3 or CR4.
func WriteCR(index uint32, value uint64) Step {
	return Step{run: func(v *VCPU) (bool, error) {
		to := map[uint32]*uint64{0: &v.regs.CR0, 3: &v.regs.CR3, 4: &v.regs.CR4}[index]
		return v.tell(xenevents.Event{Kind: xenevents.KindControlReg, Index: index, New: value, Old: *to}, func() { *to = value })
	}}
}

// WriteMSR writes an MSR. Those that are among Registers are there; of the others
// the vCPU keeps the values: see VCPU.MSR.
func WriteMSR(index uint32, value uint64) Step {
	return Step{run: func(v *VCPU) (bool, error) {
		return v.tell(xenevents.Event{Kind: xenevents.KindMSR, Index: index, New: value, Old: v.msr(index)}, func() {
			if to := v.register(index); to != nil {
				*to = value
				return
			}
			v.msrs[index] = value
		})
	}}
}

// MSR is the value of an MSR.
func (v *VCPU) MSR(index uint32) uint64 {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	return v.msr(index)
}

func (v *VCPU) msr(index uint32) uint64 {
	if at := v.register(index); at != nil {
		return *at
	}
	return v.msrs[index]
}

// register is the one of Registers that is an MSR; nil where none is.
func (v *VCPU) register(msr uint32) *uint64 {
	return map[uint32]*uint64{
		0xc000_0080: &v.regs.EFER, 0xc000_0081: &v.regs.STAR, 0xc000_0082: &v.regs.LSTAR, 0xc000_0100: &v.regs.FSBase, 0xc000_0101: &v.regs.GSBase,
		0xc000_0102: &v.regs.ShadowGS, 0x174: &v.regs.SysenterCS, 0x175: &v.regs.SysenterESP, 0x176: &v.regs.SysenterEIP,
	}[msr]
}

// GuestRequest asks the monitor by hypercall.
func GuestRequest() Step {
	return Step{run: func(v *VCPU) (bool, error) {
		return v.tell(xenevents.Event{Kind: xenevents.KindGuestRequest}, func() {})
	}}
}

// tell does something that a monitor may want to know of. As in Xen it is done when
// the monitor is told, waiting or not; where writes are held, when it has answered.
func (v *VCPU) tell(ev xenevents.Event, do func()) (bool, error) {
	g := v.guest
	s := g.wants(ev.Kind, ev.Index)
	if s != nil && (ev.Kind == xenevents.KindControlReg || s.OnChange) && ev.New == ev.Old {
		s = nil // with Xen's mask of no bits, no change is no event
	}
	held := g.events != nil && g.events.holds && isWrite(ev.Kind)
	switch {
	case v.answered && v.kind == ev.Kind:
		v.owesWrite = false
		if held && !v.denied {
			do()
		}
		return true, nil
	case s == nil:
		do()
		return true, nil
	case s.Sync || ev.Kind == xenevents.KindMSR:
		if held {
			do = nil
		}
		return true, &stop{event: ev, then: do}
	case held:
		g.accidents = append(g.accidents, "a write was held back, and its vCPU ran on without it")
	}
	if !g.post(v, &ev, false) {
		return false, errFull
	}
	do()
	return true, nil
}

func isWrite(k xenevents.Kind) bool { return k == xenevents.KindControlReg || k == xenevents.KindMSR }

// CPUID asks for a leaf, by the instruction of two bytes where RIP is: EAX and EBX are
// ^leaf and leaf+1, ECX and EDX the same of subleaf. A monitor that watches it must move RIP.
// Else it happens again, with what is in EAX and ECX then.
func CPUID(leaf, subleaf uint32) Step {
	return Step{run: func(v *VCPU) (bool, error) {
		r := &v.regs
		if v.phase == 0 {
			v.phase, r.RAX, r.RCX = 1, uint64(leaf), uint64(subleaf)
		}
		leaf, subleaf := uint32(r.RAX), uint32(r.RCX)
		if g := v.guest; g.wants(xenevents.KindCPUID, 0) != nil {
			was := *r
			cpuid(r, leaf, subleaf)
			ev := xenevents.Event{Kind: xenevents.KindCPUID, Leaf: leaf, Subleaf: subleaf, InsnLen: 2}
			if !g.post(v, &ev, true) {
				*r = was
				return false, errFull
			}
			return false, errPosted
		}
		cpuid(r, leaf, subleaf)
		r.RIP += 2
		return true, nil
	}}
}

func cpuid(r *xenevents.Registers, leaf, subleaf uint32) {
	r.RAX, r.RBX, r.RCX, r.RDX = uint64(^leaf), uint64(leaf+1), uint64(^subleaf), uint64(subleaf+1)
}
