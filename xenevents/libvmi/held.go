//go:build libvmi

package libvmi

import (
	"fmt"
	"slices"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// held is an event whose reply comes later than those of others. LibVMI gives no other
// event before it has the reply to this one. So when another waits in the ring, this
// one gets the empty reply, with which the vCPU does again what it was stopped at: the
// event that comes of it is behind the others in the ring, and is this one again, which
// nobody is told of. Two that wait push each other round, and the guest's CPU time with
// them, until a verdict is there.
//
// In between an interrupt may come, and the guest's thread go on on another vCPU: so it
// is known by its registers. One that has its reply and never comes back (its thread
// was killed, say) is given up after a while.
type held struct {
	event    xenevents.Event
	reply    xenevents.Reply
	regs     xenevents.Registers // reply's
	answered bool
	until    time.Time // once it is answered
}

// heldFor is how long a reply waits for its event to come again.
const heldFor = time.Second

// turn is how long an event without a reply keeps LibVMI where another waits:
// that may be one that was set aside as well.
const turn = 50 * time.Microsecond

// setAside lets LibVMI go on to the next event: the one at hand has no reply yet.
func (e *Events) setAside() error {
	var ev xenevents.Event
	e.decode(&ev)
	h := e.again(&ev)
	switch {
	case h != nil: // once more
	case ev.Kind == xenevents.KindInt3 || ev.Kind == xenevents.KindMemAccess || ev.Kind == xenevents.KindCPUID:
		e.held = append(e.held, &held{event: ev})
	default: // it is over, and can't be done again
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("a reply to a %v event after others' by LibVMI", ev.Kind), Need: "--driver native"}
	}
	e.answer(&ev, &xenevents.Reply{})
	return nil
}

// aside returns an event that was set aside and has no reply yet, or nil. A vCPU may have
// several, of threads that went on elsewhere.
func (e *Events) aside(ev *xenevents.Event) *held {
	for _, h := range e.held {
		if h.event.Cookie == ev.Cookie && !h.answered {
			return h
		}
	}
	return nil
}

// decide takes the reply to an event that was set aside.
func (e *Events) decide(h *held, r *xenevents.Reply) {
	h.answered, h.reply, h.until = true, *r, time.Now().Add(heldFor)
	if r.Regs != nil {
		h.regs = *r.Regs
		h.reply.Regs = &h.regs
	}
	if e.open && !e.ahead { // it may be the one that LibVMI waits for
		var ev xenevents.Event
		e.decode(&ev)
		if e.again(&ev) == h {
			e.answer(&ev, &h.reply)
			e.forget(h)
			return
		}
	}
	if h.reply == (xenevents.Reply{}) { // it is tried again, and that is all
		e.forget(h)
	}
}

func (e *Events) forget(h *held) {
	e.held = slices.DeleteFunc(e.held, func(other *held) bool { return other == h })
}

// again returns what was set aside, if this is its event again. What has its reply is
// forgotten by that.
func (e *Events) again(ev *xenevents.Event) *held {
	if len(e.held) == 0 {
		return nil
	}
	e.giveUp()
	for _, h := range e.held {
		if h.same(ev) {
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

// owed says whether a reply waits for its event to come again.
func (e *Events) owed() bool {
	e.giveUp()
	return slices.ContainsFunc(e.held, func(h *held) bool { return h.answered })
}
