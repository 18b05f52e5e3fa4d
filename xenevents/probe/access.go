package probe

import (
	"cmp"
	"slices"

	"golang.org/x/arch/x86/x86asm"

	"github.com/hprobe/hprobe/xenevents"
)

// access is one access to memory by an instruction: n bytes from at.
type access struct {
	at    xenevents.GVA
	n     int
	kind  xenevents.Access
	parts [2]part // where that is, in one page or two; n 0: there is none
}

type part struct {
	at xenevents.GPA
	n  int
}

const (
	// maxAccesses is how many an instruction has that is known here: one to its
	// operand and one to the stack, or two of a string instruction; and one that a
	// fault tells of.
	maxAccesses = 4
	// unknownSize is taken for what is not known, in bytes: a vector register's.
	unknownSize = 64
)

// accessesOf appends those of an instruction to its operands and to the stack, by the
// registers before it runs. It knows neither what the processor itself reads and writes
// (page walks, descriptors, frames of interrupts) nor vector instructions with VEX.
func accessesOf(x *x86asm.Inst, regs *xenevents.Registers, all []access) []access {
	if repeats(x) && regs.RCX == 0 {
		return all
	}
	for i, arg := range x.Args {
		mem, ok := arg.(x86asm.Mem)
		kind := operandAccess(x, i)
		if !ok || kind == 0 {
			continue
		}
		a := access{at: effective(x, &mem, regs), n: sizeOf(x), kind: kind}
		a.at += xenevents.GVA(bitOffset(x, regs))
		all = append(all, a)
	}
	switch x.Op {
	case x86asm.PUSH, x86asm.CALL, x86asm.PUSHF, x86asm.PUSHFQ:
		all = append(all, access{at: xenevents.GVA(regs.RSP - 8), n: 8, kind: xenevents.AccessW})
	case x86asm.POP, x86asm.RET, x86asm.POPF, x86asm.POPFQ:
		all = append(all, access{at: xenevents.GVA(regs.RSP), n: 8, kind: xenevents.AccessR})
	case x86asm.LEAVE:
		all = append(all, access{at: xenevents.GVA(regs.RBP), n: 8, kind: xenevents.AccessR})
	case x86asm.IRETQ:
		all = append(all, access{at: xenevents.GVA(regs.RSP), n: 40, kind: xenevents.AccessR})
	}
	return all
}

// sizeOf is how much of memory an instruction accesses, in bytes: what x86asm does not
// say of all.
func sizeOf(x *x86asm.Inst) int {
	switch x.Op {
	case x86asm.MOVSB, x86asm.STOSB, x86asm.LODSB, x86asm.CMPSB, x86asm.SCASB, x86asm.INSB, x86asm.OUTSB:
		return 1
	case x86asm.MOVSW, x86asm.STOSW, x86asm.LODSW, x86asm.CMPSW, x86asm.SCASW, x86asm.INSW, x86asm.OUTSW:
		return 2
	case x86asm.STOSD, x86asm.LODSD, x86asm.SCASD, x86asm.INSD, x86asm.OUTSD:
		return 4
	case x86asm.MOVSQ, x86asm.STOSQ, x86asm.LODSQ, x86asm.CMPSQ, x86asm.SCASQ:
		return 8
	case x86asm.MOVSD, x86asm.CMPSD: // or a vector instruction
		if x.MemBytes == 0 {
			return 4
		}
	case x86asm.FXSAVE, x86asm.FXSAVE64, x86asm.FXRSTOR, x86asm.FXRSTOR64:
		return 512
	case x86asm.XSAVE, x86asm.XSAVE64, x86asm.XRSTOR, x86asm.XRSTOR64, x86asm.XSAVEOPT, x86asm.XSAVEOPT64:
		return 832 // with AVX's registers
	}
	return cmp.Or(x.MemBytes, unknownSize)
}

