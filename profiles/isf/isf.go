// Package isf holds the symbols and types of one kernel or program, in the
// terms of Volatility 3's Intermediate Symbol Format, and reads and writes that
// format and a compact form of it that opens without parsing.
package isf

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sort"
	"strings"
)

// ErrNotFound is what a look-up of a symbol, a type or a field fails with when
// there is none; the error's text has names that are near.
var ErrNotFound = errors.New("not in the profile")

// Kind is what a Type is.
type Kind string

// The kinds of types, as ISF writes them.
const (
	Base     Kind = "base"
	Struct   Kind = "struct"
	Union    Kind = "union"
	Class    Kind = "class"
	Enum     Kind = "enum"
	Pointer  Kind = "pointer"
	Array    Kind = "array"
	Bitfield Kind = "bitfield"
	Function Kind = "function"
)

// Type says of what type something is.
type Type struct {
	Kind     Kind   `json:"kind"`
	Name     string `json:"name,omitempty"`         // base, struct, union, class, enum
	Subtype  *Type  `json:"subtype,omitempty"`      // pointer, array
	Count    uint64 `json:"count,omitempty"`        // array
	BitLen   uint8  `json:"bit_length,omitempty"`   // bitfield
	BitPos   uint8  `json:"bit_position,omitempty"` // bitfield
	BitsType *Type  `json:"type,omitempty"`         // bitfield: of what
}

// MarshalJSON writes what ISF's schema wants of each kind: a count of 0 (a
// flexible array) and a bit position of 0 must be there.
func (t Type) MarshalJSON() ([]byte, error) {
	switch t.Kind {
	case Array:
		return json.Marshal(struct {
			Kind    Kind   `json:"kind"`
			Count   uint64 `json:"count"`
			Subtype *Type  `json:"subtype"`
		}{t.Kind, t.Count, t.Subtype})
	case Bitfield:
		return json.Marshal(struct {
			Kind     Kind  `json:"kind"`
			BitLen   uint8 `json:"bit_length"`
			BitPos   uint8 `json:"bit_position"`
			BitsType *Type `json:"type"`
		}{t.Kind, t.BitLen, t.BitPos, t.BitsType})
	}
	type plain Type // without this method
	return json.Marshal(plain(t))
}

// String writes a type as C does: "struct iovec *". The zero Type is "".
func (t Type) String() string { return t.text(0) }

func (t Type) text(depth int) string {
	sub := "void"
	if t.Subtype != nil && depth < maxDepth {
		sub = t.Subtype.text(depth + 1)
	}
	switch t.Kind {
	case Struct, Union, Enum, Class:
		return string(t.Kind) + " " + t.Name
	case Pointer:
		if strings.HasSuffix(sub, "*") {
			return sub + "*"
		}
		return sub + " *"
	case Array:
		return fmt.Sprintf("%s[%d]", sub, t.Count)
	case Function:
		return "function"
	}
	return t.Name
}

// Field is a member of a struct or union. Offset is in bytes.
type Field struct {
	Offset    uint64 `json:"offset"`
	Type      Type   `json:"type"`
	Anonymous bool   `json:"anonymous,omitempty"`
}

// UserType is a struct, union or class. Size is in bytes.
type UserType struct {
	Kind   Kind             `json:"kind"`
	Size   uint64           `json:"size"`
	Fields map[string]Field `json:"fields"`
}

// BaseType is a scalar. Size is in bytes.
type BaseType struct {
	Kind   string `json:"kind"` // int, char, bool, float, void
	Size   uint64 `json:"size"`
	Signed bool   `json:"signed"`
	Endian string `json:"endian"`
}

// EnumType is an enumeration.
type EnumType struct {
	Base      string           `json:"base"`
	Size      uint64           `json:"size"`
	Constants map[string]int64 `json:"constants"`
}

// Symbol is a name and its address, in the kernel as it was linked: without the
// slide of KASLR.
type Symbol struct {
	Name string
	Addr uint64
}

// Param is an argument of a Func. Name may be empty.
type Param struct {
	Name string `json:"name"`
	Type Type   `json:"type"`
}

// Func is the prototype of a function: an extension of hprobe's, which other
// readers of ISF ignore.
type Func struct {
	Params []Param `json:"params"`
	Return Type    `json:"return"`
}

// Meta is what is known of the kernel as a whole.
type Meta struct {
	Banner  string `json:"banner"`             // linux_banner, without its line end
	BuildID string `json:"build_id,omitempty"` // hexadecimal
	Source  string `json:"source"`             // of what the profile was made
}

// Builder collects a profile.
type Builder struct {
	Meta    Meta
	Symbols []Symbol
	Base    map[string]BaseType
	Users   map[string]UserType
	Enums   map[string]EnumType
	Funcs   map[string]Func
}

// NewBuilder returns an empty one.
func NewBuilder() *Builder {
	return &Builder{Base: map[string]BaseType{}, Users: map[string]UserType{}, Enums: map[string]EnumType{}, Funcs: map[string]Func{}}
}

// sorted returns the symbols by name, those of one name by address, each once.
func (b *Builder) sorted() []Symbol {
	all := slices.Clone(b.Symbols)
	slices.SortFunc(all, func(x, y Symbol) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), cmp.Compare(x.Addr, y.Addr))
	})
	return slices.Compact(all)
}

