// Package condition compiles what people say of a hit in CEL (conditions,
// captures, keys, messages) with the types of the guest's profile, and evaluates
// it while the vCPU waits. All that a guest says is bounded: a hit costs so many
// reads and so many steps at most.
package condition

import (
	"errors"
	"fmt"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
)

// Bounds of an expression.
const (
	maxText  = 4096   // characters of its text
	maxDepth = 64     // of nested brackets
	maxNodes = 2000   // after macros
	maxCost  = 10_000 // CEL's units of one evaluation: about one for each node that is visited
	maxRegex = 1000   // instructions of a regular expression
)

// Error says what is wrong with an expression.
type Error struct {
	Text string
	Why  string
}

func (e *Error) Error() string { return fmt.Sprintf("%q: %s", e.Text, e.Why) }

// Place is where expressions are evaluated.
type Place struct {
	Entry bool          // a function's first instruction, or a call of it
	Args  []guestos.Arg // its arguments, there
	// Syscall: of one of several system calls: hits are detectors.SyscallHit.
	Syscall bool
	// Ends: when a call has returned. There are no arguments any more, but its
	// value, of type Result; the zero Type where that is not known.
	Ends   bool
	Result isf.Type
	// Hint is added to an error of a name that nobody knows.
	Hint string
	// Of is what is watched there, if it is no instruction. Deniable: what is seen can be
	// denied. Async: the guest does not wait.
	Of              Of
	Deniable, Async bool
}

// Scope is what expressions at one place may name: the function's arguments or its
// value, the process, and the types of the profile. It and all that it compiles
// belong to one goroutine.
type Scope struct {
	profile *isf.Profile
	ends    bool
	of      Of
	// syscalls: at several system calls
	syscalls bool
	args     []guestos.Arg
	names    map[string]source
	env      *cel.Env
	types    *provider
	hit      *view
	hint     string
}

// NewScope makes the scope of a place.
func NewScope(profile *isf.Profile, at Place) (*Scope, error) {
	s := &Scope{profile: profile, ends: at.Ends, of: at.Of, syscalls: at.Syscall, names: map[string]source{}, hit: &view{}, hint: at.Hint}
	if !at.Ends {
		s.args = at.Args
	}
	s.types = newProvider(profile, s.hit)
	options := append(parsing(), cel.CustomTypeProvider(s.types), cel.CrossTypeNumericComparisons(true), cel.RegexProgramSizeLimit(maxRegex))
	options = append(options, s.functions()...)
	var err error
	if s.env, err = cel.NewEnv(options...); err != nil {
		return nil, fmt.Errorf("conditions: %w", err)
	}
	if err := s.declare(&at); err != nil {
		return nil, err
	}
	return s, nil
}

// Expression is one compiled expression.
type Expression struct {
	Text  string
	scope *Scope
	ast   *cel.Ast
	run   cel.Program
	shape *shape // of its value, as far as the profile says; else nil
}

// Compile compiles an expression of any type that can be shown.
func (s *Scope) Compile(text string) (*Expression, error) {
	fail := func(why string) (*Expression, error) { return nil, &Error{Text: text, Why: why} }
	parsed, err := s.parse(text)
	if err != nil {
		return nil, err
	}
	tree := parsed.NativeRep()
	if err := s.checkNames(tree); err != nil {
		return fail(err.Error())
	}
	env, err := s.withCasts(tree)
	if err != nil {
		return nil, err
	}
	s.adapt(tree.Expr())
	checked, issues := env.Check(parsed)
	if issues.Err() != nil {
		return fail(s.explain(issues, tree))
	}
	tree = checked.NativeRep()
	if err := s.inspect(tree); err != nil {
		return fail(err.Error())
	}
	run, err := env.PlanProgram(tree, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return fail(err.Error())
	}
	return &Expression{Text: text, scope: s, ast: checked, run: run, shape: s.shapeOf(tree.Expr())}, nil
}

