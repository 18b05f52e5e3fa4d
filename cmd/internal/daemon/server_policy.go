package daemon

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/policy"
)

func (s *server) ApplyPolicy(ctx context.Context, r *controlapi.ApplyPolicyRequest) (*controlapi.ApplyPolicyResponse, error) {
	read, err := policy.Parse(cmp.Or(r.GetFile(), "policy"), []byte(r.GetDocument()))
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	all, err := appliedOf(read, false)
	if err == nil {
		err = s.d.apply(all)
	}
	if err != nil {
		return nil, rpcError(err)
	}
	out := &controlapi.ApplyPolicyResponse{}
	for _, a := range all {
		one, err := s.d.describePolicy(ctx, a, "")
		if err != nil {
			return nil, err
		}
		out.Policies = append(out.Policies, one)
	}
	return out, nil
}

func (s *server) RemovePolicy(ctx context.Context, r *controlapi.RemovePolicyRequest) (*controlapi.RemovePolicyResponse, error) {
	a := s.d.policies.get(r.GetName())
	if a == nil {
		return nil, s.d.noPolicy(r.GetName())
	}
	last, err := s.d.describePolicy(ctx, a, "")
	if err != nil {
		return nil, err
	}
	if err := s.d.withdraw(ctx, a); err != nil {
		return nil, rpcError(err)
	}
	return &controlapi.RemovePolicyResponse{Policy: last}, nil
}

func (d *Daemon) noPolicy(name string) error {
	return status.Errorf(codes.NotFound, "there is no policy %q (hprobe policy ls lists them)", name)
}

func (s *server) ListPolicies(ctx context.Context, r *controlapi.ListPoliciesRequest) (*controlapi.ListPoliciesResponse, error) {
	if r.GetName() != "" && s.d.policies.get(r.GetName()) == nil {
		return nil, s.d.noPolicy(r.GetName())
	}
	out := &controlapi.ListPoliciesResponse{}
	for _, a := range s.d.policies.list() {
		if r.GetName() != "" && a.Name() != r.GetName() {
			continue
		}
		one, err := s.d.describePolicy(ctx, a, r.GetDomain())
		if err != nil {
			return nil, err
		}
		out.Policies = append(out.Policies, one)
	}
	return out, nil
}

// describePolicy says how a policy fares, in all guests or in the one that a client names.
func (d *Daemon) describePolicy(ctx context.Context, a *applied, domain string) (*controlapi.Policy, error) {
	out := &controlapi.Policy{Name: a.Name(), Title: a.Metadata.Title, Mode: cmp.Or(a.Spec.Mode, policy.Observe), File: a.File(), Configured: a.configured}
	if !a.Spec.Expires.IsZero() {
		out.Expires = a.Spec.Expires.Format(time.DateOnly)
	}
	guests, err := d.some(ctx, domain)
	if err != nil {
		return nil, rpcError(err)
	}
	for _, g := range guests {
		one, err := g.describePolicy(ctx, a)
		if err != nil {
			return nil, rpcError(err)
		}
		if one != nil {
			out.Guests = append(out.Guests, one)
		}
	}
	return out, nil
}

// describePolicy says how a policy fares in a guest; nil is that it is not for it.
func (g *guest) describePolicy(ctx context.Context, a *applied) (*controlapi.PolicyGuest, error) {
	g.mu.Lock()
	r, s := g.rows[a.Name()], g.session
	out := &controlapi.PolicyGuest{Domain: g.info.Name, DomainId: uint32(g.id)}
	switch {
	case g.info.Shutdown || g.info.Dying:
		r, out.State, out.Detail = nil, stateWaiting, "the guest is suspended, or has shut down"
	case r == nil || r.of != a: // the worker did not come to it yet
		r, out.State = nil, stateNew
	default:
		out.State, out.Detail = r.state, control.Text(r.detail)
	}
	g.mu.Unlock()
	if r == nil {
		if !g.selects(a) {
			return nil, nil
		}
		return out, nil
	}
	if r.bound == nil || s == nil {
		return out, nil
	}
	probes, err := s.probes(ctx, r.bound)
	switch {
	case err != nil && s.leaving(err):
		out.State, out.Detail = stateWaiting, "the guest ended or restarts"
		return out, nil
	case err != nil:
		return nil, err
	}
	out.Probes = probes
	for _, st := range r.bound.Detector.(*policy.Detector).Status() {
		out.Findings += st.Acted
	}
	off := 0
	for _, p := range probes {
		if p.GetState() != "armed" {
			off++
			out.Detail = fmt.Sprintf("%s: %s", p.GetAt(), cmp.Or(p.GetDetail(), p.GetState()))
		}
	}
	switch {
	case off == len(probes) && off > 0:
		out.State = probes[0].GetState()
	case off > 0:
		out.State = statePartly
	}
	return out, nil
}
