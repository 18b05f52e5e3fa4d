package probe

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
)

// defaultCalls bounds the calls that are kept, if Options do not say.
const defaultCalls = 4096

// enter notes a call of a function that is probed for its return. The vCPU waits
// at the entry meanwhile: no return is missed.
func (e *Engine) enter(h *Hit, p *patch) (err error) {
	var f frame
	var s *site
	for _, at := range slices.Backward(p.users) { // calls are found the youngest first
		user := at.head()
		if at.site != nil || !user.Return || !at.sees(h) {
			continue
		}
		if user.failed != "" {
			user.lost++
			continue
		}
		first := s == nil
		to, e2 := h.returnAddress()
		if e2 == nil {
			s, e2 = e.siteAt(user, h, xenevents.GVA(to))
		}
		if e2 != nil {
			e.missed(user, e2)
			continue
		}
		if first {
			f = frameOf(h, h.Regs.RSP)
			f.ask(user, h)
			err = e.clearStack(&f, func(c *call) bool {
				// At its very place only a function that jumped to this one can
				// still be under way.
				return c.slot > f.slot || c.slot == f.slot && c.site == s && c.entry != h.Regs.RIP && c.sameThread(&f)
			})
		}
		if e.calls.n >= e.calls.max {
			e.stats.Evicted++
			err = either(err, e.lose(e.calls.oldest))
		}
		e.calls.push(call{user: user, entry: h.Regs.RIP, seq: user.hits, site: s, frame: f, since: e.tick, checked: e.tick})
	}
	if s == nil {
		return nil
	}
	return either(err, e.fitAll(s.probe))
}

// ask has a probe say which thread runs.
func (f *frame) ask(user *probe, h *Hit) {
	if user.Thread == nil {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			user.Thread = nil
			user.failed = fmt.Sprintf("panic: %v", r)
			h.engine.log.Error("a probe that was asked for the thread panicked: it is not asked again", "probe", user.Name, "panic", r)
		}
	}()
	if id, ok := user.Thread(h); ok {
		f.thread = id
	}
}

// either is errors.Join for where it must cost nothing.
func either(a, b error) error {
	if a != nil {
		return a
	}
	return b
}

// missed counts a call whose return won't be seen, and tells of the first.
func (e *Engine) missed(user *probe, err error) {
	user.lost++
	if !user.told {
		user.told = true
		e.log.Warn("a return can't be seen; those that follow are only counted", "probe", user.Name, "err", err)
	}
}

// clearStack drops the calls on a page of a stack that are under way no more: a
// longjmp or the end of the thread took them.
func (e *Engine) clearStack(f *frame, lives func(*call) bool) (err error) {
	e.calls.onStack(f, func(c *call) {
		if lives(c) {
			return
		}
		e.stats.StaleCalls++
		err = either(err, e.lose(c))
	})
	return err
}

// lose drops a call whose return was not seen.
func (e *Engine) lose(c *call) error {
	c.user.lost++
	s := c.site
	e.calls.drop(c)
	return e.fitAll(s.probe)
}

// swept is how many calls are looked at at a time.
const swept = 64

// sweep looks at calls that have been under way for long, and drops those whose
// stack is gone: threads of a process that was killed. It is done now and then,
// while there are hits.
func (e *Engine) sweep(now uint64) error {
	for range swept {
		c := e.calls.oldest
		if c == nil || since(now, c.checked) < e.window {
			return nil
		}
		space := c.space
		if kernelHalf(c.slot) {
			space = c.user.Space
		}
		if _, err := e.mem.Translate(space, c.slot); !errors.Is(err, xenevents.ErrNotMapped) {
			e.calls.renew(c, now)
			continue
		}
		e.stats.StaleCalls++
		if err := e.lose(c); err != nil {
			return err
		}
	}
	return nil
}

// forget drops all calls of a probe.
func (e *Engine) forget(user *probe) error {
	return e.loseAll(func(c *call) bool { return c.user == user })
}

func (e *Engine) loseAll(which func(*call) bool) (err error) {
	for c := e.calls.oldest; c != nil; {
		newer := c.newer
		if which(c) {
			err = either(err, e.lose(c))
		}
		c = newer
	}
	return err
}

// returned looks for the calls that end with a hit at a site. Others come by
// there as well: other threads, outer calls of a recursion, other functions that
// are called from there through a pointer.
func (e *Engine) returned(h *Hit, s *site) error {
	f := frameOf(h, h.Regs.RSP-8)
	asked := false
	back := e.now.back[:0]
	err := e.clearStack(&f, func(c *call) bool {
		if c.slot > f.slot {
			return true
		}
		if c.slot < f.slot || c.site != s {
			return false
		}
		if !asked {
			asked = true
			f.ask(c.user, h)
		}
		if !c.sameThread(&f) {
			return false
		}
		back = append(back, *c)
		return true
	})
	e.now.back = back
	if len(back) == 0 {
		s.passed()
		return err
	}
	h.taken = true
	e.calls.onStack(&f, func(c *call) {
		if c.slot == f.slot {
			e.calls.drop(c)
		}
	})
	err = either(err, e.fitAll(s.probe))
	for i := range back {
		c := &back[i]
		c.user.returns++
		if c.user.Decide == nil || c.user.failed != "" {
			continue
		}
		h.Probe, h.Seq, h.Return, h.Took = c.user.id, c.seq, true, since(e.tick, c.since)
		h.heed(c.user, e.decide(c.user, h))
	}
	h.Return, h.Took = false, 0
	return err
}
