package forms

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"

	"golang.org/x/arch/x86/x86asm"
)

// Where the guest's program steps has everything: its code, in slots of slotSize
// bytes; its data, of which Window is compared; what FS and GS are based at. All
// below 2 GB, for absolute addresses. steps.c has the same.
const (
	CodeAt   = 0x10000000
	slotSize = 0x80
	pad      = 0x40 // where branches go, from the form's first byte
	target   = 0x20001080
	segBase  = 0x1fff8000
	stack    = 0x20001400
	pageEnd  = 0x20001000 // between two pages of the window
)

// A Case is a form in its place.
type Case struct {
	Form      *Form
	Straddles bool
	Code      []byte // with operands that fit the place
	At        uint64
	States    [States]State
}

// States is how many sets of registers and memory each form is run with: values
// of no pattern, small ones with all arithmetic flags set, negative ones with DF
// where that counts, with a memory operand across pages, and with the trap flag on, as
// under a debugger of the guest's.
const States = 5

// State is what a form starts from. The rest is the same for all.
type State struct {
	Regs  [16]uint64 // in the order of their numbers
	Flags uint64
	Pokes [8]struct{ At, Value uint64 } // At 0: none
}

// Numbers of registers.
const (
	rax = iota
	rcx
	rdx
	rbx
	rsp
	rbp
	rsi
	rdi
)

// Arithmetic flags, and others.
const (
	flagsOff = 0x202
	flagsOn  = flagsOff | 0x8d5
	flagTF   = 0x100
	flagDF   = 0x400
)

// place gives each case its address, operands and states.
func place(all []*Case) {
	at := uint64(CodeAt)
	for _, c := range all {
		c.At = at
		if c.Straddles {
			c.At = (at|0xfff)&^0xfff + 0x1000 - uint64(len(c.Form.Code)+1)/2
		}
		at = (c.At + pad + slotSize) &^ (slotSize - 1)
		c.Code = append([]byte(nil), c.Form.Code...)
		for i := range c.States {
			c.prepare(i)
		}
	}
}

// prepare makes a state.
func (c *Case) prepare(i int) {
	s, f := &c.States[i], c.Form
	random := rand.New(rand.NewPCG(uint64(i), 1))
	for r := range s.Regs {
		switch i {
		case 1:
			s.Regs[r] = random.Uint64N(200)
		case 2:
			s.Regs[r] = -random.Uint64N(1 << (4 * (r + 1) % 63))
		default:
			s.Regs[r] = random.Uint64()
		}
	}
	s.Flags = []uint64{flagsOff, flagsOn, flagsOff | 1, flagsOff | 0x40, flagsOff | flagTF}[i]
	s.Regs[rsp] = stack
	at := uint64(target)
	if i == 3 && !f.fixed() {
		at = pageEnd - 3
		if f.Inst.MemBytes == 2 {
			at = pageEnd - 1
		}
	}
	c.branch(s)
	c.operands(s, at)
	c.implied(s, i, at)
}

// branch has a relative branch go to the pad.
func (c *Case) branch(s *State) {
	if _, ok := c.Form.Inst.Args[0].(x86asm.Rel); !ok {
		return
	}
	off := c.Form.Inst.PCRelOff
	d := uint64(pad - len(c.Code))
	switch c.Form.Inst.PCRel {
	case 1:
		c.Code[off] = byte(d)
	case 2:
		binary.LittleEndian.PutUint16(c.Code[off:], uint16(d))
	case 4:
		binary.LittleEndian.PutUint32(c.Code[off:], uint32(d))
	}
}

// operands points memory operands to an address, by registers where they have
// some.
func (c *Case) operands(s *State, at uint64) {
	f := c.Form
	n := uint64(0)
	for _, a := range f.Inst.Args {
		if m, ok := a.(x86asm.Mem); ok {
			c.operand(s, m, at+n*0x100)
			n++
		}
	}
}

