package guestos

import (
	"errors"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
)

// The System V ABI for x86-64, 3.2.3: where a function finds its arguments, and its caller
// what it returns.

// functionRegisters are those of numbers and pointers, in encoding order: RDI, RSI, RDX,
// RCX, R8, R9.
var functionRegisters = []int{7, 6, 2, 1, 8, 9}

// floatRegisters is how many registers of floats there are for arguments.
const floatRegisters = 8

var (
	errOnStack = errors.New("it is on the stack, which is not read for arguments")
	errFloat   = errors.New("it is in a register of floats (SSE), and these are not read")
)

// class is where 8 bytes of a value are.
type class uint8

const (
	none class = iota
	ofFloats
	ofNumbers // which has the floats that share its 8 bytes, too
)

// ArgsOf returns the arguments of a function by its prototype. Those that are in no
// register of numbers are there, and can't be read. Of a struct in registers it is the
// first 8 bytes.
func ArgsOf(p *isf.Profile, f isf.Func) (all []Arg) {
	numbers, floats := 0, 0
	if _, in := classes(p, f.Return); !in && isAggregate(f.Return) && !isLongDouble(p, f.Return) {
		numbers = 1 // the caller says first where it is to be
	}
	for _, param := range f.Params {
		arg := Arg{Name: param.Name, Type: param.Type}
		parts, in := classes(p, param.Type)
		ofN, ofF := count(parts, ofNumbers), count(parts, ofFloats)
		if !in || numbers+ofN > len(functionRegisters) || floats+ofF > floatRegisters {
			arg.Unread = errOnStack
			all = append(all, arg)
			continue
		}
		switch {
		case parts[0] == ofNumbers:
			arg.Register = functionRegisters[numbers]
		case ofN+ofF > 0:
			arg.Unread = errFloat
		default:
			arg.Unread = errors.New("it is empty")
		}
		numbers, floats = numbers+ofN, floats+ofF
		all = append(all, arg)
	}
	return all
}

// Returned says why what a function of this type returns is not in RAX; nil: it is. A
// struct of at most 8 bytes may be there, as a number.
func Returned(p *isf.Profile, t isf.Type) error {
	parts, in := classes(p, t)
	switch {
	case isAggregate(t) && (!in || parts != [2]class{ofNumbers}):
		return errors.New("it is a struct by value, and these are not read")
	case !in:
		return errors.New("it is in a register of the x87, and these are not read")
	case parts[0] == ofFloats:
		return errFloat
	}
	return nil
}

// isLongDouble says whether a struct has nothing in it but one: it is returned as that is.
func isLongDouble(p *isf.Profile, t isf.Type) bool {
	for range maxNested {
		if !isAggregate(t) {
			return t.Kind == isf.Base && strings.Contains(t.Name, "long double")
		}
		u, err := p.UserType(t.Name)
		if err != nil || len(u.Fields) != 1 || u.Size > 16 {
			return false
		}
		for _, f := range u.Fields {
			t = f.Type
		}
	}
	return false
}

func count(parts [2]class, of class) (n int) {
	for _, c := range parts {
		if c == of {
			n++
		}
	}
	return n
}

func isAggregate(t isf.Type) bool {
	return t.Kind == isf.Struct || t.Kind == isf.Union || t.Kind == isf.Class
}

// classes says where a value's 8 bytes, or its 16, are; false: in memory. What nobody
// knows anything of is taken for a number.
func classes(p *isf.Profile, t isf.Type) (parts [2]class, inRegisters bool) {
	size, err := p.SizeOf(t)
	if !isAggregate(t) {
		return scalar(p, t, size)
	}
	switch {
	case err != nil:
		return [2]class{ofNumbers}, true
	case size > 16:
		return parts, false
	}
	c := classifier{profile: p, left: 64}
	if !c.fields(t, 0, 0) {
		return parts, false
	}
	if c.parts == parts { // nothing is known of what is in it
		for i := range (size + 7) / 8 {
			c.parts[i] = ofNumbers
		}
	}
	return c.parts, true
}

func scalar(p *isf.Profile, t isf.Type, size uint64) (parts [2]class, inRegisters bool) {
	if t.Kind != isf.Base {
		return [2]class{ofNumbers}, true
	}
	b, err := p.BaseType(t.Name)
	switch {
	case err == nil && b.Kind == "float" && (strings.Contains(t.Name, "long double") || size > 16): // of the x87
		return parts, false
	case err == nil && b.Kind == "float" && size == 16 && strings.Contains(t.Name, "complex"):
		return [2]class{ofFloats, ofFloats}, true
	case err == nil && b.Kind == "float":
		return [2]class{ofFloats}, true
	case err == nil && size == 16:
		return [2]class{ofNumbers, ofNumbers}, true
	}
	return [2]class{ofNumbers}, true
}

// classifier looks at the parts of a struct of at most 16 bytes. A profile may be hostile:
// no more parts are looked at than such a struct may have.
type classifier struct {
	profile *isf.Profile
	parts   [2]class
	left    int
}

func (c *classifier) fields(t isf.Type, at uint64, depth int) bool {
	u, err := c.profile.UserType(t.Name)
	if err != nil || depth > maxNested || len(u.Fields) > c.left {
		return false
	}
	for _, f := range u.Fields {
		if !c.add(f.Type, at+f.Offset, depth) {
			return false
		}
	}
	return true
}

// maxNested bounds how deep structs of 16 bytes may nest.
const maxNested = 8

// add takes a part that is at an offset; false: the struct is in memory.
func (c *classifier) add(t isf.Type, at uint64, depth int) bool {
	if c.left--; c.left < 0 {
		return false
	}
	size, err := c.profile.SizeOf(t)
	if t.Kind == isf.Bitfield { // the place that it is counted from may reach over the struct's end
		at, size = at+uint64(t.BitPos)/8, 1
	}
	if err != nil || at+size > 16 || at+size < at {
		return false
	}
	switch {
	case size == 0: // a flexible array
		return true
	case isAggregate(t):
		return c.fields(t, at, depth+1)
	case t.Kind == isf.Array && t.Subtype != nil:
		for i := range t.Count {
			if !c.add(*t.Subtype, at+i*size/t.Count, depth+1) {
				return false
			}
		}
		return true
	}
	parts, in := scalar(c.profile, t, size)
	if !in || at%size != 0 { // of a packed struct
		return false
	}
	for i, part := range parts {
		if n := at/8 + uint64(i); part != none && n < 2 {
			c.parts[n] = max(c.parts[n], part)
		}
	}
	return true
}
