package policy

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/condition"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/near"
)

// checker looks at a policy for what can be wrong with it in no guest at all.
type checker struct {
	*reader
	p      *Policy
	syntax *condition.Syntax
	before Errors // what was wrong already
}

// check adds what is wrong with a document that was decoded.
func (r *reader) check(p *Policy, before int) {
	syntax, err := condition.NewSyntax()
	if err != nil {
		r.wrong(p, "", "%v", err)
		return
	}
	c := &checker{reader: r, p: p, syntax: syntax, before: slices.Clone(r.all[before:])}
	c.domains()
	c.checks("spec.unless", p.Spec.Unless)
	c.counters()
	for i := range p.Spec.Probes {
		c.probe(&p.Spec.Probes[i], fmt.Sprintf("spec.probes[%d]", i))
	}
	for i := range p.Spec.Watchdogs {
		c.watchdog(&p.Spec.Watchdogs[i], fmt.Sprintf("spec.watchdogs[%d]", i))
	}
	verdict := func(one Probe) bool { return one.Then.verdict() }
	if p.Enforces() && !slices.ContainsFunc(p.Spec.Probes, verdict) {
		c.bad("spec.mode", "enforce, and no probe has a verdict: say what is to happen (deny, set or pause), or leave mode out")
	}
}

// bad adds a problem of a field, unless the field or what is in it is wrong already.
func (c *checker) bad(field, format string, args ...any) {
	for i := range c.before {
		if rest, ok := strings.CutPrefix(c.before[i].Path, field); ok && (rest == "" || rest[0] == '.' || rest[0] == '[') {
			return
		}
	}
	c.wrong(c.p, field, format, args...)
}

// text adds what err says of a field's text.
func (c *checker) text(field string, err error) {
	if err != nil {
		c.bad(field, "%v", err)
	}
}

// checkNames looks for two policies with one name.
func (r *reader) checkNames(all []*Policy) {
	seen := map[string]*Policy{}
	for _, p := range all {
		if first := seen[p.Name()]; first != nil && p.Name() != "" {
			r.wrong(p, "metadata.name", "there is a policy %q in this file already, in line %d", p.Name(), first.where("metadata.name").line)
		}
		seen[p.Name()] = p
	}
}

func (c *checker) domains() {
	d := &c.p.Spec.Domains
	if _, given := c.p.positions["spec.domains"]; given && len(d.Names) == 0 && len(d.Labels) == 0 {
		c.bad("spec.domains", "no guest is chosen: say names or labels; names: ['*'] are all guests")
	}
	for i, pattern := range d.Names {
		if pattern = strings.TrimPrefix(pattern, "!"); pattern == "" {
			c.bad(fmt.Sprintf("spec.domains.names[%d]", i), "there is no pattern behind the !")
		} else if _, err := path.Match(pattern, ""); err != nil {
			c.bad(fmt.Sprintf("spec.domains.names[%d]", i), "%q is no pattern: a [ wants its ]; * is any text, ? one character", pattern)
		}
	}
}

func (c *checker) checks(field string, all []Check) {
	for i := range all {
		k, at := &all[i], fmt.Sprintf("%s[%d]", field, i)
		if k.Kernel.IsZero() && k.Banner == "" && k.Symbol == "" && k.Field == "" && k.Bytes == nil {
			c.bad(at, "it says nothing: say kernel, banner, symbol, field or bytes")
		}
		if k.Bytes == nil || k.Bytes.At == "" {
			continue
		}
		switch loc, err := binder.ParseLocation(k.Bytes.At); {
		case err != nil:
			c.bad(at+".bytes.at", "%v", err)
		case loc.Symbol == "" || loc.Module != "" || loc.Image != "" || loc.Callee != "":
			c.bad(at+".bytes.at", "bytes are looked at in the kernel proper, at symbol or symbol+0x10")
		}
	}
}

