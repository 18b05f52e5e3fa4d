package daemon

import (
	"context"
	"fmt"

	"github.com/hprobe/hprobe/cmd/internal/metrics"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// Figures are those of the guests that are watched. One that ends meanwhile is left out.
func (d *Daemon) Figures(ctx context.Context) (all []metrics.Domain, err error) {
	for _, g := range d.known() {
		s := g.current()
		if s == nil {
			continue
		}
		one, err := s.figures(ctx)
		if err == nil {
			all = append(all, one)
		} else if !s.leaving(err) {
			return nil, fmt.Errorf("figures of %q: %w", s.info.Name, err)
		}
	}
	return all, nil
}

func (s *session) figures(ctx context.Context) (out metrics.Domain, err error) {
	states, stats, err := s.engine.Probes(ctx)
	if err != nil {
		return out, err
	}
	byID := map[probe.ID]*probe.Status{}
	for i := range states {
		byID[states[i].ID] = &states[i]
	}
	out = metrics.Domain{Name: s.info.Name, Stats: stats}
	for _, b := range s.list() {
		for i, p := range b.Probes {
			if st := byID[p.ID]; st != nil {
				out.Probes = append(out.Probes, metrics.Probe{ID: fmt.Sprintf("%s.%d", b.id, i+1), At: p.Spec.At, Status: *st})
			}
		}
	}
	return out, nil
}

// Alive fails where the hypervisor does not answer.
func (d *Daemon) Alive(ctx context.Context) error {
	_, err := d.Host.Domains(ctx)
	return err
}
