package daemon

import (
	"context"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/builtin/stopgap"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// probes describes the probes of a detector.
func (s *session) probes(ctx context.Context, b *binding) ([]*controlapi.Probe, error) {
	states, _, err := s.engine.Probes(ctx)
	if err != nil {
		return nil, err
	}
	byID := map[probe.ID]*probe.Status{}
	for i := range states {
		byID[states[i].ID] = &states[i]
	}
	if d, ok := b.Detector.(*callTracer); ok {
		one, err := d.report(b, s.info.Name, byID)
		return []*controlapi.Probe{one}, err
	}
	var all []*controlapi.Probe
	for i, p := range b.Probes {
		st := byID[p.ID]
		if st == nil {
			return nil, fmt.Errorf("the engine has no probe %d", p.ID)
		}
		one := &controlapi.Probe{
			Id: b.id, Domain: s.info.Name, Name: st.Name, At: p.Spec.At, Address: uint64(st.At), State: st.State.String(), Step: st.Step.String(),
			Instruction: st.Insn, Hits: st.Hits, Changed: st.Changed, Detail: st.Detail,
			Passed: st.Passed, WithReturns: p.Spec.Return, Returns: st.Returns, Lost: st.Lost, Gaps: st.Gaps, GapTicks: st.GapTicks, Pid: p.Spec.PID,
		}
		if st.Source != nil {
			one.Step = ""
		}
		if blind := s.binder.Blind(byID); blind != "" && strings.ContainsRune(p.Spec.At, '!') {
			one.Detail = strings.TrimPrefix(one.Detail+"; "+blind, "; ")
		}
		if p.Place != nil {
			s.inImage(ctx, one, &p, st)
		}
		switch d := b.Detector.(type) {
		case *tracer:
			one.Source = sourceMessage(d.source)
			if d.rule != nil {
				one.Rule, one.Matches = d.rule, matches(d.program)
			}
		case *policy.Detector:
			one.Id, one.Detector = b.id+"."+p.Spec.Name, d.Name()
			for _, st := range d.Status() {
				if st.Name == p.Spec.Name {
					one.Matches = matchesOf(&st.Stats)
				}
			}
		default:
			one.Id, one.Detector = fmt.Sprintf("%s.%d", b.id, i+1), b.Detector.Name()
		}
		all = append(all, one)
	}
	return all, nil
}

func budgetOf(r *controlapi.AddProbeRequest) detectors.Budget {
	return detectors.Budget{HitsPerSecond: r.GetMaxHits(), StalledPercent: r.GetMaxStall()}
}

func (s *session) detector(ctx context.Context, b *binding) (*controlapi.Detector, error) {
	out := &controlapi.Detector{Id: b.id, Domain: s.info.Name, Name: b.Detector.Name(), Mode: "read-only"}
	if d, ok := b.Detector.(*stopgap.Detector); ok {
		out.What, out.Findings = d.Rule().Title, d.Attempts()
		if d.Fix() {
			out.Mode = "fix"
		}
	}
	var err error
	out.Probes, err = s.probes(ctx, b)
	return out, err
}

func (s *session) status(ctx context.Context) (*controlapi.Session, error) {
	_, stats, err := s.engine.Probes(ctx)
	if err != nil {
		return nil, err
	}
	n := 0 // the binder has some of its own as well
	for _, b := range s.list() {
		if _, ok := b.Detector.(*callTracer); ok {
			n++
			continue
		}
		n += len(b.Probes)
	}
	return &controlapi.Session{
		Domain: s.info.Name, DomainId: uint32(s.info.ID), Kernel: s.kernel.Profile.Meta().Banner, Slide: s.kernel.Slide, Probes: uint32(n),
		Events: stats.Events, Reinjected: stats.Reinjected, Stale: stats.Stale, ShadowPages: uint32(stats.Shadows),
		Profile: control.Text(s.profile.From), ProfileWhy: s.profile.Why, Ticks: stats.Ticks, TicksPerSecond: s.ticksPerSecond(), ProfileFile: control.Text(s.profile.File),
	}, nil
}

// ticksPerSecond is 0 where the driver does not know.
func (s *session) ticksPerSecond() uint64 {
	if c, ok := s.dom.(interface{ TicksPerSecond() uint64 }); ok {
		return c.TicksPerSecond()
	}
	return 0
}
