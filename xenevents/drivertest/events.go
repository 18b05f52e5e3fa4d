package drivertest

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// soon is long enough for a goroutine to get to where it waits; late is more than
// anything here takes.
const (
	soon = 30 * time.Millisecond
	late = 2 * time.Minute
)

func attachTwice(ctx context.Context, o *open) error {
	if _, err := o.dom.Attach(ctx); err != nil {
		return err
	}
	before, err := o.dom.Info(ctx)
	if err != nil {
		return err
	}
	_, err = o.dom.Attach(ctx)
	if err := must(err, xenevents.ErrMonitored, "attach twice"); err != nil {
		return err
	}
	second, err := o.env.Host.Open(ctx, o.env.Domain)
	if err != nil {
		return err
	}
	_, err = second.Attach(ctx)
	err = errors.Join(must(err, xenevents.ErrMonitored, "attach by another Domain"), second.Close())
	if after, e := o.dom.Info(ctx); e != nil || after != before {
		err = errors.Join(err, e, fmt.Errorf("an attach that was refused changed the domain from %+v to %+v", before, after))
	}
	return err
}

func closeTwice(ctx context.Context, o *open) error {
	for range 2 {
		e, err := o.dom.Attach(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(e.Close(), e.Close()); err != nil {
			return err
		}
	}
	return nil
}

// nextAfterClose must not read a ring that is gone: without the check for it that
// is a fault of the whole process.
func nextAfterClose(ctx context.Context, o *open) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	e, err := o.dom.Attach(ctx)
	if err != nil {
		return err
	}
	if err := e.Close(); err != nil {
		return err
	}
	batch := make([]xenevents.Event, 8)
	_, err = e.Next(ctx, batch)
	if err := must(err, xenevents.ErrClosed, "Next after Close"); err != nil {
		return err
	}
	e.Interrupt() // harmless: whoever calls it can't know
	_, err = e.TryNext(batch)
	return must(err, xenevents.ErrClosed, "TryNext after Close")
}

func interrupt(ctx context.Context, o *open) error {
	e, err := o.dom.Attach(ctx)
	if err != nil {
		return err
	}
	batch := make([]xenevents.Event, 8)
	if n, err := e.TryNext(batch); n != 0 || err != nil {
		return fmt.Errorf("%d events before any subscription: %w", n, err)
	}
	e.Interrupt()
	e.Interrupt()
	for _, when := range []string{"before", "during"} {
		if when == "during" {
			stop := time.AfterFunc(soon, e.Interrupt)
			defer stop.Stop()
		}
		limit, cancel := context.WithTimeout(ctx, late)
		_, err := e.Next(limit, batch)
		cancel()
		if err := must(err, xenevents.ErrInterrupted, "Interrupt "+when+" Next"); err != nil {
			return err
		}
	}
	limit, cancel := context.WithTimeout(ctx, soon)
	defer cancel()
	_, err = e.Next(limit, batch)
	return must(err, context.DeadlineExceeded, "one Interrupt ends one Next: the next")
}

func nextContext(ctx context.Context, o *open) error {
	e, err := o.dom.Attach(ctx)
	if err != nil {
		return err
	}
	batch := make([]xenevents.Event, 8)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = e.Next(ended, batch)
	if err := must(err, context.Canceled, "a context that has ended"); err != nil {
		return err
	}
	during, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := time.AfterFunc(soon, cancel)
	defer stop.Stop()
	began := time.Now()
	_, err = e.Next(during, batch)
	if took := time.Since(began); took > late {
		return fmt.Errorf("a context that ends during Next: it took %v to see", took)
	}
	return must(err, context.Canceled, "a context that ends during Next")
}

func subscriptions(ctx context.Context, o *open) error {
	e, err := o.dom.Attach(ctx)
	if err != nil {
		return err
	}
	all := []xenevents.Subscription{
		{Kind: xenevents.KindNone}, {Kind: xenevents.KindMemAccess}, {Kind: xenevents.KindOther}, {Kind: xenevents.KindControlReg, Index: 7},
		{Kind: xenevents.KindInt3, Sync: true}, {Kind: xenevents.KindSingleStep, Sync: true}, {Kind: xenevents.KindGuestRequest, Sync: true},
		{Kind: xenevents.KindControlReg, Index: 0}, {Kind: xenevents.KindControlReg, Index: 3, OnChange: true}, {Kind: xenevents.KindControlReg, Index: 4},
		{Kind: xenevents.KindMSR, Index: 0xc000_0082}, {Kind: xenevents.KindCPUID}, {Kind: xenevents.KindDebug, Sync: true},
	}
	const never = 4 // the first ones can't be subscribed to
	for i, s := range all {
		for range 2 { // twice is harmless
			err := e.Subscribe(s)
			var no *xenevents.UnsupportedError
			if errors.As(err, &no) && no.Feature != "" {
				continue
			}
			if err != nil {
				return fmt.Errorf("subscribe to %+v: neither nil nor an *UnsupportedError: %w", s, err)
			}
			if i < never {
				return fmt.Errorf("a subscription to %+v was taken", s)
			}
		}
		if err := e.Unsubscribe(s); err != nil {
			return fmt.Errorf("unsubscribe from %+v: %w", s, err)
		}
		// The guest may have done it in between.
		if err := answerAll(e); err != nil {
			return err
		}
	}
	return nil
}

func answerAll(e xenevents.Events) error {
	var batch [8]xenevents.Event
	n, err := e.TryNext(batch[:])
	for i := range n {
		r, ev := &xenevents.Reply{}, &batch[i]
		if ev.Kind == xenevents.KindCPUID { // which was done already
			regs := ev.Regs
			regs.RIP += uint64(ev.InsnLen)
			r.Regs = &regs
		}
		err = errors.Join(err, e.Reply(ev, r))
	}
	return errors.Join(err, e.Flush())
}

// serve answers events by handle while the guest is touched, and for a moment
// more. It fails when Touch does, or does not end.
func (o *open) serve(ctx context.Context, e xenevents.Events, handle func(*xenevents.Event) error) error {
	if o.env.Touch == nil {
		return &Skip{"nobody here can make the guest do something"}
	}
	ctx, cancel := context.WithTimeout(ctx, late)
	defer cancel()
	touched := make(chan error, 1)
	go func() {
		touched <- o.env.Touch(ctx)
		e.Interrupt()
	}()
	var batch [8]xenevents.Event
	for {
		n, err := e.Next(ctx, batch[:])
		for i := range n {
			err = errors.Join(err, handle(&batch[i]))
		}
		switch {
		case errors.Is(err, xenevents.ErrInterrupted):
			return errors.Join(<-touched, e.Flush())
		case err != nil:
			cancel()
			// The guest must go on, or what touches it waits for ever.
			return errors.Join(err, e.Close(), <-touched)
		}
	}
}
