package probe

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
)

// Member is a place of a probe with Request.Many: an address of one process, that is
// followed as with Request.Follow. It is gone when the process ends.
type Member struct {
	At    xenevents.GVA
	Space xenevents.AddressSpace
	// Code is the instruction that must be there, with what follows it: the
	// program's own. On any other the probe is not armed. nil: on what is run there
	// first.
	Code []byte
	// Still says whether the address is what it was: it is asked when the page is to
	// be there again after it was not, on the engine's goroutine, in the middle of an
	// event. If it is not the member goes. nil: it always is.
	Still func() bool
}

// Members is how processes join probes with Request.Many, and what they are. It
// belongs to the engine's goroutine: use it in Do, and in a probe's Decide and Gap.
type Members struct{ e *Engine }

// Members returns the handle.
func (e *Engine) Members() Members { return Members{e} }

// ErrNoProbe says that there is no probe of that ID which processes may join.
var ErrNoProbe = errors.New("no such probe")

// Join adds a place to a probe. One that it has already is left as it is. The error
// matches pagewatch.ErrTooMany where the guest has no room for more, ErrEnded where
// the process has ended.
func (m Members) Join(id ID, one Member) error {
	lead := m.e.probes[id]
	if lead == nil || !lead.Many {
		return fmt.Errorf("%w: %d", ErrNoProbe, id)
	}
	for _, u := range lead.members {
		if u.At == one.At && (u.Space == one.Space || u.spaces.hold(one.Space)) {
			return nil
		}
	}
	if err := m.e.join1(lead, one); err != nil {
		lead.missed++
		lead.missedWhy = err.Error()
		return fmt.Errorf("probe %q: at %v: %w", lead.Name, one.At, err)
	}
	return nil
}

// Miss counts a place that a probe should have and has not, for another reason.
func (m Members) Miss(id ID, why error) {
	if lead := m.e.probes[id]; lead != nil {
		lead.missed++
		lead.missedWhy = why.Error()
	}
}

// In are a probe's places in a process.
func (m Members) In(id ID, space xenevents.AddressSpace) (all []Member) {
	lead := m.e.probes[id]
	if lead == nil {
		return nil
	}
	for _, u := range lead.members {
		if u.Space == space || u.spaces.hold(space) {
			one := Member{At: u.At, Space: u.Space, Still: u.still}
			if u.expected != nil {
				one.Code = u.expected
			}
			all = append(all, one)
		}
	}
	return all
}

// Leave takes a probe's places in a process away: nothing of it will run any more.
func (m Members) Leave(id ID, space xenevents.AddressSpace) (err error) {
	lead := m.e.probes[id]
	if lead == nil {
		return nil
	}
	for _, u := range slices.Clone(lead.members) {
		if u.Space == space || u.spaces.hold(space) {
			err = either(err, m.e.part1(u))
		}
	}
	return err
}

// Exits is told that a process ends: nothing that returns there is waited for.
func (m Members) Exits(space xenevents.AddressSpace) error { return m.e.leaveSitesIn(space) }

// addMany is add for a Request with Many.
func (e *Engine) addMany(r Request) (ID, error) {
	if !e.fast {
		return 0, errNoFollow
	}
	e.lastID++
	u := &probe{Request: r, id: e.lastID, budget: r.Budget.or(e.each)}
	e.probes[u.id] = u
	return u.id, nil
}

// join1 makes a member.
func (e *Engine) join1(lead *probe, one Member) error {
	r := Request{Name: lead.Name, At: one.At, Space: one.Space, Step: lead.Step, Follow: true}
	f := &followed{}
	if one.Code != nil {
		n := copy(f.code[:], one.Code)
		in, _, err := e.plan(r, xenevents.GPA(one.At.Offset()), f.code[:n])
		if err != nil {
			return err
		}
		f.codeLen = in.length
	}
	u := e.newProbe(r)
	u.lead, u.follow, u.still, u.expected = lead, f, one.Still, one.Code
	var err error
	if f.watch, err = e.watchPage(u); err != nil {
		return err
	}
	lead.members = append(lead.members, u)
	if _, err := f.watch.Where(); err == nil {
		if err := e.arm(u); err != nil {
			return errors.Join(err, e.part1(u))
		}
	}
	return nil
}

// part1 takes a member out.
func (e *Engine) part1(u *probe) error {
	u.lead.forgetMember(u)
	return e.removeFollowed(u)
}

func (u *probe) forgetMember(m *probe) {
	u.members = slices.DeleteFunc(u.members, func(x *probe) bool { return x == m })
}

// removeMany takes all members out.
func (e *Engine) removeMany(lead *probe) (err error) {
	for _, u := range slices.Clone(lead.members) {
		err = either(err, e.part1(u))
	}
	return err
}

// head is who is told of a probe's hits, and has the bill: of a member, the probe
// that it is one of.
func (u *probe) head() *probe {
	if u.lead != nil {
		return u.lead
	}
	return u
}

// isStill says whether a probe's place is the one that it is to be at. A member whose
// place has become something else goes.
func (e *Engine) isStill(u *probe) bool {
	if u.still == nil || u.still() {
		return true
	}
	if err := e.part1(u); err != nil {
		e.log.Error("leave a process whose program is not mapped there any more", "probe", u.Name, "at", u.At, "err", err)
	}
	return false
}

// passedBy counts a hit for the probes at a patch that it was none of: once, however
// many members are there.
func (e *Engine) passedBy(p *patch) {
	var last *probe
	for _, user := range p.users {
		head := user.head()
		if head == last || user.site != nil { // a library has many users
			continue
		}
		if head.took == e.hitNo || head.let == e.hitNo {
			last = head
			continue
		}
		if head.suspended || user.patch != p { // or loose there
			continue
		}
		head.let = e.hitNo
		head.passed++
	}
}

// membersStatus is the state of a probe with Many: that of the members who are best
// off.
func (u *probe) membersStatus(s *Status) {
	s.Members, s.Missed, s.MissedWhy = len(u.members), u.missed, u.missedWhy
	displaced := 0
	for _, m := range u.members {
		s.Moves += m.follow.moves
		s.At = cmp.Or(s.At, m.At)
		switch {
		case m.patch == nil:
		case m.patch.hidden.Displaced:
			displaced++
		default:
			s.Armed++
		}
		if m.patch != nil && (s.Insn == "" || !m.patch.hidden.Displaced) {
			s.Step, s.Insn = m.patch.step, m.patch.insn.text
		}
	}
	switch {
	case s.State == Failed, s.State == Suspended, s.Armed > 0:
	case displaced > 0:
		s.State, s.Detail = Displaced, "the guest has other bytes there"
	default:
		s.State = Waiting
		if s.Detail = "no process has it mapped"; len(u.members) > 0 {
			s.Detail = "no process has touched its page"
		}
	}
}
