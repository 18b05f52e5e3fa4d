// Package stopgap is the emergency detector of the EDCC 2015 paper: between the
// announcement of a vulnerability and its patch it watches the one function that
// is exploited, and tells attempts by a length that no honest caller passes. In
// read-only mode it reports them; in fix mode it also refuses them, with the
// error that a patched kernel returns.
package stopgap

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/hprobe/hprobe/detectors"
)

// Rule says what an attempt is.
type Rule struct {
	Name  string // "vmsplice"
	Title string // for people: "vmsplice() with a huge iovec (CVE-2008-0600)"; "": New makes one
	At    string // the function, as in detectors.ProbeSpec
	// Limit is the least length that is an attempt, in bytes.
	Limit uint64
	// Errno is what the call returns instead of running, in fix mode.
	Errno Errno
	// Length is where the length is; nil: Lengths finds several.
	Length  *Operand
	lengths lengths
	// after are places that a call comes by after the kernel has copied what it was
	// given: what another thread changes there from then on changes nothing.
	after []place
}

// lengths calls each for all lengths of a call until it returns false.
type lengths func(h detectors.Hit, each func(fact string, value uint64) bool) error

// place is one more where a rule looks, for lengths of at least limit.
type place struct {
	at      string   // as in detectors.ProbeSpec
	fields  []string // as there
	limit   uint64
	lengths lengths
}

// Detector watches one rule in one domain.
type Detector struct {
	rule     Rule
	fix      bool
	attempts atomic.Uint64
	// reported are threads whose call was found to be an attempt at its entry, and runs.
	reported map[uint32]bool
}

// maxReported bounds those that are remembered: a thread may be killed in its call.
const maxReported = 1024

// New makes the detector of a rule: read-only, or in fix mode.
func New(rule Rule, fix bool) (*Detector, error) {
	switch {
	case rule.Name == "" || rule.At == "":
		return nil, errors.New("a stopgap needs a name and a place")
	case rule.Limit == 0:
		return nil, fmt.Errorf("stopgap %q: a limit of 0 would make every call an attempt", rule.Name)
	case rule.Errno <= 0 || rule.Errno > 4095:
		return nil, fmt.Errorf("stopgap %q: no errno is %d", rule.Name, int(rule.Errno))
	case rule.lengths == nil && rule.Length == nil:
		return nil, fmt.Errorf("stopgap %q: say where the length is", rule.Name)
	}
	if rule.Title == "" {
		rule.Title = rule.At + "() with too large a length"
	}
	return &Detector{rule: rule, fix: fix, reported: map[uint32]bool{}}, nil
}

// Name is "stopgap/" and the rule's.
func (d *Detector) Name() string { return "stopgap/" + d.rule.Name }

// Rule returns what it watches.
func (d *Detector) Rule() Rule { return d.rule }

// Fix says whether it refuses attempts.
func (d *Detector) Fix() bool { return d.fix }

// Attempts is how many there were so far.
func (d *Detector) Attempts() uint64 { return d.attempts.Load() }

// Probes asks for one at the function's entry, and those after the copy. One that
// refuses must not be got rid of by a storm.
func (d *Detector) Probes() []detectors.ProbeSpec {
	entry := d.rule.lengths
	if d.rule.Length != nil {
		entry = d.rule.Length.lengths
	}
	all := []detectors.ProbeSpec{{Name: d.Name(), At: d.rule.At, Vital: d.fix, Handle: func(h detectors.Hit) detectors.Outcome { return d.enter(h, entry) }}}
	for _, p := range d.rule.after {
		all = append(all, detectors.ProbeSpec{Name: d.Name(), At: p.at, Fields: p.fields, Vital: d.fix, Handle: func(h detectors.Hit) detectors.Outcome { return d.copied(h, &p) }})
	}
	return all
}