// Instructions by what they do to an operand in memory that is their first.
var (
	noAccess = []x86asm.Op{x86asm.LEA, x86asm.NOP, x86asm.PREFETCHNTA, x86asm.PREFETCHT0, x86asm.PREFETCHT1, x86asm.PREFETCHT2, x86asm.PREFETCHW, x86asm.INVLPG, x86asm.CLFLUSH}
	onlyRead = []x86asm.Op{
		x86asm.CMP, x86asm.TEST, x86asm.BT, x86asm.PUSH, x86asm.CALL, x86asm.JMP, x86asm.LJMP, x86asm.LCALL, x86asm.MUL, x86asm.DIV, x86asm.IDIV, x86asm.IMUL,
		x86asm.LDMXCSR, x86asm.FXRSTOR, x86asm.FXRSTOR64, x86asm.XRSTOR, x86asm.XRSTOR64, x86asm.LGDT, x86asm.LIDT, x86asm.LLDT, x86asm.LTR, x86asm.LMSW, x86asm.VERR, x86asm.VERW,
		x86asm.FLD, x86asm.FILD, x86asm.FBLD, x86asm.FLDCW, x86asm.FLDENV, x86asm.FRSTOR, x86asm.FADD, x86asm.FSUB, x86asm.FSUBR, x86asm.FMUL, x86asm.FDIV, x86asm.FDIVR, x86asm.FCOM, x86asm.FCOMP,
		x86asm.FIADD, x86asm.FISUB, x86asm.FISUBR, x86asm.FIMUL, x86asm.FIDIV, x86asm.FIDIVR, x86asm.FICOM, x86asm.FICOMP,
		x86asm.CMPSB, x86asm.CMPSW, x86asm.CMPSD, x86asm.CMPSQ, x86asm.SCASB, x86asm.SCASW, x86asm.SCASD, x86asm.SCASQ, x86asm.OUTSB, x86asm.OUTSW, x86asm.OUTSD,
	}
	changed = []x86asm.Op{
		x86asm.ADD, x86asm.ADC, x86asm.SUB, x86asm.SBB, x86asm.AND, x86asm.OR, x86asm.XOR, x86asm.INC, x86asm.DEC, x86asm.NEG, x86asm.NOT,
		x86asm.SHL, x86asm.SHR, x86asm.SAR, x86asm.ROL, x86asm.ROR, x86asm.RCL, x86asm.RCR, x86asm.SHLD, x86asm.SHRD, x86asm.BTS, x86asm.BTR, x86asm.BTC,
		x86asm.XCHG, x86asm.XADD, x86asm.CMPXCHG, x86asm.CMPXCHG8B, x86asm.CMPXCHG16B,
	}
)

// operandAccess is what an instruction does to operand i, if that is in memory.
func operandAccess(x *x86asm.Inst, i int) xenevents.Access {
	switch {
	case slices.Contains(noAccess, x.Op):
		return 0
	case slices.Contains(changed, x.Op) && (i == 0 || x.Op == x86asm.XCHG):
		return xenevents.AccessRW
	case i > 0, slices.Contains(onlyRead, x.Op):
		return xenevents.AccessR
	}
	return xenevents.AccessW
}

// effective is the linear address of an operand in memory.
func effective(x *x86asm.Inst, m *x86asm.Mem, regs *xenevents.Registers) xenevents.GVA {
	at := uint64(m.Disp) + wide(m.Base, x, regs)
	if m.Index != 0 {
		at += wide(m.Index, x, regs) * uint64(m.Scale)
	}
	if x.AddrSize == 32 {
		at = uint64(uint32(at))
	}
	switch m.Segment {
	case x86asm.FS:
		at += regs.FSBase
	case x86asm.GS:
		at += regs.GSBase
	}
	return xenevents.GVA(at)
}

// wide is a register of an address.
func wide(r x86asm.Reg, x *x86asm.Inst, regs *xenevents.Registers) uint64 {
	switch {
	case r == x86asm.RIP:
		return regs.RIP + uint64(x.Len)
	case r == x86asm.EIP:
		return uint64(uint32(regs.RIP + uint64(x.Len)))
	case r >= x86asm.RAX && r <= x86asm.R15:
		return *regs.GPR(int(r - x86asm.RAX))
	case r >= x86asm.EAX && r <= x86asm.R15L:
		return uint64(uint32(*regs.GPR(int(r - x86asm.EAX))))
	}
	return 0
}

