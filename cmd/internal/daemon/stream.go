package daemon

import (
	"fmt"
	"slices"

	"google.golang.org/grpc"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

func (s *server) Trace(r *controlapi.TraceRequest, out grpc.ServerStreamingServer[controlapi.Hit]) error {
	domain, err := s.domainName(r.GetDomain(), out)
	if err != nil {
		return err
	}
	sub, gone := s.d.hits.Subscribe(), s.d.gone.Subscribe()
	defer sub.Close()
	defer gone.Close()
	// Who waits for the header knows that from now on no hit is missed.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	send := func(h *controlapi.Hit) error {
		if r.GetId() != "" && h.GetProbe() != r.GetId() || domain != "" && h.GetDomain() != domain {
			return nil
		}
		if lost := sub.TakeLost(); lost > 0 {
			h = cloneHit(h)
			h.Lost = lost
		}
		return out.Send(h)
	}
	for {
		select {
		case <-out.Context().Done():
			return nil
		case h := <-sub.C:
			if err := send(h); err != nil {
				return err
			}
		case g := <-gone.C:
			if domain != g.info.Name && !s.d.has(g, r.GetId()) {
				continue
			}
			for len(sub.C) > 0 { // what came before
				if err := send(<-sub.C); err != nil {
					return err
				}
			}
			return rpcError(fmt.Errorf("%q has ended or restarted, and its probes went with it: %w", g.info.Name, xenevents.ErrDomainGone))
		}
	}
}

// has says whether a session has, or had at its end, a probe or a detector of that id.
func (d *Daemon) has(s *session, id string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.ContainsFunc(s.bindings, func(b *binding) bool { return b.id == id })
}

// cloneHit copies what all subscribers share.
func cloneHit(h *controlapi.Hit) *controlapi.Hit {
	return &controlapi.Hit{TimeUnixNano: h.TimeUnixNano, Domain: h.Domain, Probe: h.Probe, At: h.At, Seq: h.Seq, Vcpu: h.Vcpu, Process: h.Process, Arguments: h.Arguments,
		Returned: h.Returned, Value: h.Value, Ticks: h.Ticks, Count: h.Count, Action: h.Action, Syscall: h.Syscall}
}

func (s *server) Findings(r *controlapi.FindingsRequest, out grpc.ServerStreamingServer[controlapi.Finding]) error {
	domain, err := s.domainName(r.GetDomain(), out)
	if err != nil {
		return err
	}
	sub := s.d.Findings.Subscribe()
	defer sub.Close()
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	send := func(f *detectors.Finding, lost uint64) error {
		if domain != "" && f.Domain != domain {
			return nil
		}
		m := finding(f)
		m.Lost = lost
		return out.Send(m)
	}
	// What comes between Subscribe and Recent is in both: it is skipped in the stream.
	recent := s.d.Findings.Recent(int(r.GetLast()))
	for i := range recent {
		if err := send(&recent[i], 0); err != nil {
			return err
		}
	}
	if !r.GetFollow() {
		return nil
	}
	for {
		select {
		case <-out.Context().Done():
			return nil
		case f := <-sub.C:
			if len(recent) > 0 && !f.Time.After(recent[len(recent)-1].Time) {
				continue
			}
			if err := send(&f, sub.TakeLost()); err != nil {
				return err
			}
		}
	}
}

// domainName turns what a client calls a domain into its name; "" is all.
func (s *server) domainName(name string, stream grpc.ServerStream) (string, error) {
	if name == "" {
		return "", nil
	}
	info, err := xenevents.FindDomain(stream.Context(), s.d.Host, name)
	return info.Name, rpcError(err)
}
