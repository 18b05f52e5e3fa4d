package isf

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"slices"
	"strings"
)

// Location is where a field is in its outermost struct: Offset in bytes. Type
// is the field's.
type Location struct {
	Offset uint64
	Type   Type
}

// A profile may be hostile, too.
const (
	maxDepth     = 32      // of a path, of types in a type
	maxAnonymous = 256     // structs without a name in one struct
	maxMembers   = 1 << 16 // of one struct, with those of these
)

// Field finds a member of a struct, by a path through members that are structs
// themselves: Field("task_struct", "thread.sp"). It does not follow pointers.
// Members of anonymous members count as the struct's own.
func (p *Profile) Field(structName, path string) (Location, error) {
	var at Location
	name, rest := structName, path
	for depth := range maxDepth {
		part, behind, more := strings.Cut(rest, ".")
		if depth > 0 {
			if !at.Type.aggregate() {
				return at, fmt.Errorf("%s.%s: there is a %s before %q, not a struct", structName, path, at.Type.Kind, part)
			}
			name = at.Type.Name
		}
		l, err := p.layout(name)
		if err != nil {
			return at, err
		}
		found, ok := l.members[part]
		if !ok {
			return at, fmt.Errorf("%s has no member %q: %w (it has %s)", name, part, ErrNotFound, someFields(l.UserType))
		}
		at = Location{Offset: at.Offset + found.Offset, Type: found.Type}
		if !more {
			return at, nil
		}
		rest = behind
	}
	return at, fmt.Errorf("%s.%s: too deep", structName, path)
}

// layout is a struct that was asked for. It is not to be changed.
type layout struct {
	UserType
	members map[string]Location // with those of anonymous members
}

// layout decodes a struct once.
func (p *Profile) layout(name string) (*layout, error) {
	if l, ok := p.layouts.Load(name); ok {
		return l.(*layout), nil
	}
	u, err := p.UserType(name)
	if err != nil {
		return nil, err
	}
	l := &layout{UserType: u, members: map[string]Location{}}
	p.flatten(l.members, u, 0, map[string]bool{name: true})
	p.layouts.Store(name, l)
	return l, nil
}

// flatten adds a struct's members to a layout, and then those of its anonymous ones. It
// looks into each struct once, whatever holds it: in a hostile profile each may have many
// anonymous members, and these again.
func (p *Profile) flatten(to map[string]Location, u UserType, offset uint64, seen map[string]bool) {
	for name, f := range u.Fields {
		if _, ok := to[name]; !ok && len(to) < maxMembers {
			to[name] = Location{Offset: offset + f.Offset, Type: f.Type}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(u.Fields)) {
		f := u.Fields[name]
		if !f.Anonymous || !f.Type.aggregate() || seen[f.Type.Name] || len(seen) > maxAnonymous {
			continue
		}
		seen[f.Type.Name] = true
		if inner, err := p.UserType(f.Type.Name); err == nil {
			p.flatten(to, inner, offset+f.Offset, seen)
		}
	}
}

func (t *Type) aggregate() bool { return t.Kind == Struct || t.Kind == Union || t.Kind == Class }

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
		return p.pointerSize(t)
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

// pointerSize is what a pointer's own base says, or else the profile for all: 8 bytes
// where it doesn't.
func (p *Profile) pointerSize(t Type) (uint64, error) {
	b, err := p.BaseType(cmp.Or(t.Base, string(Pointer)))
	if t.Base == "" && errors.Is(err, ErrNotFound) {
		return 8, nil
	}
	return b.Size, err
}
