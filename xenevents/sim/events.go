package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
)

// ringSlots is what a monitor ring holds.
const ringSlots = 8

// errFull says that there is no room for an event that nobody waits for.
var errFull = errors.New("the monitor ring is full")

// Events is the monitor ring of a guest.
type Events struct {
	guest *Guest
	wake  chan struct{} // holds one: something changed

	// Guarded by guest.mu.
	subs        []xenevents.Subscription
	queue       []xenevents.Event // what the monitor has not read
	replies     []reply           // what Xen was not told of
	open        int               // slots of events whose reply Xen has not seen
	interrupted bool
	closed      bool
	holds       bool // see HoldWrites
}

type reply struct {
	vcpu *VCPU
	xenevents.Reply
}

var _ interface {
	xenevents.Events
	xenevents.Settler
	xenevents.WriteHolder
} = (*Events)(nil)

func (e *Events) wakeUp() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// wants returns the subscription to a kind of events, if there is one.
func (g *Guest) wants(k xenevents.Kind, index uint32) *xenevents.Subscription {
	if g.events == nil {
		return nil
	}
	for i := range g.events.subs {
		if s := &g.events.subs[i]; s.Kind == k && s.Index == index {
			return s
		}
	}
	return nil
}

// post puts an event of a vCPU into the ring, if there is room. A vCPU that finds
// none tries again when there is.
func (g *Guest) post(v *VCPU, ev *xenevents.Event, pause bool) bool {
	e := g.events
	if e == nil { // it was there when the event came up: nobody wants it now
		return true
	}
	if e.open >= ringSlots {
		return false
	}
	g.seq++
	e.open++
	ev.Paused, ev.VCPU, ev.View, ev.Regs, ev.Cookie = pause, v.id, v.view, v.regs, g.seq
	e.queue = append(e.queue, *ev)
	if pause {
		v.waiting, v.taken, v.cookie, v.kind = true, false, g.seq, ev.Kind
	}
	e.wakeUp()
	return true
}

// Attach opens the ring.
func (d *Domain) Attach(ctx context.Context) (xenevents.Events, error) {
	g := d.guest
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case d.closed:
		return nil, xenevents.ErrClosed
	case g.check() != nil:
		return nil, g.check()
	case g.events != nil:
		return nil, fmt.Errorf("domain %d: %w", g.config.ID, xenevents.ErrMonitored)
	}
	d.events = &Events{guest: g, wake: make(chan struct{}, 1)}
	g.events = d.events
	return d.events, nil
}

// Subscribe asks for a class of events.
func (e *Events) Subscribe(s xenevents.Subscription) error {
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	if e.closed {
		return xenevents.ErrClosed
	}
	known := []xenevents.Kind{
		xenevents.KindInt3, xenevents.KindSingleStep, xenevents.KindControlReg, xenevents.KindMSR, xenevents.KindCPUID, xenevents.KindGuestRequest,
	}
	if !slices.Contains(known, s.Kind) || slices.Contains(e.guest.config.Without, s.Kind) {
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("a subscription to %v events", s.Kind)}
	}
	if s.Kind == xenevents.KindControlReg && s.Index != 0 && s.Index != 3 && s.Index != 4 {
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("events of CR%d", s.Index)}
	}
	if !slices.Contains(e.subs, s) {
		e.subs = append(e.subs, s)
	}
	return nil
}

// Unsubscribe undoes Subscribe.
func (e *Events) Unsubscribe(s xenevents.Subscription) error {
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	e.subs = slices.DeleteFunc(e.subs, func(x xenevents.Subscription) bool { return x == s })
	return nil
}

// HoldWrites has writes of control registers and MSRs wait for their replies.
func (e *Events) HoldWrites() error {
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	if slices.ContainsFunc(e.subs, func(s xenevents.Subscription) bool { return s.Kind == xenevents.KindControlReg && !s.Sync }) {
		return errors.New("nobody waits at the writes of a control register")
	}
	e.holds = true
	return nil
}

