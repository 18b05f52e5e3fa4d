package forms

import (
	"slices"
	"strings"

	"golang.org/x/arch/x86/x86asm"
)

// registers returns every form that has no memory operand, general purpose
// registers only, and no prefix but that of its size: so that what the engine may
// emulate is in the table whole, and not only what of it is frequent.
func registers() []*Form {
	var all []*Form
	for _, prefix := range [][]byte{nil, {0x66}, {0x48}} {
		for op := range 0x200 {
			opcode := []byte{byte(op)}
			if op > 0xff {
				opcode = []byte{0x0f, byte(op)}
			}
			// Registers 0 and 3, of a group each of its members.
			for group := range 8 {
				code := slices.Concat(prefix, opcode, []byte{byte(0xc3 | group<<3)}, []byte{0x11, 0x22, 0x33, 4, 0x55, 0x66, 0x77, 8})
				if !hasModRM(opcode) {
					code = slices.Delete(code, len(prefix)+len(opcode), len(prefix)+len(opcode)+1)
				}
				f, err := Decode(code)
				if err != nil || len(f.prefixes) > len(prefix) || !slices.Equal(f.opcode, opcode) || !f.Runs() || !f.plain() {
					continue
				}
				all = append(all, f)
			}
		}
	}
	return all
}

// plain says whether all operands are general purpose registers, constants and
// relative addresses, of 16 bits if a prefix says so.
func (f *Form) plain() bool {
	short := len(f.prefixes) == 0 || f.Inst.Args[0] == nil
	for _, a := range f.Inst.Args {
		switch a := a.(type) {
		case x86asm.Reg:
			if !strings.HasPrefix(regKind(a), "r") {
				return false
			}
			short = short || regKind(a) == "r16"
		case x86asm.Mem:
			return false
		}
	}
	return short
}
