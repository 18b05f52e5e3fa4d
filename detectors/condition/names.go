package condition

import (
	"fmt"
	"regexp"
	"slices"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
)

// process are the variables of who runs, which process.NAME always means.
var process = []struct {
	name string
	typ  *types.Type
	look func(h detectors.Hit) (any, error)
}{
	{"pid", types.IntType, func(h detectors.Hit) (any, error) { v, err := h.Running().PID(); return types.Int(v), err }},
	{"tid", types.IntType, func(h detectors.Hit) (any, error) { v, err := h.Running().TID(); return types.Int(v), err }},
	{"uid", types.IntType, func(h detectors.Hit) (any, error) { v, err := h.Running().UID(); return types.Int(v), err }},
	{"start_time", types.IntType, func(h detectors.Hit) (any, error) { v, err := h.Running().StartTime(); return types.Int(v), err }},
	{"comm", types.StringType, func(h detectors.Hit) (any, error) { v, err := h.Running().Comm(); return types.String(v), err }},
	{"vcpu", types.IntType, func(h detectors.Hit) (any, error) { return types.Int(h.VCPU()), nil }},
}

var identifier = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// reserved can't be names in CEL; arg.`NAME` and argN can.
var reserved = []string{"true", "false", "null", "in", "as", "break", "const", "continue", "else", "for", "function", "if", "import", "let", "loop", "package", "namespace", "return", "var", "void", "while"}

// declare makes the variables. An argument has its own name, arg.NAME and argN. A
// name that means the process as well is neither's: a condition that took one for
// the other would let the wrong ones pass.
func (s *Scope) declare() error {
	var options []cel.EnvOption
	seen := map[string]bool{}
	add := func(name string, from source, typ *types.Type) {
		if !seen[name] {
			seen[name] = true
			s.names[name] = from
			options = append(options, cel.Variable(name, typ))
		}
	}
	for _, p := range process {
		look := p.look
		from := source{shape: map[*types.Type]*shape{types.IntType: anInt, types.StringType: aText}[p.typ], arg: -1, look: func(v *view) (any, error) { return look(v.hit) }}
		add("process."+p.name, from, p.typ)
		if !slices.ContainsFunc(s.args, func(a guestos.Arg) bool { return a.Name == p.name }) {
			add(p.name, from, p.typ)
		}
	}
	for i, a := range s.args {
		shape, ok := s.types.shape(a.Type, 0)
		if !ok || shape.kind == record || shape.kind == array || shape.kind == text {
			shape, _ = s.types.base(untyped) // its register, then
		}
		from := source{shape: shape, arg: i}
		from.look = func(v *view) (any, error) { return v.arg(i, shape) }
		add(fmt.Sprintf("arg%d", i), from, shape.cel)
		if !identifier.MatchString(a.Name) {
			continue
		}
		add("arg."+a.Name, from, shape.cel)
		if isProcess(a.Name) || slices.Contains(reserved, a.Name) {
			continue
		}
		add(a.Name, from, shape.cel)
	}
	env, err := s.env.Extend(options...)
	if err != nil {
		return fmt.Errorf("conditions: %w", err)
	}
	s.env = env
	s.hit.names = map[string]int{}
	for name, from := range s.names {
		s.hit.names[name] = len(s.hit.sources)
		s.hit.sources = append(s.hit.sources, from)
	}
	s.hit.values = make([]any, len(s.hit.sources))
	return nil
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
