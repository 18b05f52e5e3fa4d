package daemon

import (
	"time"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/condition"
	"github.com/hprobe/hprobe/detectors/sinks"
)

// tracer is the detector behind `hprobe probe add`: it judges by its rule, counts,
// and tells those who trace.
type tracer struct {
	id, domain, name, at string
	hits                 *sinks.Fan[*controlapi.Hit]
	rule                 *controlapi.Rule // nil: it was added without
	program              *condition.Program
}

func (t *tracer) Name() string { return t.name }

func (t *tracer) Probes() []detectors.ProbeSpec {
	return []detectors.ProbeSpec{{Name: t.name, At: t.at, Handle: t.hit}}
}

func (t *tracer) hit(h detectors.Hit) detectors.Outcome {
	if t.rule == nil && !t.hits.Active() {
		return detectors.Outcome{} // counted by the engine; nobody wants more
	}
	r := t.program.Judge(h)
	if r.Matched && t.hits.Active() {
		t.emit(h, &r)
	}
	return r.Outcome
}

func (t *tracer) emit(h detectors.Hit, r *condition.Result) {
	m := &controlapi.Hit{TimeUnixNano: time.Now().UnixNano(), Domain: t.domain, Probe: t.id, At: t.at, Seq: h.Seq(), Vcpu: uint32(h.VCPU()), Count: r.Count, Action: text(r.Done)}
	if p, ok := h.Process(); ok {
		m.Process = &controlapi.Process{Pid: p.PID, Tid: p.TID, Comm: text(p.Comm)}
	}
	for _, v := range t.program.Captured() {
		arg := &controlapi.Argument{Name: v.Name, Type: v.Type, Value: v.Number, Text: v.Text}
		if v.Err != nil {
			arg.Error = text(v.Err.Error())
		}
		m.Arguments = append(m.Arguments, arg)
	}
	t.hits.Emit(m)
}
