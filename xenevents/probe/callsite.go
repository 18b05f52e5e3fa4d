package probe

import (
	"bytes"
	"errors"

	"golang.org/x/arch/x86/x86asm"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// afterCall says whether a call instruction ends at an address. What is on a
// stack is the guest's word only: an int3 in the middle of an instruction would
// make another of it.
func (e *Engine) afterCall(space xenevents.AddressSpace, at xenevents.GVA) bool {
	const longest = 7
	var b [longest]byte
	code := e.before(space, at, b[:])
	for n := 2; n <= len(code); n++ {
		if x, err := x86asm.Decode(code[len(code)-n:], 64); err == nil && x.Len == n && x.Op == x86asm.CALL {
			return true
		}
	}
	return false
}

// Callee decodes the instruction at the start of b: its length, and how far from its
// start the function is that it calls; 0 where it calls none, or one by a pointer.
func Callee(b []byte) (length int, distance xenevents.GVA, err error) {
	if bytes.HasPrefix(b, endbr64) {
		return len(endbr64), 0, nil
	}
	x, err := parse(b)
	if err != nil {
		return 0, 0, err
	}
	if rel, ok := x.Args[0].(x86asm.Rel); ok && x.Op == x86asm.CALL {
		distance = xenevents.GVA(int64(x.Len) + int64(rel)) // may be negative: it wraps
	}
	return x.Len, distance, nil
}

// before reads what is before an address: all of b, or what is in its page.
func (e *Engine) before(space xenevents.AddressSpace, at xenevents.GVA, b []byte) []byte {
	if _, err := e.mem.ReadGVA(space, b, at-xenevents.GVA(len(b))); err == nil {
		return b
	}
	b = b[:min(at.Offset(), uint64(len(b)))]
	if _, err := e.mem.ReadGVA(space, b, at-xenevents.GVA(len(b))); err != nil {
		return nil
	}
	return b
}

var (
	errMiddle = errors.New("it is not known to be where an instruction begins")
	errUnread = errors.New("what is before it is not in memory")
)

// begins returns nil where an instruction surely begins at an address of a process. A
// process may have written any address where its own return address belongs, and the
// page may be others', too: of a library, say. An int3 in the middle of an instruction
// would have all of those run something else.
//
// Of any 15 addresses in a row in code one is where an instruction begins, as none is
// longer. If decoding from each of the 15 comes by the address in question, so does
// the program.
func (e *Engine) begins(space xenevents.AddressSpace, at xenevents.GVA) error {
	var b [farthest]byte
	code := e.before(space, at, b[:])
	switch {
	case known(code):
		return nil
	case len(code) < farthest:
		return errUnread
	}
	return errMiddle
}

// farthest is how much code is looked at, in bytes.
const farthest = 96

// known says whether decoding no more than farthest bytes of code from each of some 15
// in a row comes to its end.
func known(code []byte) bool {
	const (
		comes  = 1 + iota // decoding from there comes to the end
		never             // no program is ever there
		passes            // neither, or that can't be told
	)
	var from [farthest + 1]uint8
	from[len(code)] = comes
	row, came := 0, false
	for at := len(code) - 1; at >= 0; at-- {
		from[at] = passes
		switch n, err := lengthOf(code[at:]); {
		case err == nil && at+n <= len(code):
			from[at] = from[at+n]
		case err != nil && neverRuns(code[at:]):
			from[at] = never
		}
		switch from[at] {
		case passes:
			row, came = 0, false
			continue
		case comes:
			came = true
		}
		if row++; row >= shadow.MaxInsn && came {
			return true
		}
	}
	return false
}

// neverRuns says whether what begins b is no instruction on any 64-bit CPU, and so
// where no program goes. Others may just be too new for the decoder.
func neverRuns(b []byte) bool {
	for _, c := range b {
		switch c {
		case 0x06, 0x07, 0x0e, 0x16, 0x17, 0x1e, 0x1f, 0x27, 0x2f, 0x37, 0x3f, 0x60, 0x61, 0x82, 0x9a, 0xce, 0xd4, 0xd6, 0xea:
			return true
		case 0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3, // prefixes
			0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x49, 0x4a, 0x4b, 0x4c, 0x4d, 0x4e, 0x4f:
			continue
		}
		return false
	}
	return false
}
