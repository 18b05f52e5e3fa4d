package probe

import (
	"bytes"
	"fmt"

	"golang.org/x/arch/x86/x86asm"

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
}

// decode decodes the instruction at the start of b, which may hold less than 15 bytes.
func decode(b []byte) (insn, error) {
	if bytes.HasPrefix(b, endbr64) {
		return insn{length: len(endbr64), text: "endbr64", emulate: true}, nil
	}
	x, err := x86asm.Decode(b, 64)
	if err == nil && x.Op == 0 { // a prefix alone: what comes behind it is cut off or unknown
		err = x86asm.ErrUnrecognized
	}
	if err != nil {
		return insn{}, fmt.Errorf("no instruction that hprobe knows: % x: %w", b[:min(len(b), shadow.MaxInsn)], err)
	}
	return insn{length: x.Len, text: x86asm.GNUSyntax(x, 0, nil), emulate: emulated(&x), repeats: repeats(&x)}, nil
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
// those that functions begin with, each of which ran so in the lab on every
// Xen (test/xen, TestStepOver). Anything else is stepped by the CPU itself.
func emulated(x *x86asm.Inst) bool {
	for _, p := range x.Prefix {
		switch byte(p) {
		case 0xf0, 0xf2, 0xf3: // lock, repne, rep: an invalid opcode, or something else
			return false
		}
	}
	switch x.Op {
	case x86asm.NOP:
		return true
	case x86asm.PUSH, x86asm.POP:
		_, reg := x.Args[0].(x86asm.Reg)
		return reg && x.Args[0].(x86asm.Reg) >= x86asm.RAX && x.Args[0].(x86asm.Reg) <= x86asm.R15
	case x86asm.MOV, x86asm.SUB, x86asm.ADD, x86asm.XOR, x86asm.AND, x86asm.OR, x86asm.CMP, x86asm.TEST:
		return plain(x.Args[0]) && plain(x.Args[1])
	case x86asm.LEA:
		return plain(x.Args[0])
	}
	return false
}

// plain says whether an operand is a general purpose register of 32 or 64 bits
// or a constant: no memory, no segment, control or debug register.
func plain(a x86asm.Arg) bool {
	switch a := a.(type) {
	case x86asm.Imm:
		return true
	case x86asm.Reg:
		return a >= x86asm.EAX && a <= x86asm.R15L || a >= x86asm.RAX && a <= x86asm.R15
	}
	return false
}
