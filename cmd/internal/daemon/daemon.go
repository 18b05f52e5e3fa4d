// Package daemon is hprobed: it puts driver, engine, profiles, detectors, policies
// and sinks together, and serves the control API.
package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
)

// Options are what a Daemon is made of.
type Options struct {
	Host xenevents.Host // stays the caller's to close
	// FindProfile finds the profile of the kernel that a domain runs, or makes it. It may
	// be called for several domains at once.
	FindProfile func(context.Context, *xenevents.DomainInfo) (*store.Found, error)
	Log         *slog.Logger
	// PolicyFolder keeps the policies that were applied by a command; "": they end with the
	// daemon.
	PolicyFolder string
	// Record is told of each command of the control API once it is over. nil: nobody is.
	Record func(*Command)
}

// Daemon knows the guests of a host, and what is watched in each. Its methods may be
// called from any goroutine.
type Daemon struct {
	Options
	Findings sinks.Hub
	hits     sinks.Fan[*controlapi.Hit]
	gone     sinks.Fan[*session] // whose domain ended
	traces   atomic.Int32        // clients that see hits
	follows  atomic.Int32        // clients that follow findings
	policies policies

	run    context.Context // ends with the daemon: what a guest's worker does of itself
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu     sync.Mutex // for what follows; nothing waits with it held
	rules  []DomainRule
	guests map[xenevents.DomainID]*guest
	owners map[string]owner // of what has an id: p1, d2
	lastID int
	closed bool
}

// owner is where something with an id is.
type owner struct {
	g    *guest
	went string // the name of the domain with which it went; "": it is there
}

// New makes a Daemon. Close ends it.
func New(o Options) *Daemon {
	d := &Daemon{Options: o, guests: map[xenevents.DomainID]*guest{}, owners: map[string]owner{}, policies: policies{all: map[string]*applied{}}}
	d.run, d.cancel = context.WithCancel(context.Background())
	return d
}

var errEnding = errors.New("hprobed is ending")

// Close takes every probe out of every domain and detaches.
func (d *Daemon) Close() error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.cancel() // whoever attaches at the moment gives up
	d.work.Wait()
	var wg sync.WaitGroup
	all := d.known()
	errs := make([]error, len(all))
	for i, g := range all {
		wg.Go(func() { errs[i] = g.close() })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// known returns the guests, by domain ID.
func (d *Daemon) known() []*guest {
	d.mu.Lock()
	defer d.mu.Unlock()
	all := make([]*guest, 0, len(d.guests))
	for _, g := range d.guests {
		all = append(all, g)
	}
	slices.SortFunc(all, func(a, b *guest) int { return cmp.Compare(a.id, b.id) })
	return all
}

// guest finds the guest that somebody names by name, id or UUID.
func (d *Daemon) guest(ctx context.Context, name string) (*guest, error) {
	info, err := xenevents.FindDomain(ctx, d.Host, name)
	if err != nil {
		return nil, err
	}
	return d.meet(info)
}

// meet returns the guest of a domain, which is new where nobody knew of it.
func (d *Daemon) meet(info xenevents.DomainInfo) (*guest, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, errEnding
	}
	g := d.guests[info.ID]
	if g == nil || g.uuid() != info.UUID { // numbers are used again, some day
		g = newGuest(d, info)
		d.guests[info.ID] = g
		d.work.Go(func() { g.work(d.run) }) // ends with the daemon, or with forget
	}
	if g.update(info) {
		g.poke()
	}
	return g, nil
}

// forget ends the worker of a guest whose domain is gone.
func (d *Daemon) forget(g *guest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.guests[g.id] == g {
		delete(d.guests, g.id)
	}
	g.leave()
}

// some returns the guests that a client asks for: the one of a name, or all for "".
func (d *Daemon) some(ctx context.Context, domain string) ([]*guest, error) {
	if domain == "" {
		return d.known(), nil
	}
	info, err := xenevents.FindDomain(ctx, d.Host, domain)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(d.known(), func(g *guest) bool { return g.id != info.ID }), nil
}

// newID is the name of a detector that is about to be armed in a guest.
func (d *Daemon) newID(letter string, g *guest) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lastID++
	id := fmt.Sprintf("%s%d", letter, d.lastID)
	d.owners[id] = owner{g: g}
	return id
}

// owner says where something is. What went with its domain is told once.
func (d *Daemon) owner(id string) (owner, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	o, ok := d.owners[id]
	if o.went != "" {
		delete(d.owners, id)
	}
	return o, ok
}

func (d *Daemon) disown(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.owners, id)
}

// bury notes that what a session had is no more.
func (d *Daemon) bury(s *session) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, b := range s.list() {
		if b.policy != nil {
			continue
		}
		d.owners[b.id] = owner{went: cmp.Or(s.info.Name, fmt.Sprint(s.info.ID))}
	}
}
