package probe

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/arch/x86/x86asm"

	"github.com/hprobe/hprobe/xenevents"
)

// Bounds on what is kept for returns, if Options do not say.
const (
	defaultCalls = 4096
	defaultSites = 1024
)

// site is an address that calls of probed functions return to. Its int3 is there
// while one of those calls is under way, and costs one byte written to come and go;
// the patch stays, so that a call of a known caller costs no page.
type site struct {
	patch *patch
	at    xenevents.GVA
	calls int      // that have not returned
	users []*probe // whose calls came from here
}

// enter notes a call of a function that is probed for its return. The vCPU waits
// at the entry meanwhile: no return is missed.
func (e *Engine) enter(h *Hit, p *patch) (err error) {
	var f frame
	var s *site
	for _, user := range slices.Backward(p.users) { // calls are found the youngest first
		if !user.Return || !user.sees(h) {
			continue
		}
		if user.failed != "" {
			user.lost++
			continue
		}
		first := s == nil
		to, e2 := h.returnAddress()
		if e2 == nil {
			s, e2 = e.siteAt(user, h.Space, xenevents.GVA(to))
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
				return c.slot > f.slot || c.slot == f.slot && c.site == s && c.user.patch != p && c.sameThread(&f)
			})
		}
		if e.calls.n >= e.calls.max {
			e.stats.Evicted++
			err = either(err, e.lose(e.calls.oldest))
		}
		e.calls.push(call{user: user, seq: user.hits, site: s, frame: f, since: e.tick, checked: e.tick})
	}
	if s == nil {
		return nil
	}
	return either(err, e.fit(s.patch))
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
	p := c.site.patch
	e.calls.drop(c)
	return e.fit(p)
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
		space := c.user.Space
		if !kernelHalf(c.slot) {
			space.Root = c.root
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
func (e *Engine) forget(user *probe) (err error) {
	for c := e.calls.oldest; c != nil; {
		newer := c.newer
		if c.user == user {
			err = either(err, e.lose(c))
		}
		c = newer
	}
	return err
}

// siteAt finds the site at an address or makes one.
func (e *Engine) siteAt(user *probe, space xenevents.AddressSpace, at xenevents.GVA) (*site, error) {
	if at == user.noSite {
		return nil, errNoSite
	}
	t, err := e.mem.Translate(space, at)
	if err != nil {
		return nil, err
	}
	if hidden, _ := e.set.Find(t.GPA.GFN(), t.GPA.Offset()); hidden != nil {
		if s := hidden.Owner.(*patch).site; s != nil {
			if !slices.Contains(s.users, user) {
				s.users = append(s.users, user)
			}
			return s, nil
		}
	}
	s, err := e.newSite(user, space, at, t.GPA)
	if err != nil {
		if !errors.Is(err, errFull) {
			user.noSite = at // and is not tried again at each hit
		}
		return nil, fmt.Errorf("to %v: %w", at, err)
	}
	return s, nil
}

var (
	errNoSite = errors.New("there can be no probe where it returns to")
	errFull   = errors.New("calls from too many places are under way")
)

func (e *Engine) newSite(user *probe, space xenevents.AddressSpace, at xenevents.GVA, where xenevents.GPA) (*site, error) {
	switch {
	case kernelHalf(at) != kernelHalf(user.At):
		return nil, fmt.Errorf("a return from %v", user.At)
	case !e.afterCall(space, at):
		return nil, errors.New("there is no call before it")
	}
	if err := e.roomForSite(); err != nil {
		return nil, err
	}
	// It may take a page, with the domain paused: others have their replies before.
	if err := e.events.Flush(); err != nil {
		return nil, err
	}
	p, err := e.patchAt(Request{At: at, Space: space}, where)
	if err != nil {
		return nil, err
	}
	p.site = &site{patch: p, at: at, users: []*probe{user}}
	e.sites = append(e.sites, p.site)
	return p.site, nil
}

// afterCall says whether a call instruction ends at an address. What is on a
// stack is the guest's word only: an int3 in the middle of an instruction would
// make another of it.
func (e *Engine) afterCall(space xenevents.AddressSpace, at xenevents.GVA) bool {
	const longest = 7
	var b [longest]byte
	code := b[:]
	if _, err := e.mem.ReadGVA(space, code, at-longest); err != nil {
		code = b[:min(at.Offset(), longest)]
		if _, err := e.mem.ReadGVA(space, code, at-xenevents.GVA(len(code))); err != nil {
			return false
		}
	}
	for n := 2; n <= len(code); n++ {
		if x, err := x86asm.Decode(code[len(code)-n:], 64); err == nil && x.Len == n && x.Op == x86asm.CALL {
			return true
		}
	}
	return false
}

// roomForSite gives a site up that no call needs, if there are too many.
func (e *Engine) roomForSite() error {
	if len(e.sites) < e.maxSites {
		return nil
	}
	for _, s := range e.sites {
		if s.calls == 0 && !e.pausedIn(s.patch) {
			return e.dropSite(s)
		}
	}
	return errFull
}

func (e *Engine) dropSite(s *site) error {
	e.sites = slices.DeleteFunc(e.sites, func(o *site) bool { return o == s })
	s.patch.site = nil
	return e.fit(s.patch)
}

// leaveSites takes a probe off the sites that its calls returned to, and gives up
// those that are no other's.
func (e *Engine) leaveSites(user *probe) (err error) {
	for _, s := range slices.Clone(e.sites) {
		if !slices.Contains(s.users, user) {
			continue
		}
		e.forgetPaused(s.patch)
		s.users = slices.DeleteFunc(s.users, func(u *probe) bool { return u == user })
		if len(s.users) > 0 {
			err = either(err, e.fit(s.patch))
			continue
		}
		err = either(err, e.dropSite(s))
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
		for _, user := range s.users {
			if !user.suspended {
				user.passed++
			}
		}
		return err
	}
	h.taken = true
	e.calls.onStack(&f, func(c *call) {
		if c.slot == f.slot {
			e.calls.drop(c)
		}
	})
	err = either(err, e.fit(s.patch))
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
