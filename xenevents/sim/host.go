// Package sim is a software guest for unit tests, and the driver to it. It has
// guest memory, 4-level page tables, altp2m views, and vCPUs that run scripts and
// a few real instructions.
//
// It is honest about what makes hidden probes hard: a vCPU waits until its reply
// is sent, a full ring holds up the others, a page walk goes through the view, a
// frame that is freed empties the views that showed it elsewhere, and an entry
// that is filled from a superpage takes its neighbours along. It knows nothing of
// time: a vCPU runs when the guest may run, on the goroutine of whoever made it so
// (a Flush, an Unpause, a new script), always in the same order.
package sim

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/hprobe/hprobe/xenevents"
)

// Host is a hypervisor in software: xenevents.Host and Prober.
type Host struct {
	mu       sync.Mutex
	guests   map[xenevents.DomainID]*Guest
	watchers map[chan struct{}]bool
	closed   bool
}

var _ interface {
	xenevents.Host
	xenevents.Prober
	xenevents.Watcher
} = (*Host)(nil)

// NewHost makes a host without guests.
func NewHost() *Host {
	return &Host{guests: map[xenevents.DomainID]*Guest{}, watchers: map[chan struct{}]bool{}}
}

// Name is "sim".
func (h *Host) Name() string { return "sim" }

// Add starts a guest. It panics where there is one of that ID.
func (h *Host) Add(c Config) *Guest {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c.ID == 0 || h.guests[c.ID] != nil {
		panic(fmt.Sprintf("sim: domain %d can't be added", c.ID))
	}
	g := newGuest(c)
	h.guests[c.ID] = g
	h.tell()
	return g
}

// Remove destroys a guest, and its number is free.
func (h *Host) Remove(g *Guest) {
	g.Destroy()
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.guests, g.config.ID)
	h.tell()
}

// Rename gives a guest another name.
func (h *Host) Rename(g *Guest, name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g.mu.Lock()
	g.config.Name = name
	g.mu.Unlock()
	h.tell()
}

// tell wakes those who watch. With mu held.
func (h *Host) tell() {
	for c := range h.watchers {
		select {
		case c <- struct{}{}:
		default:
		}
	}
}

// Watch implements xenevents.Watcher.
func (h *Host) Watch(ctx context.Context, changed func()) error {
	c := make(chan struct{}, 1)
	h.mu.Lock()
	h.watchers[c] = true
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.watchers, c)
	}()
	for {
		changed()
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c:
		}
	}
}

// find returns a guest that still runs.
func (h *Host) find(id xenevents.DomainID) (*Guest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, xenevents.ErrClosed
	}
	if g := h.guests[id]; g != nil && !g.ended() {
		return g, nil
	}
	return nil, fmt.Errorf("domain %d: %w", id, xenevents.ErrNoDomain)
}

// Domains lists the guests.
func (h *Host) Domains(ctx context.Context) ([]xenevents.DomainInfo, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, xenevents.ErrClosed
	}
	var all []xenevents.DomainInfo
	for _, g := range h.guests {
		if info, err := g.info(); err == nil {
			all = append(all, info)
		}
	}
	slices.SortFunc(all, func(a, b xenevents.DomainInfo) int { return cmp.Compare(a.ID, b.ID) })
	return all, ctx.Err()
}

// Open opens a guest.
func (h *Host) Open(ctx context.Context, id xenevents.DomainID) (xenevents.Domain, error) {
	g, err := h.find(id)
	if err != nil {
		return nil, err
	}
	return &Domain{guest: g, views: map[xenevents.View]bool{}, spares: map[xenevents.GFN]bool{}}, ctx.Err()
}

// Features says that there is nothing real here.
func (h *Host) Features(ctx context.Context) ([]xenevents.Feature, error) {
	return []xenevents.Feature{{
		Name: "sim", Title: "a host in software", Answer: xenevents.Yes, Need: xenevents.Optional, Detail: "for unit tests only",
	}}, ctx.Err()
}

// Close ends the connection; the guests stay.
func (h *Host) Close() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	return nil
}
