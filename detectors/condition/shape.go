package condition

import (
	"encoding/binary"
	"errors"
	"fmt"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/hprobe/hprobe/profiles/isf"
)

// kind is how the bytes of a value are to be understood.
type kind uint8

const (
	number   kind = iota // an integer or enumeration
	boolean              // of any size
	bitfield             // a bit field
	text                 // char[n]: in place
	textPtr              // char *
	record               // a struct in place
	recordTo             // a pointer to a struct
	array                // in place
	pointer              // to something that is no struct: p[0], p[1] …
	address              // void *, a function: a number
	float
)

// shape is a type of the profile as expressions see it.
type shape struct {
	kind   kind
	cel    *types.Type
	isf    isf.Type
	size   uint64 // in bytes
	signed bool
	low    uint8 // bitfield: the first
	width  uint8 // bitfield: how many
	elem   *shape
	count  uint64 // array
}

// errNull is a field of a null pointer.
var errNull = errors.New("a null pointer was followed")

// fits says whether all values of an unsigned number fit CEL's int.
func fits(size uint64, signed bool) bool { return signed || size < 8 }

func numberType(size uint64, signed bool) *types.Type {
	if fits(size, signed) {
		return types.IntType
	}
	return types.UintType
}

// maxShape bounds how deep pointers and arrays may nest.
const maxShape = 8

// shape describes a type; false where no expression can use it.
func (p *provider) shape(t isf.Type, depth int) (*shape, bool) {
	if depth > maxShape {
		return nil, false
	}
	size, sizeErr := p.profile.SizeOf(t)
	switch t.Kind {
	case isf.Base:
		return p.base(t)
	case isf.Enum:
		e, err := p.profile.EnumType(t.Name)
		if err != nil || e.Size == 0 || e.Size > 8 {
			return nil, false
		}
		signed := e.Base == "int"
		return &shape{kind: number, cel: numberType(e.Size, signed), isf: t, size: e.Size, signed: signed}, true
	case isf.Bitfield:
		if t.BitsType == nil || sizeErr != nil || size == 0 || size > 8 || t.BitLen == 0 || uint64(t.BitPos)+uint64(t.BitLen) > 8*size {
			return nil, false
		}
		of, ok := p.shape(*t.BitsType, depth+1)
		if !ok || of.kind != number && of.kind != boolean {
			return nil, false
		}
		s := &shape{kind: bitfield, isf: t, size: size, signed: of.signed, low: t.BitPos, width: t.BitLen}
		s.cel = numberType((uint64(t.BitLen)+7)/8, of.signed)
		return s, true
	case isf.Struct, isf.Union, isf.Class:
		if sizeErr != nil {
			return nil, false
		}
		return &shape{kind: record, cel: types.NewObjectType(t.Name), isf: t, size: size}, true
	case isf.Array:
		return p.array(t, depth)
	case isf.Pointer:
		return p.pointer(t, depth), true
	}
	return nil, false
}

func (p *provider) base(t isf.Type) (*shape, bool) {
	if t.Name == "" { // a register of which nothing is known
		return &shape{kind: number, cel: types.UintType, isf: t, size: 8}, true
	}
	b, err := p.profile.BaseType(t.Name)
	if err != nil || b.Size == 0 || b.Size > 8 {
		return nil, false
	}
	switch b.Kind {
	case "int", "char":
		return &shape{kind: number, cel: numberType(b.Size, b.Signed), isf: t, size: b.Size, signed: b.Signed}, true
	case "bool":
		return &shape{kind: boolean, cel: types.BoolType, isf: t, size: b.Size}, true
	}
	return nil, false
}

// isChar says whether pointers to and arrays of t are strings. The kernel has
// names in unsigned chars, too (struct qstr).
func (p *provider) isChar(t *isf.Type) bool {
	if t == nil || t.Kind != isf.Base {
		return false
	}
	b, err := p.profile.BaseType(t.Name)
	return err == nil && b.Size == 1 && (b.Kind == "char" || t.Name == "unsigned char")
}

