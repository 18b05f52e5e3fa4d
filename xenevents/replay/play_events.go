package replay

import (
	"context"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
)

// playedEvents are a Player's.
type playedEvents struct {
	p           *Player
	subs        []xenevents.Subscription
	interrupted chan struct{}
	cookie      uint64
	event       xenevents.Event // the present one
	tries       int             // how often it was there again
	again       bool
	steps       map[xenevents.VCPU]xenevents.Event // vCPUs that run single instructions, and the event since which
}

// maxTries is how often an int3 comes again that the engine does not take the vCPU past.
const maxTries = 4

// Attach has the engine told of the events.
func (p *Player) Attach(context.Context) (xenevents.Events, error) {
	if p.events != nil {
		return nil, xenevents.ErrMonitored
	}
	p.events = &playedEvents{p: p, interrupted: make(chan struct{}, 1), steps: map[xenevents.VCPU]xenevents.Event{}}
	return p.events, nil
}

// Subscribe notes what the engine wants.
func (e *playedEvents) Subscribe(s xenevents.Subscription) error {
	e.subs = append(e.subs, s)
	return nil
}

// Unsubscribe forgets it.
func (e *playedEvents) Unsubscribe(s xenevents.Subscription) error {
	e.subs = slices.DeleteFunc(e.subs, func(o xenevents.Subscription) bool { return o.Kind == s.Kind && o.Index == s.Index })
	return nil
}

// Next returns the next event that the engine has something for, once the one before
// has its reply.
func (e *playedEvents) Next(ctx context.Context, batch []xenevents.Event) (int, error) {
	started := e.p.started
	e.p.reading = e.p.current != nil
	for {
		select {
		case <-e.interrupted:
			return 0, xenevents.ErrInterrupted
		default:
		}
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		select {
		case <-e.p.started:
			started = nil
			if e.p.current == nil && e.forward() {
				batch[0] = e.event
				return 1, nil
			}
		default:
		}
		select {
		case <-started:
		case <-e.interrupted:
			return 0, xenevents.ErrInterrupted
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// TryNext has none: they come by Next, one at a time.
func (e *playedEvents) TryNext([]xenevents.Event) (int, error) { return 0, nil }

// Flush has nothing to send.
func (e *playedEvents) Flush() error { return nil }

// Interrupt ends a Next that waits, or the one to come.
func (e *playedEvents) Interrupt() {
	select {
	case e.interrupted <- struct{}{}:
	default:
	}
}

// Close lets another engine attach; the recording does not begin anew.
func (e *playedEvents) Close() error {
	if e.p.events == e {
		e.p.events = nil
	}
	return nil
}

// Settled is always so.
func (e *playedEvents) Settled() (bool, error) { return true, nil }

// HoldWrites does nothing: what was written then is written.
func (e *playedEvents) HoldWrites() error { return nil }

// forward plays on to the next event that the engine gets. It is false at the end, and
// where the engine has left its view.
func (e *playedEvents) forward() bool {
	p := e.p
	if e.again {
		e.again = false
		e.give(e.event)
		return true
	}
	for !p.ended && p.view != xenevents.HostView {
		m := &p.rec.moments[p.next]
		last := p.next == p.rec.Events()
		if from, ok := e.steps[m.event.VCPU]; ok && !last && m.event.Kind != xenevents.KindSingleStep {
			e.endStep(&from)
			return true
		}
		if last {
			break
		}
		p.next++
		p.pass(m)
		if e.wants(&m.event) {
			e.tries = 0
			e.give(m.event)
			return true
		}
		if m.event.Kind != xenevents.KindSingleStep {
			p.stats.Unwanted++
		}
	}
	for _, from := range e.steps { // in any order: nothing comes any more
		e.endStep(&from)
		return true
	}
	if !p.ended && p.view != xenevents.HostView {
		p.ended = true
		p.pass(&p.rec.moments[p.next])
		close(p.done)
	}
	return false
}

// pass makes a moment the present.
func (p *Player) pass(m *moment) {
	for i := range m.changes {
		c := &m.changes[i]
		f := p.now[c.gfn]
		if f == nil {
			f = &playedFrame{}
			p.now[c.gfn] = f
		}
		c.on(&f.frame)
		f.absent, f.seen = c.absent, p.next
	}
	for i := range m.vcpus {
		p.vcpus[m.vcpus[i].id] = &m.vcpus[i]
	}
	p.ticks = max(p.ticks, m.ticks) // an event without reply may be written down late
	p.options.Passed(p.Since())
}

// give has the engine get an event.
func (e *playedEvents) give(ev xenevents.Event) {
	e.cookie++
	ev.Cookie = e.cookie
	if ev.View != xenevents.HostView {
		ev.View = e.p.view
	}
	e.event = ev
	e.p.reading = true
	if ev.Paused {
		e.p.current = &e.event
	}
	e.p.stats.Events++
}

// endStep is the end of a step that the recording does not have: the instruction ran, and
// nobody knows what it did.
func (e *playedEvents) endStep(from *xenevents.Event) {
	ev := xenevents.Event{Kind: xenevents.KindSingleStep, Paused: true, VCPU: from.VCPU, GFN: from.GFN, Regs: from.Regs}
	ev.Regs.RIP++
	e.give(ev)
}

// wants says whether the engine would get an event, with the views and subscriptions that
// it has.
func (e *playedEvents) wants(ev *xenevents.Event) bool {
	p := e.p
	switch ev.Kind {
	case xenevents.KindInt3:
		return p.hasInt3(ev)
	case xenevents.KindMemAccess:
		shown, ok := p.views[p.view][ev.GFN]
		if ok && shown.access == xenevents.AccessRPW && ev.Fault&xenevents.FaultInGPT != 0 {
			return false
		}
		return ok && ev.Access&^shown.access&xenevents.AccessRWX != 0
	case xenevents.KindSingleStep:
		_, ok := e.steps[ev.VCPU]
		return ok
	}
	return slices.ContainsFunc(e.subs, func(s xenevents.Subscription) bool {
		return s.Kind == ev.Kind && (s.Kind == xenevents.KindCPUID || s.Index == ev.Index)
	})
}

// hasInt3 says whether the engine has put an int3 where one was run.
func (p *Player) hasInt3(ev *xenevents.Event) bool {
	shown, ok := p.views[p.view][ev.GFN]
	if !ok {
		return false
	}
	copied := p.spares[shown.to]
	at := ev.Regs.RIP & xenevents.PageMask
	end := min(at+max(uint64(ev.InsnLen), 1), xenevents.PageSize) // it may have prefixes
	return copied != nil && slices.Contains(copied[at:end], 0xcc)
}

// Reply takes the engine's answer. What it changes of the vCPU is not carried out.
func (e *playedEvents) Reply(ev *xenevents.Event, r *xenevents.Reply) error {
	p := e.p
	if p.current == nil || ev.Cookie != e.cookie {
		return nil
	}
	p.current, p.reading = nil, false
	if r.Step == xenevents.StepToggle {
		if _, on := e.steps[ev.VCPU]; on {
			delete(e.steps, ev.VCPU)
		} else {
			e.steps[ev.VCPU] = *ev
		}
	}
	plain := !r.Emulate && r.Step == xenevents.StepNone && r.Regs == nil
	if ev.Kind == xenevents.KindInt3 && plain && p.view != xenevents.HostView && p.hasInt3(ev) && e.tries < maxTries {
		e.tries++
		e.again = true
	}
	return nil
}
