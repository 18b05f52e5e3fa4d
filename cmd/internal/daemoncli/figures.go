package daemoncli

import (
	"context"

	"github.com/hprobe/hprobe/cmd/internal/metrics"
	"github.com/hprobe/hprobe/cmd/internal/version"
)

// Snapshot implements metrics.Source.
func (p *program) Snapshot(ctx context.Context) (*metrics.Snapshot, error) {
	domains, err := p.daemon.Figures(ctx)
	if err != nil {
		return nil, err
	}
	s := &metrics.Snapshot{
		Version: version.String(), Driver: p.host.Name(), Hypervisor: p.host.Version(), Domains: domains,
		Findings: p.daemon.Findings.Counts(), Sinks: p.sinks.Health(),
	}
	_, s.FindingsLost = p.daemon.Findings.Totals()
	s.Profiles, s.ProfileTime = p.finder.counts()
	if p.audit != nil {
		s.Audit.Written, s.Audit.Failed = p.audit.Counts()
		s.Audit.Head = p.audit.Head().Seq
	}
	return s, nil
}

// serveMetrics tells Prometheus of hprobed until ctx ends.
func (p *program) serveMetrics(ctx context.Context, c metrics.Config) error {
	if c.Listen == "" {
		return nil
	}
	l, err := metrics.Listen(c)
	if err != nil {
		return err
	}
	p.aside.Go(func() {
		if err := metrics.Serve(ctx, l, p, p.log); err != nil {
			p.log.Error("metrics", "err", err)
		}
	})
	return nil
}
