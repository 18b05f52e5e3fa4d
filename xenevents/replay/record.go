package replay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// full is what an engine needs of a driver's Domain.
type full interface {
	xenevents.Domain
	xenevents.Views
	xenevents.PageAllocator
	xenevents.Injector
}

// clock is a driver that reads the TSC.
type clock interface {
	Ticks() uint64
	TicksPerSecond() uint64
}

// loader is a driver that reads one word without a detour: guestmem.Loader.
type loader interface {
	Load64(at xenevents.GPA) (uint64, error)
}

// Recorder is a driver's Domain that writes down what an engine sees of the guest. It has
// one owner, as the Domain has.
type Recorder struct {
	full
	load  loader // nil: the driver is none
	clock clock

	w      *writer
	frames map[xenevents.GFN]*seenFrame
	spare  map[xenevents.GFN]bool // frames that hprobe gave the guest
	page   frame                  // room for one
	one    [8]byte                // and for a word
	epoch  uint64                 // goes up with each event: what was read before may have changed
	events uint64
	ticks  uint64 // what the clock said last

	places []string

	early  atomic.Pointer[string] // why it is over
	closed bool
}

// seenFrame is a frame as it is in the recording.
type seenFrame struct {
	frame
	epoch  uint64 // in which it was last read as a whole
	absent bool
}

// Record writes all that is seen of dom, from now on, to a recording, until the Recorder is
// closed, and dom with it. It fails with an *xenevents.UnsupportedError for a driver that
// lacks what hidden probes need.
//
// Of memory that a recording has, each first read at an event reads the whole frame, and
// compares it: some hundred nanoseconds. All else is done in the background. Where that does
// not keep up the recording ends (see Early), and never has the guest wait.
func Record(ctx context.Context, dom xenevents.Domain, about About, to io.Writer) (*Recorder, error) {
	all, ok := dom.(full)
	if !ok {
		return nil, &xenevents.UnsupportedError{Feature: "recording", Need: "a driver with altp2m views, spare frames and exception injection"}
	}
	r := &Recorder{full: all, frames: map[xenevents.GFN]*seenFrame{}, spare: map[xenevents.GFN]bool{}, epoch: 1}
	r.load, _ = dom.(loader)
	if r.clock, ok = dom.(clock); !ok || r.clock.TicksPerSecond() == 0 {
		r.clock = wallClock(time.Now())
	}
	h := Header{Version: version, Began: time.Now(), Ticks: r.Ticks(), TicksPerSecond: r.clock.TicksPerSecond(), About: about}
	var err error
	if h.Domain, err = dom.Info(ctx); err != nil {
		return nil, err
	}
	if h.MaxGFN, err = dom.MaxGFN(); err != nil {
		return nil, err
	}
	if r.w, err = newWriter(to); err != nil {
		return nil, err
	}
	if err := r.w.putJSON(recordHeader, &h); err != nil {
		return nil, errors.Join(err, r.w.close())
	}
	return r, nil
}

// wallClock ticks in nanoseconds.
type wallClock time.Time

func (c wallClock) Ticks() uint64          { return uint64(time.Since(time.Time(c))) }
func (c wallClock) TicksPerSecond() uint64 { return uint64(time.Second) }

// Ticks reads the driver's clock.
func (r *Recorder) Ticks() uint64 {
	r.ticks = r.clock.Ticks()
	return r.ticks
}

// TicksPerSecond is the driver's clock's.
func (r *Recorder) TicksPerSecond() uint64 { return r.clock.TicksPerSecond() }

// Early says why the recording ended before it was closed; "" while it goes on. Any
// goroutine may ask.
func (r *Recorder) Early() string {
	if why := r.early.Load(); why != nil {
		return *why
	}
	return ""
}

// Watches notes in the recording what it was made with probes at, in the caller's words: of
// what happened elsewhere it has no events.
func (r *Recorder) Watches(places ...string) { r.places = append(r.places, places...) }

// Events is how many are in the recording.
func (r *Recorder) Events() uint64 { return r.events }

// keep notes whether a record could be written.
func (r *Recorder) keep(ok bool) bool {
	if ok {
		return true
	}
	why := fmt.Sprintf("a recording has at most %d MB", MaxSize>>20)
	if r.w.size < MaxSize-2*maxText-chunkSize {
		why = "it could not be written as fast as the guest had events"
	}
	r.stop(why)
	return false
}

func (r *Recorder) stop(why string) { r.early.CompareAndSwap(nil, &why) }

// over says whether nothing is recorded any more.
func (r *Recorder) over() bool { return r.closed || r.early.Load() != nil }

// ReadGPA reads guest memory, and records the frames that it is in.
func (r *Recorder) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	for done := 0; done < len(p); {
		from := at + xenevents.GPA(done)
		part := p[done:min(len(p), done+int(xenevents.PageSize-from.Offset()))]
		n, err := r.read(part, from)
		done += n
		if err != nil {
			return done, err
		}
	}
	return len(p), nil
}

