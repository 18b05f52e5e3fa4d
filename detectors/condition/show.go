package condition

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"

	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/hprobe/hprobe/profiles/isf"
)

// Bounds of what is shown of one value.
const (
	shownString   = 128 // bytes
	shownElements = 16
)

// Value is one captured value.
type Value struct {
	Name string
	Type string // as C writes it; "" where it is computed
	// Number is the number, or the address, that it is; 0 for a string.
	Number uint64
	Text   string // for people; guest strings in it are quoted
	Err    error  // it could not be read or computed
}

// Capture is an expression whose value is shown by a name.
type Capture struct {
	Name string
	*Expression
	unread *Value // in place of an expression: what is always said of it
}

// Capture compiles EXPR or NAME=EXPR.
func (s *Scope) Capture(spec string) (*Capture, error) {
	name, text := splitCapture(spec)
	e, err := s.Compile(text)
	if err != nil {
		return nil, err
	}
	return &Capture{Name: name, Expression: e}, nil
}

func splitCapture(spec string) (name, text string) {
	if n, rest, ok := strings.Cut(spec, "="); ok && identifier.MatchString(strings.TrimSpace(n)) && !strings.HasPrefix(rest, "=") {
		return strings.TrimSpace(n), rest
	}
	return strings.TrimSpace(spec), spec
}

// captureName captures a variable, and says so of one that can't be read.
func (s *Scope) captureName(variable, as string, of isf.Type) (*Capture, error) {
	if err := s.names[variable].unread; err != nil {
		return &Capture{Name: as, unread: &Value{Name: as, Type: of.String(), Err: err}}, nil
	}
	e, err := s.Compile(variable)
	return &Capture{Name: as, Expression: e}, err
}

// Arguments are captures of all arguments of the function, or of what was seen.
func (s *Scope) Arguments() ([]*Capture, error) {
	if s.of != Instruction {
		return s.seen()
	}
	var all []*Capture
	for i, a := range s.args {
		name := fmt.Sprintf("arg%d", i)
		c, err := s.captureName(name, cmp.Or(a.Name, name), a.Type)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// Value captures at the hit that the scope was pointed at.
func (c *Capture) Value() Value {
	if c.unread != nil {
		return *c.unread
	}
	out := Value{Name: c.Name}
	if c.shape != nil {
		out.Type = c.shape.isf.String()
	}
	v, err := c.eval()
	if err != nil {
		out.Err = err
		return out
	}
	out.Text = c.scope.types.show(v, c.shape)
	switch v := v.(type) {
	case types.Bool:
		if v {
			out.Number = 1
		}
	case types.Int, types.Uint, *object, *sequence:
		out.Number, _ = addressOf(v)
	}
	return out
}

// show writes a value for people. s is what the profile says of it, or nil.
func (p *provider) show(v ref.Val, s *shape) string {
	switch v := v.(type) {
	case types.Int:
		return p.showNumber(uint64(v), s)
	case types.Uint:
		return p.showNumber(uint64(v), s)
	case types.String:
		return quote(string(v))
	case types.Bytes:
		return quote(string(v))
	case types.Bool:
		return strconv.FormatBool(bool(v))
	case types.Null:
		return "null"
	case *object:
		return fmt.Sprintf("%s at %#x", v.shape.isf, v.at)
	case *sequence:
		if s == nil || s.kind != array || s.count == 0 {
			return fmt.Sprintf("%#x", v.at)
		}
		var all []string
		for i := range min(v.count, shownElements) {
			one := v.Get(types.Int(i))
			if types.IsError(one) {
				all = append(all, "?")
				break
			}
			all = append(all, p.show(one, s.elem))
		}
		if v.count > len(all) {
			all = append(all, "…")
		}
		return "[" + strings.Join(all, ", ") + "]"
	}
	return quote(fmt.Sprint(v.Value()))
}

func quote(s string) string {
	if len(s) > shownString {
		return strconv.QuoteToASCII(s[:shownString]) + "…"
	}
	return strconv.QuoteToASCII(s)
}

// showNumber writes a signed number in decimal, any other in hexadecimal, and an
// enumeration's with its name.
func (p *provider) showNumber(n uint64, s *shape) string {
	switch {
	case s == nil:
		return strconv.FormatInt(int64(n), 10)
	case s.isf.Kind == isf.Enum:
		if name := p.constants(s.isf.Name, n); name != "" {
			return fmt.Sprintf("%s(%d)", name, int64(n))
		}
		return strconv.FormatInt(int64(n), 10)
	case s.signed:
		return strconv.FormatInt(int64(n), 10)
	}
	return fmt.Sprintf("%#x", n)
}

// constants names a value of an enumeration: one constant, or several flags.
func (p *provider) constants(enum string, n uint64) string {
	e, err := p.profile.EnumType(enum)
	if err != nil {
		return ""
	}
	var exact, flags []string
	rest := n
	for name, v := range e.Constants {
		if uint64(v) == n {
			exact = append(exact, name)
		}
		if u := uint64(v); bits.OnesCount64(u) == 1 && n&u != 0 {
			flags, rest = append(flags, name), rest&^u
		}
	}
	if exact != nil {
		return slices.Min(exact)
	}
	if rest != 0 || len(flags) == 0 || len(flags) > shownElements {
		return ""
	}
	slices.Sort(flags)
	return strings.Join(flags, "|")
}
