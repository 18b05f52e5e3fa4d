package replay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// Options are of a Player.
type Options struct {
	// Passed is told, on the goroutine of Events.Next, before each event, and at the end,
	// how much of the guest's time has passed.
	Passed func(since time.Duration)
}

// Stats is what was played.
type Stats struct {
	Events uint64 // that the engine got
	// Unwanted are int3s, violations and events of registers for which the engine has
	// nothing where they were.
	Unwanted uint64
	// Missing is how often something was asked for at an event that is not in the recording,
	// FirstMissing what that was first.
	Missing      uint64
	FirstMissing *MissingError
	// Older is how often memory was read at an event for which it was not recorded: it is
	// as it was at an earlier one.
	Older uint64
}

// Player is a guest that is played: a Domain with views and spare frames that are its own.
// It has one owner, but for Start and Done.
//
// Before Start it has no events, and memory is as it was first seen. At an event, memory is
// as it was then, and what was not known of it then is a *MissingError.
type Player struct {
	rec     *Recording
	options Options
	started chan struct{}
	done    chan struct{}

	now    map[xenevents.GFN]*playedFrame
	vcpus  map[xenevents.VCPU]*vcpu
	spares map[xenevents.GFN]*frame
	spare  xenevents.GFN // the last one that was given out
	views  map[xenevents.View]map[xenevents.GFN]entry
	last   xenevents.View // that was made
	view   xenevents.View // that the vCPUs are in

	next    int // moment
	ticks   uint64
	ended   bool
	events  *playedEvents
	current *xenevents.Event // that waits for its reply
	reading bool             // the engine is at an event: what it reads is of that moment
	stats   Stats
}

type playedFrame struct {
	frame
	absent bool
	seen   int // at which moment it was last recorded, from 1
}

// entry is what a view shows of a frame.
type entry struct {
	to     xenevents.GFN
	access xenevents.Access
}

// Play makes a guest of a recording. It begins with Start.
func (r *Recording) Play(o Options) *Player {
	if o.Passed == nil {
		o.Passed = func(time.Duration) {}
	}
	return &Player{
		rec: r, options: o, started: make(chan struct{}), done: make(chan struct{}),
		now: map[xenevents.GFN]*playedFrame{}, vcpus: map[xenevents.VCPU]*vcpu{}, spares: map[xenevents.GFN]*frame{}, spare: r.Header.MaxGFN,
		views: map[xenevents.View]map[xenevents.GFN]entry{}, ticks: r.Header.Ticks,
	}
}

// Start lets the guest run. It may be called once, from any goroutine.
func (p *Player) Start() { close(p.started) }

// Done is closed once the last event has had its reply.
func (p *Player) Done() <-chan struct{} { return p.done }

// Stats belongs to the Player's owner.
func (p *Player) Stats() Stats { return p.stats }

// Since is how much of the guest's time has passed. It belongs to the Player's owner.
func (p *Player) Since() time.Duration { return p.rec.Header.since(p.ticks) }

// Info is what it was when the recording began.
func (p *Player) Info(context.Context) (xenevents.DomainInfo, error) {
	info := p.rec.Header.Domain
	info.Paused = false
	return info, nil
}

// missing is that something is not there.
func (p *Player) missing(what string) error {
	e := &MissingError{what, uint64(p.next)}
	if p.reading {
		if p.stats.Missing++; p.stats.FirstMissing == nil {
			p.stats.FirstMissing = e
		}
	}
	return e
}

// frame returns a frame of the guest as it is now.
func (p *Player) frame(gfn xenevents.GFN) (*frame, error) {
	if s := p.spares[gfn]; s != nil {
		return s, nil
	}
	f := p.now[gfn]
	switch {
	case f == nil && !p.reading: // between events any time is right, the nearest is best
		c := p.rec.first[gfn]
		if c == nil {
			return nil, p.missing("gfn " + gfn.String())
		}
		f = &playedFrame{absent: c.absent}
		c.on(&f.frame)
	case f == nil:
		return nil, p.missing("gfn " + gfn.String())
	case p.reading && f.seen != p.next:
		p.stats.Older++
	}
	if f.absent {
		return nil, fmt.Errorf("gfn %v: %w", gfn, xenevents.ErrAbsent)
	}
	return &f.frame, nil
}

// each calls move for each part of b that is in one frame.
func (p *Player) each(b []byte, at xenevents.GPA, move func(mem, part []byte)) (int, error) {
	for done := 0; done < len(b); {
		from := at + xenevents.GPA(done)
		f, err := p.frame(from.GFN())
		if err != nil {
			return done, err
		}
		part := b[done:min(len(b), done+int(xenevents.PageSize-from.Offset()))]
		move(f[from.Offset():], part)
		done += len(part)
	}
	return len(b), nil
}

