// Package forms is the table of instruction forms that test/xen, TestHosts/…/StepOver,
// steps over: taken from real code, and made to run by themselves.
package forms

import (
	"bytes"
	"fmt"
	"strings"

	"golang.org/x/arch/x86/x86asm"
)

// Form is one instruction, as it stands in real code. Two instructions are of
// one form if they have the same opcode, prefixes, and kinds and sizes of operands.
type Form struct {
	Code []byte // without what follows
	Inst x86asm.Inst
	Text string

	prefixes []byte // but REX
	opcode   []byte
	modrm    int // index of the ModRM byte, or -1
	disp     int // index and size of the displacement
	dispLen  int
}

// legacy are the prefixes before REX.
var legacy = []byte{0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3}

var endbr64 = []byte{0xf3, 0x0f, 0x1e, 0xfa}

// Decode decodes the instruction at the start of b. It does not know VEX and
// EVEX: x86asm is not sure of their lengths.
func Decode(b []byte) (*Form, error) {
	f := &Form{modrm: -1, disp: -1}
	i := 0
	for i < len(b) && bytes.IndexByte(legacy, b[i]) >= 0 {
		i++
	}
	f.prefixes = b[:i]
	if i < len(b) && b[i]&0xf0 == 0x40 {
		i++
	}
	if i >= len(b) || b[i] == 0xc4 || b[i] == 0xc5 || b[i] == 0x62 {
		return nil, fmt.Errorf("% x: %w", b[:min(len(b), 15)], x86asm.ErrUnrecognized)
	}
	if bytes.HasPrefix(b, endbr64) {
		f.Code, f.Text, f.opcode = endbr64, "endbr64", endbr64[1:]
		return f, nil
	}
	x, err := x86asm.Decode(b, 64)
	if err == nil && (x.Op == 0 || x.Len < i+1) {
		err = x86asm.ErrUnrecognized
	}
	if err != nil {
		return nil, fmt.Errorf("% x: %w", b[:min(len(b), 15)], err)
	}
	f.Inst, f.Code, f.Text = x, b[:x.Len], x86asm.GNUSyntax(x, 0, nil)
	n := 1
	if b[i] == 0x0f {
		n++
		if b[i+1] == 0x38 || b[i+1] == 0x3a {
			n++
		}
	}
	if i+n > x.Len {
		return nil, fmt.Errorf("% x: %w", f.Code, x86asm.ErrUnrecognized)
	}
	f.opcode = b[i : i+n]
	if hasModRM(f.opcode) && i+n < x.Len {
		f.modrm = i + n
		f.findDisp()
	}
	return f, nil
}

// hasModRM says whether a ModRM byte follows an opcode.
func hasModRM(op []byte) bool {
	switch b := op[len(op)-1]; {
	case len(op) == 3:
		return true
	case len(op) == 2:
		switch {
		case b >= 0x80 && b <= 0x8f, b >= 0xc8 && b <= 0xcf, b >= 0x30 && b <= 0x37, b >= 0x05 && b <= 0x09,
			b == 0x0b, b == 0x77, b >= 0xa0 && b <= 0xa2, b >= 0xa8 && b <= 0xaa:
			return false
		}
		return true
	case b < 0x40:
		return b&7 < 4
	default:
		switch {
		case b == 0x63, b == 0x69, b == 0x6b, b >= 0x80 && b <= 0x8f, b == 0xc0, b == 0xc1, b == 0xc6, b == 0xc7,
			b >= 0xd0 && b <= 0xd3, b >= 0xd8 && b <= 0xdf, b == 0xf6, b == 0xf7, b == 0xfe, b == 0xff:
			return true
		}
		return false
	}
}

func (f *Form) findDisp() {
	m := f.Code[f.modrm]
	mod, rm := m>>6, m&7
	at := f.modrm + 1
	switch {
	case mod == 3:
		return
	case rm == 4 && at < len(f.Code):
		if mod == 0 && f.Code[at]&7 == 5 {
			f.dispLen = 4
		}
		at++
	case mod == 0 && rm == 5:
		f.dispLen = 4
	}
	if mod != 0 {
		f.dispLen = []int{1: 1, 2: 4}[mod]
	}
	if f.dispLen > 0 {
		f.disp = at
	}
}

