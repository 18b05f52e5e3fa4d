package condition

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/common/ast"

	"github.com/hprobe/hprobe/profiles/isf"
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
		if near := nearest(sel.FieldName(), names); near != "" {
			hint = fmt.Sprintf(" of %s (did you mean '%s'?)", of.isf, near)
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

// nearest finds the name with the fewest letters changed, "" if there are no names.
func nearest(name string, names []string) string {
	best, least := "", 1<<30
	for _, n := range names {
		d := 2 * distance(name, n)
		if strings.Contains(n, name) || strings.Contains(name, n) {
			d-- // of two as near, the one that has it in it
		}
		if d < least {
			best, least = n, d
		}
	}
	return best
}

// distance is Levenshtein's, of names that are cut to some length: they may be a
// hostile profile's.
func distance(a, b string) int {
	const longest = 64
	a, b = a[:min(len(a), longest)], b[:min(len(b), longest)]
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := slices.Clone(row)
		row[0] = i + 1
		for j := range len(b) {
			change := 1
			if a[i] == b[j] {
				change = 0
			}
			row[j+1] = min(last[j]+change, last[j+1]+1, row[j]+1)
		}
	}
	return row[len(b)]
}
