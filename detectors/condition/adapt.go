package condition

import (
	"fmt"

	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"github.com/hprobe/hprobe/profiles/isf"
)

// CEL keeps int and uint apart, and its literals are ints: count == 5 would be an
// error where count is a size_t. adapt makes a literal that stands beside a uint
// one itself, and lets == and in compare an int with a uint by their values; < and
// its like do that by themselves. Arithmetic of an int and a uint stays an error:
// nobody knows what was meant where it overflows.
func (s *Scope) adapt(e ast.Expr) {
	ast.PostOrderVisit(e, ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind {
			return
		}
		c := e.AsCall()
		if len(c.Args()) != 2 || c.IsMemberFunction() {
			return
		}
		x, y := c.Args()[0], c.Args()[1]
		switch c.FunctionName() {
		case operators.Equals, operators.NotEquals:
			s.pair(x, y)
			if s.differ(x, y) {
				loosen(x)
			}
		case operators.Less, operators.LessEquals, operators.Greater, operators.GreaterEquals,
			operators.Add, operators.Subtract, operators.Multiply, operators.Divide, operators.Modulo, "mask":
			s.pair(x, y)
		case operators.In:
			if y.Kind() == ast.ListKind {
				for _, one := range y.AsList().Elements() {
					s.pair(x, one)
					if s.differ(x, one) {
						loosen(x)
						return
					}
				}
			}
		}
	}))
}

// differ says whether one is an int and the other a uint.
func (s *Scope) differ(x, y ast.Expr) bool {
	a, b := s.shapeOf(x), s.shapeOf(y)
	return a != nil && b != nil && isNumber(a) && isNumber(b) && a.cel != b.cel
}

func isNumber(s *shape) bool { return s.cel == types.IntType || s.cel == types.UintType }

// pair makes a literal beside a uint a uint.
func (s *Scope) pair(x, y ast.Expr) {
	for _, p := range [][2]ast.Expr{{x, y}, {y, x}} {
		if p[0].Kind() != ast.LiteralKind {
			continue
		}
		n, ok := p[0].AsLiteral().(types.Int)
		if of := s.shapeOf(p[1]); ok && n >= 0 && of != nil && of.cel == types.UintType {
			p[0].SetKindCase(ast.NewExprFactory().NewLiteral(p[0].ID(), types.Uint(n)))
		}
	}
}

// loosen hides an expression's type from CEL's check: equality of numbers is by
// value when it is evaluated.
func loosen(e ast.Expr) {
	f := ast.NewExprFactory()
	inner := f.NewUnspecifiedExpr(freshID(e))
	inner.SetKindCase(e)
	e.SetKindCase(f.NewCall(e.ID(), "dyn", inner))
}

// freshID is one that the parser did not give: it counts from 1.
func freshID(e ast.Expr) int64 { return 1<<32 + e.ID() }

// Numbers that are of no type of the profile.
var (
	anInt  = &shape{kind: number, cel: types.IntType, size: 8, signed: true}
	aUint  = &shape{kind: number, cel: types.UintType, size: 8}
	aBool  = &shape{kind: boolean, cel: types.BoolType, size: 1}
	aText  = &shape{kind: textPtr, cel: types.StringType, size: 8}
	calls  = map[string]*shape{"u8": anInt, "u16": anInt, "u32": anInt, "u64": aUint, "addr": aUint, "s32": anInt, "s64": anInt, "int": anInt, "uint": aUint, "size": anInt, "str": aText, "string": aText}
	answer = map[string]bool{operators.Equals: true, operators.NotEquals: true, operators.Less: true, operators.LessEquals: true, operators.Greater: true, operators.GreaterEquals: true,
		operators.In: true, operators.LogicalAnd: true, operators.LogicalOr: true, operators.LogicalNot: true}
)

// untyped is what is known of a register without a type.
var untyped = isf.Type{Kind: isf.Base}

