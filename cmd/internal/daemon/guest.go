package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// guest is a domain of this host as hprobed sees it, and the worker that keeps what
// policies ask for in it.
type guest struct {
	d    *Daemon
	id   xenevents.DomainID
	turn chan struct{} // full while a command is carried out: they come one after the other
	wake chan struct{} // the worker has something to look at
	left chan struct{} // closed once the domain is gone

	pause   time.Duration // before the next try; in turn only
	leaving sync.Once
	mu      sync.Mutex // for what follows; nothing waits with it held
	info    xenevents.DomainInfo
	session *session // nil: not attached
	held    bool     // an operator wants it left alone
	trying  bool     // it is being attached to
	trouble error    // why the last try failed
	rows    map[string]*row
}

func newGuest(d *Daemon, info xenevents.DomainInfo) *guest {
	return &guest{d: d, id: info.ID, info: info, turn: make(chan struct{}, 1), wake: make(chan struct{}, 1), left: make(chan struct{}), pause: firstRetry, rows: map[string]*row{}}
}

func (g *guest) uuid() [16]byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.info.UUID
}

func (g *guest) name() string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.info.Name
}

// update notes what Xen says of the domain now, and says whether the worker must know.
func (g *guest) update(info xenevents.DomainInfo) (changed bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if info.Name == "" { // xenstore did not answer, or has forgotten it already
		info.Name = g.info.Name
	}
	old := g.info
	g.info = info
	return old.Name != info.Name || old.Shutdown != info.Shutdown || old.Dying != info.Dying
}

func (g *guest) seen() xenevents.DomainInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.info
}

// poke has the worker look at its guest anew.
func (g *guest) poke() {
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// leave ends the worker.
func (g *guest) leave() { g.leaving.Do(func() { close(g.left) }) }

// begin waits for its turn; end gives it back. Whoever has it may attach, bind and detach.
func (g *guest) begin(ctx context.Context) error {
	select {
	case g.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("domain %q: another command is not done with it: %w", g.name(), context.Cause(ctx))
	case <-g.d.run.Done():
		return errEnding
	}
}

func (g *guest) end() { <-g.turn }

// current is the session, if there is one that lives.
func (g *guest) current() *session {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.session == nil || g.session.ended() {
		return nil
	}
	return g.session
}

// attach returns the session with the domain, and starts it if need be. In turn.
func (g *guest) attach(ctx context.Context) (*session, error) {
	if s := g.current(); s != nil {
		return s, nil
	}
	g.drop()
	g.mu.Lock()
	info, held := g.info, g.held
	g.trying = true
	g.mu.Unlock()
	_, ignore := g.d.ruled(&info)
	var s *session
	var err error
	switch {
	case held:
		err = awayError{info.Name, "was released: hprobed leaves it alone until hprobe domain resume"}
	case ignore:
		err = awayError{info.Name, "is not to be watched: hprobed's configuration says so (ignore: true)"}
	default:
		ctx, cancel := context.WithCancelCause(ctx)
		defer context.AfterFunc(g.d.run, func() { cancel(errEnding) })()
		if s, err = g.d.start(ctx, g, info); err != nil {
			err = fmt.Errorf("domain %q: %w", info.Name, err)
		}
		cancel(nil)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.trying, g.session, g.trouble = false, s, err
	return s, err
}

// awayError is that hprobed must not touch a guest. It matches errors.ErrUnsupported.
type awayError struct{ domain, why string }

func (e awayError) Error() string { return fmt.Sprintf("domain %q %s", e.domain, e.why) }

func (awayError) Is(target error) bool { return target == errors.ErrUnsupported }

// drop forgets a session that ended by itself. In turn.
func (g *guest) drop() {
	g.mu.Lock()
	s := g.session
	if s != nil && s.ended() {
		g.session = nil
	} else {
		s = nil
	}
	g.mu.Unlock()
	if s != nil {
		s.quiet()
		g.d.bury(s)
	}
}

// release detaches from a guest in which nothing is armed: nothing of hprobed stays
// there. In turn.
func (g *guest) release() error {
	s := g.current()
	if s == nil || len(s.list()) > 0 {
		return nil
	}
	return g.detach()
}

// detach ends the session, whatever is armed. In turn.
func (g *guest) detach() error {
	g.mu.Lock()
	s := g.session
	g.session = nil
	g.mu.Unlock()
	if s == nil {
		return nil
	}
	err := s.stop()
	g.d.bury(s)
	if errors.Is(err, xenevents.ErrDomainGone) {
		return nil // it was logged when it happened
	}
	if err == nil {
		g.d.Log.Info("detached", "domain", s.info.Name)
	}
	return err
}

// close detaches when hprobed ends; no worker runs any more.
func (g *guest) close() error {
	g.turn <- struct{}{} // a command that runs ends soon: its context is over
	defer g.end()
	return g.detach()
}

// hold takes everything out and leaves the guest alone, or no longer.
func (g *guest) hold(ctx context.Context, held bool) error {
	g.mu.Lock()
	g.held = held
	g.mu.Unlock()
	g.poke()
	if !held {
		return nil
	}
	if err := g.begin(ctx); err != nil {
		return err
	}
	defer g.end()
	return g.detach()
}

// Retries of what could not be done in a guest, the shortest and the longest pause.
const (
	firstRetry = time.Second
	lastRetry  = time.Minute
)

// work keeps in the guest what policies ask for, until ctx ends or the domain is gone.
func (g *guest) work(ctx context.Context) {
	retry := time.NewTimer(0)
	defer retry.Stop()
	for {
		poked := false
		select {
		case <-ctx.Done():
			return
		case <-g.left:
			if g.begin(ctx) == nil {
				g.drop()
				_ = g.detach() // of a domain that is gone nothing is left to be taken out
				g.end()
			}
			return
		case <-g.wake:
			poked = true
		case <-retry.C:
		}
		if g.begin(ctx) != nil {
			return
		}
		if poked {
			g.pause = firstRetry
		}
		again := g.reconcile(ctx)
		g.end()
		if again > 0 {
			retry.Reset(again)
		}
	}
}
