package probe

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/pagewatch"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// followed is what a probe has more that goes where its page goes.
type followed struct {
	watch *pagewatch.Watch
	moves uint64
	ended bool
	why   error // it is not armed
	// code is the instruction that was run as the probe's: from then on no other
	// one is taken for it.
	code    [shadow.MaxInsn]byte
	codeLen int
}

// loose is a patch in a frame that a probe's page has left. Other vCPUs may still
// run it there, by translations that they keep until the guest flushes them: the
// guest clears an entry first, often to write the same frame there again. So it
// stays until the frame is touched for another use, or for looseTime.
type loose struct {
	user  *probe
	patch *patch
	until time.Time
	ahead bool // the page has not been there yet: see prepare
}

const (
	looseTime = 50 * time.Millisecond
	maxLoose  = 4 * pagewatch.MaxWatches
)

// errNoFollow says that this host has no way to let a write of the guest happen and
// look at once what came of it.
var errNoFollow = &xenevents.UnsupportedError{Feature: "probes that follow their page", Need: "a CPU with the monitor trap flag"}

// addFollowed is add for a Request with Follow.
func (e *Engine) addFollowed(r Request) (ID, error) {
	if !e.fast {
		return 0, errNoFollow
	}
	f := &followed{}
	u := e.newProbe(r)
	u.follow = f
	var err error
	if f.watch, err = e.watchPage(u); err != nil {
		return 0, err
	}
	if _, err := f.watch.Where(); err == nil {
		if err := e.arm(u); err != nil {
			return 0, errors.Join(err, e.removeFollowed(u))
		}
	}
	e.lastID++
	u.id = e.lastID
	e.probes[u.id] = u
	return u.id, nil
}

// removeFollowed takes such a probe out.
func (e *Engine) removeFollowed(u *probe) error {
	err := e.pages.Remove(u.follow.watch)
	for _, p := range e.patchesOf(u) {
		e.forgetPaused(p)
	}
	e.dropLoose(func(l *loose) bool { return l.user == u })
	if p := u.patch; p != nil {
		u.patch = nil
		err = errors.Join(err, e.leave(p, u))
	}
	return err
}

// join puts a probe on a patch.
func (e *Engine) join(p *patch, u *probe) error {
	p.users = append(p.users, u)
	if u.site != nil {
		p.sites++
	}
	return e.fit(p)
}

// leave takes a probe off a patch, and the patch out with its last.
func (e *Engine) leave(p *patch, u *probe) error {
	n := len(p.users)
	p.users = slices.DeleteFunc(p.users, func(x *probe) bool { return x == u })
	if u.site != nil {
		p.sites -= n - len(p.users)
	}
	return e.fit(p)
}

// patchesOf are the patches that a probe is on: more than one while its page moves,
// none while there is no page.
func (e *Engine) patchesOf(u *probe) (all []*patch) {
	if u.patch != nil {
		all = append(all, u.patch)
	}
	for i := range e.loose {
		if e.loose[i].user == u {
			all = append(all, e.loose[i].patch)
		}
	}
	return all
}

// fitAll is fit for each patch that a probe is on.
func (e *Engine) fitAll(u *probe) (err error) {
	if u.watch != nil {
		return e.fitWatch(u)
	}
	if u.patch != nil { // not patchesOf: a call that returns must not allocate
		err = e.fit(u.patch)
	}
	for i := range e.loose {
		if l := &e.loose[i]; l.user == u {
			err = either(err, e.fit(l.patch))
		}
	}
	for _, m := range u.members {
		err = either(err, e.fitAll(m))
	}
	return err
}

// takes says whether a hit in the probe's process is at its address: the frame may
// be elsewhere there as well.
func (u *probe) takes(h *Hit) bool {
	f := u.follow
	if xenevents.GVA(h.Regs.RIP) != u.At {
		return false
	}
	if f.codeLen == 0 {
		hidden := h.patch.hidden
		f.code, f.codeLen = hidden.Original, hidden.Len
	}
	return true
}

// arm puts a probe where its page is now.
func (e *Engine) arm(u *probe) error {
	page, err := u.follow.watch.Where()
	if err != nil {
		return err
	}
	at := page + xenevents.GPA(u.At.Offset())
	u.follow.why = nil
	for i := range e.loose {
		if l := e.loose[i]; l.user == u && l.patch.hidden.At == at { // back where it was
			e.loose = slices.Delete(e.loose, i, i+1)
			u.patch = l.patch
			if l.ahead {
				u.follow.moves++
			}
			return nil
		}
	}
	p, err := e.patchOf(u, at)
	if err != nil {
		u.follow.why = err
		return err
	}
	u.follow.moves++
	u.patch = p
	return e.join(p, u)
}

func (e *Engine) patchOf(u *probe, at xenevents.GPA) (*patch, error) {
	f := u.follow
	if f.codeLen == 0 {
		return e.patchAt(u.Request, at)
	}
	if hidden, _ := e.set.Find(at.GFN(), at.Offset()); hidden != nil && !bytes.Equal(hidden.Original[:hidden.Len], f.code[:f.codeLen]) {
		return nil, fmt.Errorf("another probe is at %v, on another instruction", u.At)
	} else if hidden != nil {
		return e.patchAt(u.Request, at)
	}
	return e.newPatch(u.Request, at, f.code, f.codeLen)
}

