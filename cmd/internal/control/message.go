package control

import (
	"strings"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
)

// Text makes a guest's bytes fit for protobuf, whose strings are UTF-8.
func Text(s string) string { return strings.ToValidUTF8(s, "\uFFFD") }

// ProcessMessage is a process on the wire.
func ProcessMessage(p *detectors.Process) *controlapi.Process {
	return &controlapi.Process{Pid: p.PID, Tid: p.TID, Comm: Text(p.Comm), Uid: p.UID, StartTime: p.Started}
}

// FindingMessage is a finding on the wire.
func FindingMessage(f *detectors.Finding) *controlapi.Finding {
	m := &controlapi.Finding{
		TimeUnixNano: f.Time.UnixNano(), Domain: f.Domain, DomainId: uint32(f.DomainID), Detector: f.Detector, Probe: f.Probe, Vcpu: uint32(f.VCPU),
		Severity: f.Severity.String(), Message: Text(f.Message), Blocked: f.Blocked, Tags: f.Tags,
	}
	m.Policy, _ = strings.CutPrefix(f.Detector, "policy/")
	if m.Policy == f.Detector {
		m.Policy = ""
	}
	if f.Process != nil {
		m.Process = ProcessMessage(f.Process)
	}
	for _, fact := range f.Facts {
		m.Facts = append(m.Facts, &controlapi.Fact{Name: Text(fact.Name), Value: fact.Value})
	}
	return m
}