// Address returns the address of the only symbol of that name.
func (p *Profile) Address(name string) (uint64, error) {
	all := p.Addresses(name)
	if err := p.failed(); err != nil {
		return 0, fmt.Errorf("symbol %q: %w", name, err)
	}
	switch len(all) {
	case 1:
		return all[0], nil
	case 0:
		return 0, fmt.Errorf("symbol %q: %w%s", name, ErrNotFound, p.nearSymbols(name))
	default:
		return 0, fmt.Errorf("symbol %q: %d functions have that name (%#x …): give an address", name, len(all), all[0])
	}
}

// Symbolize writes an address (without the slide) as "symbol+0x12". It is
// false where no symbol is within 1 MiB before it.
func (p *Profile) Symbolize(addr uint64) (string, bool) {
	s, ok := p.Nearest(addr)
	if !ok || addr-s.Addr > 1<<20 {
		return "", false
	}
	if addr == s.Addr {
		return s.Name, true
	}
	return fmt.Sprintf("%s+%#x", s.Name, addr-s.Addr), true
}

func (p *Profile) nearSymbols(name string) string {
	i := sort.Search(p.NumSymbols(), func(i int) bool { return p.SymbolAt(i).Name >= name })
	var near []string
	for j := max(0, i-1); j < min(p.NumSymbols(), i+2); j++ {
		near = append(near, p.SymbolAt(j).Name)
	}
	if len(near) == 0 {
		return ""
	}
	return fmt.Sprintf(" (near it: %s)", strings.Join(near, ", "))
}

// Location is where a field is in its outermost struct: Offset in bytes. Type
// is the field's.
type Location struct {
	Offset uint64
	Type   Type
}

// maxDepth bounds how deep a path or anonymous members may nest: a profile may
// be hostile, too.
const maxDepth = 32

// maxAnonymous bounds how many structs may be in one struct without a name.
const maxAnonymous = 256

// Field finds a member of a struct, by a path through members that are structs
// themselves: Field("task_struct", "thread.sp"). It does not follow pointers.
// Members of anonymous members count as the struct's own.
func (p *Profile) Field(structName, path string) (Location, error) {
	var at Location
	name := structName
	for i, part := range strings.Split(path, ".") {
		if i >= maxDepth {
			return at, fmt.Errorf("%s.%s: too deep", structName, path)
		}
		if i > 0 {
			if at.Type.Kind != Struct && at.Type.Kind != Union && at.Type.Kind != Class {
				return at, fmt.Errorf("%s.%s: there is a %s before %q, not a struct", structName, path, at.Type.Kind, part)
			}
			name = at.Type.Name
		}
		found, err := p.field(name, part, map[string]bool{})
		if err != nil {
			return at, err
		}
		at = Location{Offset: at.Offset + found.Offset, Type: found.Type}
	}
	return at, nil
}

// field looks into each struct once, whatever holds it: in a hostile profile
// each may have many anonymous members, and these again.
func (p *Profile) field(structName, name string, seen map[string]bool) (Location, error) {
	seen[structName] = true
	u, err := p.UserType(structName)
	if err != nil {
		return Location{}, err
	}
	if f, ok := u.Fields[name]; ok {
		return Location{Offset: f.Offset, Type: f.Type}, nil
	}
	for _, f := range u.Fields {
		if !f.Anonymous || seen[f.Type.Name] || len(seen) > maxAnonymous {
			continue
		}
		if at, err := p.field(f.Type.Name, name, seen); err == nil {
			at.Offset += f.Offset
			return at, nil
		}
	}
	return Location{}, fmt.Errorf("%s has no member %q: %w (it has %s)", structName, name, ErrNotFound, someFields(u))
}

func someFields(u UserType) string {
	var names []string
	for n := range u.Fields {
		names = append(names, n)
	}
	slices.Sort(names)
	if len(names) > 12 {
		names = append(names[:12], "…")
	}
	return strings.Join(names, ", ")
}

// SizeOf returns how many bytes a type takes.
func (p *Profile) SizeOf(t Type) (uint64, error) { return p.sizeOf(t, 0) }

func (p *Profile) sizeOf(t Type, depth int) (uint64, error) {
	if depth > maxDepth {
		return 0, errors.New("a type that nests too deep")
	}
	switch t.Kind {
	case Pointer:
		return 8, nil
	case Array:
		if t.Subtype == nil {
			return 0, errors.New("an array of nothing")
		}
		n, err := p.sizeOf(*t.Subtype, depth+1)
		over, size := bits.Mul64(n, t.Count)
		if err == nil && over != 0 {
			return 0, fmt.Errorf("an array of %d times %d bytes", t.Count, n)
		}
		return size, err
	case Struct, Union, Class:
		u, err := p.UserType(t.Name)
		return u.Size, err
	case Base:
		b, err := p.BaseType(t.Name)
		return b.Size, err
	case Enum:
		e, err := p.EnumType(t.Name)
		return e.Size, err
	case Bitfield:
		if t.BitsType == nil {
			return 0, errors.New("a bit field of nothing")
		}
		return p.sizeOf(*t.BitsType, depth+1)
	}
	return 0, fmt.Errorf("a %s has no size", t.Kind)
}
