package daemon

import (
	"fmt"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/condition"
	"github.com/hprobe/hprobe/profiles/isf"
)

// ruleOf reads a rule off the wire; none is the one that takes every hit.
func ruleOf(r *controlapi.Rule) (condition.Rule, error) {
	rule := condition.Rule{
		When: r.GetWhen(), Capture: r.GetCapture(), Threshold: r.GetThreshold(), Key: r.GetKey(), Reset: r.GetResetWhen(), Message: r.GetMessage(),
		Deny: r.GetDeny(), Set: r.GetSet(), Pause: r.GetPause(),
	}
	switch r.GetMode() {
	case "", "observe":
	case "enforce":
		rule.Enforce = true
	default:
		return rule, fmt.Errorf("there is no mode %q: observe says what would be done, enforce does it", r.GetMode())
	}
	return rule, nil
}

// untypedHint says how arguments of a program get names.
const untypedHint = "names and types are the program's: give a copy of it that was built with -g (--image-file), or its debug file, too (--debug-file)"

// compile compiles a tracer's rule for its place in a guest of this profile; with returns
// for the end of the function's calls. Without a rule it is what shows the arguments.
func (t *tracer) compile(kernel *isf.Profile, at binder.Location) error {
	rule, err := ruleOf(t.rule)
	if err != nil {
		return err
	}
	return condition.Compile(p, binder.PlaceAt(p, at, returns && r != nil), rule)
}

// matches are the counters of a program for the wire.
func matches(p *condition.Program) *controlapi.Matches {
	s := p.Stats()
	return &controlapi.Matches{Matched: s.Matched, Acted: s.Acted, Errors: s.Errors, LastError: text(s.LastError), Keys: uint64(s.Keys), Dropped: s.Dropped}
}
