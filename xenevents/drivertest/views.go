package drivertest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// hider is what hidden probes need.
type hider interface {
	xenevents.Views
	xenevents.PageAllocator
}

func views(_ context.Context, o *open) error {
	d, err := role[hider](o)
	if err != nil {
		return err
	}
	k, err := o.kernel()
	if err != nil {
		return err
	}
	for range 2 {
		if err := unsupported(d.EnableViews()); err != nil {
			return err
		}
		if err := d.EnableViews(); err != nil {
			return fmt.Errorf("enable views twice: %w", err)
		}
		if err := errors.Join(o.oneView(d, k), o.oneView(d, k)); err != nil {
			return err
		}
		if err := mustFail(d.DestroyView(xenevents.HostView), "destroy view 0"); err != nil {
			return err
		}
		if err := errors.Join(d.DisableViews(), d.DisableViews()); err != nil {
			return fmt.Errorf("disable views, twice: %w", err)
		}
		_, err := d.CreateView()
		if err := mustFail(err, "create a view while altp2m is off"); err != nil {
			return err
		}
	}
	return nil
}

// oneView makes a view that the guest never enters, changes it in each way, and
// takes it away.
func (o *open) oneView(d hider, k place) error {
	v, err := d.CreateView()
	if err != nil {
		return err
	}
	if v == xenevents.HostView {
		return errors.New("the new view has number 0")
	}
	spare, err := d.AllocGFN()
	if err != nil {
		return err
	}
	if err := o.swaps(spare.GPA()); err != nil {
		return err
	}
	gfn := k.gpa.GFN()
	for _, a := range []xenevents.Access{xenevents.AccessX, xenevents.AccessR, xenevents.AccessRX, xenevents.AccessRW, xenevents.AccessNone, xenevents.AccessRWX} {
		if err := d.SetAccess(v, gfn, a); err != nil {
			return err
		}
	}
	if err := d.SetAccess(v, gfn, xenevents.AccessRPW); err != nil && !errors.Is(err, errors.ErrUnsupported) {
		return err
	}
	if err := errors.Join(d.RemapGFN(v, gfn, spare), d.SetAccess(v, gfn, xenevents.AccessX)); err != nil {
		return err
	}
	for what, err := range map[string]error{
		"remap in a view that is not there":      d.RemapGFN(v+1, gfn, spare),
		"set access in a view that is not there": d.SetAccess(v+1, gfn, xenevents.AccessX),
		"switch to a view that is not there":     d.SwitchView(v + 1),
		"destroy a view that is not there":       d.DestroyView(v + 1),
	} {
		if err := mustFail(err, what); err != nil {
			return err
		}
	}
	return xenevents.WithPaused(o.dom, func() error {
		return errors.Join(d.RevertGFN(v, gfn), d.DestroyView(v), d.FreeGFN(spare))
	})
}

// newView turns views on, and makes one.
func (o *open) newView() (xenevents.Views, xenevents.View, error) {
	d, err := role[xenevents.Views](o)
	if err != nil {
		return nil, 0, err
	}
	if err := unsupported(d.EnableViews()); err != nil {
		return nil, 0, err
	}
	v, err := d.CreateView()
	return d, v, err
}

func viewsAbsent(_ context.Context, o *open) error {
	d, v, err := o.newView()
	if err != nil {
		return err
	}
	top, err := o.dom.MaxGFN()
	if err != nil {
		return err
	}
	if err := d.SetAccess(v, top+farAway, xenevents.AccessX); err != nil {
		return must(err, xenevents.ErrAbsent, "access of a frame that is not there")
	}
	return nil
}

func viewsBusy(_ context.Context, o *open) error {
	d, v, err := o.newView()
	if err != nil {
		return err
	}
	if err := d.SwitchView(v); err != nil {
		return err
	}
	time.Sleep(soon) // the guest runs there
	if err := must(d.DestroyView(v), xenevents.ErrBusy, "destroy the view that the guest is in"); err != nil {
		return err
	}
	if err := d.SwitchView(xenevents.HostView); err != nil {
		return err
	}
	return d.DestroyView(v)
}

// closeUndoes leaves all that a monitor can leave to Close.
func closeUndoes(ctx context.Context, o *open) error {
	d, err := role[hider](o)
	if err != nil {
		return err
	}
	k, err := o.kernel()
	if err != nil {
		return err
	}
	e, err := o.dom.Attach(ctx)
	if err != nil {
		return err
	}
	if err := errors.Join(
		e.Subscribe(xenevents.Subscription{Kind: xenevents.KindInt3, Sync: true}),
		e.Subscribe(xenevents.Subscription{Kind: xenevents.KindControlReg, Index: 3, OnChange: true}),
	); err != nil {
		return unsupported(err)
	}
	if err := unsupported(d.EnableViews()); err != nil {
		return err
	}
	var spares []xenevents.GFN
	for range 3 {
		gfn, err := d.AllocGFN()
		if err != nil {
			return err
		}
		spares = append(spares, gfn)
	}
	v, err := d.CreateView()
	if err != nil {
		return err
	}
	if err := o.dom.Pause(); err != nil {
		return err
	}
	return errors.Join(o.copyFrame(k.gpa.GFN(), spares[0]), d.RemapGFN(v, k.gpa.GFN(), spares[0]), d.SwitchView(v), o.dom.Pause())
}

// copyFrame copies one frame to another.
func (o *open) copyFrame(from, to xenevents.GFN) error {
	content := make([]byte, xenevents.PageSize)
	if _, err := o.dom.ReadGPA(content, from.GPA()); err != nil {
		return err
	}
	_, err := o.dom.WriteGPA(content, to.GPA())
	return err
}

// swaps changes a word of a frame that nobody else knows, where the driver can do so
// in one step.
func (o *open) swaps(at xenevents.GPA) error {
	s, ok := o.dom.(xenevents.Swapper)
	if !ok {
		return nil
	}
	if _, err := o.dom.WriteGPA(make([]byte, 8), at); err != nil {
		return err
	}
	for _, c := range []struct {
		old, v uint64
		done   bool
	}{{0, 7, true}, {0, 8, false}, {7, 1 << 63, true}} {
		if done, err := s.CompareAndSwap64(at, c.old, c.v); done != c.done || err != nil {
			return fmt.Errorf("swap %#x for %#x: %v, %w", c.old, c.v, done, err)
		}
	}
	var b [8]byte
	if _, err := o.dom.ReadGPA(b[:], at); err != nil || b != [8]byte{7: 0x80} {
		return fmt.Errorf("after the swaps there is % x: %w", b, err)
	}
	_, err := s.CompareAndSwap64(at+4, 0, 0)
	return mustFail(err, "swap a word that is not aligned")
}
