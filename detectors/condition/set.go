package condition

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/parser"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

// registers are those that a rule may set, in encoding order. RSP is not among them.
var registers = []string{"rax", "rcx", "rdx", "rbx", "", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"}

// assignment sets a register or guest memory.
type assignment struct {
	text  string
	value *Expression
	// One of these:
	register int         // ≥ 0
	base     int         // a register that points to it, where at is nil
	at       *Expression // an object or an address
	offset   uint64      // from there
	size     uint64      // in bytes; 0: as long as the value
}

// assign compiles PLACE=EXPR. A place is a register, an argument, a field of a
// struct (file.f_flags), a number in memory (u32(addr(file) + 8)), or bytes there
// (mem(addr(file))).
func (s *Scope) assign(text string) (*assignment, error) {
	place, value, err := splitAssignment(text)
	if err != nil {
		return nil, err
	}
	a := &assignment{text: text, register: -1}
	if a.value, err = s.Compile(value); err != nil {
		return nil, err
	}
	if i := slices.Index(registers, strings.ToLower(place)); i >= 0 && place != "" {
		a.register, a.size = i, 8
	} else if err := s.place(a, place); err != nil {
		return nil, err
	}
	return a, a.checkValue()
}

func splitAssignment(text string) (place, value string, err error) {
	place, value, ok := strings.Cut(text, "=")
	if !ok {
		return "", "", &Error{Text: text, Why: "it is written PLACE=VALUE, like rsi=0 or file.f_flags=0"}
	}
	return strings.TrimSpace(place), value, nil
}

func (a *assignment) checkValue() error {
	switch t := a.value.ast.OutputType(); {
	case a.size == 0 && (t == cel.StringType || t == cel.BytesType):
	case a.size > 0 && (t == cel.IntType || t == cel.UintType || t == cel.BoolType):
	case a.size == 0:
		return &Error{Text: a.text, Why: fmt.Sprintf(`mem() is set to text or bytes, like b"\x90\x90", not to a %s`, t)}
	default:
		return &Error{Text: a.text, Why: fmt.Sprintf("it is set to a number, not to a %s", t)}
	}
	return nil
}

// place finds out where an assignment goes.
func (s *Scope) place(a *assignment, text string) error {
	fail := func(why string) error { return &Error{Text: text, Why: why} }
	parsed, issues := s.env.Parse(text)
	if issues.Err() != nil {
		return fail(s.explain(issues, nil))
	}
	tree := parsed.NativeRep()
	part := func(e ast.Expr) (err error) {
		inner, err := parser.Unparse(e, tree.SourceInfo())
		if err == nil {
			a.at, err = s.Compile(inner)
		}
		return err
	}
	e := tree.Expr()
	if name, ok := path(e); ok {
		if from, ok := s.names[name]; ok {
			return s.placeArgument(a, text, from)
		}
	}
	switch e.Kind() {
	case ast.SelectKind:
		if err := part(e.AsSelect().Operand()); err != nil {
			return err
		}
		of := a.at.ast.OutputType()
		if of.Kind() != types.StructKind {
			return fail(fmt.Sprintf("a %s has no fields", of))
		}
		f, offset, ok := s.types.field(of.TypeName(), e.AsSelect().FieldName())
		switch {
		case !ok:
			return fail(fmt.Sprintf("struct %s has no field %q that can be set", of.TypeName(), e.AsSelect().FieldName()))
		case f.kind != number && f.kind != boolean && f.kind != address:
			return fail(fmt.Sprintf("a %s can't be set: only numbers can", f.isf))
		}
		a.offset, a.size = offset, f.size
		return nil
	case ast.CallKind:
		c := e.AsCall()
		sizes := map[string]uint64{"u8": 1, "u16": 2, "u32": 4, "u64": 8, "mem": 0}
		if size, ok := sizes[c.FunctionName()]; ok && len(c.Args()) == 1 {
			a.size = size
			return part(c.Args()[0])
		}
		if of := s.shapeOf(e); c.FunctionName() == operators.Index && of != nil {
			return fail("an element can't be set by its index: say u64(address)")
		}
	}
	return fail("it is no place: one is a register (rdi), an argument, a field (file.f_flags), u8(a), u16(a), u32(a), u64(a) or mem(a)")
}

func (s *Scope) placeArgument(a *assignment, text string, from source) error {
	if from.unread != nil {
		return &Error{Text: text, Why: from.unread.Error()}
	}
	if text == ret && s.ends {
		a.register, a.size = slices.Index(registers, "rax"), 8
		return nil
	}
	if from.arg < 0 {
		return &Error{Text: text, Why: "it is the process's, and can't be set"}
	}
	arg := s.args[from.arg]
	if !arg.InPtRegs {
		a.register, a.size = arg.Register, 8
		return nil
	}
	// Of a system call: where the wrapper will take it from.
	a.base, a.offset, a.size = arg.Register, arg.Offset, 8
	return nil
}

// apply carries out an assignment: into regs, or into the guest's memory.
func (a *assignment) apply(h detectors.Hit, regs *xenevents.Registers) (changedRegs bool, err error) {
	v, err := a.value.eval()
	if err != nil {
		return false, err
	}
	var b [8]byte
	raw := b[:a.size]
	switch v := v.(type) {
	case types.String:
		raw = []byte(v)
	case types.Bytes:
		raw = v
	case types.Bool:
		if v {
			b[0] = 1
		}
	default:
		binary.LittleEndian.PutUint64(b[:], bitsOf(v))
	}
	if a.register >= 0 {
		*regs.GPR(a.register) = little(b[:])
		return true, nil
	}
	where, err := a.where(h)
	if err != nil {
		return false, err
	}
	return false, h.Write(raw, xenevents.GVA(where+a.offset))
}

func (a *assignment) where(h detectors.Hit) (uint64, error) {
	if a.at == nil {
		return *h.Registers().GPR(a.base), nil
	}
	v, err := a.at.eval()
	if err != nil {
		return 0, err
	}
	at, err := addressOf(v)
	if err == nil && at == 0 {
		err = errNull
	}
	return at, err
}
