package condition

import (
	"fmt"

	"cel.dev/cel-go/common/ast"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/near"
)

// nearField names the field that may have been meant, where a struct has none of
// the name that an expression gave.
func (s *Scope) nearField(tree *ast.AST, id int64) (hint string) {
	ast.PreOrderVisit(tree.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.ID() != id || e.Kind() != ast.SelectKind {
			return
		}
		sel := e.AsSelect()
		of := s.shapeOf(sel.Operand())
		if of != nil && of.kind == recordTo {
			of = of.elem
		}
		if of == nil || of.kind != record {
			return
		}
		if at, err := s.profile.Field(of.isf.Name, sel.FieldName()); err == nil {
			hint = fmt.Sprintf(": %s has it, but it is a %s, which expressions can't read", of.isf, kindOf(at.Type))
			return
		}
		names, _ := s.types.FindStructFieldNames(of.isf.Name)
		if found := near.Names(sel.FieldName(), names, 1); len(found) > 0 {
			hint = fmt.Sprintf(" of %s (did you mean '%s'?)", of.isf, found[0])
		}
	}))
	return hint
}

func kindOf(t isf.Type) string {
	if text := t.String(); text != "" {
		return text
	}
	return string(t.Kind)
}