// explain makes one line of what CEL says of a tree; nil where there is none.
func (s *Scope) explain(issues *cel.Issues, tree *ast.AST) string {
	var all []string
	for _, e := range issues.Errors() {
		why := strings.TrimPrefix(e.Message, "Syntax error: ")
		if i := strings.Index(why, " expecting {"); i >= 0 { // a list of all of CEL's tokens
			why = why[:i]
		}
		if strings.Contains(why, "'_==_'") || strings.Contains(why, "'_!=_'") {
			why += s.hintEqual(why)
		}
		if strings.Contains(why, "(uint, int)") || strings.Contains(why, "(int, uint)") {
			why += ": say uint() or int() of one of them"
		}
		if tree != nil && strings.HasPrefix(why, "undefined field") {
			why += s.nearField(tree, e.ExprID)
		}
		if strings.Contains(why, "'ret'") {
			why = "ret is not there: only the rule of a probe of returns has it"
		}
		at := ""
		if e.Location != nil && e.Location.Column() > 0 {
			at = fmt.Sprintf("at character %d: ", e.Location.Column()+1)
		}
		if all = append(all, at+why); len(all) == 3 {
			break
		}
	}
	text := strings.Join(all, "; ")
	switch {
	case !strings.Contains(text, "undeclared reference"):
	case !strings.Contains(text, "did you mean"):
		text += s.known()
	case s.hint != "":
		text += "; " + s.hint
	}
	return text
}

func (s *Scope) hintEqual(why string) string {
	if strings.Contains(why, ", int)") || strings.Contains(why, "(int, ") || strings.Contains(why, "uint") {
		return " (a pointer to a struct is compared with null, and its address is addr() of it)"
	}
	return ""
}

// known lists the names that may be used.
func (s *Scope) known() string {
	var args []string
	for _, a := range s.args {
		if a.Name != "" {
			args = append(args, a.Name)
		}
	}
	what := "; there are pid, tid, comm, uid, start_time, current (its task_struct), reg.rax and the like, and vcpu"
	if s.syscalls {
		what += ", syscall.name, syscall.nr and syscall.compat"
	}
	switch {
	case s.of != Instruction:
		what += ", and " + knownOf(s.of)
	case s.ends:
		what += ", and ret; when a call has returned its arguments are gone"
	case len(args) > 0:
		what += ", and the arguments " + strings.Join(args, ", ")
	default:
		what += "; there are no arguments here"
	}
	if s.hint != "" {
		what += "; " + s.hint
	}
	return what
}

// errNothing is an evaluation without an error or a value; it can't be.
var errNothing = errors.New("an expression without a value")

// Eval evaluates at a hit that the scope was pointed at.
func (e *Expression) eval() (ref.Val, error) {
	v, _, err := e.run.Eval(e.scope.hit)
	if err != nil {
		return nil, err
	}
	if v == nil || types.IsUnknown(v) {
		return nil, errNothing
	}
	return v, nil
}

// At points the scope at a hit: the expressions evaluate there until the next At,
// and may read so much for all of them together.
func (s *Scope) At(h detectors.Hit) { s.hit.at(h) }

// Type is CEL's name of the expression's type.
func (e *Expression) Type() string { return e.ast.OutputType().String() }

// Condition is an expression that is true or false.
type Condition struct {
	*Expression
	direct judge // nil: CEL evaluates it
}

// Condition compiles one.
func (s *Scope) Condition(text string) (*Condition, error) {
	e, err := s.Compile(text)
	if err != nil {
		return nil, err
	}
	if e.ast.OutputType() != cel.BoolType {
		return nil, &Error{Text: text, Why: fmt.Sprintf("it is of type %s: a condition is true or false (compare it with something)", e.Type())}
	}
	return &Condition{Expression: e, direct: s.direct(e.ast.NativeRep().Expr())}, nil
}

// Holds says whether it is true at the hit. An error is what could not be read or
// computed: then nobody knows.
func (c *Condition) Holds() (bool, error) {
	if c.direct != nil {
		return c.direct(c.scope.hit)
	}
	return c.interpret()
}

func (c *Condition) interpret() (bool, error) {
	v, err := c.eval()
	if err != nil {
		return false, err
	}
	return v == types.True, nil
}
