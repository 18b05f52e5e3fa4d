package policy

import (
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/condition"
	"github.com/hprobe/hprobe/profiles/guestos"
)

// Detector is a policy that was compiled for a guest: it has counters and a state of its
// own. Status may be called from any goroutine; all else as for every detector.
type Detector struct {
	Policy *Policy

	// Seen, when not nil, is told of each match, on the goroutine that serves the hits. It
	// is set before the detector is bound.
	Seen func(*Match)

	probes    []*armed
	watchdogs []*watchdog
}

// Match is a hit at which a probe's condition was true. It is valid while Seen runs.
type Match struct {
	Probe, At string // the probe's name, and its place
	Return    bool   // it is the end of a call
	Hit       detectors.Hit
	Result    *condition.Result
	Program   *condition.Program // that judged the hit
}

// armed is a probe of a policy in a guest.
type armed struct {
	*Probe
	of      *Detector
	at      string // the place that was taken; of a source or of calls, what they are
	skipped string // why it is not in this guest; then there is nothing else
	program *condition.Program
	source  *detectors.Source
	vital   bool
	matched uint64 // for watchdogs

	calls *guestos.SyscallSet // nil: of no system calls
	call  binder.CallHit      // the present one
}

// ProbeStatus is how a probe of a policy does in a guest.
type ProbeStatus struct {
	Name string
	At   string // where it is: one of the places that the policy gives
	// Skipped, where not empty, is why the probe is not in this guest.
	Skipped string
	condition.Stats
}

// Name is "policy/" and the policy's.
func (d *Detector) Name() string { return "policy/" + d.Policy.Name() }

// Status is how the probes do, in the policy's order.
func (d *Detector) Status() []ProbeStatus {
	all := make([]ProbeStatus, len(d.probes))
	for i, a := range d.probes {
		all[i] = ProbeStatus{Name: a.Name, At: a.at, Skipped: a.skipped}
		if a.program != nil {
			all[i].Stats = a.program.Stats()
		}
	}
	return all
}

// Probes asks for those of the policy that fit the guest. Of a set of system calls there
// is one at each place where some of them come by.
func (d *Detector) Probes() (all []detectors.ProbeSpec) {
	for _, a := range d.probes {
		switch {
		case a.skipped != "":
		case a.calls != nil:
			for i := range a.calls.Places {
				spec := a.spec(func(h detectors.Hit) detectors.Outcome { return a.came(i, h) })
				spec.At = a.calls.Places[i].At
				all = append(all, spec)
			}
		default:
			all = append(all, a.spec(a.hit))
		}
	}
	return all
}

func (a *armed) spec(handle detectors.Handler) detectors.ProbeSpec {
	spec := detectors.ProbeSpec{
		Name: a.Name, At: a.at, Source: a.source, Comm: a.Comm, Handle: handle, Return: a.Return, Vital: a.vital,
		Budget: detectors.Budget{HitsPerSecond: a.Budget.HitsPerSecond, StalledPercent: a.Budget.StalledPercent},
	}
	if a.source != nil {
		spec.At = ""
	}
	if i := a.Image; i != nil {
		spec.Image = &detectors.ImagePlace{Offset: i.Offset, Code: i.Code, BuildID: i.BuildID}
	}
	return spec
}

// hit judges one.
func (a *armed) hit(h detectors.Hit) detectors.Outcome {
	if a.Return {
		if _, over := h.Return(); !over {
			return detectors.Outcome{} // the rule judges the end of the call
		}
	}
	r := a.program.Judge(h)
	if r.Matched {
		a.matched++
		if a.of.Seen != nil {
			a.tell(h, r)
		}
	}
	return r.Outcome
}

// tell tells of a match. Its copy of the result is what escapes: a hit that nobody is told
// of allocates nothing.
func (a *armed) tell(h detectors.Hit, r condition.Result) {
	a.of.Seen(&Match{Probe: a.Name, At: a.at, Return: a.Return, Hit: h, Result: &r, Program: a.program})
}

// came is a hit where system calls come by. What is no call of the set is let pass.
func (a *armed) came(place int, h detectors.Hit) detectors.Outcome {
	call, ok, err := a.calls.CallAt(place, h.Registers(), h.ReadUint64)
	if err != nil {
		a.program.Missed(err)
	}
	if !ok {
		return detectors.Outcome{}
	}
	params, err := a.calls.Args(call)
	if err != nil {
		a.program.Missed(err) // it has none then
	}
	a.call = binder.CallHit{Hit: h, Number: h.Seq(), Call: call, Params: params}
	return a.hit(&a.call)
}

// Every is how often Tick wants to be called: often enough for the shortest watchdog.
func (d *Detector) Every() (every time.Duration) {
	for _, w := range d.watchdogs {
		one := min(max(w.within/10, minWithin/2), time.Second)
		if every == 0 || one < every {
			every = one
		}
	}
	return every
}

// Tick implements detectors.Ticker.
func (d *Detector) Tick(now detectors.Moment) (all []*detectors.Finding) {
	for _, w := range d.watchdogs {
		if f := w.tick(now); f != nil {
			all = append(all, f)
		}
	}
	return all
}
