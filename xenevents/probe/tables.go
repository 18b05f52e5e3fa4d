package probe

import (
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/pagewatch"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// tableFault is the guest at a page table that is protected. A write is run in
// view 0, with an event at its end: then the probes follow, and the vCPU goes on.
func (e *Engine) tableFault(ev *xenevents.Event) error {
	switch {
	case ev.Fault&xenevents.FaultInGPT != 0:
		return e.pageWalk(ev)
	case ev.Access&xenevents.AccessW == 0: // it runs a page table, and may
		return e.stepWith(ev, FastStep, nil, nil)
	}
	e.stats.TableWrites++
	var b [shadow.MaxInsn]byte
	n, _ := e.mem.ReadGVA(xenevents.AddressSpaceOf(&ev.Regs), b[:], xenevents.GVA(ev.Regs.RIP))
	if e.elsewhere(ev, b[:n]) {
		return e.stepWith(ev, FastStep, nil, nil)
	}
	e.expect(ev, b[:n])
	return e.stepWrite(ev)
}

// elsewhere says whether a write to a table surely leaves alone what is watched: most
// are of other pages of the process, and need no event at their end.
func (e *Engine) elsewhere(ev *xenevents.Event, code []byte) bool {
	const widest = 8
	at := ev.GFN.GPA() + xenevents.GPA(ev.Offset)
	return at.Offset()+widest <= xenevents.PageSize && !e.pages.Touches(at, widest) && storesWord(code)
}

// expect arms probes in the frame that their page is about to be in: between the
// write and its end another vCPU may run it there already.
func (e *Engine) expect(ev *xenevents.Event, code []byte) {
	value, ok := stored(code, &ev.Regs)
	if !ok {
		return
	}
	e.pages.Expected(ev.GFN.GPA()+xenevents.GPA(ev.Offset), value, func(w *pagewatch.Watch, page xenevents.GPA) {
		e.prepare(w.Owner.(*probe), page)
	})
}

// pageWalk is the processor's own walk, which writes accessed and dirty bits. Of
// an accessed bit that is missing it is sure that the walk sets it: it is set
// here, and the walk finds nothing to write when it is tried again. That takes one
// event, no view switch, and no moment in which other writes go unseen.
func (e *Engine) pageWalk(ev *xenevents.Event) error {
	if swap, ok := e.dom.(xenevents.Swapper); ok && e.setAccessed(ev, swap) {
		e.stats.AccessedBits++
		return e.reply(ev, e.newReply())
	}
	e.stats.OtherWalks++
	return e.stepWrite(ev)
}

func (e *Engine) setAccessed(ev *xenevents.Event, swap xenevents.Swapper) bool {
	at := ev.GFN.GPA() + xenevents.GPA(ev.Offset&^7)
	old, err := e.mem.ReadUint64(xenevents.AddressSpace{Mode: xenevents.PagingNone}, xenevents.GVA(at))
	if err != nil {
		return false
	}
	v, missing := pagewatch.Accessed(xenevents.AddressSpaceOf(&ev.Regs).Mode, old)
	if !missing {
		return false
	}
	done, err := swap.CompareAndSwap64(at, old, v)
	return done && err == nil
}

// stepWrite runs one instruction that writes in view 0, with an event at its end.
func (e *Engine) stepWrite(ev *xenevents.Event) error {
	r := e.newReply()
	e.begin(ev, r, step{
		refresh: true, gfn: ev.GFN, at: ev.GLA, atValid: ev.Fault&xenevents.FaultGLAValid != 0,
		walk: ev.Fault&xenevents.FaultInGPT != 0,
	})
	return e.reply(ev, r)
}

// written has everything follow a write to a frame.
func (e *Engine) written(gfn xenevents.GFN) error {
	var err error
	if e.set.Holds(gfn) {
		err = e.refresh(gfn)
	}
	if e.set.Protected(gfn) {
		e.walked(e.pages.Written(gfn, e.changes[:0]))
	}
	return err
}

// maxUnread bounds how often an int3 is tried again that can't be read.
const maxUnread = 10_000

// unread says whether an int3 that can't be read is the guest's own. Where pages
// are followed it may be of a patch: the vCPU ran it by a translation that it
// keeps, while another one takes the page away. Tried again, it runs until the
// guest flushes that, and then faults as it should.
func (e *Engine) unread(ev *xenevents.Event) bool {
	if e.pages.Len() == 0 && len(e.loose) == 0 {
		// Were it ours, we would know. An int3 that is not tried again would be lost.
		return true
	}
	s := e.stepOf(ev.VCPU)
	if s.unreadAt != ev.Regs.RIP {
		s.unreadAt, s.unread = ev.Regs.RIP, 0
	}
	s.unread++
	return s.unread > maxUnread
}
