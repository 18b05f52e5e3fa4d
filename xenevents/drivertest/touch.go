package drivertest

import (
	"context"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// asyncEvents: those that nobody waits for take no place in the ring once they
// were read, however many come.
func asyncEvents(ctx context.Context, o *open) error {
	e, err := o.dom.Attach(ctx)
	if err != nil {
		return err
	}
	s := xenevents.Subscription{Kind: xenevents.KindControlReg, Index: 3}
	if err := unsupported(e.Subscribe(s)); err != nil {
		return err
	}
	seen := 0
	err = o.serve(ctx, e, func(ev *xenevents.Event) error {
		if ev.Kind != xenevents.KindControlReg || ev.Paused || ev.Index != 3 || ev.New == 0 || ev.Regs.RIP == 0 {
			return fmt.Errorf("not an asynchronous write of CR3: %+v", ev)
		}
		if seen++; seen%2 == 0 { // ignored for such an event, and no error
			return e.Reply(ev, &xenevents.Reply{})
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("after %d events: %w", seen, err)
	}
	if seen < 16 {
		return fmt.Errorf("%d events of at least 16", seen)
	}
	return e.Unsubscribe(s)
}

// trap is a view in which the kernel's page has other rights, and the guest in it.
type trap struct {
	*open
	place
	views  hider
	events xenevents.Events
	view   xenevents.View
	left   int // how often the guest steps over and comes back; then it stays out
}

// trips is enough to see what there is to see: a system call may run a hundred
// instructions of the page, and each costs two switches of the view.
const trips = 200

func (o *open) trap(ctx context.Context, a xenevents.Access) (t *trap, err error) {
	if o.env.Touch == nil {
		return nil, &Skip{"nobody here can make the guest do something"}
	}
	t = &trap{open: o, left: trips}
	if t.views, err = role[hider](o); err != nil {
		return nil, err
	}
	if t.place, err = o.kernel(); err != nil {
		return nil, err
	}
	if t.events, err = o.dom.Attach(ctx); err != nil {
		return nil, err
	}
	if err := unsupported(t.events.Subscribe(xenevents.Subscription{Kind: xenevents.KindSingleStep, Sync: true})); err != nil {
		return nil, err
	}
	if err := unsupported(t.views.EnableViews()); err != nil {
		return nil, err
	}
	if t.view, err = t.views.CreateView(); err != nil {
		return nil, err
	}
	if err := t.views.SetAccess(t.view, t.gpa.GFN(), a); err != nil {
		return nil, err
	}
	return t, t.views.SwitchView(t.view)
}

// touching has the guest be touched while the check serves the events itself, and limits
// both.
func (t *trap) touching(ctx context.Context) (context.Context, <-chan error, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, late)
	touched := make(chan error, 1)
	go func() { touched <- t.env.Touch(ctx) }()
	return ctx, touched, cancel
}

// over lets the vCPU run one instruction in view 0.
func (t *trap) over(ev *xenevents.Event) error {
	if t.left--; t.left < 0 {
		return t.events.Reply(ev, &xenevents.Reply{Switch: true, View: xenevents.HostView})
	}
	return t.events.Reply(ev, &xenevents.Reply{Switch: true, View: xenevents.HostView, Step: xenevents.StepFast, After: t.view})
}

// violation checks what every violation on the kernel's page has.
func (t *trap) violation(ev *xenevents.Event) error {
	switch {
	case ev.Kind != xenevents.KindMemAccess || !ev.Paused || ev.View != t.view || ev.GFN != t.gpa.GFN():
		return fmt.Errorf("not a violation in view %d on gfn %v: %+v", t.view, t.gpa.GFN(), ev)
	case ev.Fault&xenevents.FaultGLAValid == 0 || ev.Fault&xenevents.FaultWithGLA == 0:
		return fmt.Errorf("a violation without its address: %+v", ev)
	case uint64(ev.Offset) != ev.GLA.Offset():
		return fmt.Errorf("offset %#x and address %v", ev.Offset, ev.GLA)
	}
	space := xenevents.AddressSpaceOf(&ev.Regs)
	at, err := guestmem.NewReader(t.dom).Translate(space, ev.GLA)
	if err != nil {
		return err
	}
	if at.GPA != ev.GFN.GPA()+xenevents.GPA(ev.Offset) {
		return fmt.Errorf("%v is at %v, and the violation at gfn %v, offset %#x", ev.GLA, at.GPA, ev.GFN, ev.Offset)
	}
	return nil
}

// leave takes the guest out of the view, and answers what is on its way.
func (t *trap) leave() error {
	return errors.Join(t.views.SwitchView(xenevents.HostView), xenevents.WithPaused(t.dom, func() error {
		return errors.Join(answerAll(t.events), t.events.Close())
	}))
}

func readViolation(ctx context.Context, o *open) error {
	t, err := o.trap(ctx, xenevents.AccessX)
	if err != nil {
		return err
	}
	reads := 0
	err = t.serve(ctx, t.events, func(ev *xenevents.Event) error {
		reads++
		if ev.Access&xenevents.AccessX != 0 || ev.Access&xenevents.AccessR == 0 {
			return fmt.Errorf("a page that may be run gave a violation by %v", ev.Access)
		}
		return errors.Join(t.violation(ev), t.over(ev))
	})
	if err == nil && reads == 0 {
		err = errors.New("the page was read without a violation")
	}
	return errors.Join(err, t.leave())
}

func executeViolation(ctx context.Context, o *open) error {
	t, err := o.trap(ctx, xenevents.AccessRW)
	if err != nil {
		return err
	}
	entries := 0
	err = t.serve(ctx, t.events, func(ev *xenevents.Event) error {
		if ev.GLA == t.at {
			entries++
		}
		if ev.Access&xenevents.AccessX == 0 || uint64(ev.GLA) != ev.Regs.RIP && ev.GLA.Page() != xenevents.GVA(ev.Regs.RIP+15).Page() {
			return fmt.Errorf("a page that may be read gave a violation by %v of %v at %#x", ev.Access, ev.GLA, ev.Regs.RIP)
		}
		return errors.Join(t.violation(ev), t.over(ev))
	})
	if err == nil && entries == 0 {
		err = fmt.Errorf("nothing ran %v", t.at)
	}
	return errors.Join(err, t.leave())
}

// hiddenInt3 is a hidden breakpoint by hand.
func hiddenInt3(ctx context.Context, o *open) error {
	t, err := o.trap(ctx, xenevents.AccessRWX)
	if err != nil {
		return err
	}
	if err := unsupported(t.events.Subscribe(xenevents.Subscription{Kind: xenevents.KindInt3, Sync: true})); err != nil {
		return err
	}
	spare, err := t.views.AllocGFN()
	if err != nil {
		return err
	}
	gfn := t.gpa.GFN()
	err = xenevents.WithPaused(t.dom, func() error {
		err := t.copyFrame(gfn, spare)
		if err == nil {
			_, err = t.dom.WriteGPA([]byte{0xcc}, spare.GPA()+xenevents.GPA(t.gpa.Offset()))
		}
		if err != nil {
			return err
		}
		return errors.Join(t.views.RemapGFN(t.view, gfn, spare), t.views.SetAccess(t.view, gfn, xenevents.AccessX))
	})
	if err != nil {
		return err
	}
	hits := 0
	err = t.serve(ctx, t.events, func(ev *xenevents.Event) error {
		if ev.Kind != xenevents.KindInt3 { // it is read as well
			return errors.Join(t.violation(ev), t.over(ev))
		}
		hits++
		if ev.Regs.RIP != uint64(t.at) || ev.GFN != gfn || ev.InsnLen != 1 || !ev.Paused || ev.View != t.view {
			return fmt.Errorf("not the int3 at %v, gfn %v, of view %d: %+v", t.at, gfn, t.view, ev)
		}
		return t.over(ev)
	})
	if err == nil && hits == 0 {
		err = errors.New("the int3 was not hit")
	}
	return errors.Join(err, t.leave())
}

func replyOnce(ctx context.Context, o *open) error {
	t, err := o.trap(ctx, xenevents.AccessRW)
	if err != nil {
		return err
	}
	tried := false
	err = t.serve(ctx, t.events, func(ev *xenevents.Event) error {
		if err := t.over(ev); err != nil {
			return err
		}
		tried = true
		return mustFail(t.over(ev), "a second reply")
	})
	if err == nil && !tried {
		err = errors.New("no event")
	}
	return errors.Join(err, t.leave())
}

// closeSends: a reply that no Flush sent yet is sent by Close, or its vCPU would
// stand still for ever.
func closeSends(ctx context.Context, o *open) error {
	t, err := o.trap(ctx, xenevents.AccessRW)
	if err != nil {
		return err
	}
	ctx, touched, cancel := t.touching(ctx)
	defer cancel()
	var batch [8]xenevents.Event
	n, err := t.events.Next(ctx, batch[:])
	for i := range n {
		err = errors.Join(err, t.events.Reply(&batch[i], &xenevents.Reply{Switch: true, View: xenevents.HostView}))
	}
	// The view first: nobody answers what the guest does in it afterwards.
	err = errors.Join(err, t.views.SwitchView(xenevents.HostView), t.events.Close())
	if e := <-touched; e != nil {
		err = errors.Join(err, fmt.Errorf("the guest does not run on: %w", e))
	}
	return err
}