// ReadGPA reads memory as it was.
func (p *Player) ReadGPA(b []byte, at xenevents.GPA) (int, error) {
	return p.each(b, at, func(mem, part []byte) { copy(part, mem) })
}

// WriteGPA writes memory, until the recording has the frame again.
func (p *Player) WriteGPA(b []byte, at xenevents.GPA) (int, error) {
	return p.each(b, at, func(mem, part []byte) { copy(mem, part) })
}

// MaxGFN is the highest frame, spare ones included.
func (p *Player) MaxGFN() (xenevents.GFN, error) { return p.spare, nil }

// Registers are those of a vCPU as they were last, or first, seen.
func (p *Player) Registers(v xenevents.VCPU) (xenevents.Registers, error) {
	c := p.vcpus[v]
	if c == nil {
		c = p.rec.vcpus[v]
	}
	switch {
	case c == nil:
		return xenevents.Registers{}, p.missing(fmt.Sprintf("the registers of vCPU %d", v))
	case c.regs == nil:
		return xenevents.Registers{}, xenevents.ErrVCPUDown
	}
	return *c.regs, nil
}

// Ticks is the clock when the present event came.
func (p *Player) Ticks() uint64 { return p.ticks }

// TicksPerSecond is the recorded clock's.
func (p *Player) TicksPerSecond() uint64 { return p.rec.Header.TicksPerSecond }

// Pause does nothing: what is played goes on at once.
func (p *Player) Pause() error { return nil }

// Unpause does nothing.
func (p *Player) Unpause() error { return nil }

// InjectInt3 does nothing: the guest got its int3 then.
func (p *Player) InjectInt3(xenevents.VCPU, uint8) error { return nil }

// AllocGFN makes a frame above all of the guest's.
func (p *Player) AllocGFN() (xenevents.GFN, error) {
	p.spare++
	p.spares[p.spare] = &frame{}
	return p.spare, nil
}

// FreeGFN takes one away.
func (p *Player) FreeGFN(gfn xenevents.GFN) error {
	if p.spares[gfn] == nil {
		return fmt.Errorf("gfn %v: %w", gfn, xenevents.ErrAbsent)
	}
	delete(p.spares, gfn)
	return nil
}

// EnableViews does nothing.
func (p *Player) EnableViews() error { return nil }

// DisableViews has all vCPUs in view 0.
func (p *Player) DisableViews() error {
	clear(p.views)
	p.view = xenevents.HostView
	return nil
}

// CreateView makes a view.
func (p *Player) CreateView() (xenevents.View, error) {
	p.last++
	p.views[p.last] = map[xenevents.GFN]entry{}
	return p.last, nil
}

var errNoView = errors.New("there is no such view")

// DestroyView takes one away.
func (p *Player) DestroyView(v xenevents.View) error {
	if p.views[v] == nil {
		return errNoView
	}
	delete(p.views, v)
	return nil
}

// SwitchView moves all vCPUs.
func (p *Player) SwitchView(v xenevents.View) error {
	if v != xenevents.HostView && p.views[v] == nil {
		return errNoView
	}
	p.view = v
	return nil
}

// change changes what a view shows of a frame.
func (p *Player) change(v xenevents.View, gfn xenevents.GFN, how func(*entry)) error {
	w := p.views[v]
	if w == nil {
		return errNoView
	}
	e, ok := w[gfn]
	if !ok {
		e = entry{to: gfn, access: xenevents.AccessRWX}
	}
	how(&e)
	if e == (entry{to: gfn, access: xenevents.AccessRWX}) {
		delete(w, gfn)
	} else {
		w[gfn] = e
	}
	return nil
}

// RemapGFN lets a frame show another in a view.
func (p *Player) RemapGFN(v xenevents.View, gfn, to xenevents.GFN) error {
	return p.change(v, gfn, func(e *entry) { *e = entry{to: to, access: xenevents.AccessRWX} })
}

// RevertGFN lets it show what it does in view 0.
func (p *Player) RevertGFN(v xenevents.View, gfn xenevents.GFN) error {
	return p.change(v, gfn, func(e *entry) { *e = entry{to: gfn, access: xenevents.AccessRWX} })
}

// SetAccess sets what the guest may do with a frame in a view.
func (p *Player) SetAccess(v xenevents.View, gfn xenevents.GFN, a xenevents.Access) error {
	return p.change(v, gfn, func(e *entry) { e.access = a })
}

// CompareAndSwap64 writes a word, in the way of WriteGPA.
func (p *Player) CompareAndSwap64(at xenevents.GPA, old, v uint64) (bool, error) {
	f, err := p.frame(at.GFN())
	if err != nil {
		return false, err
	}
	w := f[at.Offset():][:8]
	if binary.LittleEndian.Uint64(w) != old {
		return false, nil
	}
	binary.LittleEndian.PutUint64(w, v)
	return true, nil
}

// Close forgets all.
func (p *Player) Close() error { return p.DisableViews() }
