package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// Add puts a probe into the running guest. The error says why it can't be
// there: ErrNotMapped where the address space has nothing at that address.
func (e *Engine) Add(ctx context.Context, r Request) (ID, error) {
	var id ID
	err := e.call(ctx, func() (err error) {
		id, err = e.add(r)
		return err
	})
	return id, err
}

// AddAll is Add for some probes at once: all of them, or none. Each command waits for
// its turn; vCPUs with an event wait for all of these.
func (e *Engine) AddAll(ctx context.Context, all []Request) (ids []ID, err error) {
	err = e.call(ctx, func() error {
		for i := range all {
			id, err := e.add(all[i])
			if err == nil {
				ids = append(ids, id)
				continue
			}
			for _, id := range ids {
				err = errors.Join(err, e.remove(id))
			}
			ids = nil
			return err
		}
		return nil
	})
	return ids, err
}

func (e *Engine) add(r Request) (ID, error) {
	if r.Follow || r.Placed || r.Many {
		add := e.addFollowed
		switch {
		case r.Placed:
			add = e.addPlaced
		case r.Many:
			add = e.addMany
		}
		id, err := add(r)
		if err != nil {
			err = fmt.Errorf("probe %q: %w", r.Name, err)
		}
		return id, err
	}
	t, err := e.mem.Translate(r.Space, r.At)
	if err != nil {
		return 0, fmt.Errorf("probe %q: %w", r.Name, err)
	}
	p, err := e.patchAt(r, t.GPA)
	if err != nil {
		return 0, fmt.Errorf("probe %q: %w", r.Name, err)
	}
	e.lastID++
	user := e.newProbe(r)
	user.id, user.patch = e.lastID, p
	p.users = append(p.users, user)
	if err := e.fit(p); err != nil {
		p.users = p.users[:len(p.users)-1]
		return 0, fmt.Errorf("probe %q: %w", r.Name, errors.Join(err, e.fit(p)))
	}
	e.probes[user.id] = user
	return user.id, nil
}

func (e *Engine) newProbe(r Request) *probe {
	return &probe{Request: r, spaces: e.spacesOf(&r), budget: r.Budget.or(e.each)}
}

// fit has the int3 of a patch in place where somebody needs it, and takes the
// patch away where nobody does any more.
func (e *Engine) fit(p *patch) error {
	if len(p.users) == 0 {
		e.forgetPaused(p)
		return e.set.Remove(p.hidden)
	}
	needed := e.pausedIn(p)
	for _, user := range p.users {
		needed = needed || user.needed()
	}
	if needed != p.hidden.Withdrawn {
		return nil
	}
	return e.set.Withdraw(p.hidden, !needed)
}

// needed says whether a probe needs its int3 now.
func (u *probe) needed() bool {
	if u.site != nil {
		return u.site.calls > 0
	}
	return !u.head().suspended
}

// patchAt finds the patch at an address or makes one.
func (e *Engine) patchAt(r Request, at xenevents.GPA) (*patch, error) {
	if hidden, _ := e.set.Find(at.GFN(), at.Offset()); hidden != nil {
		p := hidden.Owner.(*patch)
		if r.Step == Auto || r.Step == p.step {
			return p, nil
		}
		if slices.ContainsFunc(p.users, func(u *probe) bool { return u.site == nil }) {
			return nil, fmt.Errorf("another probe is at %v and steps over it by %v", r.At, p.step)
		}
		step, err := e.chooseStep(r.Step, p.insn) // to returns all ways are as good
		if err != nil {
			return nil, fmt.Errorf("at %v: %w", r.At, err)
		}
		p.step = step
		return p, nil
	}
	original, n, err := e.code(r.Space, r.At, at)
	if err != nil {
		return nil, err
	}
	return e.newPatch(r, at, original, n)
}

// code reads the instruction at an address whose first byte is at a place in
// guest memory: n bytes, some of them of the next one.
func (e *Engine) code(space xenevents.AddressSpace, at xenevents.GVA, place xenevents.GPA) (original [shadow.MaxInsn]byte, n int, err error) {
	here := original[:min(len(original), xenevents.PageSize-int(place.Offset()))]
	if n, err = e.dom.ReadGPA(here, place); err != nil {
		return original, n, fmt.Errorf("at %v: %w", at, err)
	}
	if n < len(original) { // what is in the next page may be missing
		more, _ := e.mem.ReadGVA(space, original[n:], at+xenevents.GVA(n))
		n += more
	}
	return original, n, nil
}

// newPatch makes a patch for an instruction of which there are n bytes.
func (e *Engine) newPatch(r Request, at xenevents.GPA, original [shadow.MaxInsn]byte, n int) (*patch, error) {
	in, step, err := e.plan(r, at, original[:n])
	if err != nil {
		return nil, err
	}
	hidden, err := e.set.Insert(at, original, in.length)
	if err != nil {
		return nil, err
	}
	p := &patch{hidden: hidden, insn: in, step: step}
	hidden.Owner = p
	return p, nil
}

