package probe

import (
	"errors"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
)

// wanted are the subscriptions that the watches of now need: one for each register.
func (w *watches) wanted() (all []xenevents.Subscription) {
	for _, u := range w.registers {
		if u.suspended {
			continue
		}
		s := xenevents.Subscription{Kind: u.watch.Kind, Index: u.watch.Index, Sync: !u.watch.async || w.holds}
		switch s.Kind {
		case xenevents.KindControlReg:
			s.OnChange = true
		case xenevents.KindCPUID:
			s.Index = 0
		}
		i := slices.IndexFunc(all, func(x xenevents.Subscription) bool { return x.Kind == s.Kind && x.Index == s.Index })
		if i < 0 {
			all = append(all, s)
		} else {
			all[i].Sync = all[i].Sync || s.Sync
		}
	}
	return all
}

// subscribe has Xen tell of what the watches need, and of nothing else. The domain is
// paused where something must not be missed in between. An event of what was given up
// may be on its way: it is answered, and counts nothing.
func (e *Engine) subscribe() error {
	w := &e.watches
	hold := !w.holds && slices.ContainsFunc(w.registers, func(u *probe) bool { return u.watch.deny && !u.suspended })
	if hold {
		holder, ok := e.events.(xenevents.WriteHolder)
		if !ok {
			return &xenevents.UnsupportedError{Feature: "refusing writes of registers", Need: "a driver that can hold them"}
		}
		w.holds = true
		if err := xenevents.WithPaused(e.dom, func() error { return errors.Join(e.resubscribe(true), holder.HoldWrites(), e.resubscribe(false)) }); err != nil {
			// Xen may hold them or not: to wait for each is right in both cases.
			return err
		}
		return nil
	}
	wanted := w.wanted()
	if len(wanted) == len(w.subs) && !slices.ContainsFunc(wanted, func(s xenevents.Subscription) bool { return !slices.Contains(w.subs, s) }) {
		return nil
	}
	return xenevents.WithPaused(e.dom, func() error { return e.resubscribe(false) })
}

// resubscribe ends subscriptions that are not wanted, and makes those that are, unless
// only the first is asked for.
func (e *Engine) resubscribe(end bool) error {
	w := &e.watches
	wanted := w.wanted()
	var errs error
	w.subs = slices.DeleteFunc(w.subs, func(s xenevents.Subscription) bool {
		if slices.Contains(wanted, s) {
			return false
		}
		errs = errors.Join(errs, e.events.Unsubscribe(s))
		return true
	})
	if end {
		return errs
	}
	for _, s := range wanted {
		if slices.Contains(w.subs, s) {
			continue
		}
		if err := e.events.Subscribe(s); err != nil {
			errs = errors.Join(errs, err)
			continue
		}
		w.subs = append(w.subs, s)
	}
	return errs
}

// unsubscribeAll ends all of them, before detach drains: a write that Xen holds is lost
// when the ring goes, and with it the guest.
func (e *Engine) unsubscribeAll() error {
	w := &e.watches
	w.registers = nil
	if w.holds && e.held {
		// What waits for the domain to go on must be done before the ring goes.
		e.held = false
		if err := e.dom.Unpause(); err != nil {
			e.log.Debug("the domain goes on", "err", err)
		}
	}
	return e.resubscribe(false)
}

// of says whether an event of a register, or of CPUID, is what a probe watches.
func (s *Source) of(ev *xenevents.Event) bool {
	switch {
	case s.Kind != ev.Kind:
		return false
	case s.Kind == xenevents.KindCPUID:
		return s.Any || s.Index == ev.Leaf
	case s.Index != ev.Index:
		return false
	}
	return s.Mask == 0 || (ev.New^ev.Old)&s.Mask != 0
}

// register is an event of a register that was written, or of CPUID.
func (e *Engine) register(ev *xenevents.Event) error {
	w, h := &e.watches, &e.now.hit
	w.seen = Seen{Kind: ev.Kind, Index: ev.Index, Old: ev.Old, New: ev.New, NewKnown: true, Size: 8}
	switch {
	case ev.Kind == xenevents.KindCPUID:
		w.seen.Index, w.seen.Subleaf, w.seen.refuse = ev.Leaf, ev.Subleaf, errDone
	case !w.holds || !ev.Paused:
		w.seen.refuse = errDone
	}
	*h = Hit{VCPU: ev.VCPU, Space: xenevents.AddressSpaceOf(&ev.Regs), Regs: &ev.Regs, Seen: &w.seen, engine: e}
	w.hit = w.hit[:0]
	for _, u := range w.registers {
		if u.suspended || !u.watch.of(ev) {
			continue
		}
		e.see(h, u)
		w.hit = append(w.hit, u)
	}
	var err error
	if h.pause && ev.Paused {
		err = e.hold(ev)
	}
	r := e.newReply()
	if ev.Kind == xenevents.KindCPUID {
		e.afterCPUID(ev, r)
	}
	r.Deny = h.verdict.Action == Deny && w.seen.refuse == nil
	if ev.Paused {
		err = either(err, e.reply(ev, r))
	}
	if len(w.hit) > 0 {
		err = either(err, e.chargeWatch(w.hit, ev.Paused))
	}
	return err
}

// afterCPUID moves a vCPU behind a CPUID that was run: Xen leaves that to its monitor.
func (e *Engine) afterCPUID(ev *xenevents.Event, r *xenevents.Reply) {
	r.Regs = &e.now.regs
	*r.Regs = ev.Regs
	r.Regs.RIP += uint64(ev.InsnLen)
}