func (c *checker) counters() {
	seen := map[string]bool{}
	for i := range c.p.Spec.Counters {
		k, at := &c.p.Spec.Counters[i], fmt.Sprintf("spec.counters[%d]", i)
		c.once(seen, k.Name, at, "counter")
		if k.Key != "" {
			c.text(at+".key", c.syntax.Expression(k.Key))
		}
		counted := func(one Probe) bool { return one.Then.Count == k.Name && one.Then.Threshold > 0 }
		if !slices.ContainsFunc(c.p.Spec.Probes, counted) {
			c.bad(at, "nothing happens at any count of %q: a probe with count: %s wants a threshold", k.Name, k.Name)
		}
	}
	c.unique("probes", len(c.p.Spec.Probes), func(i int) string { return c.p.Spec.Probes[i].Name }, "probe")
	c.unique("watchdogs", len(c.p.Spec.Watchdogs), func(i int) string { return c.p.Spec.Watchdogs[i].Name }, "watchdog")
}

func (c *checker) unique(list string, n int, name func(int) string, what string) {
	seen := map[string]bool{}
	for i := range n {
		c.once(seen, name(i), fmt.Sprintf("spec.%s[%d]", list, i), what)
	}
}

func (c *checker) once(seen map[string]bool, name, at, what string) {
	if seen[name] && name != "" {
		c.bad(at+".name", "there is a %s %q already: each has a name of its own", what, name)
	}
	seen[name] = true
}

func (c *checker) probe(b *Probe, field string) {
	sources := b.sources()
	switch {
	case len(sources) == 0:
		c.bad(field, "it is nowhere: say at, syscalls, register, cpuid or memory")
	case len(sources) > 1:
		c.bad(field, "%s exclude each other: a probe is at one of them; make two probes of it", strings.Join(sources, " and "))
	default:
		c.source(b, field)
	}
	c.checks(field+".only", b.Only)
	c.expressions(b, field)
	c.then(b, field)
}

// sources are the fields that say where a probe is.
func (b *Probe) sources() (all []string) {
	for _, one := range []struct {
		name  string
		given bool
	}{{"at", len(b.At) > 0}, {"syscalls", len(b.Syscalls) > 0}, {"register", b.Register != ""}, {"cpuid", b.CPUID != ""}, {"memory", b.Memory != ""}} {
		if one.given {
			all = append(all, one.name)
		}
	}
	return all
}

// source looks at where a probe is, and at its rule there.
func (c *checker) source(b *Probe, field string) {
	image := false
	var places []condition.Place
	switch {
	case len(b.At) > 0:
		for i, text := range b.At {
			at := field + ".at"
			if len(b.At) > 1 {
				at = fmt.Sprintf("%s[%d]", at, i)
			}
			loc, err := binder.ParseLocation(text)
			if err == nil && b.Return {
				err = loc.MayReturn()
			}
			if err != nil {
				c.bad(at, "%v", err)
				continue
			}
			image = image || loc.Image != ""
			places = append(places, condition.Place{Entry: loc.Entry() || loc.Callee != "", Ends: b.Return})
		}
	case len(b.Syscalls) > 0:
		_, err := guestos.ParseSelection(b.Syscalls)
		c.text(field+".syscalls", err)
		if len(b.Then.Set) > 0 {
			c.bad(field+".then.set", "not for system calls, whose arguments are at different places: say at: __x64_sys_NAME")
		}
		places = append(places, condition.Place{Entry: true, Syscall: true})
	default:
		s, err := binder.ParseSource(b.watched(false))
		if err != nil {
			c.bad(field+"."+b.sources()[0], "%v", err)
			break
		}
		places = append(places, s.Place(b.Async))
	}
	c.fitting(b, field, image)
	rule := b.Then.rule()
	for _, place := range places {
		if err := rule.Check(place); err != nil {
			c.bad(field+".then", "%v", err)
			return
		}
	}
	if b.Then.Deny != "" && len(places) > 0 && places[0].Of == condition.Instruction {
		_, err := guestos.ParseReturn(b.Then.Deny)
		c.text(field+".then.deny", err)
	}
}

