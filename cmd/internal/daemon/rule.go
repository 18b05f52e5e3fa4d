package daemon

import (
	"fmt"

	"github.com/hprobe/hprobe/cmd/internal/control"
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
	sig, err := binder.SignatureAt(kernel, at, t.image)
	if err != nil {
		return err
	}
	place := sig.Place(at, false)
	if at.Image != "" && sig.Types == kernel {
		place.Hint = untypedHint
	}
	if t.returns {
		end := sig.Place(at, true)
		end.Hint = place.Hint
		if t.ended, err = condition.Compile(sig.Types, end, rule); err != nil || t.rule != nil {
			t.program = t.ended
			return err
		}
	}
	t.program, err = condition.Compile(sig.Types, place, rule)
	return err
}

// matches are the counters of a program for the wire.
func matches(p *condition.Program) *controlapi.Matches {
	s := p.Stats()
	return matchesOf(&s)
}

func matchesOf(s *condition.Stats) *controlapi.Matches {
	return &controlapi.Matches{Matched: s.Matched, Acted: s.Acted, Errors: s.Errors, LastError: control.Text(s.LastError), Keys: uint64(s.Keys), Dropped: s.Dropped}
}
