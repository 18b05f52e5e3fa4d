package isf

import (
	"fmt"
	"iter"
	"strings"
)

// Kind says what a Type is.
type Kind uint8

// The kinds of types. Typedefs, const and volatile are not among them: ISF
// resolves them.
const (
	KindInvalid Kind = iota // the zero Type
	KindBase                // an integer, floating point number, char, bool or void
	KindPointer
	KindArray
	KindStruct
	KindUnion
	KindClass // a C++ class
	KindEnum
	KindFunction // of an unknown prototype: what a function pointer points to
	KindBitfield
	kindEnd
)

var kindNames = [...]string{"invalid", "base", "pointer", "array", "struct", "union", "class", "enum", "function", "bitfield"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

func (k Kind) aggregate() bool { return k == KindStruct || k == KindUnion || k == KindClass }

// BaseKind says how the bytes of a base type are to be taken.
type BaseKind uint8

// The kinds of base types.
const (
	BaseVoid BaseKind = iota
	BaseInt
	BaseFloat
	BaseChar
	BaseBool
	baseEnd
)

var baseNames = [...]string{"void", "int", "float", "char", "bool"}

func (k BaseKind) String() string {
	if int(k) < len(baseNames) {
		return baseNames[k]
	}
	return fmt.Sprintf("BaseKind(%d)", uint8(k))
}

// Base describes a base type.
type Base struct {
	Kind      BaseKind
	Size      uint64 // in bytes
	Signed    bool
	BigEndian bool
}

// node is a use of a type, as fields and symbols have it. Nodes refer to nodes
// with smaller numbers only, so they have no cycles; they refer to structs,
// enums and base types by name, as ISF does.
type node struct {
	kind Kind
	// The name's number (base, struct, union, class, enum), the node of the
	// element (pointer, array, bitfield), else 0.
	ref uint32
	// The count (array), bit position<<8 | bit length (bitfield), the number
	// of the base type's name (pointer; 0: "pointer").
	arg uint64
}

// noType is the type number of a symbol whose type is not known.
const noType = 0

// Type is the type of a member, an argument or a symbol: small, comparable,
// to be passed by value. The zero Type is of no kind and has no size.
type Type struct {
	p  *Profile
	id uint32
}

func (t Type) node() node {
	if t.p == nil {
		return node{}
	}
	return t.p.nodes[t.id]
}

// Kind returns the type's kind; KindInvalid where the profile does not know it.
func (t Type) Kind() Kind { return t.node().kind }

// Name returns the name of a struct, union, class, enum or base type, else "".
func (t Type) Name() string {
	n := t.node()
	if n.kind == KindBase || n.kind == KindEnum || n.kind.aggregate() {
		return t.p.names.at(n.ref)
	}
	return ""
}

// Elem returns what a pointer points to, what an array has, or the type that a
// bit field is cut from; else the zero Type.
func (t Type) Elem() Type {
	switch n := t.node(); n.kind {
	case KindPointer, KindArray, KindBitfield:
		return Type{t.p, n.ref}
	}
	return Type{}
}

// Count returns the number of an array's elements, else 0.
func (t Type) Count() uint64 {
	if n := t.node(); n.kind == KindArray {
		return n.arg
	}
	return 0
}

// Bits returns where in Elem a bit field is: position of its lowest bit, and
// length. Both are 0 for other types.
func (t Type) Bits() (position, length uint) {
	if n := t.node(); n.kind == KindBitfield {
		return uint(n.arg >> 8), uint(n.arg & 0xff)
	}
	return 0, 0
}

// Base returns what is known of a base type, or of the type that an enum, a
// pointer or a bit field is stored as.
func (t Type) Base() (Base, bool) {
	switch n := t.node(); n.kind {
	case KindBase:
		return t.p.Base(t.p.names.at(n.ref))
	case KindPointer:
		name := "pointer"
		if n.arg != 0 {
			name = t.p.names.at(uint32(n.arg))
		}
		return t.p.Base(name)
	case KindEnum:
		if e, ok := t.p.Enum(t.p.names.at(n.ref)); ok {
			return t.p.Base(e.BaseName)
		}
	case KindBitfield:
		return Type{t.p, n.ref}.Base()
	}
	return Base{}, false
}

// Size returns the type's size in bytes: 0 for functions, void, and types that
// the profile does not describe.
func (t Type) Size() uint64 {
	switch n := t.node(); {
	case n.kind.aggregate():
		if s, ok := t.p.Struct(t.p.names.at(n.ref)); ok {
			return s.Size
		}
	case n.kind == KindEnum:
		if e, ok := t.p.Enum(t.p.names.at(n.ref)); ok {
			return e.Size
		}
	case n.kind == KindArray:
		elem := t.Elem().Size()
		if elem != 0 && n.arg > 1<<48/elem {
			return 0 // no object is that large: the profile is wrong
		}
		return n.arg * elem
	case n.kind == KindPointer:
		if b, ok := t.Base(); ok {
			return b.Size
		}
		return 8
	default:
		b, _ := t.Base()
		return b.Size
	}
	return 0
}

// Struct returns the struct, union or class that t is.
func (t Type) Struct() (Struct, bool) {
	if n := t.node(); n.kind.aggregate() {
		return t.p.Struct(t.p.names.at(n.ref))
	}
	return Struct{}, false
}

// String writes the type in C's words: "struct file *", "char [16]".
func (t Type) String() string {
	n := t.node()
	switch n.kind {
	case KindInvalid:
		return "?"
	case KindPointer:
		s := t.Elem().String()
		if !strings.HasSuffix(s, "*") {
			s += " "
		}
		return s + "*"
	case KindArray:
		return fmt.Sprintf("%v [%d]", t.Elem(), n.arg)
	case KindFunction:
		return "function"
	case KindBitfield:
		return fmt.Sprintf("%v :%d", t.Elem(), n.arg&0xff)
	case KindBase:
		return t.Name()
	}
	return n.kind.String() + " " + t.Name()
}

// Struct is a struct, union or class.
type Struct struct {
	Name string
	Kind Kind   // KindStruct, KindUnion or KindClass
	Size uint64 // in bytes
	p    *Profile
	row  uint32
}

// Member is a field of a struct.
type Member struct {
	Name   string
	Offset uint64 // in bytes
	Type   Type
	// Anonymous: C has no name for it; its own members count as the struct's.
	Anonymous bool
}

type aggregateRow struct {
	name     uint32
	kind     Kind
	size     uint64
	from, to uint32 // members
}

type memberRow struct {
	name      uint32
	node      uint32
	offset    uint64
	anonymous bool
}

func (p *Profile) member(row uint32) Member {
	m := p.members[row]
	return Member{Name: p.names.at(m.name), Offset: m.offset, Type: Type{p, m.node}, Anonymous: m.anonymous}
}

// Members yields the fields in the order of the file (by rising offset in what
// hprobe makes). It does not descend into anonymous ones.
func (s Struct) Members() iter.Seq[Member] {
	return func(yield func(Member) bool) {
		if s.p == nil {
			return
		}
		r := s.p.aggregates[s.row]
		for i := r.from; i < r.to; i++ {
			if !yield(s.p.member(i)) {
				return
			}
		}
	}
}

// NumMembers counts what Members yields.
func (s Struct) NumMembers() int {
	if s.p == nil {
		return 0
	}
	r := s.p.aggregates[s.row]
	return int(r.to - r.from)
}

// The search for a member in anonymous ones has bounds, as a file may say that
// a struct contains itself.
const (
	maxAnonymousDepth = 16
	maxAnonymousSeen  = 4096
)

// Member finds a field by its name, also in anonymous structs and unions; its
// offset is from the start of s.
func (s Struct) Member(name string) (Member, bool) {
	budget := maxAnonymousSeen
	return s.find(name, 0, &budget)
}

func (s Struct) find(name string, depth int, budget *int) (Member, bool) {
	for m := range s.Members() {
		if m.Name == name {
			return m, true
		}
	}
	if depth == maxAnonymousDepth {
		return Member{}, false
	}
	for m := range s.Members() {
		if !m.Anonymous {
			continue
		}
		if *budget--; *budget < 0 {
			return Member{}, false
		}
		inner, ok := m.Type.Struct()
		if !ok {
			continue
		}
		if found, ok := inner.find(name, depth+1, budget); ok {
			found.Offset += m.Offset
			return found, true
		}
	}
	return Member{}, false
}

// Enum is an enumeration.
type Enum struct {
	Name     string
	Size     uint64 // in bytes
	BaseName string // of the base type that it is stored as
	p        *Profile
	row      uint32
}

type enumRow struct {
	name, base uint32
	size       uint64
	from, to   uint32 // constants
}

type constantRow struct {
	name  uint32
	value int64
}

// Constants yields the names and values in the order of the file. Unsigned
// values over 2^63 come out negative.
func (e Enum) Constants() iter.Seq2[string, int64] {
	return func(yield func(string, int64) bool) {
		if e.p == nil {
			return
		}
		r := e.p.enums[e.row]
		for _, c := range e.p.constants[r.from:r.to] {
			if !yield(e.p.names.at(c.name), c.value) {
				return
			}
		}
	}
}

// Prototype is what is known of a function's arguments and result.
type Prototype struct {
	Name     string
	Args     []Argument
	Result   Type
	Variadic bool
}

// Argument is one argument of a function.
type Argument struct {
	Name string // "arg0", "arg1" … where the source has none
	Type Type
}

// String writes the prototype as C does.
func (f Prototype) String() string {
	var args []string
	for _, a := range f.Args {
		args = append(args, a.Type.String()+" "+a.Name)
	}
	if f.Variadic {
		args = append(args, "...")
	}
	return fmt.Sprintf("%v %s(%s)", f.Result, f.Name, strings.Join(args, ", "))
}