func (c *Case) operand(s *State, m x86asm.Mem, at uint64) {
	f := c.Form
	if m.Segment == x86asm.FS || m.Segment == x86asm.GS {
		at -= segBase
	}
	switch {
	case f.moffs():
		off := len(f.prefixes)
		for c.Code[off] != f.opcode[0] {
			off++
		}
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], at)
		copy(c.Code[off+1:], b[:])
	case m.Base == x86asm.RIP || m.Base == x86asm.EIP:
		binary.LittleEndian.PutUint32(c.Code[f.disp:], uint32(at-c.At-uint64(len(c.Code))))
	case m.Base == 0 && m.Index == 0:
		binary.LittleEndian.PutUint32(c.Code[f.disp:], uint32(at))
	default:
		base, index := number(m.Base), number(m.Index)
		disp := m.Disp
		if f.dispLen == 4 {
			disp = int64(int32(disp)) // x86asm does not extend the sign of all
		}
		rest := at - uint64(disp)
		switch {
		case base < 0:
			s.Regs[index] = rest / uint64(m.Scale)
		case index < 0:
			s.Regs[base] = rest
		case base == index:
			s.Regs[base] = rest / uint64(m.Scale+1)
		case index == rsp: // can't be
		case base == rsp || base == rbp:
			s.Regs[index] = 2
			s.Regs[base] = rest - 2*uint64(m.Scale)
		default:
			s.Regs[index] = 0x10
			s.Regs[base] = rest - 0x10*uint64(m.Scale)
		}
	}
}

func (f *Form) moffs() bool {
	return f.modrm < 0 && f.opcode[0] >= 0xa0 && f.opcode[0] <= 0xa3
}

// fixed says whether the memory operand's address is a part of the code, which
// is the same in all states.
func (f *Form) fixed() bool {
	m, ok := f.Mem()
	return ok && (f.moffs() || m.Base == x86asm.RIP || m.Base == x86asm.EIP || f.modrm >= 0 && m.Base == 0 && m.Index == 0)
}

// number returns a general purpose register's number, or -1.
func number(r x86asm.Reg) int {
	switch {
	case r >= x86asm.RAX && r <= x86asm.R15:
		return int(r - x86asm.RAX)
	case r >= x86asm.EAX && r <= x86asm.R15L:
		return int(r - x86asm.EAX)
	}
	return -1
}

func (s *State) poke(at, value uint64) {
	for i := range s.Pokes {
		if s.Pokes[i].At == 0 {
			s.Pokes[i].At, s.Pokes[i].Value = at, value
			return
		}
	}
	panic("too many pokes")
}

