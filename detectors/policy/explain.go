package policy

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/detectors/binder"
)

// Explain says in plain words what a policy does, and what it can't see. It ends with a
// line end.
func (p *Policy) Explain() string {
	e := &explanation{p: p}
	e.head()
	for i := range p.Spec.Probes {
		e.probe(&p.Spec.Probes[i])
	}
	for i := range p.Spec.Watchdogs {
		e.watchdog(&p.Spec.Watchdogs[i])
	}
	e.blind()
	return e.String()
}

type explanation struct {
	strings.Builder
	p *Policy
	// what probes are in, for what can't be seen
	images, modules, calls, memory bool
}

func (e *explanation) line(indent int, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, l := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		fmt.Fprintln(e, strings.TrimRight(strings.Repeat("  ", indent)+l, " "))
	}
}

func (e *explanation) head() {
	s := &e.p.Spec
	e.line(0, "%s", strings.TrimSuffix(e.p.Name()+": "+e.p.Metadata.Title, ": "))
	if d := e.p.Metadata.Description; d != "" {
		e.line(1, "%s\n", d)
		fmt.Fprintln(e)
	}
	if e.p.Enforces() {
		e.line(1, "Mode: enforce. What it says of calls and guests below is done.")
	} else {
		e.line(1, "Mode: observe. It changes nothing: findings say what would be done in enforce mode.")
	}
	e.line(1, "Guests: %s.", s.Domains.text())
	for _, c := range s.Unless {
		e.line(2, "not those %s", c.text())
	}
	if !s.Expires.IsZero() {
		e.line(1, "It ends with %s.", s.Expires.Format("2 January 2006"))
	}
	for _, k := range s.Counters {
		e.line(1, "Counter %s: %s.", k.Name, cmp.Or(ifSet("one count for each %s", k.Key), "one count"))
	}
}

// ifSet formats a text that is there.
func ifSet(format, text string) string {
	if text == "" {
		return ""
	}
	return fmt.Sprintf(format, text)
}

func (d *Domains) text() string {
	var in, out, all []string
	for _, n := range d.Names {
		if rest, not := strings.CutPrefix(n, "!"); not {
			out = append(out, rest)
		} else {
			in = append(in, n)
		}
	}
	switch {
	case len(in) == 1 && in[0] == "*", in == nil:
		all = append(all, "all that run "+systems[cmp.Or(d.OS, "linux")])
	default:
		all = append(all, "those called "+strings.Join(in, " or ")+" that run "+systems[cmp.Or(d.OS, "linux")])
	}
	if out != nil {
		all = append(all, "but not "+strings.Join(out, " or "))
	}
	for _, k := range sortedKeys(d.Labels) {
		all = append(all, fmt.Sprintf("with the label %s=%s", k, d.Labels[k]))
	}
	return strings.Join(all, ", ")
}

var systems = map[string]string{"linux": "Linux"}

func (c *Check) text() string {
	var all []string
	for _, one := range []string{
		ifSet("whose kernel is %s", c.Kernel.String()), ifSet("whose kernel's banner has %q", c.Banner), ifSet("whose kernel has %s", c.Symbol), ifSet("whose kernel has %s", c.Field),
	} {
		if one != "" {
			all = append(all, one)
		}
	}
	if c.Bytes != nil {
		all = append(all, fmt.Sprintf("whose kernel has %s at %s", c.Bytes.Is, c.Bytes.At))
	}
	return strings.Join(all, " and ")
}

func (e *explanation) probe(b *Probe) {
	e.line(1, "Probe %s: %s.", b.Name, e.where(b))
	for _, c := range b.Only {
		e.line(2, "only in guests %s", c.text())
	}
	if b.When == "" {
		e.line(2, "Every hit matches.")
	} else {
		e.line(2, "A hit matches if:")
		e.line(3, "%s", strings.TrimSpace(b.When))
	}
	for _, what := range e.happens(b) {
		e.line(2, "%s", what)
	}
	e.line(2, "%s", e.cost(b))
}

