package condition

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Rule says which hits of a probe count and what happens at them, as people write
// it. The zero Rule takes every hit and captures all arguments.
type Rule struct {
	When    string   // a condition; "": every hit
	Capture []string // EXPR or NAME=EXPR; none: all arguments
	// The rule acts at a match only when it is the Threshold'th or a later one of
	// its Key; 0 and 1: at each. Key "" counts all matches together. A hit at which
	// Reset is true, whether it matches or not, sets its key's count to 0.
	Threshold uint64
	Key       string
	Reset     string
	// Counter, when not nil, is where matches are counted, by Key, together with those of
	// other rules that have the same one; without a Threshold they are counted only.
	Counter *Counter
	// Clear has a match set its key's count in Counter to 0, instead of counting.
	Clear bool
	// Sparse has a rule with a Threshold report its Threshold'th match, and one each time
	// that the count has doubled since. Verdicts are carried out at all of them.
	Sparse bool
	// Report is that there is a finding at each match. There is one also where the rule
	// has a message, a threshold or a verdict.
	Report bool
	// Message is the finding's, a Template; "": one of hprobe's.
	Message string
	// Severity is the finding's; nil: Medium, or High where there is a verdict.
	Severity *detectors.Severity
	Tags     []string // the finding's
	// Verdicts. They are carried out in enforce mode only, otherwise the finding
	// says what would have happened.
	Deny    string   // an error's name, or what the function is to return
	Set     []string // PLACE=EXPR
	Pause   bool
	Enforce bool
}

// Acts says whether a rule does more than show its matches.
func (r *Rule) Acts() bool { return r.Report || r.Message != "" || r.Threshold > 0 || r.Verdicts() }

// Verdicts says whether a rule would change what the guest does.
func (r *Rule) Verdicts() bool { return r.Deny != "" || len(r.Set) > 0 || r.Pause }

// Bounds of a rule.
const (
	maxCaptures    = 32
	maxAssignments = 16
)

// Program is a compiled rule. Judge and Captured belong to the goroutine that
// serves the domain's hits; Stats may be called from any.
type Program struct {
	rule     Rule
	scope    *Scope
	when     *Condition // nil: always
	reset    *Condition // nil: never
	captures []*Capture
	result   *Capture    // at a call's end, where the type of its value is known
	key      *Expression // nil: one for all
	direct   operand     // of the key, where it is a plain number
	counts   *Counter    // nil: nobody asks
	message  *Template   // nil: hprobe's own
	deny     int64
	set      []*assignment
	regs     xenevents.Registers
	captured []Value // of the present hit; nil: nobody asked yet

	mu    sync.Mutex
	stats Stats
}

// Stats are a program's counters.
type Stats struct {
	Matched uint64 // hits at which the condition was true
	Acted   uint64 // of them, those at which the rule acted
	// Errors are hits at which the condition, the key or a verdict could not be
	// read or computed: such a hit does not match, or is not acted upon.
	Errors    uint64
	LastError string
	Keys      int    // that are counted now
	Dropped   uint64 // keys that were forgotten because there were too many
}

