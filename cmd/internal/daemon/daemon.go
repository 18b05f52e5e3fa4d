// Package daemon is hprobed: it puts driver, engine, profiles, detectors and
// sinks together, and serves the control API.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
)

// Options are what a Daemon is made of.
type Options struct {
	Host xenevents.Host // stays the caller's to close
	// FindProfile finds the profile of the kernel that a domain runs, or makes it. It is
	// not called concurrently.
	FindProfile func(context.Context, *xenevents.DomainInfo) (*store.Found, error)
	Log         *slog.Logger
}

// Daemon holds a session with each domain that has probes. Its methods may be
// called from any goroutine.
type Daemon struct {
	Options
	Findings sinks.Hub
	hits     sinks.Fan[*controlapi.Hit]
	gone     sinks.Fan[*session] // whose domain ended

	mu       sync.Mutex // held over whole commands: they come one after the other
	sessions map[xenevents.DomainID]*session
	lastID   int
	closed   bool
}

// New makes a Daemon. Close ends it.
func New(o Options) *Daemon {
	return &Daemon{Options: o, sessions: map[xenevents.DomainID]*session{}}
}

var errEnding = errors.New("hprobed is ending")

// Close takes every probe out of every domain and detaches.
func (d *Daemon) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.closed = true
	var errs []error
	for _, s := range d.sessions {
		errs = append(errs, d.end(s))
	}
	return errors.Join(errs...)
}

// attached returns the session with a domain, and starts it if need be. With mu held.
func (d *Daemon) attached(ctx context.Context, name string) (*session, error) {
	if d.closed {
		return nil, errEnding
	}
	info, err := xenevents.FindDomain(ctx, d.Host, name)
	if err != nil {
		return nil, err
	}
	if s := d.sessions[info.ID]; s != nil {
		if !s.ended() {
			return s, nil
		}
		// Its domain went, and another has its number already.
		delete(d.sessions, info.ID)
	}
	s, err := d.start(ctx, info)
	if err != nil {
		return nil, fmt.Errorf("domain %q: %w", info.Name, err)
	}
	d.sessions[info.ID] = s
	return s, nil
}

// releaseIfUnused ends a session without probes: nothing of it stays in the
// domain. With mu held.
func (d *Daemon) releaseIfUnused(s *session) error {
	if len(s.bindings) > 0 {
		return nil
	}
	return d.end(s)
}

// end ends a session. With mu held.
func (d *Daemon) end(s *session) error {
	delete(d.sessions, s.info.ID)
	err := s.stop()
	if errors.Is(err, xenevents.ErrDomainGone) {
		return nil // it was logged when it happened
	}
	if err == nil {
		d.Log.Info("detached", "domain", s.info.Name)
	}
	return err
}

// sorted returns the sessions whose domain has the name (or all), by domain ID.
// With mu held.
func (d *Daemon) sorted(ctx context.Context, domain string) ([]*session, error) {
	var all []*session
	for _, s := range d.sessions {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *session) int { return cmp.Compare(a.info.ID, b.info.ID) })
	if domain == "" {
		return all, nil
	}
	info, err := xenevents.FindDomain(ctx, d.Host, domain)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s *session) bool { return s.info.ID != info.ID }), nil
}

// nextID is the name that the next detector gets; bind takes it, so that a request that is
// refused leaves no gap. With mu held.
func (d *Daemon) nextID(letter string) string {
	return fmt.Sprintf("%s%d", letter, d.lastID+1)
}
