package probe

import (
	"context"
	"errors"
	"maps"

	"github.com/hprobe/hprobe/xenevents"
)

// pausedAt is a thread that will run its int3 again. The stack pointer tells it
// from others: it may go on on another vCPU.
type pausedAt struct{ rip, rsp uint64 }

// held is what becomes of it then: what was decided, and where a denied call returns
// to, if somebody asked.
type held struct {
	verdict Verdict
	to      uint64
	toErr   error
	toRead  bool
}

// maxPaused bounds how many threads are remembered: each other vCPU may be at a hit.
const maxPaused = 1024

// pause holds the domain at a hit. The reply is plain: the vCPU runs the int3 again
// when the domain goes on, and its verdict is carried out then. A reply that Xen keeps
// until the vCPU runs would be lost, and the guest with it, where the copies are
// taken away meanwhile (xenevents.Settler).
func (e *Engine) pause(ev *xenevents.Event, h *Hit) error {
	if len(e.paused) >= maxPaused { // threads that never came back
		clear(e.paused)
	}
	k := held{verdict: h.verdict, to: h.to, toErr: h.toErr, toRead: h.toRead}
	if k.verdict.Regs != nil {
		regs := *k.verdict.Regs
		k.verdict.Regs = &regs
	}
	e.paused[pausedAt{ev.Regs.RIP, ev.Regs.RSP}] = k
	err := e.hold(ev)
	return errors.Join(err, e.reply(ev, e.newReply()))
}

// hold pauses the domain, but once: two vCPUs may hit at a time.
func (e *Engine) hold(ev *xenevents.Event) error {
	info, err := e.dom.Info(context.Background())
	if err != nil || info.Paused {
		return err
	}
	e.log.Warn("a probe pauses the domain: xl unpause has it go on", "vcpu", ev.VCPU, "at", xenevents.GVA(ev.Regs.RIP))
	e.held = true
	return e.dom.Pause()
}

// forget lets the hits that paused at an address be new ones: whoever decided there is
// gone.
func (e *Engine) forget(at xenevents.GVA) {
	maps.DeleteFunc(e.paused, func(p pausedAt, _ held) bool { return p.rip == uint64(at) })
}

// resumes says whether a hit is one that paused the domain and runs again; then it
// has the verdict of that time.
func (e *Engine) resumes(ev *xenevents.Event, h *Hit) bool {
	if len(e.paused) == 0 {
		return false
	}
	at := pausedAt{ev.Regs.RIP, ev.Regs.RSP}
	k, ok := e.paused[at]
	if !ok {
		return false
	}
	delete(e.paused, at)
	h.verdict, h.to, h.toErr, h.toRead = k.verdict, k.to, k.toErr, k.toRead
	if e.held {
		// Somebody undid our pause: the driver must not do it again at its end.
		// Xen refuses, as nothing is paused.
		e.held = false
		if err := e.dom.Unpause(); err != nil {
			e.log.Debug("the domain goes on", "err", err)
		}
	}
	return true
}