// Load64 reads a word, in the way of ReadGPA.
func (r *Recorder) Load64(at xenevents.GPA) (v uint64, err error) {
	if r.load != nil && r.over() {
		return r.load.Load64(at)
	}
	if r.load != nil {
		if f := r.frames[at.GFN()]; f != nil && f.epoch == r.epoch && !f.absent {
			if v, err = r.load.Load64(at); err == nil && v == binary.LittleEndian.Uint64(f.frame[at.Offset():]) {
				return v, nil
			}
		}
	}
	_, err = r.read(r.one[:], at)
	return binary.LittleEndian.Uint64(r.one[:]), err
}

// read reads what is in one frame. What the caller gets is the guest's at this moment, never
// what was kept: a caller that paused the guest relies on that.
func (r *Recorder) read(p []byte, at xenevents.GPA) (int, error) {
	gfn := at.GFN()
	if r.over() || r.spare[gfn] {
		return r.full.ReadGPA(p, at)
	}
	f := r.frames[gfn]
	if f != nil && f.epoch == r.epoch && !f.absent {
		n, err := r.full.ReadGPA(p, at)
		if err == nil && string(p) == string(f.frame[at.Offset():][:len(p)]) {
			return n, nil
		}
	}
	if _, err := r.full.ReadGPA(r.page[:], gfn.GPA()); err != nil {
		if errors.Is(err, xenevents.ErrAbsent) {
			r.absent(gfn, f)
		}
		return 0, err
	}
	r.note(gfn, f)
	return copy(p, r.page[at.Offset():]), nil
}

// note records a frame that was read into r.page.
func (r *Recorder) note(gfn xenevents.GFN, f *seenFrame) {
	switch {
	case f == nil:
		if f = r.newFrame(gfn); f == nil {
			return
		}
		f.frame = r.page
		r.keep(r.w.frame(gfn, &r.page, ^uint64(0)))
	case f.absent:
		f.frame, f.absent = r.page, false
		r.keep(r.w.frame(gfn, &r.page, ^uint64(0)))
	case f.frame == r.page:
		r.keep(r.w.gfn(recordSame, gfn))
	default:
		r.keep(r.w.frame(gfn, &r.page, r.page.changed(&f.frame)))
		f.frame = r.page
	}
	f.epoch = r.epoch
}

// absent records that the guest has no such frame.
func (r *Recorder) absent(gfn xenevents.GFN, f *seenFrame) {
	if f == nil {
		if f = r.newFrame(gfn); f == nil {
			return
		}
	}
	if !f.absent || f.epoch != r.epoch {
		f.absent, f.epoch = true, r.epoch
		r.keep(r.w.gfn(recordAbsent, gfn))
	}
}

func (r *Recorder) newFrame(gfn xenevents.GFN) *seenFrame {
	if len(r.frames) == MaxFrames {
		r.stop(fmt.Sprintf("a recording has at most %d different frames of the guest", MaxFrames))
		return nil
	}
	f := &seenFrame{}
	r.frames[gfn] = f
	return f
}

// CompareAndSwap64 is the driver's.
func (r *Recorder) CompareAndSwap64(at xenevents.GPA, old, v uint64) (bool, error) {
	s, ok := r.full.(xenevents.Swapper)
	if !ok {
		return false, &xenevents.UnsupportedError{Feature: "changing a word of guest memory in one step with this driver"}
	}
	return s.CompareAndSwap64(at, old, v)
}

// Features are the driver's.
func (r *Recorder) Features(ctx context.Context) ([]xenevents.Feature, error) {
	p, ok := r.full.(xenevents.Prober)
	if !ok {
		return nil, &xenevents.UnsupportedError{Feature: "asking this driver for features"}
	}
	return p.Features(ctx)
}

// Registers reads those of a vCPU, and records them.
func (r *Recorder) Registers(v xenevents.VCPU) (xenevents.Registers, error) {
	regs, err := r.full.Registers(v)
	switch {
	case r.over() || v >= maxVCPUs:
	case err == nil:
		r.keep(r.w.registers(v, &regs))
	case errors.Is(err, xenevents.ErrVCPUDown):
		r.keep(r.w.registers(v, nil))
	}
	return regs, err
}

// AllocGFN is the driver's. What is in the frame is hprobe's own, and not recorded.
func (r *Recorder) AllocGFN() (xenevents.GFN, error) {
	gfn, err := r.full.AllocGFN()
	if err == nil {
		r.spare[gfn] = true
	}
	return gfn, err
}

// FreeGFN is the driver's.
func (r *Recorder) FreeGFN(gfn xenevents.GFN) error {
	err := r.full.FreeGFN(gfn)
	if err == nil {
		delete(r.spare, gfn)
	}
	return err
}

// Close ends the recording, and closes the driver's Domain. Without it there is no whole
// recording.
func (r *Recorder) Close() error {
	if r.closed {
		return r.full.Close()
	}
	r.closed = true
	r.epoch++
	err := r.w.putJSON(recordEnd, &end{Ticks: r.Ticks(), Events: r.events, Early: r.Early(), Places: r.places})
	if e := r.w.close(); e != nil {
		err = errors.Join(err, fmt.Errorf("write the recording: %w", e))
	}
	return errors.Join(err, r.full.Close())
}