// shapeOf says what an expression is of, as far as its text says; nil where it
// does not.
func (s *Scope) shapeOf(e ast.Expr) *shape {
	if name, ok := path(e); ok {
		if from, ok := s.names[name]; ok {
			return from.shape
		}
		if _, ok := s.types.EnumValue(name).(types.Int); ok {
			return anInt
		}
	}
	switch e.Kind() {
	case ast.LiteralKind:
		return map[*types.Type]*shape{types.IntType: anInt, types.UintType: aUint, types.BoolType: aBool, types.StringType: aText}[literalType(e)]
	case ast.SelectKind:
		sel := e.AsSelect()
		of := s.shapeOf(sel.Operand())
		if of != nil && of.kind == recordTo {
			of = of.elem
		}
		if of == nil || of.kind != record || sel.IsTestOnly() {
			return nil
		}
		f, _, ok := s.types.field(of.isf.Name, sel.FieldName())
		if !ok {
			return nil
		}
		return f
	case ast.CallKind:
		return s.shapeOfCall(e.AsCall())
	}
	return nil
}

func (s *Scope) shapeOfCall(c ast.CallExpr) *shape {
	name := c.FunctionName()
	if known, ok := calls[name]; ok {
		return known
	}
	switch {
	case answer[name]:
		return aBool
	case name == operators.Conditional && len(c.Args()) == 3:
		return s.shapeOf(c.Args()[1])
	case name == operators.Negate:
		return anInt
	case name == operators.Index && len(c.Args()) == 2:
		if of := s.shapeOf(c.Args()[0]); of != nil && (of.kind == array || of.kind == pointer) {
			return of.elem
		}
		return nil
	case len(c.Args()) == 2 && (name == operators.Add || name == operators.Subtract || name == operators.Multiply || name == operators.Divide || name == operators.Modulo || name == "mask"):
		if of := s.shapeOf(c.Args()[0]); of != nil && isNumber(of) {
			return map[bool]*shape{true: anInt, false: aUint}[of.cel == types.IntType]
		}
		return nil
	}
	if r, ok := s.types.shape(isf.Type{Kind: isf.Struct, Name: name}, 0); ok && identifier.MatchString(name) && !c.IsMemberFunction() {
		return r
	}
	return nil
}

func literalType(e ast.Expr) *types.Type {
	t, _ := e.AsLiteral().Type().(*types.Type)
	return t
}

// path writes a chain of selections as one name: process.pid.
func path(e ast.Expr) (string, bool) {
	switch e.Kind() {
	case ast.IdentKind:
		return e.AsIdent(), true
	case ast.SelectKind:
		if of, ok := path(e.AsSelect().Operand()); ok && !e.AsSelect().IsTestOnly() {
			return of + "." + e.AsSelect().FieldName(), true
		}
	}
	return "", false
}

// inspect looks at a checked expression for what CEL lets pass and no guest's
// memory can answer.
func (s *Scope) inspect(tree *ast.AST) error {
	var found error
	fail := func(format string, args ...any) {
		if found == nil {
			found = fmt.Errorf(format, args...)
		}
	}
	ast.PreOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		switch e.Kind() {
		case ast.StructKind:
			fail("a struct can't be made, only compared by where it is")
		case ast.SelectKind:
			if e.AsSelect().IsTestOnly() {
				fail("has() says nothing: a struct has all its fields. Compare a pointer with null")
			}
		case ast.CallKind:
			c := e.AsCall()
			name := c.FunctionName()
			if name == operators.Index && len(c.Args()) == 2 && c.Args()[1].Kind() == ast.LiteralKind {
				i, ok := c.Args()[1].AsLiteral().(types.Int)
				of := s.shapeOf(c.Args()[0])
				if ok && of != nil && (of.kind == array && of.count > 0 && (i < 0 || uint64(i) >= of.count) || of.kind == pointer && (i < 0 || i >= maxElements)) {
					fail("there is no element %d in a %s", i, of.isf)
				}
			}
			if takesAddress[name] && len(c.Args()) == 1 || s.isCast(name) && len(c.Args()) > 0 {
				switch t := tree.GetType(c.Args()[0].ID()); t.Kind() {
				case types.IntKind, types.UintKind, types.StructKind, types.ListKind, types.DynKind:
				default:
					fail("%s() takes an address, and a %s is none", name, t)
				}
			}
		}
	}))
	return found
}

func (s *Scope) isCast(name string) bool {
	_, err := s.profile.UserType(name)
	return err == nil && !s.env.HasFunction(name)
}
