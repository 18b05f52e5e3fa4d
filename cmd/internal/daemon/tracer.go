package daemon

import (
	"time"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/sinks"
)

// tracer is the detector behind `hprobe probe add`: it counts, and tells those
// who trace.
type tracer struct {
	id, domain, name, at string
	pid                  uint32
	hits                 *sinks.Fan[*controlapi.Hit]
}

func (t *tracer) Name() string { return t.name }

func (t *tracer) Probes() []detectors.ProbeSpec {
	return []detectors.ProbeSpec{{Name: t.name, At: t.at, PID: t.pid, Handle: t.hit}}
}

func (t *tracer) hit(h detectors.Hit) detectors.Outcome {
	if !t.hits.Active() {
		return detectors.Outcome{} // counted by the engine; nobody wants more
	}
	m := &controlapi.Hit{TimeUnixNano: time.Now().UnixNano(), Domain: t.domain, Probe: t.id, At: t.at, Seq: h.Seq(), Vcpu: uint32(h.VCPU())}
	if p, ok := h.Process(); ok {
		m.Process = &controlapi.Process{Pid: p.PID, Tid: p.TID, Comm: text(p.Comm)}
	}
	for _, a := range h.Args() {
		arg := &controlapi.Argument{Name: a.Name, Type: a.Type, Value: a.Value}
		if a.Err != nil {
			arg.Error = a.Err.Error()
		}
		m.Arguments = append(m.Arguments, arg)
	}
	t.hits.Emit(m)
	return detectors.Outcome{}
}
