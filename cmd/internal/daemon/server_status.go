package daemon

import (
	"context"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/cmd/internal/version"
)

func (s *server) GetStatus(ctx context.Context, _ *controlapi.GetStatusRequest) (*controlapi.GetStatusResponse, error) {
	out := &controlapi.GetStatusResponse{Version: version.String(), Driver: s.d.Host.Name()}
	if v, ok := s.d.Host.(interface{ Version() string }); ok {
		out.Hypervisor = v.Version()
	}
	out.Findings, out.Dropped = s.d.Findings.Totals()
	out.Traces, out.Followers = uint32(s.d.traces.Load()), uint32(s.d.follows.Load())
	for _, g := range s.d.known() {
		session := g.current()
		if session == nil {
			continue
		}
		one, err := session.status(ctx)
		if err == nil {
			out.Sessions = append(out.Sessions, one)
		} else if !session.leaving(err) {
			return nil, rpcError(err)
		}
	}
	return out, nil
}
