package daemon

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// session is an attached domain. It is used with Daemon.mu held.
type session struct {
	info     xenevents.DomainInfo
	dom      xenevents.Domain
	kernel   *guestos.Kernel
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
	kernel, err := d.findKernel(dom, info)
	if err != nil {
		return nil, err
	}
	engine, err := probe.New(dom, probe.Options{Log: d.Log.With("domain", info.Name)})
	if err != nil {
		return nil, err
	}
	// Not with the command's ctx: the session outlives it.
	run, cancel := context.WithCancel(context.Background())
	s := &session{info: info, dom: dom, kernel: kernel, engine: engine, cancel: cancel, done: make(chan struct{})}
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

// findKernel finds the profile that fits the guest's kernel.
func (d *Daemon) findKernel(dom xenevents.Domain, info xenevents.DomainInfo) (*guestos.Kernel, error) {
	files, err := d.Profiles.Files()
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("there is no profile in %s: make one of the guest's kernel (hprobe profile build VMLINUZ, or hprobe profile capture DOMAIN)", d.Profiles.Dir())
	}
	var guest string
	var last error
	for _, file := range files {
		p, err := isf.ReadFile(file)
		if err != nil {
			d.Log.Warn("a profile that can't be read", "file", file, "err", err)
			last = err
			continue
		}
		k, err := guestos.FindKernel(dom, int(info.MaxVCPU)+1, p)
		if err == nil {
			d.Log.Debug("found the guest's kernel", "profile", filepath.Base(file))
			return k, nil
		}
		var wrong *guestos.WrongProfileError
		if errors.As(err, &wrong) {
			guest = max(guest, wrong.Guest)
		} else {
			last = err
		}
	}
	if guest != "" {
		return nil, fmt.Errorf("no profile in %s is of the guest's kernel, %q: make one (hprobe profile build VMLINUZ, or hprobe profile capture DOMAIN)", d.Profiles.Dir(), guest)
	}
	if last != nil {
		return nil, last
	}
	return nil, fmt.Errorf("no profile in %s is of the guest's kernel: make one (hprobe profile build VMLINUZ, or hprobe profile capture DOMAIN)", d.Profiles.Dir())
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
