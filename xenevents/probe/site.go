package probe

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/pagewatch"
)

// site is an address that calls of probed functions return to. Its int3 is there
// while one of those calls is under way, and costs one byte written to come and go;
// the patch stays, so that a call of a known caller costs no page.
type site struct {
	// probe stands for the site on its patch. In a process it follows its page.
	probe *probe
	calls int      // that have not returned
	users []*probe // whose calls came from here
}

// defaultSites bounds the sites, if Options do not say. Those in processes are no more
// than maxFollowedSites: each takes one of the watches that probes need, too.
const (
	defaultSites     = 1024
	maxFollowedSites = pagewatch.MaxWatches / 4
)

var (
	errNoSite = errors.New("there can be no probe where it returns to")
	errFull   = errors.New("calls from too many places are under way")
)

// place is an address of a process, or of the kernel's half, which all have: root is
// 0 there.
type place struct {
	at   xenevents.GVA
	root xenevents.GPA
}

func placeIn(space xenevents.AddressSpace, at xenevents.GVA) place {
	if kernelHalf(at) {
		return place{at: at}
	}
	return place{at, space.Root}
}

// siteAt finds the site that a call returns to or makes one.
func (e *Engine) siteAt(user *probe, h *Hit, at xenevents.GVA) (*site, error) {
	where := placeIn(h.Space, at)
	if where == user.noSite {
		return nil, errNoSite
	}
	t, err := e.mem.Translate(h.Space, at)
	if err != nil {
		return nil, err
	}
	if hidden, _ := e.set.Find(t.GPA.GFN(), t.GPA.Offset()); hidden != nil {
		for _, u := range hidden.Owner.(*patch).users {
			if u.site == nil || u.follow != nil && (u.At != at || !u.spaces.hold(h.Space)) {
				continue
			}
			if !slices.Contains(u.site.users, user) {
				u.site.users = append(u.site.users, user)
			}
			return u.site, nil
		}
	}
	s, err := e.newSite(user, h, at, t.GPA)
	if err != nil {
		if !errors.Is(err, errFull) && !errors.Is(err, errUnread) {
			user.noSite = where // and is not tried again at each hit
		}
		return nil, fmt.Errorf("to %v: %w", at, err)
	}
	return s, nil
}

func (e *Engine) newSite(user *probe, h *Hit, at xenevents.GVA, where xenevents.GPA) (*site, error) {
	follow := !kernelHalf(at)
	switch {
	case follow == kernelHalf(xenevents.GVA(h.Regs.RIP)):
		return nil, fmt.Errorf("a return from %v", xenevents.GVA(h.Regs.RIP))
	case !e.afterCall(h.Space, at):
		return nil, errors.New("there is no call before it")
	case follow && !e.fast:
		return nil, errNoFollow
	}
	if follow {
		if err := e.begins(h.Space, at); err != nil {
			return nil, err
		}
	}
	if err := e.roomForSite(follow); err != nil {
		return nil, err
	}
	// It may take a page, with the domain paused: others have their replies before.
	if err := e.events.Flush(); err != nil {
		return nil, err
	}
	s := &site{users: []*probe{user}}
	r := Request{Name: user.Name, At: at, Space: h.Space, Follow: follow}
	u := &probe{Request: r, site: s}
	s.probe = u
	if err := e.armSite(u, where); err != nil {
		return nil, err
	}
	e.sites = append(e.sites, s)
	return s, nil
}

// armSite puts what stands for a site on a patch, and has it follow its page.
func (e *Engine) armSite(u *probe, where xenevents.GPA) error {
	u.spaces = e.spacesOf(&u.Request)
	if !u.Follow {
		p, err := e.patchAt(u.Request, where)
		if err != nil {
			return err
		}
		u.patch = p
		if err := e.join(p, u); err != nil {
			return errors.Join(err, e.leave(p, u))
		}
		return nil
	}
	f := &followed{}
	u.follow = f
	// Nothing but this instruction is taken for it, wherever its page goes.
	original, n, err := e.code(u.Space, u.At, where)
	if err != nil {
		return err
	}
	in, _, err := e.plan(u.Request, where, original[:n])
	if err != nil {
		return err
	}
	f.code, f.codeLen = original, in.length
	if f.watch, err = e.watchPage(u); err != nil {
		return err
	}
	if err := e.arm(u); err != nil {
		return errors.Join(err, e.removeFollowed(u))
	}
	return nil
}

// watchPage has a probe's page followed. A site that no call needs makes room for it.
func (e *Engine) watchPage(u *probe) (*pagewatch.Watch, error) {
	w, err := e.pages.Add(u.spaces.user, u.At, u)
	if !errors.Is(err, pagewatch.ErrTooMany) {
		return w, err
	}
	if err := e.giveUpSite(true); err != nil {
		return nil, errors.Join(pagewatch.ErrTooMany, err)
	}
	return e.pages.Add(u.spaces.user, u.At, u)
}

// passed counts a hit at a site that ended none of its calls.
func (s *site) passed() {
	for _, user := range s.users {
		if !user.suspended {
			user.passed++
		}
	}
}

// roomForSite gives a site up that no call needs, if there are too many.
func (e *Engine) roomForSite(followed bool) error {
	if followed && e.followedSites() >= min(maxFollowedSites, e.maxSites) {
		return e.giveUpSite(true)
	}
	if len(e.sites) >= e.maxSites {
		return e.giveUpSite(false)
	}
	return nil
}

func (e *Engine) followedSites() (n int) {
	for _, s := range e.sites {
		if s.probe.follow != nil {
			n++
		}
	}
	return n
}

// giveUpSite gives up the oldest site that no call needs, of those in processes alone
// if followed.
func (e *Engine) giveUpSite(followed bool) error {
	for _, s := range e.sites {
		if s.calls == 0 && (s.probe.follow != nil || !followed) && !slices.ContainsFunc(e.patchesOf(s.probe), e.pausedIn) {
			return e.dropSite(s)
		}
	}
	return errFull
}

// dropSite gives a site up. No call returns to it.
func (e *Engine) dropSite(s *site) error {
	e.sites = slices.DeleteFunc(e.sites, func(o *site) bool { return o == s })
	u := s.probe
	if u.follow != nil {
		return e.removeFollowed(u)
	}
	p := u.patch
	u.patch = nil
	return e.leave(p, u)
}

// endSite gives a site up with the calls that would return to it.
func (e *Engine) endSite(s *site) error {
	err := e.loseAll(func(c *call) bool { return c.site == s })
	for _, p := range e.patchesOf(s.probe) {
		e.forgetPaused(p)
	}
	return either(err, e.dropSite(s))
}

// leaveSites takes a probe off the sites that its calls returned to, and gives up
// those that are no other's.
func (e *Engine) leaveSites(user *probe) (err error) {
	for _, s := range slices.Clone(e.sites) {
		if !slices.Contains(s.users, user) {
			continue
		}
		s.users = slices.DeleteFunc(s.users, func(u *probe) bool { return u == user })
		if len(s.users) == 0 {
			err = either(err, e.endSite(s))
			continue
		}
		for _, p := range e.patchesOf(s.probe) {
			e.forgetPaused(p)
		}
		err = either(err, e.fitAll(s.probe))
	}
	return err
}

// leaveSitesIn gives up the sites of a process that ends.
func (e *Engine) leaveSitesIn(space xenevents.AddressSpace) (err error) {
	for _, s := range slices.Clone(e.sites) {
		if u := s.probe; u.follow != nil && (u.Space == space || u.spaces.hold(space)) {
			err = either(err, e.endSite(s))
		}
	}
	return err
}
