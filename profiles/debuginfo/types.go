package debuginfo

import (
	"debug/dwarf"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/hprobe/hprobe/profiles/isf"
)

// Converter turns DWARF's types into ISF's.
type Converter struct {
	// Spent is what the types take, in bytes, about.
	Spent int

	out     *isf.Builder
	info    *Info
	apart   bool                    // of one name there may be several types
	names   map[dwarf.Offset]string // of what has none, or shares one
	owners  map[string]dwarf.Offset // apart: whose a name is
	unnamed int
	pending []pending // structs whose members are still to come
}

type pending struct {
	at   dwarf.Offset
	name string
}

// NewConverter makes one that adds to out. Of each name the first type is taken: each file
// that a kernel was compiled of has all that it uses. apart gives what shares its name
// another one.
func NewConverter(i *Info, out *isf.Builder, apart bool) *Converter {
	out.Base["pointer"] = isf.BaseType{Kind: "int", Size: 8, Endian: "little"}
	out.Base["void"] = isf.BaseType{Kind: "void", Endian: "little"}
	return &Converter{out: out, info: i, apart: apart, names: map[dwarf.Offset]string{}, owners: map[string]dwarf.Offset{}}
}

var void = isf.Type{Kind: isf.Base, Name: "void"}

// maxDepth bounds how deep types may nest.
const maxDepth = 32

// Of is the type that an entry names; without one it is void.
func (c *Converter) Of(e *dwarf.Entry) (isf.Type, error) {
	v, err := c.info.Val(e, dwarf.AttrType)
	if err != nil {
		return void, err
	}
	at, ok := v.(dwarf.Offset) // else it is in another file, or a unit of types
	if !ok {
		return void, nil
	}
	return c.At(at)
}

// At is the type that an entry is. Structs are described by Members.
func (c *Converter) At(at dwarf.Offset) (isf.Type, error) { return c.typeAt(at, 0) }

func (c *Converter) below(e *dwarf.Entry, depth int) (isf.Type, error) {
	at, ok := e.Val(dwarf.AttrType).(dwarf.Offset)
	if !ok {
		return void, nil
	}
	return c.typeAt(at, depth+1)
}

// typeAt looks through typedefs and qualifiers.
func (c *Converter) typeAt(at dwarf.Offset, depth int) (isf.Type, error) {
	if depth > maxDepth {
		return void, nil
	}
	w := c.info.WalkFrom(at)
	e, err := w.step()
	if err != nil || e == nil {
		return void, err
	}
	c.Spend("")
	switch e.Tag {
	case dwarf.TagTypedef, dwarf.TagConstType, dwarf.TagVolatileType, dwarf.TagRestrictType, dwarf.TagAtomicType:
		return c.below(e, depth)
	case dwarf.TagPointerType, dwarf.TagReferenceType, dwarf.TagRvalueReferenceType:
		sub, err := c.below(e, depth)
		return isf.Type{Kind: isf.Pointer, Subtype: &sub}, err
	case dwarf.TagArrayType:
		return c.array(w, e, depth)
	case dwarf.TagSubroutineType:
		return isf.Type{Kind: isf.Function}, nil
	case dwarf.TagStructType, dwarf.TagClassType:
		return c.structure(e, isf.Struct), nil
	case dwarf.TagUnionType:
		return c.structure(e, isf.Union), nil
	case dwarf.TagEnumerationType:
		return c.enum(w, e)
	case dwarf.TagBaseType:
		return c.base(e), nil
	}
	return void, nil
}

// Spend counts what a name takes, and returns it.
func (c *Converter) Spend(name string) string {
	c.Spent += len(name) + 32
	return name
}

func nameOf(e *dwarf.Entry) string {
	name, _ := e.Val(dwarf.AttrName).(string)
	return name
}

func number(e *dwarf.Entry, of dwarf.Attr) (int64, bool) {
	n, ok := e.Val(of).(int64)
	return n, ok
}

func sizeOf(e *dwarf.Entry) uint64 {
	n, _ := number(e, dwarf.AttrByteSize)
	return uint64(max(n, 0))
}

