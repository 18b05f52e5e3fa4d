package probe

import (
	"context"
	"errors"
	"maps"

	"github.com/hprobe/hprobe/xenevents"
)

// pausedAt is a thread that will run its int3 again. The stack pointer tells it
// from others: it may go on on another vCPU. root is of the address space; 0 in the
// kernel's half.
type pausedAt struct {
	rip, rsp uint64
	root     xenevents.GPA
}

func pausedAtHit(h *Hit) pausedAt {
	at := pausedAt{rip: h.Regs.RIP, rsp: h.Regs.RSP}
	if !kernelHalf(xenevents.GVA(at.rip)) {
		at.root = h.Space.Root
	}
	return at
}

// held is what becomes of it then: what was decided, and where a denied call returns
// to, if somebody asked. The int3 stays meanwhile, though nobody else may need it: the
// probe may be suspended, and the call that ended there is not under way any more.
type held struct {
	patch   *patch
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
func (e *Engine) pause(ev *xenevents.Event, p *patch, h *Hit) error {
	var errs error
	if len(e.paused) >= maxPaused { // threads that never came back
		errs = e.forgetAllPaused()
	}
	k := held{patch: p, verdict: h.verdict, to: h.to, toErr: h.toErr, toRead: h.toRead}
	if k.verdict.Regs != nil {
		regs := *k.verdict.Regs
		k.verdict.Regs = &regs
	}
	e.paused[pausedAtHit(h)] = k
	return errors.Join(errs, e.fit(p), e.hold(ev), e.reply(ev, e.newReply()))
}

// hold pauses the domain, but once: two vCPUs may hit at a time.
func (e *Engine) hold(ev *xenevents.Event) error {
	info, err := e.dom.Info(context.Background())
	if err != nil || info.Paused {
		return err
	}
	if e.held { // somebody undid the last one: see resumes
		if err := e.dom.Unpause(); err != nil {
			e.log.Debug("the domain went on", "err", err)
		}
	}
	e.log.Warn("a probe pauses the domain: xl unpause has it go on", "vcpu", ev.VCPU, "at", xenevents.GVA(ev.Regs.RIP))
	e.held = true
	return e.dom.Pause()
}

// pausedIn says whether a hit of a patch has the domain paused, and runs again.
func (e *Engine) pausedIn(p *patch) bool {
	for _, k := range e.paused {
		if k.patch == p {
			return true
		}
	}
	return false
}

// forgetPaused lets the hits of a patch that paused be new ones: whoever decided there
// is gone.
func (e *Engine) forgetPaused(p *patch) {
	maps.DeleteFunc(e.paused, func(_ pausedAt, k held) bool { return k.patch == p })
}

func (e *Engine) forgetAllPaused() (err error) {
	were := maps.Clone(e.paused)
	clear(e.paused)
	for _, k := range were {
		err = either(err, e.fit(k.patch))
	}
	return err
}

// resumes says whether a hit is one that paused the domain and runs again; then it
// has the verdict of that time.
func (e *Engine) resumes(h *Hit) bool {
	if len(e.paused) == 0 {
		return false
	}
	at := pausedAtHit(h)
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
