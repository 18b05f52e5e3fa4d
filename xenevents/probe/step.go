package probe

import (
	"bytes"
	"fmt"

	"golang.org/x/arch/x86/x86asm"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// endbr64 is the landing pad that kernels with IBT begin functions with. To a
// CPU without CET, and to Xen's emulator, it is a NOP.
var endbr64 = []byte{0xf3, 0x0f, 0x1e, 0xfa}

// insn is a decoded instruction.
type insn struct {
	length  int
	text    string
	emulate bool // Xen's emulator was seen to do it right
	repeats bool // a string instruction with rep: a step is one repetition
	call    bool // a call: see Skip
}

// decode decodes the instruction at the start of b, which may hold less than 15 bytes.
func decode(b []byte) (insn, error) {
	if bytes.HasPrefix(b, endbr64) {
		return insn{length: len(endbr64), text: "endbr64", emulate: true}, nil
	}
	x, err := parse(b)
	if err != nil {
		return insn{}, fmt.Errorf("no instruction that hprobe knows: % x: %w", b[:min(len(b), shadow.MaxInsn)], err)
	}
	return insn{length: x.Len, text: x86asm.GNUSyntax(x, 0, nil), emulate: emulated(&x), repeats: repeats(&x), call: x.Op == x86asm.CALL}, nil
}

// lengthOf is the length of the instruction at the start of b.
func lengthOf(b []byte) (int, error) {
	if bytes.HasPrefix(b, endbr64) {
		return len(endbr64), nil
	}
	x, err := parse(b)
	return x.Len, err
}

// parse is x86asm.Decode without what that gets wrong.
func parse(b []byte) (x86asm.Inst, error) {
	x, err := x86asm.Decode(b, 64)
	switch {
	case err != nil:
	case x.Op == 0: // a prefix alone: what comes behind it is cut off or unknown
		err = x86asm.ErrUnrecognized
	case x.Op == x86asm.VZEROUPPER, x.Op == x86asm.VZEROALL: // have no operands: it takes a byte too many
		x.Len--
	case vector(&x) && len(b) < shadow.MaxInsn: // it goes on past the end of b, as if there were a zero
		var whole [shadow.MaxInsn]byte
		copy(whole[:], b)
		if x, err = x86asm.Decode(whole[:], 64); err == nil && x.Len > len(b) {
			err = x86asm.ErrTruncated
		}
	}
	return x, err
}

// vector says whether an instruction has a VEX or EVEX prefix.
func vector(x *x86asm.Inst) bool {
	switch x.Prefix[0] & 0xff {
	case 0x62, 0xc4, 0xc5:
		return true
	}
	return false
}

// repeats says whether it is a string instruction with a repeat prefix.
func repeats(x *x86asm.Inst) bool {
	op := byte(x.Opcode >> 24)
	if op&^1 != 0xa4 && op&^1 != 0xa6 && (op < 0xaa || op > 0xaf) && (op < 0x6c || op > 0x6f) {
		return false
	}
	for _, p := range x.Prefix {
		if b := byte(p); b == 0xf2 || b == 0xf3 {
			return true
		}
	}
	return false
}

// emulated is the list of instructions that are answered with an emulate reply:
// each form of them runs so in the lab on every Xen as the CPU runs it itself
// (test/xen, TestHosts/…/StepOver). Anything else is stepped. That has reasons even for
// what Xen's emulator gets right, see docs/internals/stepover.md: memory other
// than the stack, above all.
func emulated(x *x86asm.Inst) bool {
	short := false
	for _, p := range x.Prefix {
		switch b := byte(p); {
		case b == 0xf0, b == 0xf2, b == 0xf3: // lock, repne, rep: an invalid opcode, or something else
			return false
		case b == 0, x86asm.Prefix(b).IsREX(), x.Op == x86asm.NOP:
		case b == 0x66:
			short = true
		default:
			return false
		}
	}
	a, b := kindOf(x.Args[0]), kindOf(x.Args[1])
	if short && a != reg16 && b != reg16 {
		return false
	}
	switch x.Op {
	case x86asm.NOP:
		return true
	case x86asm.PUSH:
		return a == reg64 || a == constant
	case x86asm.POP:
		return a == reg64
	case x86asm.RET, x86asm.LEAVE:
		return !short
	case x86asm.CALL, x86asm.JMP:
		return a == reg64 || a == relative
	case x86asm.JA, x86asm.JAE, x86asm.JB, x86asm.JBE, x86asm.JE, x86asm.JG, x86asm.JGE, x86asm.JL, x86asm.JLE,
		x86asm.JNE, x86asm.JNO, x86asm.JNP, x86asm.JNS, x86asm.JO, x86asm.JP, x86asm.JS:
		return a == relative
	case x86asm.LEA:
		return a == reg32 || a == reg64
	case x86asm.BSWAP:
		return a == reg32 || a == reg64
	case x86asm.CWDE, x86asm.CDQE, x86asm.CDQ, x86asm.CQO:
		return true
	case x86asm.MOV, x86asm.MOVZX, x86asm.MOVSX, x86asm.MOVSXD, x86asm.XCHG,
		x86asm.ADD, x86asm.ADC, x86asm.SUB, x86asm.SBB, x86asm.XOR, x86asm.AND, x86asm.OR, x86asm.CMP, x86asm.TEST,
		x86asm.INC, x86asm.DEC, x86asm.NEG, x86asm.NOT,
		x86asm.SHL, x86asm.SHR, x86asm.SAR, x86asm.ROL, x86asm.ROR, x86asm.BT, x86asm.BTS, x86asm.BTR, x86asm.BTC,
		x86asm.CMOVA, x86asm.CMOVAE, x86asm.CMOVB, x86asm.CMOVBE, x86asm.CMOVE, x86asm.CMOVG, x86asm.CMOVGE, x86asm.CMOVL, x86asm.CMOVLE,
		x86asm.CMOVNE, x86asm.CMOVNO, x86asm.CMOVNP, x86asm.CMOVNS, x86asm.CMOVO, x86asm.CMOVP, x86asm.CMOVS,
		x86asm.SETA, x86asm.SETAE, x86asm.SETB, x86asm.SETBE, x86asm.SETE, x86asm.SETG, x86asm.SETGE, x86asm.SETL, x86asm.SETLE,
		x86asm.SETNE, x86asm.SETNO, x86asm.SETNP, x86asm.SETNS, x86asm.SETO, x86asm.SETP, x86asm.SETS:
		return a.plain() && (b.plain() || x.Args[1] == nil)
	}
	return false
}

// kind is of an operand.
type kind uint8

const (
	other kind = iota // memory, and registers that are none of these
	reg8
	reg16
	reg32
	reg64
	constant
	relative
)

// plain says whether it is a general purpose register or a constant.
func (k kind) plain() bool { return k >= reg8 && k <= constant }

func kindOf(a x86asm.Arg) kind {
	switch a := a.(type) {
	case x86asm.Imm:
		return constant
	case x86asm.Rel:
		return relative
	case x86asm.Reg:
		switch {
		case a >= x86asm.AL && a <= x86asm.R15B:
			return reg8
		case a >= x86asm.AX && a <= x86asm.R15W:
			return reg16
		case a >= x86asm.EAX && a <= x86asm.R15L:
			return reg32
		case a >= x86asm.RAX && a <= x86asm.R15:
			return reg64
		}
	}
	return other
}

// stored is the value that an instruction is about to write, where it is one that
// stores a register of 8 bytes and does nothing else.
func stored(b []byte, regs *xenevents.Registers) (uint64, bool) {
	x, err := x86asm.Decode(b, 64)
	if err != nil || x.Op != x86asm.MOV || x.MemBytes != 8 {
		return 0, false
	}
	_, mem := x.Args[0].(x86asm.Mem)
	reg, ok := x.Args[1].(x86asm.Reg)
	if !mem || !ok || reg < x86asm.RAX || reg > x86asm.R15 {
		return 0, false
	}
	return *regs.GPR(int(reg - x86asm.RAX)), true
}

// storesWord says whether an instruction writes to memory once, at one place, 8 bytes
// at most: one of those that kernels write page tables with.
func storesWord(b []byte) bool {
	x, err := x86asm.Decode(b, 64)
	if err != nil || x.MemBytes > 8 {
		return false
	}
	for _, p := range x.Prefix {
		switch byte(p) {
		case 0xf2, 0xf3:
			return false
		}
	}
	switch x.Op {
	case x86asm.MOV, x86asm.MOVNTI, x86asm.XCHG, x86asm.CMPXCHG, x86asm.XADD, x86asm.AND, x86asm.OR, x86asm.BTR, x86asm.BTS:
		_, ok := x.Args[0].(x86asm.Mem)
		return ok
	}
	return false
}
