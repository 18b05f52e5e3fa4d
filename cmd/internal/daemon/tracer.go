package daemon

import (
	"time"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/condition"
	"github.com/hprobe/hprobe/detectors/sinks"
)

// tracer is the detector behind `hprobe probe add`: it judges by its rule, counts,
// and tells those who trace.
type tracer struct {
	id, domain, name, at string
	pid                  uint32
	returns              bool
	source               *detectors.Source // nil: an instruction at at
	hits                 *sinks.Fan[*controlapi.Hit]
	rule                 *controlapi.Rule // nil: it was added without
	program              *condition.Program
	ended                *condition.Program // of the end of calls; nil: it is not probed
	budget               detectors.Budget
	comm                 string // with image, of a probe in an image
	image                *detectors.ImagePlace
	stack                stacks
}

func (t *tracer) Name() string { return t.name }

func (t *tracer) identify(id string) { t.id = id }

func (t *tracer) Probes() []detectors.ProbeSpec {
	return []detectors.ProbeSpec{{Name: t.name, At: t.at, PID: t.pid, Comm: t.comm, Image: t.image, Source: t.source, Handle: t.hit, Return: t.returns, Vital: t.program.Rule().Enforce, Budget: t.budget}}
}

func (t *tracer) hit(h detectors.Hit) detectors.Outcome {
	_, over := h.Return()
	switch {
	case t.rule == nil && !t.hits.Active():
		return detectors.Outcome{} // counted by the engine; nobody wants more
	case t.rule == nil && over:
		t.ended.Judge(h)
		t.emit(h, &condition.Result{}, nil) // the arguments were shown at the entry
		return detectors.Outcome{}
	case t.rule != nil && t.returns && !over:
		return detectors.Outcome{} // the rule judges the end of the call
	}
	r := t.program.Judge(h)
	if r.Matched && t.hits.Active() {
		t.emit(h, &r, t.program.Captured())
	}
	return r.Outcome
}

func (t *tracer) emit(h detectors.Hit, r *condition.Result, captured []condition.Value) {
	m := &controlapi.Hit{TimeUnixNano: time.Now().UnixNano(), Domain: t.domain, Probe: t.id, At: t.at, Seq: h.Seq(), Vcpu: uint32(h.VCPU()), Count: r.Count, Action: control.Text(r.Done)}
	if p, ok := h.Process(); ok {
		m.Process = control.ProcessMessage(&p)
	}
	if ret, ok := h.Return(); ok {
		m.Returned, m.Value, m.Ticks = true, ret.Value, ret.Ticks
		if v, ok := t.ended.Result(); ok {
			m.Result = argument(&v)
		}
	}
	for i := range captured {
		m.Arguments = append(m.Arguments, argument(&captured[i]))
	}
	if c, ok := h.(*binder.CallHit); ok {
		m.At = c.Call.String()
		m.Syscall = &controlapi.Syscall{Name: c.Call.Name, Nr: c.Call.Nr, Compat: c.Call.Compat}
	}
	t.stack.show(h, m)
	t.hits.Emit(m)
}

func argument(v *condition.Value) *controlapi.Argument {
	arg := &controlapi.Argument{Name: v.Name, Type: v.Type, Value: v.Number, Text: v.Text}
	if v.Err != nil {
		arg.Error = control.Text(v.Err.Error())
	}
	return arg
}