// moved follows what became of watched pages.
func (e *Engine) moved(changes []pagewatch.Change) {
	for _, c := range changes {
		u := c.Watch.Owner.(*probe)
		e.loosen(u)
		switch c.Kind {
		case pagewatch.SpaceEnded:
			u.follow.ended = true
			e.dropLoose(func(l *loose) bool { return l.user == u })
			if u.lead != nil {
				u.lead.forgetMember(u)
			}
			if u.site != nil {
				if err := e.endSite(u.site); err != nil {
					e.log.Error("give up where calls of a process return to that has ended", "at", u.At, "err", err)
				}
			}
		case pagewatch.PageMapped, pagewatch.PageMoved:
			if c.Kind == pagewatch.PageMapped && !e.prepared(u) && !e.isStill(u) {
				continue
			}
			if err := e.arm(u); err != nil {
				e.log.Warn("a probe's page is there, and it can't be armed", "probe", u.Name, "at", u.At, "err", err)
			}
		}
	}
}

// loosen takes a probe from where it is, in a while.
func (e *Engine) loosen(u *probe) {
	if u.patch != nil {
		e.addLoose(loose{user: u, patch: u.patch})
		u.patch = nil
	}
}

func (e *Engine) addLoose(l loose) {
	if len(e.loose) >= maxLoose {
		first := e.loose[0]
		e.dropLoose(func(l *loose) bool { return *l == first })
	}
	l.until = time.Now().Add(looseTime)
	e.loose = append(e.loose, l)
}

// prepare puts a probe where its page is about to be. What goes wrong is found when it
// is there.
func (e *Engine) prepare(u *probe, page xenevents.GPA) {
	at := page + xenevents.GPA(u.At.Offset())
	is := func(p *patch) bool { return p != nil && p.hidden.At == at }
	if is(u.patch) || slices.ContainsFunc(e.loose, func(l loose) bool { return l.user == u && is(l.patch) }) {
		return
	}
	if u.patch == nil && !e.isStill(u) {
		return
	}
	p, err := e.patchOf(u, at)
	if err != nil {
		return
	}
	if err := e.join(p, u); err != nil {
		e.log.Error("arm a probe where its page is about to be", "probe", u.Name, "err", err)
	}
	e.addLoose(loose{user: u, patch: p, ahead: true})
}

// prepared says whether a probe is where its page was expected.
func (e *Engine) prepared(u *probe) bool {
	return slices.ContainsFunc(e.loose, func(l loose) bool { return l.user == u && l.ahead })
}

func (e *Engine) dropLoose(which func(*loose) bool) {
	e.loose = slices.DeleteFunc(e.loose, func(l loose) bool {
		if !which(&l) {
			return false
		}
		if err := e.leave(l.patch, l.user); err != nil {
			e.log.Error("take a patch out of a frame that its page has left", "probe", l.user.Name, "err", err)
		}
		return true
	})
}

// touched drops what is loose in a frame: it has another use now, and what stays
// there costs.
func (e *Engine) touched(gfn xenevents.GFN) {
	if len(e.loose) > 0 {
		e.dropLoose(func(l *loose) bool { return l.patch.hidden.At.GFN() == gfn })
	}
}

// restless says whether tend has something to do in a while.
func (e *Engine) restless() bool { return len(e.loose) > 0 || e.pages.Unsettled() }

// tend does what must be done between events.
func (e *Engine) tend() {
	if len(e.loose) > 0 {
		now := time.Now()
		e.dropLoose(func(l *loose) bool { return now.After(l.until) && !e.pausedIn(l.patch) })
	}
	if e.pages.Unsettled() {
		e.walked(e.pages.Recheck(e.changes[:0]))
	}
}

// walked takes what pagewatch found. An error is no reason to stop: a watch that
// could not be followed is looked at again.
func (e *Engine) walked(changes []pagewatch.Change, err error) {
	if err != nil {
		e.log.Error("follow the guest's page tables", "err", err)
	}
	e.changes = changes
	e.moved(changes)
}

// learn takes the guest's new code for a probe whose instruction was never run:
// what was there before, the zeroes of a fresh page perhaps, was none.
func (e *Engine) learn(gfn xenevents.GFN) {
	if e.pages.Len() == 0 {
		return
	}
	for _, hidden := range e.set.Displaced(gfn) {
		p := hidden.Owner.(*patch)
		if len(p.users) == 0 || slices.ContainsFunc(p.users, func(u *probe) bool { return u.follow == nil || u.follow.codeLen > 0 }) {
			continue
		}
		r := p.users[0].Request
		original, n, err := e.code(r.Space, r.At, hidden.At)
		if err != nil {
			continue
		}
		in, step, err := e.plan(r, hidden.At, original[:n])
		if err != nil {
			continue // half of it, perhaps: it is looked at again when the guest writes more
		}
		if err := e.set.Change(hidden, original, in.length); err != nil {
			e.log.Error("arm a probe on new code", "probe", r.Name, "at", r.At, "err", err)
			continue
		}
		p.insn, p.step = in, step
	}
}

func (u *probe) followStatus(s *Status) {
	f := u.follow
	s.Moves = f.moves
	switch {
	case f.ended:
		s.State, s.Detail = Ended, "its process has exited"
	case u.failed != "", u.suspended, u.patch != nil:
	default:
		s.State = Waiting
		if err := f.why; err != nil {
			s.Detail = err.Error()
		} else if _, err := f.watch.Where(); err != nil {
			s.Detail = err.Error()
		}
	}
}