// implied sets what an instruction needs to get anywhere.
func (c *Case) implied(s *State, i int, at uint64) {
	f, land := c.Form, c.At+pad
	if f.Text == "endbr64" {
		return
	}
	switch x := &f.Inst; x.Op {
	case x86asm.JMP, x86asm.CALL:
		switch a := x.Args[0].(type) {
		case x86asm.Reg:
			s.Regs[number(a)] = land
		case x86asm.Mem:
			s.poke(at, land)
		}
	case x86asm.RET:
		s.poke(stack, land)
	case x86asm.LEAVE:
		s.Regs[rbp] = stack - 0x40
	case x86asm.ENTER:
		s.Regs[rbp] = stack + 0x40
	case x86asm.POPF, x86asm.POPFD, x86asm.POPFQ:
		s.poke(stack, []uint64{flagsOff, flagsOn, flagsOff | flagDF, flagsOff | flagTF, flagsOff}[i])
	case x86asm.IRETQ:
		s.Regs[rsp] -= 0x80
		for n, v := range []uint64{land, userCS, flagsOn, stack, userSS} {
			s.poke(s.Regs[rsp]+8*uint64(n), v)
		}
	case x86asm.LOOP, x86asm.LOOPE, x86asm.LOOPNE:
		s.Regs[rcx] = uint64(i)
	case x86asm.JRCXZ, x86asm.JECXZ:
		s.Regs[rcx] = []uint64{0, 1, 1 << 32, 2, 0}[i]
	case x86asm.BT, x86asm.BTS, x86asm.BTR, x86asm.BTC:
		if r, ok := x.Args[1].(x86asm.Reg); ok && f.hasMem() {
			s.Regs[number(r)] &= 0xff
		}
	case x86asm.CPUID:
		s.Regs[rax], s.Regs[rcx] = []uint64{0, 7, 0x80000000, 0x80000008, 1}[i], 0
	case x86asm.XGETBV:
		s.Regs[rcx] = 0
	case x86asm.SYSCALL:
		s.Regs[rax] = 0x1234 + uint64(i) // there is none: ENOSYS
	case x86asm.MOV:
		if r, ok := x.Args[0].(x86asm.Reg); ok && regKind(r) == "sreg" {
			if a, ok := x.Args[1].(x86asm.Reg); ok {
				s.Regs[int(a-x86asm.AX)%16] = userSS
			} else {
				s.poke(at, userSS)
			}
		}
	case x86asm.XLATB:
		s.Regs[rax] &^= 0x80
	case x86asm.DIV, x86asm.IDIV:
		if i == 1 { // does not overflow, whatever it divides by
			s.Regs[rdx] = 0
		}
	case x86asm.MOVSB, x86asm.MOVSW, x86asm.MOVSD, x86asm.MOVSQ, x86asm.STOSB, x86asm.STOSW, x86asm.STOSD, x86asm.STOSQ,
		x86asm.LODSB, x86asm.LODSW, x86asm.LODSD, x86asm.LODSQ, x86asm.SCASB, x86asm.SCASW, x86asm.SCASD, x86asm.SCASQ,
		x86asm.CMPSB, x86asm.CMPSW, x86asm.CMPSD, x86asm.CMPSQ:
		if f.Rep() {
			s.Regs[rcx] = []uint64{5, 0, 3, 4, 2}[i]
		}
		if i == 2 {
			s.Flags |= flagDF
		}
	}
}

// Linux's selectors of a 64-bit program.
const (
	userCS = 0x33
	userSS = 0x2b
)

func (f *Form) hasMem() bool {
	_, ok := f.Mem()
	return ok
}

// Rep says whether the instruction is a string instruction that is repeated.
func (f *Form) Rep() bool {
	for _, p := range f.Inst.Prefix {
		if p&^x86asm.PrefixImplicit == x86asm.PrefixREP || p&^x86asm.PrefixImplicit == x86asm.PrefixREPN {
			return f.modrm < 0 && (f.opcode[0] >= 0xa4 && f.opcode[0] <= 0xaf)
		}
	}
	return false
}

// Name is the case in reports.
func (c *Case) Name() string {
	name := c.Form.Text
	if i := strings.Index(name, ".+0x"); i >= 0 {
		name = name[:i+1]
	} else if i := strings.Index(name, ".-0x"); i >= 0 {
		name = name[:i+1]
	}
	if c.Straddles {
		name += " (across pages)"
	}
	return name
}

// Encode makes the table that steps.c reads.
func Encode(all []*Case) []byte {
	le := binary.LittleEndian
	b := le.AppendUint64(nil, uint64(len(all)))
	for _, c := range all {
		b = le.AppendUint64(b, c.At)
		b = le.AppendUint64(b, uint64(len(c.Code)))
		var code [16]byte
		copy(code[:], c.Code)
		b = append(b, code[:]...)
		for i := range c.States {
			s := &c.States[i]
			for _, r := range s.Regs {
				b = le.AppendUint64(b, r)
			}
			b = le.AppendUint64(b, s.Flags)
			for _, p := range s.Pokes {
				b = le.AppendUint64(le.AppendUint64(b, p.At), p.Value)
			}
		}
	}
	return b
}

// Bytes is what stands at the case's address.
func (c *Case) Bytes() (b [16]byte) {
	copy(b[copy(b[:], c.Code):], []byte{0x90, 0x0f, 0x0b})
	for i := len(c.Code) + 3; i < len(b); i++ {
		b[i] = 6
	}
	return b
}
