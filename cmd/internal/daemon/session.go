package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// session is an attached domain.
type session struct {
	d       *Daemon
	info    xenevents.DomainInfo
	dom     xenevents.Domain
	kernel  *guestos.Kernel
	profile *store.Found
	engine  *probe.Engine
	binder  *binder.Binder

	mu       sync.Mutex // for what follows; nothing waits with it held
	bindings []*binding // in the order in which they came

	over   atomic.Bool // the domain has shut down: stop is not an operator's wish
	cancel context.CancelFunc
	done   chan struct{} // closed when the engine ended and the domain is closed
	err    error         // how; to be read after done
}

// binding is a detector that watches the domain.
type binding struct {
	*binder.Binding
	id     string
	policy *applied // whose it is; nil: added by hand
	quiet  func()   // ends what tells the detector of time
}

// list returns what is bound now.
func (s *session) list() []*binding {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.bindings)
}

// start attaches to a guest's domain.
func (d *Daemon) start(ctx context.Context, g *guest, info xenevents.DomainInfo) (_ *session, err error) {
	dom, err := d.Host.Open(ctx, info.ID)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, dom.Close())
		}
	}()
	if err := xenevents.Refuse(ctx, dom); err != nil {
		return nil, err
	}
	kernel, profile, err := d.findKernel(ctx, dom, &info)
	if err != nil {
		return nil, err
	}
	if err := awaitStart(ctx, kernel); err != nil {
		return nil, err
	}
	engine, err := probe.New(dom, probe.Options{Log: d.Log.With("domain", info.Name)})
	if err != nil {
		return nil, err
	}
	// Not with the command's ctx: the session outlives it.
	run, cancel := context.WithCancel(context.Background())
	s := &session{d: d, info: info, dom: dom, kernel: kernel, profile: profile, engine: engine, cancel: cancel, done: make(chan struct{})}
	s.binder = binder.New(engine, kernel, info, &d.Findings)
	go s.run(run, g) // ends with the engine: by stop, or with the domain
	select {
	case <-engine.Ready():
		d.Log.Info("attached", "domain", info.Name, "id", info.ID, "slide", fmt.Sprintf("%#x", kernel.Slide))
		return s, nil
	case <-s.done:
		return nil, s.err
	}
}

func (s *session) run(ctx context.Context, g *guest) {
	defer g.poke() // once it is done
	defer close(s.done)
	s.err = errors.Join(s.engine.Run(ctx), s.dom.Close())
	switch {
	case errors.Is(s.err, xenevents.ErrDomainGone), s.over.Load():
		g.d.Log.Info("the domain ended: its probes are gone with it", "domain", s.info.Name)
		g.d.Findings.Emit(s.lost())
		g.d.gone.Emit(s)
	case s.err != nil:
		g.d.Log.Error("detach", "domain", s.info.Name, "err", s.err)
	}
}

// lost is the finding that the guest ended, and what was armed by hand with it.
func (s *session) lost() *detectors.Finding {
	f := &detectors.Finding{Time: time.Now(), Domain: s.info.Name, DomainID: s.info.ID, Detector: "hprobed", Message: "the guest ended or restarted: what policies watch in it is armed again when it is back"}
	if slices.ContainsFunc(s.list(), func(b *binding) bool { return b.policy == nil }) {
		f.Severity, f.Message = detectors.Medium, "the guest ended or restarted: its probes and stopgaps are gone with it"
	}
	return f
}

// stop detaches, and returns when nothing is left in the guest.
func (s *session) stop() error {
	s.cancel()
	<-s.done
	s.quiet()
	return s.err
}

// quiet ends what tells detectors of time.
func (s *session) quiet() {
	for _, b := range s.list() {
		b.quiet()
	}
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

// leaving says whether an error is that the session has ended, or is just about to.
func (s *session) leaving(err error) bool { return s.ended() || errors.Is(err, xenevents.ErrClosed) }

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

// How often it is looked whether a guest's kernel has started, and for how long at most.
const (
	startPause = 50 * time.Millisecond
	startLimit = 5 * time.Minute
)

// awaitStart waits until the guest's kernel has done with changing its own code.
func awaitStart(ctx context.Context, k *guestos.Kernel) error {
	for end := time.Now().Add(startLimit); ; {
		started, known, err := k.Started()
		if err != nil || started || !known {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("the guest's kernel is still starting after %v", startLimit)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(startPause):
		}
	}
}

// bind arms a detector and keeps it.
func (s *session) bind(ctx context.Context, id string, det detectors.Detector, of *applied) (*binding, error) {
	bound, err := s.binder.Bind(ctx, det)
	if err != nil {
		return nil, err
	}
	b := &binding{Binding: bound, id: id, policy: of, quiet: func() {}}
	if t, ok := det.(detectors.Ticker); ok && t.Every() > 0 {
		run, cancel := context.WithCancel(context.Background()) // it outlives the command
		var wg sync.WaitGroup
		wg.Go(func() { s.ticks(run, t) })
		b.quiet = func() { cancel(); wg.Wait() }
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bindings = append(s.bindings, b)
	return b, nil
}

// unbind takes a detector's probes out.
func (s *session) unbind(ctx context.Context, b *binding) error {
	b.quiet()
	err := s.binder.Unbind(ctx, b.Binding)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bindings = slices.DeleteFunc(s.bindings, func(o *binding) bool { return o == b })
	return err
}
