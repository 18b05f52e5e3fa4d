package drivertest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// heldWrites: a write that is held is carried out with its reply, not before, and none
// is lost: each begins with what the one before it wrote.
func heldWrites(ctx context.Context, o *open) error {
	e, err := o.dom.Attach(ctx)
	if err != nil {
		return err
	}
	holder, ok := e.(xenevents.WriteHolder)
	if !ok {
		return &Skip{"the driver can't hold writes"}
	}
	async := xenevents.Subscription{Kind: xenevents.KindControlReg, Index: 3, OnChange: true}
	if err := unsupported(e.Subscribe(async)); err != nil {
		return err
	}
	if err := mustFail(holder.HoldWrites(), "hold writes that nobody waits at"); err != nil {
		return err
	}
	if err := e.Unsubscribe(async); err != nil {
		return err
	}
	if err := unsupported(holder.HoldWrites()); err != nil {
		return err
	}
	sync := async
	sync.Sync = true
	if err := e.Subscribe(sync); err != nil {
		return err
	}
	seen, last := 0, map[xenevents.VCPU]uint64{}
	handle := func(ev *xenevents.Event) error {
		if ev.Kind != xenevents.KindControlReg || !ev.Paused { // what came before they were held
			return e.Reply(ev, &xenevents.Reply{})
		}
		now, err := o.dom.Registers(ev.VCPU)
		if was, ok := last[ev.VCPU]; ok && was != ev.Old || now.CR3 != ev.Old || ev.New == ev.Old {
			err = errors.Join(err, fmt.Errorf("vCPU %d had %#x written, has %#x, and writes %#x over %#x", ev.VCPU, was, now.CR3, ev.New, ev.Old))
		}
		seen, last[ev.VCPU] = seen+1, ev.New
		return errors.Join(err, e.Reply(ev, &xenevents.Reply{}))
	}
	err = o.serve(ctx, e, handle)
	if err == nil && seen < 16 {
		err = fmt.Errorf("%d events of at least 16", seen)
	}
	var skip *Skip
	if errors.As(err, &skip) {
		return errors.Join(err, e.Unsubscribe(sync))
	}
	return errors.Join(err, e.Unsubscribe(sync), settle(ctx, e))
}

// settle answers what is on its way until all was carried out: what is held is lost
// with the ring.
func settle(ctx context.Context, e xenevents.Events) error {
	for {
		quiet, cancel := context.WithTimeout(ctx, soon)
		var batch [8]xenevents.Event
		n, err := e.Next(quiet, batch[:])
		cancel()
		for i := range n {
			err = errors.Join(err, e.Reply(&batch[i], &xenevents.Reply{}))
		}
		if n > 0 {
			continue
		}
		if ctx.Err() != nil || err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, xenevents.ErrInterrupted) {
			return errors.Join(err, ctx.Err())
		}
		s, ok := e.(xenevents.Settler)
		if !ok {
			return nil
		}
		if settled, err := s.Settled(); settled || err != nil {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}
