package daemon

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// session is an attached domain. It is used with Daemon.mu held.
type session struct {
	info     xenevents.DomainInfo
	dom      xenevents.Domain
	kernel   *guestos.Kernel
	profile  *store.Found
	engine   *probe.Engine
	binder   *binder.Binder
	bindings []*binding // in the order in which they came

	cancel context.CancelFunc
	done   chan struct{} // closed when the engine ended and the domain is closed
	err    error         // how; to be read after done
}

// binding is a detector that watches the domain.
type binding struct {
	*binder.Binding
	id string
}

// start attaches to a domain.
func (d *Daemon) start(ctx context.Context, info xenevents.DomainInfo) (_ *session, err error) {
	dom, err := d.Host.Open(ctx, info.ID)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dom.Close())
		}
	}()
	if err := refuse(ctx, dom); err != nil {
		return nil, err
	}
	kernel, profile, err := d.findKernel(ctx, dom, &info)
	if err != nil {
		return nil, err
	}
	engine, err := probe.New(dom, probe.Options{Log: d.Log.With("domain", info.Name)})
	if err != nil {
		return nil, err
	}
	// Not with the command's ctx: the session outlives it.
	run, cancel := context.WithCancel(context.Background())
	s := &session{info: info, dom: dom, kernel: kernel, profile: profile, engine: engine, cancel: cancel, done: make(chan struct{})}
	s.binder = binder.New(engine, kernel, info, &d.Findings)
	go s.run(run, d) // ends with the engine: by stop, or with the domain
	select {
	case <-engine.Ready():
		d.Log.Info("attached", "domain", info.Name, "id", info.ID, "slide", fmt.Sprintf("%#x", kernel.Slide))
		return s, nil
	case <-s.done:
		return nil, s.err
	}
}

func (s *session) run(ctx context.Context, d *Daemon) {
	defer close(s.done)
	s.err = errors.Join(s.engine.Run(ctx), s.dom.Close())
	switch {
	case errors.Is(s.err, xenevents.ErrDomainGone):
		d.Log.Info("the domain ended: its probes are gone with it", "domain", s.info.Name)
		d.Findings.Emit(&detectors.Finding{Time: time.Now(), Domain: s.info.Name, DomainID: s.info.ID, Detector: "hprobed", Severity: detectors.Medium,
			Message: "the guest ended or restarted: its probes and stopgaps are gone with it"})
		d.gone.Emit(s)
	case s.err != nil:
		d.Log.Error("detach", "domain", s.info.Name, "err", s.err)
	}
}

// stop detaches, and returns when nothing is left in the guest.
func (s *session) stop() error {
	s.cancel()
	<-s.done
	return s.err
}

// ended says whether the domain went by itself.
func (s *session) ended() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// refuse says why a domain must not be attached to, if that is so.
func refuse(ctx context.Context, dom xenevents.Domain) error {
	p, ok := dom.(xenevents.Prober)
	if !ok {
		return nil
	}
	features, err := p.Features(ctx)
	if err != nil {
		return err
	}
	for i := range features {
		if f := &features[i]; f.Blocks() {
			return &xenevents.UnsupportedError{Feature: "watching this domain", Need: fmt.Sprintf("%s: %v. %s", f.Title, f.Answer, f.Fix)}
		}
	}
	return nil
}

// findKernel finds the guest's kernel by the profile of it.
func (d *Daemon) findKernel(ctx context.Context, dom xenevents.Domain, info *xenevents.DomainInfo) (*guestos.Kernel, *store.Found, error) {
	found, err := d.FindProfile(ctx, info)
	if err != nil {
		return nil, nil, err
	}
	log := d.Log.With("domain", info.Name)
	for _, p := range found.Passed {
		log.Warn("a profile that was not taken", "profile", p)
	}
	profile, err := isf.ReadFile(found.File)
	if err != nil {
		return nil, nil, err
	}
	kernel, err := guestos.FindKernel(dom, int(info.MaxVCPU)+1, profile)
	if err != nil {
		return nil, nil, fmt.Errorf("profile %s: %w", found.From, err)
	}
	log.Info("profile", "file", found.From, "because", found.Why)
	return kernel, found, nil
}

// bind arms a detector and keeps it.
func (s *session) bind(ctx context.Context, id string, det detectors.Detector) (*binding, error) {
	bound, err := s.binder.Bind(ctx, det)
	if err != nil {
		return nil, err
	}
	b := &binding{Binding: bound, id: id}
	s.bindings = append(s.bindings, b)
	return b, nil
}
