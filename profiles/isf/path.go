package isf

import (
	"fmt"
	"strconv"
	"strings"
)

// A Path says how to get from the start of a struct to one of its members, or
// to a member of what it points to: "task_struct.cred.uid.val".
type Path struct {
	// Offsets has one entry more than there are pointers on the way: add the
	// first to the struct's address; for each further one load a pointer from
	// there, and add it.
	Offsets []uint64
	// Type is the type of the member at the end.
	Type Type
}

// The bounds of a path: what a person may write, with some room.
const (
	maxPathText  = 512
	maxPathSteps = 32
)

// MemberPath resolves a path: the name of a struct, and then its members,
// separated by dots. A dot also follows a pointer (C's "->"); an array's
// element is written "[2]". Anonymous structs and unions are looked through.
// It fails with a *NotFoundError that names the first part that is missing.
func (p *Profile) MemberPath(path string) (Path, error) {
	if len(path) > maxPathText {
		return Path{}, fmt.Errorf("a member path of %d bytes: at most %d", len(path), maxPathText)
	}
	name, rest, _ := strings.Cut(path, ".")
	s, ok := p.Struct(name)
	if !ok {
		return Path{}, &NotFoundError{ErrNoType, name}
	}
	if rest == "" {
		return Path{}, fmt.Errorf("member path %q names no member", path)
	}
	return s.Path(rest)
}

// Path is MemberPath from a struct that is already known.
func (s Struct) Path(path string) (Path, error) {
	parts := strings.Split(path, ".")
	if len(parts) > maxPathSteps || len(path) > maxPathText {
		return Path{}, fmt.Errorf("member path %q is too long", path)
	}
	r := Path{Offsets: []uint64{0}}
	done := s.Name
	for i, part := range parts {
		if i > 0 {
			if r.Type.Kind() == KindPointer {
				r.Type = r.Type.Elem()
				r.Offsets = append(r.Offsets, 0)
			}
			inner, ok := r.Type.Struct()
			if !ok {
				return Path{}, fmt.Errorf("%w: it is of type %v", &NotFoundError{ErrNoMember, done + "." + part}, r.Type)
			}
			s = inner
		}
		done += "." + part
		name, indexes, err := splitIndexes(part)
		if err != nil {
			return Path{}, fmt.Errorf("member path %q: %w", done, err)
		}
		m, ok := s.Member(name)
		if !ok {
			return Path{}, &NotFoundError{ErrNoMember, done}
		}
		last := len(r.Offsets) - 1
		r.Offsets[last] += m.Offset
		r.Type = m.Type
		for _, n := range indexes {
			if r.Type.Kind() != KindArray {
				return Path{}, fmt.Errorf("%w: %v is no array", &NotFoundError{ErrNoMember, done}, r.Type)
			}
			// An array of 0 elements is C's flexible one: it has any number.
			if count := r.Type.Count(); count != 0 && n >= count {
				return Path{}, fmt.Errorf("%w: it has %d elements", &NotFoundError{ErrNoMember, done}, count)
			}
			r.Type = r.Type.Elem()
			r.Offsets[last] += n * r.Type.Size()
		}
	}
	return r, nil
}

// splitIndexes takes "name[2][3]" apart.
func splitIndexes(part string) (name string, indexes []uint64, err error) {
	name, rest, found := strings.Cut(part, "[")
	for found {
		var number string
		number, rest, found = strings.Cut(rest, "]")
		n, err := strconv.ParseUint(number, 0, 32)
		if !found || err != nil || rest != "" && rest[0] != '[' {
			return "", nil, fmt.Errorf("%q is no array index", "["+number)
		}
		indexes = append(indexes, n)
		rest, found = strings.CutPrefix(rest, "[")
	}
	return name, indexes, nil
}

// Offset resolves a path that has no pointers: the member's offset in the
// struct, in bytes.
func (p *Profile) Offset(path string) (uint64, error) {
	r, err := p.MemberPath(path)
	if err != nil {
		return 0, err
	}
	if len(r.Offsets) != 1 {
		return 0, fmt.Errorf("member path %q goes through a pointer", path)
	}
	return r.Offsets[0], nil
}