func (p *provider) array(t isf.Type, depth int) (*shape, bool) {
	if t.Subtype == nil {
		return nil, false
	}
	if p.isChar(t.Subtype) {
		return &shape{kind: text, cel: types.StringType, isf: t, size: t.Count, count: t.Count}, true
	}
	elem, ok := p.shape(*t.Subtype, depth+1)
	size, err := p.profile.SizeOf(t)
	if !ok || err != nil || elem.size == 0 {
		return nil, false
	}
	return &shape{kind: array, cel: types.NewListType(elem.cel), isf: t, size: size, elem: elem, count: t.Count}, true
}

func (p *provider) pointer(t isf.Type, depth int) *shape {
	number := &shape{kind: address, cel: types.UintType, isf: t, size: 8}
	if t.Subtype == nil {
		return number
	}
	if p.isChar(t.Subtype) {
		return &shape{kind: textPtr, cel: types.StringType, isf: t, size: 8}
	}
	to, ok := p.shape(*t.Subtype, depth+1)
	switch {
	case !ok || to.size == 0: // void, a function, a struct that the profile does not have
		return number
	case to.kind == record:
		return &shape{kind: recordTo, cel: to.cel, isf: t, size: 8, elem: to}
	}
	return &shape{kind: pointer, cel: types.NewListType(to.cel), isf: t, size: 8, elem: to}
}

// load reads a value out of the guest's memory.
func (s *shape) load(v *view, at uint64) (ref.Val, error) {
	switch s.kind {
	case record:
		return v.record(s, at), nil
	case array:
		return &sequence{view: v, at: at, elem: s.elem, count: s.listed()}, nil
	case text:
		// A flexible array, or one that is larger than any string.
		n := s.count
		if n == 0 || n > maxString {
			n = maxString
		}
		got, err := v.text(at, int(n))
		return types.String(got), err
	}
	raw, err := v.number(at, s.size)
	if err != nil {
		return nil, err
	}
	return s.of(v, raw)
}

// plain is the number in what a register or memory holds, of what is a number or
// true or false.
func (s *shape) plain(raw uint64) uint64 {
	switch s.kind {
	case number:
		return extend(raw, uint8(8*s.size), s.signed)
	case bitfield:
		return extend(raw>>s.low, s.width, s.signed)
	case boolean:
		if extend(raw, uint8(8*s.size), false) != 0 {
			return 1
		}
		return 0
	}
	return raw
}

// of makes a value of what a register or memory holds.
func (s *shape) of(v *view, raw uint64) (ref.Val, error) {
	switch s.kind {
	case number, bitfield, boolean, address:
		switch s.cel {
		case types.UintType:
			return types.Uint(s.plain(raw)), nil
		case types.BoolType:
			return types.Bool(s.plain(raw) != 0), nil
		}
		return types.Int(s.plain(raw)), nil
	case textPtr:
		if raw == 0 {
			return nil, errNull
		}
		got, err := v.text(raw, maxString)
		return types.String(got), err
	case recordTo:
		if raw == 0 {
			return types.NullValue, nil
		}
		return v.record(s.elem, raw), nil
	case pointer:
		return &sequence{view: v, at: raw, elem: s.elem, count: maxElements}, nil
	}
	return nil, fmt.Errorf("a %s is not in a register", s.isf)
}

// listed is how many elements an array may be asked for: one that ends a struct
// may have any number.
func (s *shape) listed() int {
	if s.count == 0 || s.count > maxElements {
		return maxElements
	}
	return int(s.count)
}

// extend takes the low bits of raw, with their sign.
func extend(raw uint64, width uint8, signed bool) uint64 {
	if width >= 64 {
		return raw
	}
	raw &= 1<<width - 1
	if signed && raw>>(width-1) != 0 {
		raw |= ^uint64(0) << width
	}
	return raw
}

func little(b []byte) uint64 {
	var wide [8]byte
	copy(wide[:], b)
	return binary.LittleEndian.Uint64(wide[:])
}