// TryNext takes what is in the ring.
func (e *Events) TryNext(batch []xenevents.Event) (int, error) {
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	if e.closed {
		return 0, xenevents.ErrClosed
	}
	return e.take(batch), nil
}

func (e *Events) take(batch []xenevents.Event) int {
	n := copy(batch, e.queue)
	e.queue = slices.Delete(e.queue, 0, n)
	for i := range n {
		if batch[i].Paused {
			e.guest.vcpus[batch[i].VCPU].taken = true
		} else {
			e.open-- // needs no reply
		}
	}
	e.guest.run() // those that found the ring full
	return n
}

// Next sends all replies, and waits for events.
func (e *Events) Next(ctx context.Context, batch []xenevents.Event) (int, error) {
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	if !e.closed {
		e.flush()
	}
	for {
		switch {
		case e.closed:
			return 0, xenevents.ErrClosed
		case len(e.queue) > 0:
			return e.take(batch), nil
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case e.interrupted:
			e.interrupted = false
			return 0, xenevents.ErrInterrupted
		case e.guest.gone:
			return 0, fmt.Errorf("domain %d: %w", e.guest.config.ID, xenevents.ErrDomainGone)
		}
		e.guest.mu.Unlock()
		select {
		case <-e.wake:
		case <-ctx.Done():
		}
		e.guest.mu.Lock()
	}
}

// Reply answers an event: once.
func (e *Events) Reply(ev *xenevents.Event, r *xenevents.Reply) error {
	if !ev.Paused {
		return nil
	}
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	if int(ev.VCPU) >= len(e.guest.vcpus) {
		return fmt.Errorf("domain %d has no vCPU %d", e.guest.config.ID, ev.VCPU)
	}
	v := e.guest.vcpus[ev.VCPU]
	if e.closed || !v.waiting || !v.taken || v.cookie != ev.Cookie {
		return fmt.Errorf("vCPU %d of domain %d waits for no reply to event %d", ev.VCPU, e.guest.config.ID, ev.Cookie)
	}
	v.taken = false
	copied := reply{v, *r}
	if r.Regs != nil {
		regs := *r.Regs
		copied.Regs = &regs
	}
	e.replies = append(e.replies, copied)
	return nil
}

// Flush lets the vCPUs have their replies, and the guest run.
func (e *Events) Flush() error {
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	if e.closed {
		return xenevents.ErrClosed
	}
	e.flush()
	return nil
}

func (e *Events) flush() {
	for i := range e.replies {
		e.replies[i].vcpu.apply(&e.replies[i].Reply)
		e.open--
	}
	e.replies = e.replies[:0]
	e.guest.run()
}

// Settled says whether all replies were carried out.
func (e *Events) Settled() (bool, error) {
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	if !e.closed {
		e.flush()
	}
	return !slices.ContainsFunc(e.guest.vcpus, (*VCPU).unsettled), nil
}

// Interrupt makes Next return.
func (e *Events) Interrupt() {
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	e.interrupted = true
	e.wakeUp()
}

// Close lets every vCPU run on and frees the ring.
func (e *Events) Close() error {
	e.guest.mu.Lock()
	defer e.guest.mu.Unlock()
	if e.closed {
		return nil
	}
	e.closed = true
	e.wakeUp()
	for _, r := range e.replies {
		r.vcpu.apply(&r.Reply)
	}
	for _, v := range e.guest.vcpus {
		if v.owesWrite || e.holds && v.waiting && isWrite(v.kind) {
			e.guest.accidents = append(e.guest.accidents, fmt.Sprintf("vCPU %d lost a write", v.id))
		}
		if v.waiting {
			if v.kind == xenevents.KindCPUID {
				e.guest.accidents = append(e.guest.accidents, fmt.Sprintf("vCPU %d does CPUID twice", v.id))
			}
			v.apply(&xenevents.Reply{})
		}
		v.owesWrite = false
		v.owed, v.stepping, v.fast = nil, false, false
	}
	e.guest.events = nil
	e.guest.run()
	return nil
}
