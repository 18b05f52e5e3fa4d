// Package isf holds the symbols and types of one kernel or program, in the
// terms of Volatility 3's Intermediate Symbol Format, and reads and writes that
// format and a compact form of it that opens without parsing.
package isf

import (
	"errors"
	"fmt"
	"maps"
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
	Base     string `json:"base,omitempty"`         // pointer: the base type that is as large, "" for a plain one
	Count    uint64 `json:"count,omitempty"`        // array
	BitLen   uint8  `json:"bit_length,omitempty"`   // bitfield
	BitPos   uint8  `json:"bit_position,omitempty"` // bitfield
	BitsType *Type  `json:"type,omitempty"`         // bitfield: of what, a base type or an enum
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

// FieldName is a member's name, and of the i-th, if it has none, the one that
// dwarf2json gives it.
func FieldName(i int, name string) string {
	if name == "" {
		return fmt.Sprintf("unnamed_field_%d", i)
	}
	return name
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
	PDB     PDB    `json:"pdb,omitzero"`       // Windows: where the symbols are from
	// Captured is the UUID of the domain whose memory it was made of: the word of that
	// guest, to be used for no other. "": it was made of a file. Of a dump of a guest's
	// memory it is "dump".
	Captured string `json:"captured,omitempty"`
}

// PDB names the symbols of a Windows binary, as its debug directory does.
type PDB struct {
	Database string `json:"database"`
	GUID     string `json:"GUID"`
	Age      uint64 `json:"age"`
	Machine  uint64 `json:"machine_type"`
}

// Builder collects a profile.
type Builder struct {
	Meta    Meta
	Symbols []Symbol
	Base    map[string]BaseType
	Users   map[string]UserType
	Enums   map[string]EnumType
	Funcs   map[string]Func
	Vars    map[string]Type // of symbols
}

// NewBuilder returns an empty one.
func NewBuilder() *Builder {
	return &Builder{Base: map[string]BaseType{}, Users: map[string]UserType{}, Enums: map[string]EnumType{}, Funcs: map[string]Func{}, Vars: map[string]Type{}}
}

// Profile makes a profile of what was collected.
func (b *Builder) Profile() (*Profile, error) {
	to := packer{symbols: slices.Clone(b.Symbols)}
	entries(&to, keyBase, b.Base, (*BaseType).json)
	entries(&to, keyUser, b.Users, (*UserType).json)
	entries(&to, keyEnum, b.Enums, (*EnumType).json)
	entries(&to, keyFunc, b.Funcs, (*Func).json)
	entries(&to, keyVar, b.Vars, (*Type).json)
	return to.profile(b.Meta)
}

// entries packs them in their order, for one profile to be always the same bytes.
func entries[T any](to *packer, kind string, all map[string]T, json func(*T) []byte) {
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t := all[name]
		to.entry(kind+name, json(&t))
	}
}

// Address returns the address of the only symbol of that name.
func (p *Profile) Address(name string) (uint64, error) {
	i, at, ok := p.first(name)
	_, several := p.named(i+1, name)
	if err := p.failed(); err != nil {
		return 0, fmt.Errorf("symbol %q: %w", name, err)
	}
	switch {
	case !ok:
		return 0, fmt.Errorf("symbol %q: %w%s", name, ErrNotFound, p.nearSymbols(name))
	case several:
		return 0, fmt.Errorf("symbol %q: %d functions have that name (%#x …): give an address", name, len(p.Addresses(name)), at)
	}
	return at, nil
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
