package isf

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// TypeID is a type in a Builder. The zero TypeID is "not known".
type TypeID uint32

// Field is a member of a struct, or an argument, in a Builder.
type Field struct {
	Name      string
	Offset    uint64 // in bytes
	Type      TypeID
	Anonymous bool
}

// Constant is a name of an enum's value.
type Constant struct {
	Name  string
	Value int64
}

// Builder makes a Profile. It belongs to one goroutine. Names have no order: a
// pointer to a struct may be made before the struct is defined, or with it
// never defined, as in C.
type Builder struct {
	Meta Metadata

	p     *Profile
	names *namesBuilder
	nodes map[node]TypeID
	err   error
}

// NewBuilder starts an empty profile.
func NewBuilder() *Builder {
	return &Builder{
		p:     &Profile{nodes: make([]node, 1), constData: make([][]byte, 1)},
		names: newNamesBuilder(),
		nodes: map[node]TypeID{{}: 0},
	}
}

// The bounds of a profile: several times what a distribution's kernel with all
// its modules has.
const (
	maxSymbols    = 1 << 23
	maxNodes      = 1 << 23
	maxAggregates = 1 << 22
	maxMembers    = 1 << 24
	maxConstData  = 1 << 16 // bytes, of one symbol
)

var errTooLarge = errors.New("larger than any kernel's profile")

func (b *Builder) node(n node) TypeID {
	if id, ok := b.nodes[n]; ok {
		return id
	}
	if len(b.p.nodes) >= maxNodes {
		b.fail(errTooLarge)
		return 0
	}
	id := TypeID(len(b.p.nodes))
	b.p.nodes = append(b.p.nodes, n)
	b.nodes[n] = id
	return id
}

func (b *Builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *Builder) failed() error {
	if b.err == nil {
		b.err = b.names.err
	}
	return b.err
}

// Base uses the base type of that name.
func (b *Builder) Base(name string) TypeID {
	return b.node(node{kind: KindBase, ref: b.names.addString(name)})
}

// Pointer makes a pointer of the size of the base type "pointer".
func (b *Builder) Pointer(to TypeID) TypeID {
	return b.node(node{kind: KindPointer, ref: uint32(to)})
}

// Array makes an array.
func (b *Builder) Array(of TypeID, count uint64) TypeID {
	return b.node(node{kind: KindArray, ref: uint32(of), arg: count})
}

// Struct uses the struct, union or class of that name.
func (b *Builder) Struct(kind Kind, name string) TypeID {
	return b.node(node{kind: kind, ref: b.names.addString(name)})
}

// Enum uses the enumeration of that name.
func (b *Builder) Enum(name string) TypeID {
	return b.node(node{kind: KindEnum, ref: b.names.addString(name)})
}

// Function is what a function pointer points to.
func (b *Builder) Function() TypeID { return b.node(node{kind: KindFunction}) }

// Bits makes a bit field cut from a base type or enum: the position of its
// lowest bit in it, and its length (1 to 64).
func (b *Builder) Bits(of TypeID, position, length uint) TypeID {
	return b.node(node{kind: KindBitfield, ref: uint32(of), arg: uint64(position)<<8 | uint64(length&0xff)})
}

// DefineBase says what a base type is.
func (b *Builder) DefineBase(name string, base Base) {
	b.p.bases = append(b.p.bases, baseRow{b.names.addString(name), base})
}

// DefineStruct defines a struct, union or class.
func (b *Builder) DefineStruct(kind Kind, name string, size uint64, fields []Field) {
	b.startStruct(b.names.addString(name))
	for _, f := range fields {
		b.addMember(memberRow{name: b.names.addString(f.Name), node: uint32(f.Type), offset: f.Offset, anonymous: f.Anonymous})
	}
	b.endStruct(kind, size)
}

func (b *Builder) startStruct(name uint32) {
	n := uint32(len(b.p.members))
	b.p.aggregates = append(b.p.aggregates, aggregateRow{name: name, from: n, to: n})
}

func (b *Builder) addMember(m memberRow) {
	if len(b.p.members) >= maxMembers || len(b.p.aggregates) >= maxAggregates {
		b.fail(errTooLarge)
		return
	}
	b.p.members = append(b.p.members, m)
	b.p.aggregates[len(b.p.aggregates)-1].to++
}

