package condition

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
)

// act makes the finding of a match, and in enforce mode its verdict.
func (p *Program) act(h detectors.Hit, r *Result) {
	if p.rule.Sparse && !reported(r.Count, p.rule.Threshold) {
		if p.rule.Enforce {
			r.Done = p.verdict(h, &r.Verdict)
		}
		return
	}
	f := &detectors.Finding{Severity: detectors.Medium, Tags: p.rule.Tags}
	for _, v := range p.Captured() {
		if v.Err == nil && v.Number != 0 && len(f.Facts) < maxCaptures {
			f.Facts = append(f.Facts, detectors.Fact{Name: v.Name, Value: v.Number})
		}
	}
	if r.Count > 0 {
		f.Facts = append(f.Facts, detectors.Fact{Name: "count", Value: r.Count})
	}
	f.Message = p.text(r)
	if p.rule.Verdicts() {
		f.Severity = detectors.High
		r.Done = p.verdict(h, &r.Verdict)
		f.Message += "; " + r.Done
	}
	if p.rule.Severity != nil {
		f.Severity = *p.rule.Severity
	}
	r.Finding = f
}

// reported says whether a count is the threshold, or that doubled so many times.
func reported(count, threshold uint64) bool {
	if threshold == 0 || count%threshold != 0 {
		return threshold == 0
	}
	times := count / threshold
	return times&(times-1) == 0
}

func (p *Program) text(r *Result) string {
	if p.message != nil {
		return p.message.Text()
	}
	text := p.scope.of.String()
	if p.rule.When != "" {
		text += " matched " + p.rule.When
	}
	if r.Count > 0 {
		text += fmt.Sprintf(", %d times", r.Count)
		if p.rule.Key != "" {
			text += " for one " + p.rule.Key
		}
	}
	return text
}

// verdict says what happens, in words, and has it happen in enforce mode.
func (p *Program) verdict(h detectors.Hit, v *detectors.Verdict) string {
	if !p.rule.Enforce {
		return "would be " + strings.Join(p.would(), ", ") + " in enforce mode"
	}
	var done []string
	if p.rule.Deny != "" {
		v.Deny, v.Return = true, p.deny
		switch err := h.CanDeny(); {
		case err == nil:
			done = append(done, p.denied())
		case errors.Is(err, detectors.ErrDenied):
			done = append(done, "denied by another detector")
		default:
			p.failed(err)
			done = append(done, fmt.Sprintf("could not be denied: %v", err))
		}
	}
	if len(p.set) > 0 {
		done = append(done, p.setAll(h, v)...)
	}
	if p.rule.Pause {
		v.Pause = true
		done = append(done, "paused the guest")
	}
	return strings.Join(done, ", ")
}

// setAll sets registers and memory; what can't be set is left as it is.
func (p *Program) setAll(h detectors.Hit, v *detectors.Verdict) (done []string) {
	p.regs = *h.Registers()
	for _, a := range p.set {
		inRegs, err := a.apply(h, &p.regs)
		if err != nil {
			p.failed(err)
			done = append(done, fmt.Sprintf("could not set %s: %v", a.text, shorten(err.Error())))
			continue
		}
		if inRegs {
			v.Registers = &p.regs
		}
		done = append(done, "set "+a.text)
	}
	return done
}

func (p *Program) would() (all []string) {
	if p.rule.Deny != "" {
		all = append(all, p.denied())
	}
	for _, a := range p.set {
		all = append(all, "changed ("+a.text+")")
	}
	if p.rule.Pause {
		all = append(all, "paused")
	}
	return all
}

// denied says what denying is.
func (p *Program) denied() string {
	if p.scope.of != Instruction {
		return "denied"
	}
	return "denied with " + guestos.ReturnText(p.deny)
}