// plan says what the instruction is, and how to step over it.
func (e *Engine) plan(r Request, at xenevents.GPA, original []byte) (in insn, step StepOver, err error) {
	crosses := func(length int) bool { return at.Offset()+uint64(length) > xenevents.PageSize }
	in, err = decode(original)
	if err != nil && r.Follow && crosses(shadow.MaxInsn) && !crosses(len(original)) {
		in, err = insn{length: len(original), text: "(goes on in a page that is not there)"}, nil
	}
	if err != nil {
		return in, 0, fmt.Errorf("at %v: %w", r.At, err)
	}
	if original[0] == shadow.Int3 {
		return in, 0, fmt.Errorf("at %v: the guest has an int3 of its own there (kprobes, ftrace or a debugger)", r.At)
	}
	if crosses(in.length) {
		in.emulate = false // what is in the next page may change, and nobody would see
	}
	if step, err = e.chooseStep(r.Step, in); err != nil {
		return in, 0, fmt.Errorf("at %v: %w", r.At, err)
	}
	return in, step, nil
}

func (e *Engine) chooseStep(asked StepOver, in insn) (StepOver, error) {
	switch {
	case asked == Auto && in.emulate:
		return Emulate, nil
	case in.repeats && e.fast && asked == Auto:
		return SingleStep, nil
	case in.repeats && e.fast && asked == FastStep:
		return 0, fmt.Errorf("%q would be one hit for each repetition: ask for %v", in.text, SingleStep)
	case asked == Auto && e.fast:
		return FastStep, nil
	case asked == Auto, asked != Emulate && !e.fast:
		return 0, &xenevents.UnsupportedError{Feature: fmt.Sprintf("stepping over %q", in.text), Need: "a CPU with the monitor trap flag"}
	case asked == Emulate && !in.emulate:
		return 0, fmt.Errorf("%q is not on the list of instructions that may be emulated", in.text)
	}
	return asked, nil
}

// Remove takes probes out: when it returns the guest does not hit them any more.
// The copies of their pages go a moment later, when no vCPU is in the middle of an
// answer (Stats.Shadows tells): many at once for the price of one. Calls that are
// under way return without a hit.
func (e *Engine) Remove(ctx context.Context, ids ...ID) error {
	return e.call(ctx, func() (err error) {
		for _, id := range ids {
			err = errors.Join(err, e.remove(id))
		}
		return err
	})
}

func (e *Engine) remove(id ID) error {
	user := e.probes[id]
	if user == nil {
		return fmt.Errorf("there is no probe %d", id)
	}
	if user.suspended {
		e.resume(user, e.clock())
	}
	delete(e.probes, id)
	return errors.Join(e.takeOut(user), e.leaveWaiters(user))
}

// takeOut has the guest not hit a probe any more. Calls under way return as if there
// had been no probe.
func (e *Engine) takeOut(user *probe) error {
	switch {
	case user.Placed:
		return e.lift(user, "")
	case user.watch != nil:
		return e.unwatch(user)
	}
	err := errors.Join(e.forget(user), e.leaveSites(user))
	switch {
	case user.Many:
		return errors.Join(err, e.removeMany(user))
	case user.follow != nil:
		return errors.Join(err, e.removeFollowed(user))
	}
	e.forgetPaused(user.patch)
	return errors.Join(err, e.leave(user.patch, user))
}

// Probes returns the status of all probes, by rising ID, and the counters.
func (e *Engine) Probes(ctx context.Context) ([]Status, Stats, error) {
	var all []Status
	var stats Stats
	err := e.call(ctx, func() error {
		for _, user := range e.probes {
			all = append(all, e.status(user))
		}
		slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.ID, b.ID) })
		stats = e.stats
		stats.Shadows, stats.Tables, stats.Calls, stats.Sites, stats.Waiting = e.set.Pages(), e.set.Tables(), e.calls.n, len(e.sites), len(e.waiters)
		stats.Events = map[string]uint64{}
		for kind, n := range e.kinds {
			if n > 0 {
				stats.Events[xenevents.Kind(kind).String()] = n
			}
		}
		return nil
	})
	return all, stats, err
}

func (e *Engine) status(u *probe) Status {
	s := Status{
		ID: u.id, Name: u.Name, At: u.At, Step: u.Step,
		Hits: u.hits, Changed: u.changed, Passed: u.passed, Returns: u.returns, Lost: u.lost, Gaps: u.gaps, GapTicks: u.gapTicks,
	}
	if u.patch != nil {
		s.Step, s.Insn = u.patch.step, u.patch.insn.text
	}
	if u.watch != nil {
		s.Source = &u.watch.Source
	}
	switch {
	case u.failed != "":
		s.State, s.Detail = Failed, u.failed
	case u.suspended:
		now := e.clock()
		s.GapTicks += since(now, u.out)
		s.State, s.Detail = Suspended, fmt.Sprintf("%s; armed again in %d ticks", u.why, since(u.due, now))
	case u.patch != nil && u.patch.hidden.Displaced:
		s.State, s.Detail = Displaced, "the guest wrote other bytes there"
	}
	switch {
	case u.Many:
		u.membersStatus(&s)
	case u.follow != nil:
		u.followStatus(&s)
	}
	if u.Placed && u.patch == nil && u.failed == "" {
		s.State, s.Detail = Waiting, u.unplaced
	}
	return s
}
