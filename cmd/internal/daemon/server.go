package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/cmd/internal/version"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/builtin/stopgap"
	"github.com/hprobe/hprobe/profiles/image"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// server is the control API of a Daemon.
type server struct {
	controlapi.UnimplementedControlServer
	d *Daemon
}

// Register adds the control API to a gRPC server.
func (d *Daemon) Register(s *grpc.Server) { controlapi.RegisterControlServer(s, &server{d: d}) }

// rpcError gives an error the gRPC code from which hprobe makes its exit code.
func rpcError(err error) error {
	code := codes.Unknown
	switch {
	case err == nil:
		return nil
	case errors.As(err, new(invalidError)):
		code = codes.InvalidArgument
	case errors.Is(err, xenevents.ErrNoDomain), errors.Is(err, isf.ErrNotFound), errors.Is(err, image.ErrNoSymbol):
		code = codes.NotFound
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, xenevents.ErrMonitored):
		code = codes.FailedPrecondition
	case errors.Is(err, errEnding): // to hprobe Unavailable is an hprobed that is no more
		code = codes.Unavailable
	case errors.Is(err, xenevents.ErrClosed), errors.Is(err, xenevents.ErrDomainGone):
		code = codes.Aborted
	}
	return status.Error(code, err.Error())
}

func (s *server) AddProbe(ctx context.Context, r *controlapi.AddProbeRequest) (*controlapi.Probe, error) {
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
	return s.arm(ctx, r, r.GetAt(), func(session *session, t tracer) (detectors.Detector, error) {
		t.pid, t.returns, t.comm, t.image = r.GetPid(), r.GetReturns(), r.GetComm(), imagePlace(r.GetImage())
		return &t, invalid(t.compile(session.kernel.Profile, at))
	})
}

// arm attaches to the guest of a request and arms the detector that plan makes there of
// a tracer; where that fails a session made for it ends again.
func (s *server) arm(ctx context.Context, r *controlapi.AddProbeRequest, at string, plan func(*session, tracer) (detectors.Detector, error)) (*controlapi.Probe, error) {
	stack, err := stacksOf(r.GetStack())
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	session, err := s.d.attached(ctx, r.GetDomain())
	if err != nil {
		return nil, rpcError(err)
	}
	if stack != (stacks{}) {
		session.kernel.PrepareStacks()
	}
	id := s.d.nextID("p")
	det, err := plan(session, tracer{id: id, stack: stack, domain: session.info.Name, name: cmp.Or(r.GetName(), at), at: at, hits: &s.d.hits, rule: r.GetRule(), budget: budgetOf(r)})
	if err != nil {
		return nil, rpcError(errors.Join(err, s.d.releaseIfUnused(session)))
	}
	b, err := s.bind(ctx, session, id, det)
	if err != nil {
		return nil, rpcError(err)
	}
	return s.probeOf(ctx, session, b)
}

// invalidError is that a request asks for what can't be: it is wrong usage.
type invalidError struct{ error }

func (e invalidError) Unwrap() error { return e.error }

func invalid(err error) error {
	if err == nil {
		return nil
	}
	return invalidError{err}
}

// bind arms a detector; where that fails a session made for it ends again. Its name is
// taken then, too: a hit or a finding may have been told of it.
func (s *server) bind(ctx context.Context, session *session, id string, det detectors.Detector) (*binding, error) {
	s.d.lastID++
	b, err := session.bind(ctx, id, det)
	if err != nil {
		return nil, errors.Join(err, s.d.releaseIfUnused(session))
	}
	s.d.Log.Info("armed", "id", id, "detector", det.Name(), "domain", session.info.Name)
	return b, nil
}

func (s *server) probeOf(ctx context.Context, session *session, b *binding) (*controlapi.Probe, error) {
	all, err := session.probes(ctx, b)
	if err != nil {
		return nil, rpcError(err)
	}
	return all[0], nil
}

