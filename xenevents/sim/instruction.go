package sim

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/arch/x86/x86asm"

	"github.com/hprobe/hprobe/xenevents"
)

const (
	int3        = 0xcc
	longestInsn = 15
	// trapInt3 is Xen's HVMOP_TRAP_sw_exc.
	trapInt3 = 6
)

// instruction runs the one at RIP: a real one, of those that functions begin and
// end with. Flags are not computed.
func (v *VCPU) instruction() error {
	code, err := v.code()
	if err != nil {
		return err
	}
	if n := int3Length(code); n > 0 {
		return v.int3(n)
	}
	if bytes.HasPrefix(code, []byte{0xf3, 0x0f, 0x1e, 0xfa}) { // endbr64
		v.regs.RIP += 4
		return nil
	}
	x, err := x86asm.Decode(code, 64)
	if err != nil {
		return fmt.Errorf("no instruction that sim knows: % x: %w", code, err)
	}
	return v.execute(&x)
}

// code is what the vCPU fetches at RIP: of the next page only what it must.
func (v *VCPU) code() ([]byte, error) {
	if v.emulate != nil && len(v.emulate.insn) > 0 {
		return v.emulate.insn, nil
	}
	rip := xenevents.GVA(v.regs.RIP)
	code := make([]byte, min(longestInsn, int(xenevents.PageSize-rip.Offset())))
	if err := v.fetch(rip, code); err != nil {
		return nil, err
	}
	if x, err := x86asm.Decode(code, 64); err == nil && x.Op != 0 || len(code) == longestInsn || int3Length(code) > 0 {
		return code, nil // whole: one that is cut off decodes as a prefix alone
	}
	rest := make([]byte, longestInsn-len(code))
	if err := v.fetch(rip+xenevents.GVA(len(code)), rest); err != nil {
		return nil, err
	}
	return append(code, rest...), nil
}

// int3Length is the length of the int3 that code begins with, prefixes included,
// or 0.
func int3Length(code []byte) uint8 {
	for i, b := range code {
		switch {
		case b == int3:
			return uint8(i + 1)
		case b != 0x66 && b != 0x67 && b != 0x2e && b != 0x3e && b&0xf0 != 0x40: // operand, address, segments, REX
			return 0
		}
	}
	return 0
}

func (v *VCPU) int3(length uint8) error {
	if v.guest.wants(xenevents.KindInt3, 0) == nil || v.emulate != nil {
		v.trap(length)
		return nil
	}
	at, err := v.walk(xenevents.GVA(v.regs.RIP), direct)
	if err != nil {
		return err
	}
	return &stop{event: xenevents.Event{Kind: xenevents.KindInt3, GFN: at.GFN(), InsnLen: length, IntType: trapInt3}}
}

// execute does what can fail first: an instruction happens whole or not at all.
func (v *VCPU) execute(x *x86asm.Inst) error {
	r := &v.regs
	next := r.RIP + uint64(x.Len)
	switch x.Op {
	case x86asm.NOP, x86asm.CMP, x86asm.TEST:
	case x86asm.PUSH:
		value, err := v.operand(x, x.Args[0])
		if err == nil {
			err = v.push(value)
		}
		if err != nil {
			return err
		}
		r.RSP -= 8
	case x86asm.POP:
		value, err := v.top()
		if err != nil {
			return err
		}
		r.RSP += 8
		if err := v.assign(x, x.Args[0], value); err != nil {
			return err
		}
	case x86asm.CALL, x86asm.JMP:
		to, err := v.operand(x, x.Args[0])
		if err != nil {
			return err
		}
		if x.Op == x86asm.CALL {
			if err := v.push(next); err != nil {
				return err
			}
			r.RSP -= 8
		}
		next = to
	case x86asm.RET:
		to, err := v.top()
		if err != nil {
			return err
		}
		r.RSP += 8
		next = to
	case x86asm.LEA:
		mem, ok := x.Args[1].(x86asm.Mem)
		if !ok {
			return fmt.Errorf("%v of no memory", x)
		}
		if err := v.assign(x, x.Args[0], v.address(x, mem)); err != nil {
			return err
		}
	case x86asm.STOSB:
		rep := byte(x.Prefix[0]) == 0xf3
		if rep && r.RCX == 0 {
			break
		}
		if err := v.write(xenevents.GVA(r.RDI), []byte{byte(r.RAX)}); err != nil {
			return err
		}
		r.RDI++
		if rep {
			if r.RCX--; r.RCX != 0 {
				next = r.RIP // one repetition at a time
			}
		}
	case x86asm.MOV, x86asm.ADD, x86asm.SUB, x86asm.XOR, x86asm.AND, x86asm.OR:
		if err := v.compute(x); err != nil {
			return err
		}
	default:
		return fmt.Errorf("sim does not know %v", x)
	}
	r.RIP = next
	return nil
}