// where says where a probe is.
func (e *explanation) where(b *Probe) string {
	switch {
	case len(b.Syscalls) > 0:
		e.calls = true
		return "at the system calls " + strings.Join(b.Syscalls, ", ") + ", those of 32-bit programs among them"
	case b.Register != "":
		return "where " + b.Register + " is written"
	case b.CPUID != "":
		return "where CPUID is asked for leaf " + b.CPUID
	case b.Memory != "":
		e.memory = true
		return fmt.Sprintf("where memory is accessed (%s of %s)", cmp.Or(b.Access, "w"), b.Memory)
	}
	var all []string
	for _, text := range b.At {
		loc, err := binder.ParseLocation(text)
		what := "the instruction at "
		switch {
		case err != nil:
		case b.Return:
			what = "the end of each call of "
		case loc.Callee != "":
			what = "the call in "
		case loc.Entry():
			what = "the beginning of "
		}
		e.images, e.modules = e.images || loc.Image != "", e.modules || loc.Module != ""
		all = append(all, what+text)
	}
	text := "at " + strings.Join(all, ", or where the kernel has no such place ")
	return text + ifSet(", in processes called %s", b.Comm)
}

// happens says what a match does.
func (e *explanation) happens(b *Probe) (all []string) {
	t := &b.Then
	from := "A match"
	switch {
	case t.Reset != "":
		return []string{fmt.Sprintf("A match sets the counter %s back to 0.", t.Reset)}
	case t.Count != "" && t.Threshold == 0:
		return []string{fmt.Sprintf("A match adds one to the counter %s.", t.Count)}
	case t.Count != "":
		all = append(all, fmt.Sprintf("A match adds one to the counter %s. It acts from a count of %d on.", t.Count, t.Threshold))
		from = "Then it"
	}
	if t.Finding != nil || t.verdict() || t.Threshold > 0 {
		f := t.Finding
		if f == nil {
			f = &Finding{}
		}
		severity := "medium"
		if t.verdict() {
			severity = "high"
		}
		text := fmt.Sprintf("%s makes a finding (%s)", from, cmp.Or(f.Severity, severity)) + cmp.Or(ifSet(": %s", f.Message), ".")
		all = append(all, text)
	} else {
		all = append(all, "A match is counted, and nothing else.")
	}
	return append(all, e.verdicts(b)...)
}

func (e *explanation) verdicts(b *Probe) (all []string) {
	t := &b.Then
	does := "In enforce mode "
	if e.p.Enforces() {
		does = ""
	}
	say := func(format string, args ...any) {
		text := does + fmt.Sprintf(format, args...)
		all = append(all, strings.ToUpper(text[:1])+text[1:])
	}
	switch {
	case t.Deny == "write":
		say("the write has no effect, and the guest is not told.")
	case t.Deny != "":
		say("the function does not run: its caller gets %s.", t.Deny)
	}
	for _, s := range t.Set {
		say("it sets %s.", s)
	}
	if t.Pause {
		say("the whole guest is paused, until somebody has it go on (xl unpause).")
	}
	return all
}

// cost says what hits cost.
func (e *explanation) cost(b *Probe) string {
	text := "Each hit has its vCPU wait for hprobed, whether it matches or not."
	if b.Async {
		text = "Nobody waits for hprobed."
	}
	if e.p.Enforces() && b.Then.verdict() && b.Budget == (Budget{}) {
		return text + " The probe is never suspended, however much it costs."
	}
	return text + fmt.Sprintf(" Over %d hits a second, or %d %% of one vCPU's time, the probe is suspended for a while.", cmp.Or(b.Budget.HitsPerSecond, 25_000), cmp.Or(b.Budget.StalledPercent, 25))
}

func (e *explanation) watchdog(w *Watchdog) {
	clock := "the guest's time, in which pauses do not count"
	if w.Clock == "host" {
		clock = "the host's time"
	}
	from := "the policy is in place"
	if w.From == "first" {
		from = w.Expect + " has matched once"
	}
	e.line(1, "Watchdog %s: %s is to match at least once in %s of %s, from when %s.", w.Name, w.Expect, w.Within, clock, from)
	e.line(2, "If not, there is a finding (%s)%s", cmp.Or(w.Finding.Severity, "medium"), cmp.Or(ifSet(": %s", w.Finding.Message), "."))
}

// blind says what can't be seen.
func (e *explanation) blind() {
	e.line(1, "It does not see:")
	e.line(2, "what a guest did before the policy was in place, or while a probe was suspended (a finding says when)")
	e.line(2, "what a program changes in its own memory after the look and before the kernel reads it")
	if e.calls {
		e.line(2, "what is asked for by io_uring, which makes no system call of it")
	}
	if e.modules {
		e.line(2, "a module that is not loaded; the probe waits for it")
	}
	if e.images {
		e.line(2, "another build of the program, or a copy under another name")
	}
	if e.memory {
		e.line(2, "accesses by devices, and by hprobed's own reads")
	}
}