func (s *server) ListProbes(ctx context.Context, r *controlapi.ListProbesRequest) (*controlapi.ListProbesResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	out := &controlapi.ListProbesResponse{}
	return out, s.each(ctx, r.GetDomain(), func(session *session, b *binding) error {
		all, err := session.probes(ctx, b)
		out.Probes = append(out.Probes, all...)
		return err
	})
}

// each calls f for all detectors of the sessions that live. With mu held.
func (s *server) each(ctx context.Context, domain string, f func(*session, *binding) error) error {
	sessions, err := s.d.sorted(ctx, domain)
	if err != nil {
		return rpcError(err)
	}
	for _, session := range sessions {
		for _, b := range session.bindings {
			if err := f(session, b); err != nil && !session.ended() {
				return rpcError(err)
			}
		}
	}
	return nil
}

func (s *server) RemoveProbe(ctx context.Context, r *controlapi.RemoveRequest) (last *controlapi.Probe, err error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	err = s.remove(ctx, r.GetId(), "p", "probe", func(session *session, b *binding) (err error) {
		last, err = s.probeOf(ctx, session, b)
		return err
	})
	return last, err
}

// remove takes out what has an id, after a last look at it. With mu held.
func (s *server) remove(ctx context.Context, id, letter, what string, look func(*session, *binding) error) error {
	for _, session := range s.d.sessions {
		for i, b := range session.bindings {
			if b.id != id || !strings.HasPrefix(id, letter) {
				continue
			}
			if session.ended() {
				return rpcError(errors.Join(fmt.Errorf("%q has ended or restarted, and %s %s went with it: %w", session.info.Name, what, id, xenevents.ErrDomainGone), s.d.end(session)))
			}
			err := look(session, b)
			err = errors.Join(err, session.binder.Unbind(ctx, b.Binding))
			session.bindings = append(session.bindings[:i], session.bindings[i+1:]...)
			s.d.Log.Info("removed", "id", id, "domain", session.info.Name)
			return rpcError(errors.Join(err, s.d.releaseIfUnused(session)))
		}
	}
	return status.Errorf(codes.NotFound, "there is no %s %q (hprobe %s ls lists them)", what, id, what)
}

func (s *server) AddStopgap(ctx context.Context, r *controlapi.AddStopgapRequest) (*controlapi.Detector, error) {
	det, err := stopgapOf(r)
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	session, err := s.d.attached(ctx, r.GetDomain())
	if err != nil {
		return nil, rpcError(err)
	}
	b, err := s.bind(ctx, session, s.d.nextID("d"), det)
	if err != nil {
		return nil, rpcError(err)
	}
	return s.detectorOf(ctx, session, b)
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

func (s *server) detectorOf(ctx context.Context, session *session, b *binding) (*controlapi.Detector, error) {
	out, err := session.detector(ctx, b)
	return out, rpcError(err)
}

func (s *server) ListDetectors(ctx context.Context, r *controlapi.ListDetectorsRequest) (*controlapi.ListDetectorsResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
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

func (s *server) RemoveDetector(ctx context.Context, r *controlapi.RemoveRequest) (last *controlapi.Detector, err error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	err = s.remove(ctx, r.GetId(), "d", "stopgap", func(session *session, b *binding) (err error) {
		last, err = s.detectorOf(ctx, session, b)
		return err
	})
	return last, err
}

func (s *server) Status(ctx context.Context, _ *controlapi.StatusRequest) (*controlapi.StatusResponse, error) {
	s.d.mu.Lock()
	defer s.d.mu.Unlock()
	out := &controlapi.StatusResponse{Version: version.String(), Driver: s.d.Host.Name()}
	if v, ok := s.d.Host.(interface{ Version() string }); ok {
		out.Hypervisor = v.Version()
	}
	out.Findings, out.Dropped = s.d.Findings.Totals()
	sessions, err := s.d.sorted(ctx, "")
	if err != nil {
		return nil, rpcError(err)
	}
	for _, session := range sessions {
		one, err := session.status(ctx)
		if err == nil {
			out.Sessions = append(out.Sessions, one)
		} else if !session.ended() {
			return nil, rpcError(err)
		}
	}
	return out, nil
}