func (b *Builder) endStruct(kind Kind, size uint64) {
	r := &b.p.aggregates[len(b.p.aggregates)-1]
	r.kind, r.size = kind, size
}

// DefineFunction gives a function a prototype. An argument's Name may be "";
// its Offset is ignored.
func (b *Builder) DefineFunction(name string, args []Field, result TypeID, variadic bool) {
	b.startStruct(b.names.addString(name + prototypeSuffix))
	at := uint64(0)
	add := func(name string, t TypeID) {
		b.addMember(memberRow{name: b.names.addString(name), node: uint32(t), offset: at})
		at += 8
	}
	for i, a := range args {
		if a.Name == "" {
			a.Name = fmt.Sprintf("arg%d", i)
		}
		add(a.Name, a.Type)
	}
	if variadic {
		add(fieldVariadic, b.Base("void"))
	}
	add(fieldResult, result)
	b.endStruct(KindStruct, at)
}

// DefineEnum defines an enumeration that is stored as the base type of that name.
func (b *Builder) DefineEnum(name, base string, size uint64, constants []Constant) {
	r := enumRow{name: b.names.addString(name), base: b.names.addString(base), size: size, from: uint32(len(b.p.constants))}
	for _, c := range constants {
		b.addConstant(constantRow{b.names.addString(c.Name), c.Value})
	}
	r.to = uint32(len(b.p.constants))
	b.p.enums = append(b.p.enums, r)
}

func (b *Builder) addConstant(c constantRow) {
	if len(b.p.constants) >= maxMembers || len(b.p.enums) >= maxAggregates {
		b.fail(errTooLarge)
		return
	}
	b.p.constants = append(b.p.constants, c)
}

// AddSymbol adds a symbol. The same name may come with several addresses; the
// same name at the same address counts once.
func (b *Builder) AddSymbol(s string, address uint64, t TypeID, constantData []byte) {
	b.addSymbol(b.names.addString(s), address, t, constantData)
}

func (b *Builder) addSymbol(name uint32, address uint64, t TypeID, constantData []byte) {
	row := symbolRow{address: address, name: name, node: uint32(t)}
	if len(constantData) > 0 {
		if len(constantData) > maxConstData {
			b.fail(fmt.Errorf("constant data of %d bytes: at most %d", len(constantData), maxConstData))
			return
		}
		row.data = uint32(len(b.p.constData))
		b.p.constData = append(b.p.constData, slices.Clone(constantData))
	}
	if len(b.p.symbols) >= maxSymbols {
		b.fail(errTooLarge)
		return
	}
	b.p.symbols = append(b.p.symbols, row)
}

// Profile finishes the profile. The Builder must not be used after it.
func (b *Builder) Profile() (*Profile, error) {
	if err := b.failed(); err != nil {
		return nil, err
	}
	p := b.p
	p.Meta = b.Meta
	p.names = b.names.done()
	b.p, b.names, b.nodes = nil, nil, nil

	slices.SortStableFunc(p.symbols, func(x, y symbolRow) int {
		if c := cmp.Compare(x.address, y.address); c != 0 {
			return c
		}
		return cmp.Compare(p.names.at(x.name), p.names.at(y.name))
	})
	p.symbols = slices.CompactFunc(p.symbols, func(x, y symbolRow) bool {
		return x.address == y.address && x.name == y.name
	})
	byName := func(x, y uint32) int { return cmp.Compare(p.names.at(x), p.names.at(y)) }
	slices.SortStableFunc(p.bases, func(x, y baseRow) int { return byName(x.name, y.name) })
	slices.SortStableFunc(p.aggregates, func(x, y aggregateRow) int { return byName(x.name, y.name) })
	slices.SortStableFunc(p.enums, func(x, y enumRow) int { return byName(x.name, y.name) })

	p.byName = newIndex(len(p.symbols), p.symbolName, func(row, before int) {
		p.symbols[before].next = uint32(row + 1)
	})
	p.baseIndex = newIndex(len(p.bases), func(i int) string { return p.names.at(p.bases[i].name) }, nil)
	p.aggregateIndex = newIndex(len(p.aggregates), func(i int) string { return p.names.at(p.aggregates[i].name) }, nil)
	p.enumIndex = newIndex(len(p.enums), func(i int) string { return p.names.at(p.enums[i].name) }, nil)
	return p, nil
}
