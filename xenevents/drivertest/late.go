package drivertest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// lateReplies: a reply may come after those to later events, and none is lost by it.
func lateReplies(ctx context.Context, o *open) error {
	t, err := o.trap(ctx, xenevents.AccessRW)
	if err != nil {
		return err
	}
	ctx, touched, cancel := t.touching(ctx)
	defer cancel()
	const most = 40 // with one vCPU each costs the whole wait
	var kept *xenevents.Event
	done, overtaken := 0, 0
	for {
		wait, end := context.WithTimeout(ctx, soon)
		var batch [8]xenevents.Event
		n, err := t.events.Next(wait, batch[:])
		end()
		for i := range n {
			ev := batch[i]
			if kept == nil && done < most {
				kept = &ev
				continue
			}
			if kept != nil {
				overtaken++
			}
			err = errors.Join(err, t.violation(&ev), t.over(&ev))
		}
		if kept != nil && (n > 1 || errors.Is(err, context.DeadlineExceeded) || kept.VCPU != batch[0].VCPU) {
			if err := errors.Join(t.violation(kept), t.over(kept)); err != nil {
				return err
			}
			done, kept = done+1, nil
		}
		if err != nil && (!errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil) {
			return errors.Join(fmt.Errorf("after %d late replies, %d of them overtaken: %w", done, overtaken, err), t.leave())
		}
		select {
		case err := <-touched:
			if err == nil && done == 0 {
				err = errors.New("no event")
			}
			return errors.Join(err, t.leave())
		default:
		}
	}
}

// panics: who panics with an event in hand, and closes what it opened, leaves a guest
// that runs on.
func panics(ctx context.Context, o *open) error {
	t, err := o.trap(ctx, xenevents.AccessRW)
	if err != nil {
		return err
	}
	ctx, touched, cancel := t.touching(ctx)
	defer cancel()
	err = func() (err error) {
		defer func() {
			if r := recover(); r != "in the middle" {
				err = errors.Join(err, fmt.Errorf("panic: %v", r))
			}
		}()
		defer func() { err = errors.Join(err, t.views.SwitchView(xenevents.HostView), t.events.Close()) }()
		var batch [8]xenevents.Event
		if _, err := t.events.Next(ctx, batch[:]); err != nil {
			return err
		}
		panic("in the middle")
	}()
	select {
	case e := <-touched:
		return errors.Join(err, e)
	case <-time.After(late):
		return errors.Join(err, errors.New("the guest does not run on"))
	}
}
