package condition

import (
	"errors"
	"fmt"
	"regexp"
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
)

// process are the variables of who runs, which process.NAME always means.
var process = []struct {
	name string
	source
}{
	{"pid", source{shape: anInt, number: func(h detectors.Hit) (uint64, error) { v, err := h.Running().PID(); return uint64(v), err }}},
	{"tid", source{shape: anInt, number: func(h detectors.Hit) (uint64, error) { v, err := h.Running().TID(); return uint64(v), err }}},
	{"uid", source{shape: anInt, number: func(h detectors.Hit) (uint64, error) { v, err := h.Running().UID(); return uint64(v), err }}},
	{"start_time", source{shape: anInt, number: func(h detectors.Hit) (uint64, error) { return h.Running().StartTime() }}},
	{"comm", source{shape: aText, text: func(h detectors.Hit) (string, error) { return h.Running().Comm() }}},
	{"vcpu", source{shape: anInt, number: func(h detectors.Hit) (uint64, error) { return uint64(h.VCPU()), nil }}},
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// reserved can't be names in CEL; arg.`NAME` and argN can.
var reserved = []string{"true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package", "namespace", "return", "var", "void", "while"}

// declare makes the variables. An argument has its own name, arg.NAME and argN. A
// name that means the process as well is neither's: a condition that took one for
// the other would let the wrong ones pass.
func (s *Scope) declare(at *Place) error {
	var options []cel.EnvOption
	seen := map[string]bool{}
	add := func(name string, from source) {
		if !seen[name] {
			seen[name] = true
			s.names[name] = from
			options = append(options, cel.Variable(name, from.shape.cel))
		}
	}
	for _, p := range process {
		from := p.source
		from.arg = -1
		from = s.hit.add(from)
		add("process."+p.name, from)
		if !slices.ContainsFunc(s.args, func(a guestos.Arg) bool { return a.Name == p.name }) {
			add(p.name, from)
		}
	}
	if shape, ok := s.types.shape(isf.Type{Kind: isf.Pointer, Subtype: &isf.Type{Kind: isf.Struct, Name: "task_struct"}}, 0); ok {
		add("current", s.hit.add(source{shape: shape, arg: -1, number: func(h detectors.Hit) (uint64, error) { return h.Running().Address() }}))
	}
	s.declareSource(add)
	if s.of == Instruction {
		for i, name := range registers {
			if name == "" {
				name = "rsp"
			}
			add("reg."+name, s.hit.add(source{shape: aUint, arg: -1, number: func(h detectors.Hit) (uint64, error) { return *h.Registers().GPR(i), nil }}))
		}
	}
	if s.syscalls {
		for name, from := range syscallNames {
			from.arg = -1
			add("syscall."+name, s.hit.add(from))
		}
	}
	for i, a := range s.args {
		shape := s.inRegister(a.Type)
		if shape == nil {
			shape, _ = s.types.base(untyped)
		}
		from := s.hit.add(source{shape: shape, arg: i, unread: a.Unread, number: func(h detectors.Hit) (uint64, error) { return h.Arg(i) }})
		add(fmt.Sprintf("arg%d", i), from)
		if !identifier.MatchString(a.Name) {
			continue
		}
		add("arg."+a.Name, from)
		if isProcess(a.Name) || slices.Contains(reserved, a.Name) {
			continue
		}
		add(a.Name, from)
	}
	if s.ends {
		shape := s.inRegister(at.Result)
		if shape == nil {
			shape = anInt // an error is below 0
		}
		add(ret, s.hit.add(source{shape: shape, arg: -1, unread: guestos.Returned(s.profile, at.Result), number: returned}))
	}
	env, err := s.env.Extend(options...)
	if err != nil {
		return fmt.Errorf("conditions: %w", err)
	}
	s.env = env
	s.hit.names = map[string]int{}
	for name, from := range s.names {
		s.hit.names[name] = from.index
	}
	return nil
}

// inRegister is the shape of a value of type t in a register; nil if none fits in one
// or nobody knows.
func (s *Scope) inRegister(t isf.Type) *shape {
	shape, ok := s.types.shape(t, 0)
	if !ok || t == untyped || shape.kind == record || shape.kind == array || shape.kind == text {
		return nil
	}
	return shape
}

// ret is the variable of what a call returned.
const ret = "ret"

func returned(h detectors.Hit) (uint64, error) {
	r, ok := h.Return()
	if !ok {
		return 0, errors.New("the call has not returned")
	}
	return r.Value, nil
}

func isProcess(name string) bool {
	for _, p := range process {
		if p.name == name {
			return true
		}
	}
	return false
}

// ambiguous says what a name may mean, where it is an argument's and the process's.
func (s *Scope) ambiguous(name string) error {
	if _, ok := s.names["arg."+name]; ok && isProcess(name) {
		return fmt.Errorf("%s is an argument of the function, and of the process: say arg.%s or process.%s", name, name, name)
	}
	return nil
}

// checkNames looks at the names that CEL would take for something else: those of
// an argument and the process, and those of structs, which are types to CEL.
func (s *Scope) checkNames(tree *ast.AST) (found error) {
	own := map[string]bool{} // of the expression: a in ids.exists(a, a > 1)
	each := func(f func(ast.Expr)) { ast.PreOrderVisit(tree.Expr(), ast.NewExprVisitor(f)) }
	each(func(e ast.Expr) {
		if e.Kind() == ast.ComprehensionKind {
			c := e.AsComprehension()
			own[c.IterVar()], own[c.IterVar2()], own[c.AccuVar()] = true, true, true
		}
	})
	each(func(e ast.Expr) {
		if name, ok := path(e); ok && found == nil && !own[name] && s.names[name].unread != nil {
			found = fmt.Errorf("%s: %w", name, s.names[name].unread)
		}
		if found != nil || e.Kind() != ast.IdentKind || own[e.AsIdent()] {
			return
		}
		name := e.AsIdent()
		if _, known := s.names[name]; known {
			return
		}
		if found = s.ambiguous(name); found != nil {
			return
		}
		if _, err := s.profile.UserType(name); err == nil && name != "process" && name != "arg" {
			found = fmt.Errorf("there is no argument %s here; %s(address) is the struct of that name at an address%s", name, name, s.known())
		}
	})
	return found
}
