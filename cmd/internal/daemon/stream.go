package daemon

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

func (s *server) Trace(r *controlapi.TraceRequest, out grpc.ServerStreamingServer[controlapi.TraceResponse]) error {
	domain, err := s.domainName(r.GetDomain(), out)
	if err != nil {
		return err
	}
	sub, gone := s.d.hits.Subscribe(), s.d.gone.Subscribe()
	defer sub.Close()
	defer gone.Close()
	s.d.traces.Add(1)
	defer s.d.traces.Add(-1)
	// Who waits for the header knows that from now on no hit is missed.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	send := func(h *controlapi.Hit) error {
		if r.GetId() != "" && h.GetProbe() != r.GetId() && !strings.HasPrefix(h.GetProbe(), r.GetId()+".") || domain != "" && h.GetDomain() != domain {
			return nil
		}
		if lost := sub.TakeLost(); lost > 0 {
			h = proto.CloneOf(h) // all subscribers share it
			h.Lost = lost
		}
		return out.Send(&controlapi.TraceResponse{Hit: h})
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
			if domain != g.info.Name && !g.has(r.GetId()) {
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

// has says whether a session has, or had at its end, a probe or a detector of that id that
// is gone with it.
func (s *session) has(id string) bool {
	return slices.ContainsFunc(s.list(), func(b *binding) bool { return b.id == id && b.policy == nil })
}

func (s *server) Findings(r *controlapi.FindingsRequest, out grpc.ServerStreamingServer[controlapi.FindingsResponse]) error {
	domain, err := s.domainName(r.GetDomain(), out)
	if err != nil {
		return err
	}
	sub := s.d.Findings.Subscribe()
	defer sub.Close()
	if r.GetFollow() {
		s.d.follows.Add(1)
		defer s.d.follows.Add(-1)
	}
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	send := func(f *detectors.Finding, lost uint64) error {
		if domain != "" && f.Domain != domain {
			return nil
		}
		m := control.FindingMessage(f)
		m.Lost = lost
		return out.Send(&controlapi.FindingsResponse{Finding: m})
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
