package probe

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
)

// addPlaced is add for a Request with Placed.
func (e *Engine) addPlaced(r Request) (ID, error) {
	if r.Follow || r.At != 0 {
		return 0, errors.New("it waits to be placed: it has no address, and follows no page")
	}
	e.lastID++
	u := &probe{Request: r, budget: r.Budget.or(e.each), unplaced: "not placed yet"}
	u.id, u.spaces = e.lastID, spaces{all: true, user: r.Space}
	e.probes[u.id] = u
	return u.id, nil
}

func (e *Engine) placed(id ID) (*probe, error) {
	u := e.probes[id]
	if u == nil || !u.Placed {
		return nil, fmt.Errorf("there is no probe %d that could be placed", id)
	}
	return u, nil
}

// Place puts a probe with Request.Placed at an address of the kernel's half, or
// elsewhere than it was. Where it fails the probe waits. Only on the engine's
// goroutine: in Decide or Do. Hits of other vCPUs that are on their way are not
// disturbed; the one of Decide goes on when that returns.
func (e *Engine) Place(id ID, at xenevents.GVA) error {
	u, err := e.placed(id)
	if err != nil {
		return err
	}
	if u.patch != nil && u.At == at {
		return nil
	}
	if err := e.lift(u, "it is being placed"); err != nil {
		return err
	}
	if err := e.place(u, at); err != nil {
		u.unplaced = err.Error()
		return fmt.Errorf("probe %q: %w", u.Name, err)
	}
	return nil
}

func (e *Engine) place(u *probe, at xenevents.GVA) error {
	if !kernelHalf(at) {
		return fmt.Errorf("%v is not in the kernel's half", at)
	}
	t, err := e.mem.Translate(u.Space, at)
	if err != nil {
		return err
	}
	// It may take a page, with the domain paused: others have their replies before.
	if err := e.events.Flush(); err != nil {
		return err
	}
	r := u.Request
	r.At = at
	p, err := e.patchAt(r, t.GPA)
	if err != nil {
		return err
	}
	if err := e.join(p, u); err != nil {
		return errors.Join(err, e.leave(p, u))
	}
	u.At, u.patch, u.unplaced = at, p, ""
	return nil
}

// Lift takes a probe with Request.Placed from where it is: it waits, for the reason
// that is given, until Place. When it returns the guest does not hit it any more;
// calls that are under way return without a hit. Only where Place may be called.
func (e *Engine) Lift(id ID, why string) error {
	u, err := e.placed(id)
	if err != nil {
		return err
	}
	return e.lift(u, why)
}

func (e *Engine) lift(u *probe, why string) error {
	u.unplaced = why
	p := u.patch
	if p == nil {
		return nil
	}
	err := errors.Join(e.forget(u), e.leaveSites(u))
	e.forgetPaused(p)
	u.patch, u.At, u.noSite = nil, 0, place{}
	return errors.Join(err, e.leave(p, u))
}

// Vacate is told that the code from one address to another, exclusive, is about to
// go away: nothing that returns there is waited for any more, whichever probe the
// call was of. Only where Place may be called.
func (e *Engine) Vacate(from, to xenevents.GVA) (err error) {
	for _, s := range slices.Clone(e.sites) {
		if at := s.probe.At; at >= from && at < to {
			err = either(err, e.endSite(s))
		}
	}
	return err
}