// Compile compiles a rule for a place.
func Compile(profile *isf.Profile, at Place, r Rule) (*Program, error) {
	if err := r.Check(at); err != nil {
		return nil, err
	}
	scope, err := NewScope(profile, at)
	if err != nil {
		return nil, err
	}
	p := &Program{rule: r, scope: scope}
	if at.Ends && at.Result != (isf.Type{}) && at.Result.Name != "void" {
		if p.result, err = scope.captureName(ret, ret, at.Result); err != nil {
			return nil, err
		}
	}
	steps := []func() error{p.compileConditions, p.compileCaptures, p.compileCounts, p.compileActions}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// Check says what of a rule makes no sense at a place, without a profile.
func (r *Rule) Check(at Place) error {
	switch {
	case r.Clear && (r.Counter == nil || r.Threshold > 0):
		return errors.New("a rule that sets a counter to 0 does not count, and has no threshold")
	case r.Key != "" && r.Threshold == 0 && r.Counter == nil:
		return errors.New("a key without a threshold counts for nothing: say which number of matches is too many")
	case r.Reset != "" && r.Threshold == 0:
		return errors.New("a reset without a threshold: there is nothing to set back")
	case r.Enforce && !r.Verdicts():
		return errors.New("enforce mode without a verdict: say what is to happen (deny, set or pause)")
	case r.Deny != "" && at.Ends:
		return errors.New("a call that has returned can't be refused, and a rule with returns judges the end of calls: say deny without return, or set ret")
	case at.Of != Instruction && r.checkSource(at) != nil:
		return r.checkSource(at)
	case r.Deny != "" && at.Of == Instruction && !at.Entry:
		return errors.New("a call is refused at its function's entry: the place must be a symbol without an offset")
	case r.Deny != "" && len(r.Set) > 0:
		return errors.New("deny and set exclude each other: a call that is refused does not run")
	case len(r.Capture) > maxCaptures:
		return fmt.Errorf("%d captures: %d are allowed", len(r.Capture), maxCaptures)
	case len(r.Set) > maxAssignments:
		return fmt.Errorf("%d things to set: %d are allowed", len(r.Set), maxAssignments)
	}
	return nil
}

func (p *Program) compileConditions() (err error) {
	if p.rule.When != "" {
		if p.when, err = p.scope.Condition(p.rule.When); err != nil {
			return fmt.Errorf("condition %w", err)
		}
	}
	if p.rule.Reset != "" {
		if p.reset, err = p.scope.Condition(p.rule.Reset); err != nil {
			return fmt.Errorf("reset %w", err)
		}
	}
	return nil
}

func (p *Program) compileCaptures() (err error) {
	if len(p.rule.Capture) == 0 {
		p.captures, err = p.scope.Arguments()
		return err
	}
	for _, text := range p.rule.Capture {
		c, err := p.scope.Capture(text)
		if err != nil {
			return fmt.Errorf("capture %w", err)
		}
		p.captures = append(p.captures, c)
	}
	return nil
}

func (p *Program) compileCounts() (err error) {
	if p.counts = p.rule.Counter; p.counts == nil {
		if p.rule.Threshold == 0 {
			return nil
		}
		p.counts = NewCounter()
	}
	if p.rule.Key == "" {
		return nil
	}
	if p.key, err = p.scope.Compile(p.rule.Key); err != nil {
		return fmt.Errorf("key %w", err)
	}
	switch t := p.key.Type(); {
	case strings.HasPrefix(t, "list"), strings.HasPrefix(t, "map"), t == "bytes", t == "double", t == "dyn", t == "type":
		return fmt.Errorf("key %w", &Error{Text: p.rule.Key, Why: "it is of type " + t + ": a key is a number, a string, or true or false"})
	}
	p.direct = p.scope.directKey(p.key)
	return nil
}

func (p *Program) compileActions() (err error) {
	if p.rule.Message != "" {
		if p.message, err = p.scope.Template(p.rule.Message); err != nil {
			return fmt.Errorf("message %w", err)
		}
	}
	if p.rule.Deny != "" && p.scope.of == Instruction {
		if p.deny, err = guestos.ParseReturn(p.rule.Deny); err != nil {
			return fmt.Errorf("deny: %w", err)
		}
	}
	for _, text := range p.rule.Set {
		a, err := p.scope.assign(text)
		if err != nil {
			return fmt.Errorf("set %w", err)
		}
		p.set = append(p.set, a)
	}
	return nil
}

// Rule returns what was compiled.
func (p *Program) Rule() Rule { return p.rule }

// Stats returns the counters.
func (p *Program) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Result is what a rule says of a hit.
type Result struct {
	Matched bool
	Count   uint64 // of matches of its key so far; 0 without a threshold
	Done    string // what was done, or would have been: "denied with EPERM"; "" for nothing
	detectors.Outcome
}

// Judge says what becomes of a hit. Whatever goes wrong, the guest goes on as if
// there were no rule.
func (p *Program) Judge(h detectors.Hit) (r Result) {
	p.scope.At(h)
	p.captured = nil
	var err error
	if r.Matched, err = p.matches(); err == nil && (r.Matched || p.reset != nil) {
		r.Count, err = p.count(r.Matched)
	}
	if err != nil {
		p.failed(err)
		return Result{Matched: r.Matched, Outcome: p.unseen(err)}
	}
	if !r.Matched {
		return r
	}
	acts := p.rule.Acts() && r.Count >= p.rule.Threshold
	p.note(acts)
	if acts {
		p.act(h, &r)
	}
	return r
}

// unseen is the outcome of a hit that could not be judged. It may be what the rule is
// there to stop, with its memory swapped out at the moment: whoever wanted a verdict
// is told, at the first such hit, the second, the fourth, the eighth: a guest that
// makes many must not drown other findings.
func (p *Program) unseen(err error) detectors.Outcome {
	n := p.Stats().Errors
	if !p.rule.Verdicts() || n&(n-1) != 0 {
		return detectors.Outcome{}
	}
	return detectors.Outcome{Finding: &detectors.Finding{
		Severity: detectors.Medium, Message: fmt.Sprintf("%s could not be judged, and was let pass (%d so far): %s", p.scope.of, n, shorten(err.Error())),
		Facts: []detectors.Fact{{Name: "errors", Value: n}},
	}}
}

func (p *Program) matches() (bool, error) {
	if p.when == nil {
		return true, nil
	}
	return p.when.Holds()
}

// count counts a match, and sets back.
func (p *Program) count(matched bool) (uint64, error) {
	if p.counts == nil {
		return 0, nil
	}
	var k key
	if p.key != nil {
		var err error
		if k, err = p.keyNow(); err != nil {
			return 0, err
		}
	}
	if p.reset != nil {
		back, err := p.reset.Holds()
		if err != nil {
			return 0, err
		}
		if back {
			p.counts.reset(k)
		}
	}
	switch {
	case !matched:
		return 0, nil
	case p.rule.Clear:
		p.counts.reset(k)
		return 0, nil
	}
	return p.counts.add(k), nil
}

// keyNow is the key of the hit.
func (p *Program) keyNow() (key, error) {
	if p.direct != nil {
		v, err := p.direct(p.scope.hit)
		return key{kind: 'i', n: v.n}, err
	}
	v, err := p.key.eval()
	if err != nil {
		return key{}, err
	}
	k, ok := keyOf(v)
	if !ok {
		return k, fmt.Errorf("a %s is no key", v.Type().TypeName())
	}
	return k, nil
}

func (p *Program) note(acted bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Matched++
	if acted {
		p.stats.Acted++
	}
	if p.counts != nil {
		p.stats.Keys, p.stats.Dropped = len(p.counts.entries), p.counts.dropped
	}
}

func (p *Program) failed(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Errors++
	p.stats.LastError = shorten(err.Error())
}

// shorten keeps what has a guest's bytes in it to a line.
func shorten(s string) string {
	const limit = 256
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

// Result returns what the call that was judged last has returned, as its type has it;
// false where that is not known.
func (p *Program) Result() (Value, bool) {
	if p.result == nil {
		return Value{}, false
	}
	return p.result.Value(), true
}

// Captured returns the values that the rule captures, at the hit that was judged
// last, as they were before the rule changed anything.
func (p *Program) Captured() []Value {
	if p.captured == nil {
		p.captured = make([]Value, len(p.captures))
		for i, c := range p.captures {
			p.captured[i] = c.Value()
		}
	}
	return p.captured
}

// Missed counts a hit that could not be handed to the rule as one that could not be
// judged.
func (p *Program) Missed(err error) { p.failed(err) }
