package daemon

import (
	"cmp"
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/xenevents/probe"
)

func (s *server) AddProbe(ctx context.Context, r *controlapi.AddProbeRequest) (*controlapi.AddProbeResponse, error) {
	switch {
	case r.GetSource() != nil && len(r.GetSyscalls()) > 0:
		return nil, status.Error(codes.InvalidArgument, "a probe watches a register, CPUID or memory, or system calls: ask for two")
	case r.GetSource() != nil:
		return s.addSource(ctx, r)
	}
	if step, err := probe.ParseStepOver(r.GetStep()); r.GetStep() != "" && err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	} else if step != probe.Auto {
		return nil, status.Error(codes.InvalidArgument, "a probe steps over as its instruction needs it: ask for auto, or for nothing")
	}
	if len(r.GetSyscalls()) > 0 {
		return s.addSyscalls(ctx, r)
	}
	at, err := binder.ParseLocation(r.GetAt())
	if err == nil && at.Image == "" && ofImage(r) {
		err = errOnlyInImages
	}
	if err == nil && r.GetPid() != 0 {
		err = at.InProcess()
	}
	if err == nil && r.GetReturns() {
		err = at.MayReturn()
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return s.arm(ctx, r, r.GetAt(), func(session *session, t tracer) (traced, error) {
		t.pid, t.returns, t.comm, t.image = r.GetPid(), r.GetReturns(), r.GetComm(), imagePlace(r.GetImage())
		return &t, invalid(t.compile(session.kernel.Profile, at))
	})
}

// traced is a detector whose hits are shown under its name.
type traced interface {
	detectors.Detector
	identify(id string)
}

// arm arms the detector that plan makes of a tracer in the guest of a request.
func (s *server) arm(ctx context.Context, r *controlapi.AddProbeRequest, at string, plan func(*session, tracer) (traced, error)) (*controlapi.AddProbeResponse, error) {
	stack, err := stacksOf(r.GetStack())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	out := &controlapi.AddProbeResponse{}
	return out, s.in(ctx, r.GetDomain(), func(g *guest, session *session) error {
		if stack != (stacks{}) {
			session.kernel.PrepareStacks()
		}
		det, err := plan(session, tracer{stack: stack, domain: session.info.Name, name: cmp.Or(r.GetName(), at), at: at, hits: &s.d.hits, rule: r.GetRule(), budget: budgetOf(r)})
		if err != nil {
			return err
		}
		id := s.d.newID("p", g) // not before: one that can't be made leaves no gap
		det.identify(id)
		b, err := s.bind(ctx, session, id, det)
		if err == nil {
			out.Probe, err = session.firstProbe(ctx, b)
		}
		return err
	})
}

// firstProbe describes a detector by the first of its probes.
func (s *session) firstProbe(ctx context.Context, b *binding) (*controlapi.Probe, error) {
	all, err := s.probes(ctx, b)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

func (s *server) ListProbes(ctx context.Context, r *controlapi.ListProbesRequest) (*controlapi.ListProbesResponse, error) {
	out := &controlapi.ListProbesResponse{}
	return out, s.each(ctx, r.GetDomain(), func(session *session, b *binding) error {
		all, err := session.probes(ctx, b)
		out.Probes = append(out.Probes, all...)
		return err
	})
}

func (s *server) RemoveProbe(ctx context.Context, r *controlapi.RemoveProbeRequest) (*controlapi.RemoveProbeResponse, error) {
	out := &controlapi.RemoveProbeResponse{}
	return out, s.remove(ctx, r.GetId(), "p", "probe", func(session *session, b *binding) (err error) {
		out.Probe, err = session.firstProbe(ctx, b)
		return err
	})
}