// array reads the bounds, one for each dimension, the outermost first.
func (c *Converter) array(w *Walker, e *dwarf.Entry, depth int) (isf.Type, error) {
	of, err := c.below(e, depth)
	if err != nil {
		return void, err
	}
	var counts []int64
	for len(counts) < maxDepth {
		d, err := w.Child(0)
		if err != nil || d == nil {
			if err != nil {
				return void, err
			}
			break
		}
		if d.Tag != dwarf.TagSubrangeType {
			continue
		}
		n, ok := number(d, dwarf.AttrCount)
		if last, bounded := number(d, dwarf.AttrUpperBound); !ok && bounded {
			n = last + 1
		}
		counts = append(counts, max(n, 0)) // none: as many as there are
	}
	if counts == nil {
		counts = []int64{0}
	}
	for i := len(counts) - 1; i >= 0; i-- {
		sub := of
		of = isf.Type{Kind: isf.Array, Count: uint64(counts[i]), Subtype: &sub}
	}
	return of, nil
}

// Encodings of base types (DWARF 5, 7.8).
const (
	encBoolean      = 2
	encComplex      = 3
	encFloat        = 4
	encSigned       = 5
	encSignedChar   = 6
	encUnsigned     = 7
	encUnsignedChar = 8
	encUTF          = 0x10
)

func (c *Converter) base(e *dwarf.Entry) isf.Type {
	name := nameOf(e)
	encoding, _ := number(e, dwarf.AttrEncoding)
	b := isf.BaseType{Size: sizeOf(e), Endian: "little"}
	switch encoding {
	case encBoolean:
		b.Kind = "bool"
	case encFloat, encComplex:
		b.Kind, b.Signed = "float", true
	case encSigned:
		b.Kind, b.Signed = "int", true
	case encUnsigned, encUTF:
		b.Kind = "int"
	case encSignedChar:
		b.Kind, b.Signed = "char", true
	case encUnsignedChar:
		b.Kind = "char"
	default:
		return void
	}
	if name == "" {
		return void
	}
	if _, ok := c.out.Base[name]; !ok {
		c.out.Base[c.Spend(name)] = b
	}
	return isf.Type{Kind: isf.Base, Name: name}
}

// name gives a type without a name one of its own, and one that shares its name, too, if
// such types are to be kept apart.
func (c *Converter) name(e *dwarf.Entry) string {
	if own := c.names[e.Offset]; own != "" {
		return own
	}
	name := nameOf(e)
	switch {
	case name == "":
		c.unnamed++
		c.names[e.Offset] = fmt.Sprintf("unnamed_%d", c.unnamed)
		return c.names[e.Offset]
	case !c.apart:
		return name
	}
	own := name
	for n := 2; ; n++ {
		if at, taken := c.owners[own]; !taken || at == e.Offset {
			break
		}
		own = fmt.Sprintf("%s.%d", name, n)
	}
	c.owners[own], c.names[e.Offset] = e.Offset, own
	return own
}

func (c *Converter) structure(e *dwarf.Entry, kind isf.Kind) isf.Type {
	if e.Val(dwarf.AttrDeclaration) != nil {
		return isf.Type{Kind: kind, Name: nameOf(e)}
	}
	name := c.name(e)
	of := isf.Type{Kind: kind, Name: name}
	if _, known := c.out.Users[name]; !known {
		c.out.Users[c.Spend(name)] = isf.UserType{Kind: kind, Size: sizeOf(e), Fields: map[string]isf.Field{}}
		c.pending = append(c.pending, pending{e.Offset, name})
	}
	return of
}

// Members adds those of the structs that were come to, the nearest first: one may lead to
// thousands. Where more than most bytes are spent it leaves the others out, and says so.
func (c *Converter) Members(most int) (all bool, err error) {
	for len(c.pending) > 0 {
		one := c.pending[0]
		if c.Spent > most {
			for _, left := range c.pending {
				delete(c.out.Users, left.name)
			}
			c.pending = nil
			return false, nil
		}
		c.pending = c.pending[1:]
		if err := c.members(one); err != nil {
			return false, err
		}
	}
	return true, nil
}

