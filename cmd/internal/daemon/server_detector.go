package daemon

import (
	"context"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/builtin/stopgap"
)

func (s *server) AddStopgap(ctx context.Context, r *controlapi.AddStopgapRequest) (*controlapi.AddStopgapResponse, error) {
	det, err := stopgapOf(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	out := &controlapi.AddStopgapResponse{}
	return out, s.in(ctx, r.GetDomain(), func(g *guest, session *session) error {
		b, err := s.bind(ctx, session, s.d.newID("d", g), det)
		if err == nil {
			out.Detector, err = session.detector(ctx, b)
		}
		return err
	})
}

// stopgapOf makes the detector that a request describes: a known rule, changed
// where the request says so, or a new one.
func stopgapOf(r *controlapi.AddStopgapRequest) (*stopgap.Detector, error) {
	rule := stopgap.Rule{Name: r.GetName(), At: r.GetAt()}
	var err error
	switch {
	case r.GetAt() == "" && r.GetLength() == "":
		if rule, err = stopgap.Known(r.GetName()); err != nil {
			return nil, err
		}
	case r.GetAt() == "" || r.GetLength() == "" || r.GetLimit() == 0 || r.GetErrno() == "":
		return nil, fmt.Errorf("a new stopgap needs --at, --length, --limit and --errno")
	default:
		if rule.Length, err = stopgap.ParseOperand(r.GetLength()); err != nil {
			return nil, err
		}
	}
	switch at, err := binder.ParseLocation(rule.At); {
	case err != nil:
		return nil, err
	case !at.Entry() && at.Callee == "":
		return nil, fmt.Errorf("a stopgap is where a function's arguments are, at its entry or a call of it: --at symbol, module!symbol or caller:callee, not %q", rule.At)
	}
	if r.GetLimit() != 0 {
		rule.Limit = r.GetLimit()
	}
	if r.GetErrno() != "" {
		if rule.Errno, err = stopgap.ParseErrno(r.GetErrno()); err != nil {
			return nil, err
		}
	}
	return stopgap.New(rule, r.GetFix())
}

func (s *server) ListDetectors(ctx context.Context, r *controlapi.ListDetectorsRequest) (*controlapi.ListDetectorsResponse, error) {
	out := &controlapi.ListDetectorsResponse{}
	return out, s.each(ctx, r.GetDomain(), func(session *session, b *binding) error {
		if _, ok := b.Detector.(*stopgap.Detector); !ok {
			return nil
		}
		one, err := session.detector(ctx, b)
		if err == nil {
			out.Detectors = append(out.Detectors, one)
		}
		return err
	})
}

func (s *server) RemoveDetector(ctx context.Context, r *controlapi.RemoveDetectorRequest) (*controlapi.RemoveDetectorResponse, error) {
	out := &controlapi.RemoveDetectorResponse{}
	return out, s.remove(ctx, r.GetId(), "d", "stopgap", func(session *session, b *binding) (err error) {
		out.Detector, err = session.detector(ctx, b)
		return err
	})
}