// enter judges a call at its entry. What can't be seen there the places after the copy
// see, if there are any.
func (d *Detector) enter(h detectors.Hit, of lengths) detectors.Outcome {
	attempt, err := find(h, of, d.rule.Limit)
	switch {
	case attempt != nil:
		if len(d.rule.after) > 0 && !d.fix {
			d.remember(h)
		}
		return d.attempt(h, attempt, d.rule.Limit)
	case len(d.rule.after) > 0:
		return detectors.Outcome{}
	}
	return unseen(err)
}

// copied judges a call by what the kernel has copied.
func (d *Detector) copied(h detectors.Hit, p *place) detectors.Outcome {
	limit := min(p.limit, d.rule.Limit)
	attempt, err := find(h, p.lengths, limit)
	switch {
	case attempt == nil:
		return unseen(err)
	case !d.fix && d.forget(h):
		return detectors.Outcome{} // it was reported at its entry
	}
	return d.attempt(h, attempt, limit)
}

// remember notes that the call of the thread that runs was reported.
func (d *Detector) remember(h detectors.Hit) {
	if len(d.reported) >= maxReported {
		clear(d.reported)
	}
	if tid, err := h.Running().TID(); err == nil {
		d.reported[tid] = true
	}
}

// forget says whether it was.
func (d *Detector) forget(h detectors.Hit) bool {
	tid, err := h.Running().TID()
	was := err == nil && d.reported[tid]
	delete(d.reported, tid)
	return was
}

// find returns the first length that is an attempt.
func find(h detectors.Hit, of lengths, limit uint64) (attempt *detectors.Fact, err error) {
	err = of(h, func(fact string, value uint64) bool {
		if value >= limit {
			attempt = &detectors.Fact{Name: fact, Value: value}
		}
		return attempt == nil
	})
	return attempt, err
}

func (d *Detector) attempt(h detectors.Hit, attempt *detectors.Fact, limit uint64) detectors.Outcome {
	d.attempts.Add(1)
	f := &detectors.Finding{Severity: detectors.High, Facts: []detectors.Fact{*attempt, {Name: "limit", Value: limit}}}
	what := fmt.Sprintf("%s: %s is %#x, the limit is %#x", d.rule.Title, attempt.Name, attempt.Value, limit)
	if !d.fix {
		f.Message = what + "; reported only"
		return detectors.Outcome{Finding: f}
	}
	switch err := h.CanDeny(); {
	case err == nil:
		f.Message = fmt.Sprintf("%s; refused with %v", what, d.rule.Errno)
	case errors.Is(err, detectors.ErrDenied):
		f.Message = what + "; refused by another detector"
	default:
		f.Message = fmt.Sprintf("%s; could not be refused: %v", what, err)
	}
	return detectors.Outcome{Finding: f, Verdict: detectors.Verdict{Deny: true, Return: -int64(d.rule.Errno)}}
}

// unseen is the outcome of a call that is no attempt as far as can be seen. A
// caller's memory that is not there at the moment (swapped out, or never touched)
// hides its lengths: the call runs, and the operator is told that one was not
// looked at.
func unseen(err error) detectors.Outcome {
	if err == nil {
		return detectors.Outcome{}
	}
	return detectors.Outcome{Finding: &detectors.Finding{Severity: detectors.Medium, Message: fmt.Sprintf("a call could not be judged, and was let pass: %v", err)}}
}

// rules are those that hprobe knows by name.
var rules = []Rule{vmsplice}

// Rules returns the rules that hprobe knows.
func Rules() []Rule { return slices.Clone(rules) }

// Known returns the rule of a name.
func Known(name string) (Rule, error) {
	var names []string
	for _, r := range rules {
		if r.Name == name {
			return r, nil
		}
		names = append(names, r.Name)
	}
	return Rule{}, fmt.Errorf("hprobe knows no stopgap %q; it knows %s. For another, give --at, --length, --limit and --errno", name, strings.Join(names, ", "))
}