func (c *Converter) members(of pending) error {
	fields := c.out.Users[of.name].Fields
	w := c.info.WalkFrom(of.at)
	if e, err := w.step(); err != nil || e == nil {
		return err
	}
	for i := 0; ; {
		m, err := w.Child(0)
		if err != nil || m == nil {
			return err
		}
		if m.Tag != dwarf.TagMember && m.Tag != dwarf.TagInheritance || m.Val(dwarf.AttrExternal) != nil { // a static member of C++
			continue
		}
		name := c.Spend(nameOf(m))
		f := isf.Field{Offset: uint64(max(offsetIn(m), 0)), Anonymous: name == ""}
		if f.Type, err = c.Of(m); err != nil {
			return err
		}
		if bits, ok := number(m, dwarf.AttrBitSize); ok && bits > 0 {
			if f.Offset, f.Type, err = c.bitField(m, bits, f.Type); err != nil {
				return err
			}
		}
		fields[isf.FieldName(i, name)] = f
		i++
	}
}

// offsetIn is where a member begins, in bytes. DWARF 2 says it as an expression.
func offsetIn(m *dwarf.Entry) int64 {
	const plusConstant = 0x23
	switch at := m.Val(dwarf.AttrDataMemberLoc).(type) {
	case int64:
		return at
	case []byte:
		if len(at) > 1 && at[0] == plusConstant {
			n, _ := binary.Uvarint(at[1:])
			return int64(n)
		}
	}
	return 0
}

// bitField says where a bit field is, as ISF has it: from the start of a place of its type's
// own. DWARF 5 counts from the struct's start; before, from the other end of such a place,
// whose size then comes along.
func (c *Converter) bitField(m *dwarf.Entry, bits int64, whole isf.Type) (uint64, isf.Type, error) {
	size, err := c.sizeOf(m)
	if err != nil {
		return 0, void, err
	}
	bit, _ := number(m, dwarf.AttrDataBitOffset)
	if own, ok := number(m, dwarf.AttrByteSize); ok && own > 0 {
		from, _ := number(m, dwarf.AttrBitOffset)
		size = own
		bit = 8*(offsetIn(m)+own) - from - bits
	}
	bit = max(bit, 0)
	offset := bit / 8 / size * size
	return uint64(offset), isf.Type{Kind: isf.Bitfield, BitLen: uint8(min(bits, math.MaxUint8)), BitPos: uint8(min(bit-8*offset, math.MaxUint8)), BitsType: &whole}, nil
}

// sizeOf is how many bytes the type of a member takes: what a bit field is in.
func (c *Converter) sizeOf(m *dwarf.Entry) (int64, error) {
	for range maxDepth {
		at, ok := m.Val(dwarf.AttrType).(dwarf.Offset)
		if !ok {
			break
		}
		next, err := c.info.entry(at)
		if err != nil || next == nil {
			return 1, err
		}
		if n := sizeOf(next); n > 0 {
			return int64(min(n, 16)), nil
		}
		m = next
	}
	return 1, nil
}

func (c *Converter) enum(w *Walker, e *dwarf.Entry) (isf.Type, error) {
	name := c.name(e)
	of := isf.Type{Kind: isf.Enum, Name: name}
	if _, known := c.out.Enums[name]; known || e.Val(dwarf.AttrDeclaration) != nil {
		return of, nil
	}
	out := isf.EnumType{Base: "unsigned int", Size: sizeOf(e), Constants: map[string]int64{}}
	for {
		v, err := w.Child(0)
		if err != nil {
			return of, err
		}
		if v == nil {
			break
		}
		n, ok := number(v, dwarf.AttrConstValue)
		if v.Tag != dwarf.TagEnumerator || !ok {
			continue
		}
		if out.Constants[c.Spend(nameOf(v))] = n; n < 0 {
			out.Base = "int"
		}
	}
	c.out.Enums[c.Spend(name)] = out
	return of, nil
}