// Mem returns the memory operand, if there is one. LEA and NOP have one that
// they do not touch.
func (f *Form) Mem() (m x86asm.Mem, ok bool) {
	for _, a := range f.Inst.Args {
		if m, ok := a.(x86asm.Mem); ok {
			return m, true
		}
	}
	return m, false
}

// Key tells the forms apart.
func (f *Form) Key() string {
	var k strings.Builder
	if f.Text == "endbr64" {
		return f.Text
	}
	for _, p := range []byte{0xf0, 0xf2, 0xf3, 0x66, 0x67, 0x64, 0x65} {
		if bytes.IndexByte(f.prefixes, p) >= 0 {
			fmt.Fprintf(&k, "%02x ", p)
		}
	}
	fmt.Fprintf(&k, "%v %x", f.Inst.Op, f.opcode)
	if f.modrm >= 0 && group(f.opcode) {
		fmt.Fprintf(&k, "/%d", f.Code[f.modrm]>>3&7)
	}
	for _, a := range f.Inst.Args {
		if a == nil {
			break
		}
		k.WriteString(" " + f.kind(a))
	}
	return k.String()
}

// group says whether the ModRM byte's middle bits are a part of the opcode.
func group(op []byte) bool {
	b := op[len(op)-1]
	if len(op) == 1 {
		return b >= 0x80 && b <= 0x83 || b == 0x8f || b == 0xc0 || b == 0xc1 || b == 0xc6 || b == 0xc7 || b >= 0xd0 && b <= 0xdf || b == 0xf6 || b == 0xf7 || b >= 0xfe
	}
	return len(op) == 2 && (b == 0x00 || b == 0x01 || b == 0x18 || b == 0x1f || b == 0x71 || b == 0x72 || b == 0x73 || b == 0xae || b == 0xba || b == 0xc7)
}

func (f *Form) kind(a x86asm.Arg) string {
	switch a := a.(type) {
	case x86asm.Reg:
		return regKind(a)
	case x86asm.Imm:
		return "imm"
	case x86asm.Rel:
		return fmt.Sprintf("rel%d", 8*f.Inst.PCRel)
	case x86asm.Mem:
		return fmt.Sprintf("m%d%s", 8*f.Inst.MemBytes, f.addressing(a))
	}
	return fmt.Sprintf("%T", a)
}

func (f *Form) addressing(m x86asm.Mem) string {
	switch {
	case f.modrm < 0:
		return "" // implied: string instructions, moffs
	case m.Base == x86asm.RIP || m.Base == x86asm.EIP:
		return "[rip]"
	case m.Base == 0 && m.Index == 0:
		return "[abs]"
	case m.Base == 0:
		return "[index]"
	case m.Index != 0:
		return "[base+index]"
	}
	return "[base]"
}

func regKind(r x86asm.Reg) string {
	for _, k := range []struct {
		from, to x86asm.Reg
		name     string
	}{
		{x86asm.AH, x86asm.BH, "r8h"}, {x86asm.AL, x86asm.R15B, "r8"}, {x86asm.AX, x86asm.R15W, "r16"}, {x86asm.EAX, x86asm.R15L, "r32"}, {x86asm.RAX, x86asm.R15, "r64"},
		{x86asm.F0, x86asm.F7, "st"}, {x86asm.M0, x86asm.M7, "mm"}, {x86asm.X0, x86asm.X15, "xmm"}, {x86asm.ES, x86asm.GS, "sreg"},
		{x86asm.CR0, x86asm.CR15, "cr"}, {x86asm.DR0, x86asm.DR15, "dr"},
	} {
		if r >= k.from && r <= k.to {
			return k.name
		}
	}
	return r.String()
}