// fitting looks for fields that say nothing where the probe is.
func (c *checker) fitting(b *Probe, field string, image bool) {
	source := b.sources()[0]
	for _, one := range []struct {
		name  string
		given bool
		fits  bool
		why   string
	}{
		{"return", b.Return, source == "at", "calls end only where a function is probed: say at"},
		{"access", b.Access != "", source == "memory", "it is of memory"},
		{"async", b.Async, source == "register", "it is of a register"},
		{"comm", b.Comm != "", image, "it is of a place in an image (at: image:PATH!symbol); of others say when: comm == \"…\""},
		{"image", b.Image != nil, image && len(b.At) == 1, "it is of one place in an image (at: image:PATH!symbol)"},
	} {
		if one.given && !one.fits {
			c.bad(field+"."+one.name, "%s", one.why)
		}
	}
}

// watched is the source of a probe that is at no instruction.
func (b *Probe) watched(deny bool) *detectors.Source {
	return &detectors.Source{Register: b.Register, CPUID: b.CPUID, Memory: b.Memory, Access: b.Access, Async: b.Async, Deny: deny && b.Then.Deny != ""}
}

func (c *checker) expressions(b *Probe, field string) {
	if b.When != "" {
		c.text(field+".when", c.syntax.Expression(b.When))
	}
	for i, text := range b.Capture {
		c.text(fmt.Sprintf("%s.capture[%d]", field, i), c.syntax.Capture(text))
	}
	for i, text := range b.Then.Set {
		c.text(fmt.Sprintf("%s.then.set[%d]", field, i), c.syntax.Assignment(text))
	}
	if f := b.Then.Finding; f != nil && f.Message != "" {
		c.text(field+".then.finding.message", c.syntax.Message(f.Message))
	}
}

func (t *Then) verdict() bool { return t.Deny != "" || len(t.Set) > 0 || t.Pause }

// rule is what happens at a match, as far as it needs no guest.
func (t *Then) rule() condition.Rule {
	return condition.Rule{Threshold: t.Threshold, Deny: t.Deny, Set: t.Set, Pause: t.Pause, Sparse: true}
}

func (c *checker) then(b *Probe, field string) {
	t := &b.Then
	names := make([]string, len(c.p.Spec.Counters))
	for i := range names {
		names[i] = c.p.Spec.Counters[i].Name
	}
	for _, one := range []struct{ field, name string }{{"count", t.Count}, {"reset", t.Reset}} {
		if one.name != "" && !slices.Contains(names, one.name) {
			c.bad(field+".then."+one.field, "there is no counter %q%s: spec.counters has those that there are", one.name, near.Hint(one.name, names))
		}
	}
	switch {
	case t.Count != "" && t.Reset != "":
		c.bad(field+".then", "count and reset exclude each other: make two probes at the same place")
	case t.Threshold > 0 && t.Count == "":
		c.bad(field+".then.threshold", "a threshold of what? Say count: NAME, with a counter of spec.counters")
	case t.Reset != "" && (t.verdict() || t.Finding != nil):
		c.bad(field+".then", "a match that sets a counter back does nothing else: make two probes at the same place")
	case t.Count != "" && t.Threshold == 0 && (t.verdict() || t.Finding != nil):
		c.bad(field+".then", "from which count on? Say threshold: 1 for each match")
	case t.Finding == nil && !t.verdict() && t.Count == "" && t.Reset == "" && !c.expected(b.Name):
		c.bad(field, "nothing happens at its hits: say then: {finding: {}}, or a verdict, a counter, or have a watchdog expect it")
	}
}

func (c *checker) expected(name string) bool {
	return slices.ContainsFunc(c.p.Spec.Watchdogs, func(w Watchdog) bool { return w.Expect == name })
}

func (c *checker) watchdog(w *Watchdog, field string) {
	var names []string
	for i := range c.p.Spec.Probes {
		names = append(names, c.p.Spec.Probes[i].Name)
	}
	if w.Expect != "" && !slices.Contains(names, w.Expect) {
		c.bad(field+".expect", "there is no probe %q%s in this policy", w.Expect, near.Hint(w.Expect, names))
	}
}
