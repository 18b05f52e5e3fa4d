package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/condition"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
)

// Compile makes the detector of a policy in a guest, with the symbols and types of its
// kernel. Errors is what the kernel does not have; a *NotNeededError that the guest needs
// no such policy. A policy may be compiled for several guests at a time: it is not changed,
// and must not be.
func (p *Policy) Compile(t Target) (*Detector, error) {
	c := &compiler{reader: &reader{file: p.file}, p: p, t: &t, counters: map[string]*condition.Counter{}, keys: map[string]string{}}
	why, ok, err := t.holds(p.Spec.Unless)
	switch {
	case err != nil:
		c.wrong(p, "spec.unless", "%v", err)
		return nil, c.err()
	case ok && !t.Regardless:
		return nil, &NotNeededError{Policy: p.Name(), Why: why}
	}
	for _, k := range p.Spec.Counters {
		c.counters[k.Name], c.keys[k.Name] = condition.NewCounter(), k.Key
	}
	d := &Detector{Policy: p}
	for i := range p.Spec.Probes {
		a := c.probe(&p.Spec.Probes[i], fmt.Sprintf("spec.probes[%d]", i))
		a.of = d
		d.probes = append(d.probes, a)
	}
	if !slices.ContainsFunc(d.probes, func(a *armed) bool { return a.skipped == "" }) {
		c.wrong(p, "spec.probes", "none of them is for this guest's kernel, %s", t.Kernel.Profile.Meta().Banner)
	}
	if err := c.err(); err != nil {
		return nil, err
	}
	for i := range p.Spec.Watchdogs {
		if w := c.watchdog(&p.Spec.Watchdogs[i], d); w != nil {
			d.watchdogs = append(d.watchdogs, w)
		}
	}
	return d, nil
}

// compiler compiles one policy for one guest.
type compiler struct {
	*reader
	p        *Policy
	t        *Target
	counters map[string]*condition.Counter
	keys     map[string]string // of counters
}

func (c *compiler) probe(b *Probe, field string) *armed {
	a := &armed{Probe: b, vital: c.p.Enforces() && b.Then.verdict()}
	if b.Only != nil {
		_, ok, err := c.t.holds(b.Only)
		if err != nil {
			c.wrong(c.p, field+".only", "%v", err)
		}
		if !ok {
			a.skipped = "it is for other kernels"
			return a
		}
	}
	place, where, err := c.place(a)
	if err != nil {
		c.wrong(c.p, field+"."+where, "%v", err)
		return a
	}
	rule := c.rule(b)
	if a.program, err = condition.Compile(c.t.Kernel.Profile, place, rule); err != nil {
		c.wrong(c.p, field+c.blame(b, &rule, err), "%v", err)
	}
	return a
}

// place finds where a probe is in this guest; where it fails, which field is to blame.
func (c *compiler) place(a *armed) (place condition.Place, field string, err error) {
	profile := c.t.Kernel.Profile
	switch {
	case len(a.At) > 0:
		loc, err := c.choose(a)
		if err != nil {
			return place, "at", err
		}
		sig, err := binder.SignatureAt(profile, loc, nil)
		return sig.Place(loc, a.Return), "at", err
	case len(a.Syscalls) > 0:
		a.at = "system calls " + strings.Join(a.Syscalls, ",")
		want, err := guestos.ParseSelection(a.Syscalls)
		if err == nil {
			err = c.t.do(func() (err error) {
				a.calls, err = want.Find(c.t.Kernel)
				return err
			})
		}
		if err != nil {
			return place, "syscalls", err
		}
		place, err = binder.PlaceOfCalls(c.t.Kernel, a.calls)
		return place, "syscalls", err
	}
	a.source = a.watched(c.p.Enforces())
	s, err := binder.ParseSource(a.source)
	a.at = s.Text
	return s.Place(a.Async), a.sources()[0], err
}

// choose takes the first of a probe's places that the guest's kernel has. What is in a
// module or an image may come later.
func (c *compiler) choose(a *armed) (loc binder.Location, err error) {
	var missing []error
	for _, text := range a.At {
		if loc, err = binder.ParseLocation(text); err != nil {
			return loc, err
		}
		if err = c.has(loc); err == nil {
			a.at = text
			return loc, nil
		}
		missing = append(missing, err)
	}
	return loc, errors.Join(missing...)
}

// has says why a guest's kernel lacks a place, if it does.
func (c *compiler) has(loc binder.Location) error {
	if loc.Symbol == "" || loc.Module != "" || loc.Image != "" {
		return nil
	}
	profile := c.t.Kernel.Profile
	if _, err := profile.Address(loc.Symbol); err != nil || loc.Callee == "" {
		return err
	}
	for _, callee := range strings.Split(loc.Callee, "|") {
		if len(profile.Addresses(callee)) > 0 {
			return nil
		}
	}
	return fmt.Errorf("%s calls none of %s here: %w", loc.Symbol, loc.Callee, isf.ErrNotFound)
}

// rule is what a probe does, with the counters of this guest.
func (c *compiler) rule(b *Probe) condition.Rule {
	t := &b.Then
	r := t.rule()
	r.When, r.Capture, r.Enforce = b.When, b.Capture, c.p.Enforces() && t.verdict()
	for name, clear := range map[string]bool{t.Count: false, t.Reset: true} {
		if name != "" {
			r.Counter, r.Key, r.Clear = c.counters[name], c.keys[name], clear
		}
	}
	r.Tags = c.tags(t.Finding)
	if f := t.Finding; f != nil {
		r.Report, r.Message, r.Severity = t.Threshold == 0, f.Message, severityOf(f)
	}
	return r
}

// tags are a finding's: the policy's, and its own.
func (c *compiler) tags(f *Finding) []string {
	all := c.p.Metadata.Tags
	if f != nil {
		all = append(slices.Clip(all), f.Tags...)
	}
	return all
}

// severityOf is a finding's severity; nil where it does not say.
func severityOf(f *Finding) *detectors.Severity {
	s, err := detectors.ParseSeverity(f.Severity)
	if err != nil {
		return nil
	}
	return &s
}

// blame finds the field that an error of a rule is about, by its text.
func (c *compiler) blame(b *Probe, r *condition.Rule, err error) string {
	var of *condition.Error
	if !errors.As(err, &of) {
		return ""
	}
	has := func(text string) bool { return strings.Contains(text, of.Text) }
	switch {
	case has(r.When):
		return ".when"
	case has(r.Message):
		return ".then.finding.message"
	case has(r.Key):
		return ".then" // a counter's key, at this probe
	}
	if i := slices.IndexFunc(b.Capture, has); i >= 0 {
		return fmt.Sprintf(".capture[%d]", i)
	}
	if i := slices.IndexFunc(b.Then.Set, has); i >= 0 {
		return fmt.Sprintf(".then.set[%d]", i)
	}
	return ""
}

// watchdog makes one; nil where its probe is not in this guest.
func (c *compiler) watchdog(w *Watchdog, d *Detector) *watchdog {
	i := slices.IndexFunc(d.probes, func(a *armed) bool { return a.Name == w.Expect })
	if i < 0 || d.probes[i].skipped != "" {
		return nil
	}
	s := detectors.Medium
	if given := severityOf(&w.Finding); given != nil {
		s = *given
	}
	return &watchdog{Watchdog: w, probe: d.probes[i], within: time.Duration(w.Within), severity: s, tags: c.tags(&w.Finding)}
}
