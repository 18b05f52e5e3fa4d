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
	"github.com/hprobe/hprobe/xenevents"
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
	Length *Operand
	// lengths calls each for all lengths of a call until it returns false.
	lengths func(h detectors.Hit, each func(fact string, value uint64) bool) error
}

// Detector watches one rule in one domain.
type Detector struct {
	rule     Rule
	fix      bool
	attempts atomic.Uint64
}

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
	return &Detector{rule: rule, fix: fix}, nil
}

// Name is "stopgap/" and the rule's.
func (d *Detector) Name() string { return "stopgap/" + d.rule.Name }

// Rule returns what it watches.
func (d *Detector) Rule() Rule { return d.rule }

// Fix says whether it refuses attempts.
func (d *Detector) Fix() bool { return d.fix }

// Attempts is how many there were so far.
func (d *Detector) Attempts() uint64 { return d.attempts.Load() }

// Probes asks for the one probe. One that refuses must not be got rid of by a storm.
func (d *Detector) Probes() []detectors.ProbeSpec {
	return []detectors.ProbeSpec{{Name: d.Name(), At: d.rule.At, Handle: d.handle, Vital: d.fix}}
}

func (d *Detector) handle(h detectors.Hit) detectors.Outcome {
	var attempt *detectors.Fact
	each := func(fact string, value uint64) bool {
		if value >= d.rule.Limit {
			attempt = &detectors.Fact{Name: fact, Value: value}
		}
		return attempt == nil
	}
	lengths := d.rule.lengths
	if d.rule.Length != nil {
		lengths = d.rule.Length.lengths
	}
	err := lengths(h, each)
	if attempt == nil {
		return unseen(err)
	}
	d.attempts.Add(1)
	f := &detectors.Finding{Severity: detectors.High, Facts: []detectors.Fact{*attempt, {Name: "limit", Value: d.rule.Limit}}}
	what := fmt.Sprintf("%s: %s is %#x, the limit is %#x", d.rule.Title, attempt.Name, attempt.Value, d.rule.Limit)
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

// maxSegments is Linux's UIO_MAXIOV: vmsplice takes no more.
const maxSegments = 1024

// iovecSize and iovecLen are struct iovec's, which is ABI: base u64, len u64.
const (
	iovecSize = 16
	iovecLen  = 8
)

// vmspliceLengths follows the iovec in the caller's memory: vmsplice(fd, iov, nr_segs, flags).
func vmspliceLengths(h detectors.Hit, each func(string, uint64) bool) error {
	iov, err := h.Arg(1)
	if err != nil {
		return err
	}
	segments, err := h.Arg(2)
	if err != nil {
		return err
	}
	for i := range min(segments, maxSegments) {
		v, err := h.ReadUint64(xenevents.GVA(iov + i*iovecSize + iovecLen))
		if err != nil {
			return err
		}
		if !each(fmt.Sprintf("iov[%d].iov_len", i), v) {
			return nil
		}
	}
	return nil
}

// rules are those that hprobe knows by name.
var rules = []Rule{{
	Name: "vmsplice", Title: "vmsplice() with a huge iovec (CVE-2008-0600)", At: "__x64_sys_vmsplice",
	Limit: 0x7fffffff, Errno: EFAULT, lengths: vmspliceLengths,
}}

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