func (v *VCPU) compute(x *x86asm.Inst) error {
	b, err := v.operand(x, x.Args[1])
	if err != nil {
		return err
	}
	if x.Op == x86asm.MOV {
		return v.assign(x, x.Args[0], b)
	}
	a, err := v.operand(x, x.Args[0])
	if err != nil {
		return err
	}
	switch x.Op {
	case x86asm.ADD:
		a += b
	case x86asm.SUB:
		a -= b
	case x86asm.XOR:
		a ^= b
	case x86asm.AND:
		a &= b
	case x86asm.OR:
		a |= b
	}
	return v.assign(x, x.Args[0], a)
}

// gpr says which register of GPR an argument is, and whether it is its 32-bit half.
func gpr(a x86asm.Arg) (n int, half, ok bool) {
	switch r, _ := a.(x86asm.Reg); {
	case r >= x86asm.RAX && r <= x86asm.R15:
		return int(r - x86asm.RAX), false, true
	case r >= x86asm.EAX && r <= x86asm.R15L:
		return int(r - x86asm.EAX), true, true
	}
	return 0, false, false
}

func (v *VCPU) operand(x *x86asm.Inst, a x86asm.Arg) (uint64, error) {
	if n, half, ok := gpr(a); ok {
		if half {
			return *v.regs.GPR(n) & 0xffff_ffff, nil
		}
		return *v.regs.GPR(n), nil
	}
	switch a := a.(type) {
	case x86asm.Imm:
		return uint64(a), nil
	case x86asm.Rel:
		return v.regs.RIP + uint64(x.Len) + uint64(a), nil
	case x86asm.Mem:
		var b [8]byte
		err := v.read(xenevents.GVA(v.address(x, a)), b[:min(x.MemBytes, 8)])
		return binary.LittleEndian.Uint64(b[:]), err
	}
	return 0, fmt.Errorf("sim does not know the operand %v of %v", a, x)
}

func (v *VCPU) assign(x *x86asm.Inst, a x86asm.Arg, value uint64) error {
	if n, half, ok := gpr(a); ok {
		if half {
			value &= 0xffff_ffff // clears the upper half
		}
		*v.regs.GPR(n) = value
		return nil
	}
	if mem, ok := a.(x86asm.Mem); ok {
		return v.write(xenevents.GVA(v.address(x, mem)), binary.LittleEndian.AppendUint64(nil, value)[:min(x.MemBytes, 8)])
	}
	return fmt.Errorf("sim does not know the operand %v of %v", a, x)
}

func (v *VCPU) address(x *x86asm.Inst, m x86asm.Mem) uint64 {
	at := uint64(m.Disp)
	if m.Base == x86asm.RIP {
		at += v.regs.RIP + uint64(x.Len)
	} else if n, _, ok := gpr(m.Base); ok {
		at += *v.regs.GPR(n)
	}
	if n, _, ok := gpr(m.Index); ok {
		at += *v.regs.GPR(n) * uint64(m.Scale)
	}
	return at
}
