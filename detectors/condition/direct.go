package condition

import (
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
)

// Most conditions compare numbers, and CEL's interpreter allocates for each of them
// while a vCPU waits. Conditions of nothing else are compiled to functions that don't.
// They say what CEL would say, errors included: FuzzDirect holds them to it.

// judge is a condition, and operand a number of one.
type (
	judge   func(v *view) (bool, error)
	operand func(v *view) (value, error)
)

// value is a number as CEL's int or uint.
type value struct {
	n      uint64
	signed bool
}

func (x value) negative() bool { return x.signed && int64(x.n) < 0 }

// compare compares by value: -1, 0 or 1.
func (x value) compare(y value) int {
	switch a, b := x.negative(), y.negative(); {
	case a && !b:
		return -1
	case b && !a:
		return 1
	case x.n < y.n: // of two negative ones, too
		return -1
	case x.n > y.n:
		return 1
	}
	return 0
}

// direct compiles a checked condition, or returns nil where it has more in it.
func (s *Scope) direct(e ast.Expr) judge {
	switch e.Kind() {
	case ast.LiteralKind:
		b, ok := e.AsLiteral().(types.Bool)
		if !ok {
			return nil
		}
		return func(*view) (bool, error) { return bool(b), nil }
	case ast.CallKind:
		if j := s.directCall(e.AsCall()); j != nil {
			return j
		}
	}
	if of := s.shapeOf(e); of == nil || of.kind != boolean || of == aBool {
		return nil
	}
	x := s.operand(e)
	if x == nil {
		return nil
	}
	return func(v *view) (bool, error) {
		got, err := x(v)
		return err == nil && got.n != 0, err
	}
}

func (s *Scope) directCall(c ast.CallExpr) judge {
	args := c.Args()
	switch name := c.FunctionName(); {
	case name == operators.LogicalNot && len(args) == 1:
		x := s.direct(args[0])
		if x == nil {
			return nil
		}
		return func(v *view) (bool, error) {
			got, err := x(v)
			return err == nil && !got, err
		}
	case (name == operators.LogicalAnd || name == operators.LogicalOr) && len(args) == 2:
		x, y := s.direct(args[0]), s.direct(args[1])
		if x == nil || y == nil {
			return nil
		}
		return either(x, y, name == operators.LogicalOr)
	case len(args) == 2 && comparisons[name] != nil:
		return s.comparison(name, args[0], args[1])
	}
	return nil
}

// directKey compiles a key that is a number; nil where it is something else.
func (s *Scope) directKey(e *Expression) operand {
	if t := e.ast.OutputType(); t != types.IntType && t != types.UintType {
		return nil
	}
	return s.operand(e.ast.NativeRep().Expr())
}

// either is x || y for settles true, x && y for false. The value that settles it does
// so whatever error the other one is.
func either(x, y judge, settles bool) judge {
	return func(v *view) (bool, error) {
		a, err := x(v)
		if err == nil && a == settles {
			return settles, nil
		}
		b, errToo := y(v)
		switch {
		case errToo == nil && b == settles:
			return settles, nil
		case err != nil:
			return false, err
		case errToo != nil:
			return false, errToo
		}
		return !settles, nil
	}
}

var comparisons = map[string]func(int) bool{
	operators.Equals: func(c int) bool { return c == 0 }, operators.NotEquals: func(c int) bool { return c != 0 },
	operators.Less: func(c int) bool { return c < 0 }, operators.LessEquals: func(c int) bool { return c <= 0 },
	operators.Greater: func(c int) bool { return c > 0 }, operators.GreaterEquals: func(c int) bool { return c >= 0 },
}

func (s *Scope) comparison(name string, a, b ast.Expr) judge {
	holds := comparisons[name]
	if p := s.pointerBeside(a, b); p != nil && (name == operators.Equals || name == operators.NotEquals) {
		return func(v *view) (bool, error) {
			at, err := p(v)
			if err != nil {
				return false, err
			}
			return (at == 0) == (name == operators.Equals), nil
		}
	}
	x, y := s.operand(a), s.operand(b)
	if x == nil || y == nil {
		return nil
	}
	return func(v *view) (bool, error) {
		l, err := x(v)
		if err != nil {
			return false, err
		}
		r, err := y(v)
		return err == nil && holds(l.compare(r)), err
	}
}

