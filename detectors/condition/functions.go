package condition

import (
	"fmt"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/functions"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/hprobe/hprobe/profiles/isf"
)

// takesAddress are the functions whose first argument is where something is.
var takesAddress = map[string]bool{"u8": true, "u16": true, "u32": true, "u64": true, "str": true, "addr": true}

// functions are what hprobe adds to CEL:
//
//	u8(a) u16(a) u32(a) u64(a)  a number in the guest's memory
//	str(a)                      a string there, up to its NUL
//	addr(p)                     the address that a pointer holds, or where a struct is
//	mask(x, m)                  x & m
//	s32(x) s64(x)               the low bits of x, with a sign
func (s *Scope) functions() []cel.EnvOption {
	one := func(name string, result *types.Type, f functions.UnaryOp, args ...*types.Type) cel.EnvOption {
		var overloads []cel.FunctionOpt
		for _, a := range args {
			overloads = append(overloads, cel.Overload(name+"_"+a.String(), []*types.Type{a}, result, cel.UnaryBinding(f)))
		}
		return cel.Function(name, overloads...)
	}
	read := func(size uint64) functions.UnaryOp {
		return func(p ref.Val) ref.Val {
			at, err := addressOf(p)
			if err != nil {
				return types.WrapErr(err)
			}
			raw, err := s.hit.number(at, size)
			if err != nil {
				return types.WrapErr(err)
			}
			if size == 8 {
				return types.Uint(raw)
			}
			return types.Int(raw)
		}
	}
	return []cel.EnvOption{
		one("u8", types.IntType, read(1), types.DynType), one("u16", types.IntType, read(2), types.DynType),
		one("u32", types.IntType, read(4), types.DynType), one("u64", types.UintType, read(8), types.DynType),
		one("str", types.StringType, func(p ref.Val) ref.Val {
			at, err := addressOf(p)
			if err != nil {
				return types.WrapErr(err)
			}
			got, err := s.hit.text(at, maxString)
			if err != nil {
				return types.WrapErr(err)
			}
			return types.String(got)
		}, types.DynType),
		one("addr", types.UintType, func(p ref.Val) ref.Val {
			at, err := addressOf(p)
			if err != nil {
				return types.WrapErr(err)
			}
			return types.Uint(at)
		}, types.DynType),
		one("s32", types.IntType, func(x ref.Val) ref.Val { return types.Int(int32(bitsOf(x))) }, types.IntType, types.UintType),
		one("s64", types.IntType, func(x ref.Val) ref.Val { return types.Int(bitsOf(x)) }, types.IntType, types.UintType),
		cel.Function("mask",
			cel.Overload("mask_int", []*types.Type{types.IntType, types.IntType}, types.IntType, cel.BinaryBinding(func(x, m ref.Val) ref.Val { return types.Int(bitsOf(x) & bitsOf(m)) })),
			cel.Overload("mask_uint", []*types.Type{types.UintType, types.UintType}, types.UintType, cel.BinaryBinding(func(x, m ref.Val) ref.Val { return types.Uint(bitsOf(x) & bitsOf(m)) }))),
	}
}

func bitsOf(v ref.Val) uint64 {
	switch v := v.(type) {
	case types.Int:
		return uint64(v)
	case types.Uint:
		return uint64(v)
	}
	return 0
}

// addressOf is the address that a number is, a pointer holds, or a struct is at.
func addressOf(v ref.Val) (uint64, error) {
	switch v := v.(type) {
	case types.Uint:
		return uint64(v), nil
	case types.Int:
		return uint64(v), nil
	case *object:
		return v.at, nil
	case *sequence:
		return v.at, nil
	case types.Null:
		return 0, nil
	}
	return 0, fmt.Errorf("a %s is no address", v.Type().TypeName())
}

// withCasts declares a function for each struct that an expression calls by name:
// iovec(arg1) is the struct iovec at arg1, iovec(arg1, 2) the third from there.
func (s *Scope) withCasts(tree *ast.AST) (*cel.Env, error) {
	var options []cel.EnvOption
	seen := map[string]bool{}
	ast.PreOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind || e.AsCall().IsMemberFunction() {
			return
		}
		name := e.AsCall().FunctionName()
		if seen[name] || s.env.HasFunction(name) || !identifier.MatchString(name) {
			return
		}
		record, ok := s.types.shape(isf.Type{Kind: isf.Struct, Name: name}, 0)
		if !ok {
			return
		}
		seen[name] = true
		cast := func(p ref.Val, index uint64) ref.Val {
			at, err := addressOf(p)
			switch {
			case err != nil:
				return types.WrapErr(err)
			case at == 0:
				return types.NullValue
			}
			return s.hit.record(record, at+index*record.size)
		}
		options = append(options, cel.Function(name,
			cel.Overload(name+"_at", []*types.Type{types.DynType}, record.cel, cel.UnaryBinding(func(p ref.Val) ref.Val { return cast(p, 0) })),
			cel.Overload(name+"_at_index", []*types.Type{types.DynType, types.IntType}, record.cel, cel.BinaryBinding(func(p, i ref.Val) ref.Val { return cast(p, bitsOf(i)) })),
		))
	}))
	if options == nil {
		return s.env, nil
	}
	env, err := s.env.Extend(options...)
	if err != nil {
		return nil, fmt.Errorf("conditions: %w", err)
	}
	return env, nil
}
