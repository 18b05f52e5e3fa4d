package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/image"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// server is the control API of a Daemon: all its services.
type server struct {
	controlapi.UnimplementedProbeServiceServer
	controlapi.UnimplementedDetectorServiceServer
	controlapi.UnimplementedFindingServiceServer
	controlapi.UnimplementedPolicyServiceServer
	controlapi.UnimplementedDomainServiceServer
	controlapi.UnimplementedStatusServiceServer
	d *Daemon
}

// Register adds the control API to a gRPC server.
func (d *Daemon) Register(s *grpc.Server) {
	all := &server{d: d}
	controlapi.RegisterProbeServiceServer(s, all)
	controlapi.RegisterDetectorServiceServer(s, all)
	controlapi.RegisterFindingServiceServer(s, all)
	controlapi.RegisterPolicyServiceServer(s, all)
	controlapi.RegisterDomainServiceServer(s, all)
	controlapi.RegisterStatusServiceServer(s, all)
}

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

// invalidError is that a request asks for what can't be: it is wrong usage.
type invalidError struct{ error }

func (e invalidError) Unwrap() error { return e.error }

func invalid(err error) error {
	if err == nil {
		return nil
	}
	return invalidError{err}
}

// in carries out a command in a guest, in turn. Where nothing is armed after it, nothing
// of hprobed stays there.
func (s *server) in(ctx context.Context, domain string, f func(*guest, *session) error) error {
	g, err := s.d.guest(ctx, domain)
	if err != nil {
		return rpcError(err)
	}
	if err := g.begin(ctx); err != nil {
		return rpcError(err)
	}
	defer g.end()
	session, err := g.attach(ctx)
	if err != nil {
		return rpcError(err)
	}
	if err := f(g, session); err != nil {
		return rpcError(errors.Join(err, g.release()))
	}
	return nil
}

// bind arms a detector that somebody asked for. Its name is taken even if that fails: a
// hit or a finding may have been told of it.
func (s *server) bind(ctx context.Context, session *session, id string, det detectors.Detector) (*binding, error) {
	b, err := session.bind(ctx, id, det, nil)
	if err != nil {
		s.d.disown(id)
		return nil, err
	}
	s.d.Log.Info("armed", "id", id, "detector", det.Name(), "domain", session.info.Name)
	return b, nil
}

// each calls f for all detectors of the sessions that live.
func (s *server) each(ctx context.Context, domain string, f func(*session, *binding) error) error {
	guests, err := s.d.some(ctx, domain)
	if err != nil {
		return rpcError(err)
	}
	for _, g := range guests {
		session := g.current()
		if session == nil {
			continue
		}
		for _, b := range session.list() {
			if err := f(session, b); err != nil && !session.leaving(err) {
				return rpcError(err)
			}
		}
	}
	return nil
}

// remove takes out what has an id, after a last look at it.
func (s *server) remove(ctx context.Context, id, letter, what string, look func(*session, *binding) error) error {
	none := status.Errorf(codes.NotFound, "there is no %s %q (hprobe %s ls lists them)", what, id, what)
	if !strings.HasPrefix(id, letter) {
		return none
	}
	o, ok := s.d.owner(id)
	switch {
	case !ok:
		return none
	case o.went != "":
		return rpcError(wentWith(o.went, what, id))
	}
	if err := o.g.begin(ctx); err != nil {
		return rpcError(err)
	}
	defer o.g.end()
	session := o.g.current()
	if session == nil {
		o.g.drop()
		s.d.disown(id)
		return rpcError(wentWith(o.g.name(), what, id))
	}
	for _, b := range session.list() {
		if b.id != id {
			continue
		}
		if b.policy != nil {
			return rpcError(invalid(fmt.Errorf("%s is of policy %s: remove that (hprobe policy rm %s)", id, b.policy.Name(), b.policy.Name())))
		}
		err := look(session, b)
		err = errors.Join(err, session.unbind(ctx, b))
		s.d.disown(id)
		s.d.Log.Info("removed", "id", id, "domain", session.info.Name)
		return rpcError(errors.Join(err, o.g.release()))
	}
	return none
}

func wentWith(domain, what, id string) error {
	return fmt.Errorf("%q has ended or restarted, and %s %s went with it: %w", domain, what, id, xenevents.ErrDomainGone)
}
