package daemon

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/condition"
)

// addSource is AddProbe of a source.
func (s *server) addSource(ctx context.Context, r *controlapi.AddProbeRequest) (*controlapi.AddProbeResponse, error) {
	if r.GetAt() != "" || r.GetPid() != 0 || r.GetReturns() || r.GetStep() != "" || ofImage(r) {
		return nil, status.Error(codes.InvalidArgument, "a probe of a register, CPUID or memory has no place, process, returns or step")
	}
	source := sourceOf(r)
	parsed, err := binder.ParseSource(source)
	if err == nil {
		err = checkSourceRule(r.GetRule(), &parsed, source)
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return s.arm(ctx, r, parsed.Text, func(session *session, t tracer) (traced, error) {
		t.source = source
		rule, err := ruleOf(r.GetRule())
		if err == nil {
			t.program, err = condition.Compile(session.kernel.Profile, parsed.Place(source.Async), rule)
		}
		return &t, invalid(err)
	})
}

// sourceOf reads a source off the wire. It may deny where the rule does.
func sourceOf(r *controlapi.AddProbeRequest) *detectors.Source {
	m, rule := r.GetSource(), r.GetRule()
	return &detectors.Source{
		Register: m.GetRegister(), CPUID: m.GetCpuid(), Memory: m.GetMemory(), Access: m.GetAccess(), Async: m.GetAsync(),
		Deny: rule.GetDeny() != "" && rule.GetMode() == "enforce",
	}
}

// checkSourceRule says what a guest's profile is not needed for.
func checkSourceRule(r *controlapi.Rule, parsed *binder.Source, source *detectors.Source) error {
	rule, err := ruleOf(r)
	if err != nil {
		return err
	}
	return rule.Check(parsed.Place(source.Async))
}

func sourceMessage(s *detectors.Source) *controlapi.Source {
	if s == nil {
		return nil
	}
	return &controlapi.Source{Register: s.Register, Cpuid: s.CPUID, Memory: s.Memory, Access: s.Access, Async: s.Async}
}