// bitOffset is how many bytes from its operand an instruction finds a bit whose number
// is in a register.
func bitOffset(x *x86asm.Inst, regs *xenevents.Registers) int64 {
	switch x.Op {
	case x86asm.BT, x86asm.BTS, x86asm.BTR, x86asm.BTC:
	default:
		return 0
	}
	r, ok := x.Args[1].(x86asm.Reg)
	if !ok {
		return 0
	}
	switch {
	case r >= x86asm.RAX && r <= x86asm.R15:
		return int64(*regs.GPR(int(r - x86asm.RAX))) >> 6 * 8
	case r >= x86asm.EAX && r <= x86asm.R15L:
		return int64(int32(*regs.GPR(int(r - x86asm.EAX)))) >> 5 * 4
	case r >= x86asm.AX && r <= x86asm.R15W:
		return int64(int16(*regs.GPR(int(r - x86asm.AX)))) >> 4 * 2
	}
	return 0
}

// plainStore is what an instruction writes, where that is a register or constant and
// it does nothing else: to leave it out is to deny it.
func plainStore(x *x86asm.Inst, regs *xenevents.Registers) (value uint64, ok bool) {
	if x.Op != x86asm.MOV && x.Op != x86asm.MOVNTI || x.MemBytes > 8 {
		return 0, false
	}
	if _, mem := x.Args[0].(x86asm.Mem); !mem {
		return 0, false
	}
	switch a := x.Args[1].(type) {
	case x86asm.Imm:
		value = uint64(a)
	case x86asm.Reg:
		switch {
		case a >= x86asm.RAX && a <= x86asm.R15:
			value = *regs.GPR(int(a - x86asm.RAX))
		case a >= x86asm.EAX && a <= x86asm.R15L:
			value = *regs.GPR(int(a - x86asm.EAX))
		case a >= x86asm.AX && a <= x86asm.R15W:
			value = *regs.GPR(int(a - x86asm.AX))
		case a >= x86asm.AL && a <= x86asm.BL:
			value = *regs.GPR(int(a - x86asm.AL))
		case a >= x86asm.AH && a <= x86asm.BH:
			value = *regs.GPR(int(a - x86asm.AH)) >> 8
		case a >= x86asm.SPB && a <= x86asm.R15B:
			value = *regs.GPR(int(a-x86asm.SPB) + 4)
		default: // a segment register
			return 0, false
		}
	default:
		return 0, false
	}
	if x.MemBytes < 8 {
		value &= 1<<(8*x.MemBytes) - 1
	}
	return value, true
}

// branches says whether an instruction ends elsewhere than behind itself.
func branches(x *x86asm.Inst) bool {
	switch x.Op {
	case x86asm.CALL, x86asm.JMP, x86asm.RET, x86asm.IRETQ, x86asm.LCALL, x86asm.LJMP, x86asm.LRET:
		return true
	}
	return false
}

// decoder keeps instructions that it decoded: that allocates, and the same few are run
// again and again.
type decoder [64]struct {
	code [16]byte
	n    int // bytes of code
	insn x86asm.Inst
}

// decode decodes the instruction at the start of code, which is at an address. The
// result has no Op where it is none that is known, and is valid until the next call.
func (d *decoder) decode(code []byte, at uint64) *x86asm.Inst {
	e := &d[(at^at>>6)%uint64(len(d))]
	n := min(len(code), len(e.code))
	if e.n == n && n > 0 && string(e.code[:n]) == string(code[:n]) {
		return &e.insn
	}
	e.n = copy(e.code[:], code)
	var err error
	if e.insn, err = x86asm.Decode(code, 64); err != nil {
		e.insn = x86asm.Inst{}
	}
	return &e.insn
}
