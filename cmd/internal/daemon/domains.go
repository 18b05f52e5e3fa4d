package daemon

import (
	"context"
	"maps"
	"slices"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/xenevents"
)

// DomainRule says what holds for the guests of some names.
type DomainRule struct {
	Names  []string          // patterns, as a policy has them
	Labels map[string]string // that they have; a later rule's count
	Ignore bool              // hprobed never attaches to them
}

// Configure takes what the configuration says, in place of what it said before.
func (d *Daemon) Configure(rules []DomainRule, read []*policy.Policy) error {
	all, err := appliedOf(read, true)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.rules = rules
	d.mu.Unlock()
	d.policies.configure(all)
	d.pokeAll()
	return nil
}

// ruled returns what the rules say of a guest.
func (d *Daemon) ruled(info *xenevents.DomainInfo) (labels map[string]string, ignore bool) {
	as := policy.Guest{Name: info.Name, UUID: info.UUIDString()}
	d.mu.Lock()
	defer d.mu.Unlock()
	labels = map[string]string{}
	for i := range d.rules {
		r := &d.rules[i]
		if names := (policy.Domains{Names: r.Names}); names.Named(as) {
			maps.Copy(labels, r.Labels)
			ignore = r.Ignore
		}
	}
	return labels, ignore
}

func (s *server) ListDomains(ctx context.Context, _ *controlapi.ListDomainsRequest) (*controlapi.ListDomainsResponse, error) {
	if err := s.d.look(ctx); err != nil {
		return nil, rpcError(err)
	}
	out := &controlapi.ListDomainsResponse{}
	for _, g := range s.d.known() {
		out.Domains = append(out.Domains, g.describe())
	}
	return out, nil
}

func (s *server) ReleaseDomain(ctx context.Context, r *controlapi.ReleaseDomainRequest) (*controlapi.ReleaseDomainResponse, error) {
	g, err := s.hold(ctx, r.GetDomain(), true)
	if err != nil {
		return nil, err
	}
	return &controlapi.ReleaseDomainResponse{Domain: g.describe()}, nil
}

func (s *server) ResumeDomain(ctx context.Context, r *controlapi.ResumeDomainRequest) (*controlapi.ResumeDomainResponse, error) {
	g, err := s.hold(ctx, r.GetDomain(), false)
	if err != nil {
		return nil, err
	}
	return &controlapi.ResumeDomainResponse{Domain: g.describe()}, nil
}

func (s *server) hold(ctx context.Context, name string, held bool) (*guest, error) {
	g, err := s.d.guest(ctx, name)
	if err != nil {
		return nil, rpcError(err)
	}
	return g, rpcError(g.hold(ctx, held))
}

// describe says how hprobed sees a guest.
func (g *guest) describe() *controlapi.Domain {
	g.mu.Lock()
	defer g.mu.Unlock()
	labels, ignore := g.d.ruled(&g.info)
	out := &controlapi.Domain{Name: g.info.Name, Id: uint32(g.id), Uuid: g.info.UUIDString(), Labels: labels, State: "idle"}
	for name, r := range g.rows {
		if r.bound != nil {
			out.Policies = append(out.Policies, name)
		}
		if r.state == stateWaiting {
			out.State, out.Detail = "waiting", r.detail
		}
	}
	slices.Sort(out.Policies)
	switch {
	case ignore:
		out.State, out.Detail = "ignored", "by hprobed's configuration"
	case g.held:
		out.State, out.Detail = "released", "until hprobe domain resume"
	case g.trying:
		out.State = "attaching"
	case g.session != nil && !g.session.ended():
		out.State = "watched"
	case g.trouble != nil:
		out.State, out.Detail = "failed", control.Text(g.trouble.Error())
	}
	return out
}
