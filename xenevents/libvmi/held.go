//go:build libvmi

package libvmi

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// held is a vCPU whose reply comes later than those of others. LibVMI got the empty
// reply, with which the vCPU would do again what it was stopped at; Xen keeps it from
// running until the reply is there. Then it does it again, and the event that comes of
// it gets the reply.
//
// In between an interrupt may come, and the guest's thread go on on another vCPU: so it
// is known by its registers. One that never comes back (it was killed, say) is given up
// after a while.
type held struct {
	event    xenevents.Event
	reply    xenevents.Reply
	regs     xenevents.Registers // reply's
	answered bool
	until    time.Time // once it is answered
}

// heldFor is how long a vCPU that was let go is expected to come back.
const heldFor = time.Second

// mayHold says whether the event that has no reply may be done again.
func (e *Events) mayHold() bool {
	var ev xenevents.Event
	decode(&e.m.event, &ev)
	return ev.Kind == xenevents.KindInt3 || ev.Kind == xenevents.KindMemAccess || ev.Kind == xenevents.KindCPUID
}

// hold keeps the vCPU of the event that has no reply from running, so that LibVMI can
// go on.
func (e *Events) hold() error {
	h := &held{}
	decode(&e.m.event, &h.event)
	v := h.event.VCPU
	if !e.mayHold() {
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("a reply to a %v event after others' by LibVMI", h.event.Kind), Need: "--driver native"}
	}
	if err := xenevents.WithPaused(e.dom, func() error { return e.dom.native.HoldVCPU(v) }); err != nil {
		return err
	}
	e.held = append(e.held, h)
	e.answer(&h.event, &xenevents.Reply{})
	return nil
}

// waits returns the vCPU that is held and has no reply yet, or nil.
func (e *Events) waits(v xenevents.VCPU) *held {
	for _, h := range e.held {
		if h.event.VCPU == v && !h.answered {
			return h
		}
	}
	return nil
}

// release lets a vCPU that is held go on.
func (e *Events) release(h *held, r *xenevents.Reply) error {
	h.answered, h.reply, h.until = true, *r, time.Now().Add(heldFor)
	if r.Regs != nil {
		h.regs = *r.Regs
		h.reply.Regs = &h.regs
	}
	if h.reply == (xenevents.Reply{}) { // it is tried again, and that is all
		h.until = time.Time{}
	}
	return xenevents.WithPaused(e.dom, func() error { return e.dom.native.ReleaseVCPU(h.event.VCPU) })
}

// again returns what was replied to a held vCPU, if this is its event again.
func (e *Events) again(ev *xenevents.Event) *held {
	if len(e.held) == 0 {
		return nil
	}
	e.giveUp()
	for i, h := range e.held {
		if h.answered && h.same(ev) {
			e.held = slices.Delete(e.held, i, i+1)
			return h
		}
	}
	return nil
}

// giveUp forgets those that did not come back in time.
func (e *Events) giveUp() {
	now := time.Now()
	e.held = slices.DeleteFunc(e.held, func(h *held) bool { return h.answered && now.After(h.until) })
}

func (h *held) same(ev *xenevents.Event) bool {
	if ev.Kind != h.event.Kind || ev.Regs.RIP != h.event.Regs.RIP || ev.Regs.CR3 != h.event.Regs.CR3 {
		return false
	}
	for n := range 16 {
		if *ev.Regs.GPR(n) != *h.event.Regs.GPR(n) {
			return false
		}
	}
	return true
}

// owed says whether a vCPU was let go and has not come back yet.
func (e *Events) owed() bool {
	e.giveUp()
	return slices.ContainsFunc(e.held, func(h *held) bool { return h.answered })
}

// letGo lets all run that are held, with the domain paused.
func (e *Events) letGo() error {
	var errs []error
	for _, h := range e.held {
		if !h.answered {
			errs = append(errs, e.dom.native.ReleaseVCPU(h.event.VCPU))
		}
	}
	e.held = nil
	return errors.Join(errs...)
}
