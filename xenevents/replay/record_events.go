package replay

import (
	"context"

	"github.com/hprobe/hprobe/xenevents"
)

// recordedEvents are a driver's, which are written down.
type recordedEvents struct {
	xenevents.Events
	r     *Recorder
	batch []xenevents.Event // the present one, and how many of it are dealt with
	dealt int
}

// Attach is the driver's. Its Events are a Settler and a WriteHolder as far as the driver's
// are.
func (r *Recorder) Attach(ctx context.Context) (xenevents.Events, error) {
	e, err := r.full.Attach(ctx)
	if err != nil {
		return nil, err
	}
	return &recordedEvents{Events: e, r: r}, nil
}

func (e *recordedEvents) Next(ctx context.Context, batch []xenevents.Event) (int, error) {
	e.deal(len(e.batch))
	n, err := e.Events.Next(ctx, batch)
	e.came(batch[:n])
	return n, err
}

func (e *recordedEvents) TryNext(batch []xenevents.Event) (int, error) {
	e.deal(len(e.batch))
	n, err := e.Events.TryNext(batch)
	e.came(batch[:n])
	return n, err
}

// came begins with a batch: what was read before may have changed.
func (e *recordedEvents) came(batch []xenevents.Event) {
	e.batch, e.dealt = batch, 0
	if len(batch) > 0 {
		e.r.epoch++
	}
}

// deal writes down the first n events of the batch that get no reply.
func (e *recordedEvents) deal(n int) {
	for ; e.dealt < n; e.dealt++ {
		if ev := &e.batch[e.dealt]; !ev.Paused {
			e.write(ev)
		}
	}
}

// Reply writes the event down: all that was read for it is before it then.
func (e *recordedEvents) Reply(ev *xenevents.Event, r *xenevents.Reply) error {
	if ev.Paused {
		for i := e.dealt; i < len(e.batch); i++ {
			if &e.batch[i] == ev {
				e.deal(i)
			}
		}
		e.write(ev)
	}
	return e.Events.Reply(ev, r)
}

func (e *recordedEvents) write(ev *xenevents.Event) {
	if e.r.over() {
		return
	}
	e.r.epoch++
	if e.r.keep(e.r.w.event(e.r.ticks, ev)) {
		e.r.events++
	}
}

// Settled is the driver's.
func (e *recordedEvents) Settled() (bool, error) {
	if s, ok := e.Events.(xenevents.Settler); ok {
		return s.Settled()
	}
	return true, nil
}

// HoldWrites is the driver's.
func (e *recordedEvents) HoldWrites() error {
	if h, ok := e.Events.(xenevents.WriteHolder); ok {
		return h.HoldWrites()
	}
	return &xenevents.UnsupportedError{Feature: "refusing writes of registers with this driver"}
}