// pointerBeside is the pointer that is compared with null.
func (s *Scope) pointerBeside(a, b ast.Expr) func(*view) (uint64, error) {
	if isNull(a) {
		a, b = b, a
	}
	if of := s.shapeOf(a); !isNull(b) || of == nil || of.kind != recordTo {
		return nil
	}
	return s.held(a)
}

func isNull(e ast.Expr) bool {
	return e.Kind() == ast.LiteralKind && e.AsLiteral() == types.NullValue
}

// operand compiles a number.
func (s *Scope) operand(e ast.Expr) operand {
	if e.Kind() == ast.CallKind && e.AsCall().FunctionName() == "dyn" && len(e.AsCall().Args()) == 1 { // loosen's
		return s.operand(e.AsCall().Args()[0])
	}
	of := s.shapeOf(e)
	if of == nil {
		return nil
	}
	signed := of.cel == types.IntType
	switch e.Kind() {
	case ast.LiteralKind:
		switch e.AsLiteral().(type) {
		case types.Int, types.Uint:
			n := bitsOf(e.AsLiteral())
			return func(*view) (value, error) { return value{n, signed}, nil }
		}
		return nil
	case ast.CallKind:
		c := e.AsCall()
		if c.FunctionName() != "mask" || len(c.Args()) != 2 {
			return nil
		}
		x, y := s.operand(c.Args()[0]), s.operand(c.Args()[1])
		if x == nil || y == nil {
			return nil
		}
		return func(v *view) (value, error) {
			l, err := x(v)
			if err != nil {
				return l, err
			}
			r, err := y(v)
			return value{l.n & r.n, l.signed}, err
		}
	}
	switch of.kind {
	case number, bitfield, boolean, address:
	default:
		return nil
	}
	if name, ok := path(e); ok {
		if _, isName := s.names[name]; !isName {
			if n, ok := s.types.EnumValue(name).(types.Int); ok {
				return func(*view) (value, error) { return value{uint64(n), true}, nil }
			}
		}
	}
	held := s.held(e)
	if held == nil {
		return nil
	}
	return func(v *view) (value, error) {
		raw, err := held(v)
		return value{of.plain(raw), signed}, err
	}
}

// held compiles what a variable's register or a field's memory holds.
func (s *Scope) held(e ast.Expr) func(*view) (uint64, error) {
	if name, ok := path(e); ok {
		if from, ok := s.names[name]; ok {
			if from.number == nil {
				return nil
			}
			return func(v *view) (uint64, error) { return v.raw(from.index) }
		}
	}
	if e.Kind() != ast.SelectKind || e.AsSelect().IsTestOnly() {
		return nil
	}
	at, offset, f := s.place64(e)
	if at == nil {
		return nil
	}
	return func(v *view) (uint64, error) {
		base, err := at(v)
		if err != nil {
			return 0, err
		}
		return v.number(base+offset, f.size)
	}
}

// place64 compiles where a field is: at an address, plus an offset.
func (s *Scope) place64(e ast.Expr) (at func(*view) (uint64, error), offset uint64, f *shape) {
	sel := e.AsSelect()
	of := s.shapeOf(sel.Operand())
	switch {
	case of == nil:
		return nil, 0, nil
	case of.kind == recordTo:
		held := s.held(sel.Operand())
		if held == nil {
			return nil, 0, nil
		}
		at = func(v *view) (uint64, error) {
			p, err := held(v)
			if err == nil && p == 0 {
				err = errNull
			}
			return p, err
		}
		of = of.elem
	case of.kind == record && sel.Operand().Kind() == ast.SelectKind:
		if at, offset, _ = s.place64(sel.Operand()); at == nil {
			return nil, 0, nil
		}
	default:
		return nil, 0, nil
	}
	f, within, ok := s.types.field(of.isf.Name, sel.FieldName())
	if !ok {
		return nil, 0, nil
	}
	return at, offset + within, f
}
