//go:build libvmi

package libvmi

// #include "glue.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
)

// Subscribe asks for a class of events.
func (e *Events) Subscribe(s xenevents.Subscription) error {
	if i := slices.Index(e.unwanted, s); i >= 0 {
		e.unwanted = slices.Delete(e.unwanted, i, i+1)
	}
	if e.subs[s] != nil {
		return nil
	}
	for other := range e.subs {
		if other.Kind == s.Kind && other.Index == s.Index && slices.Contains(e.unwanted, other) {
			return fmt.Errorf("%v events of domain %d: there are others in the ring that were asked for differently: %w", s.Kind, e.dom.id, xenevents.ErrBusy)
		}
	}
	kind, ok := map[xenevents.Kind]C.uint16_t{
		xenevents.KindInt3: C.VMI_EVENT_INTERRUPT, xenevents.KindSingleStep: C.VMI_EVENT_SINGLESTEP, xenevents.KindControlReg: C.VMI_EVENT_REGISTER,
		xenevents.KindMSR: C.VMI_EVENT_REGISTER, xenevents.KindCPUID: C.VMI_EVENT_CPUID, xenevents.KindGuestRequest: C.VMI_EVENT_GUEST_REQUEST,
		xenevents.KindDebug: C.VMI_EVENT_DEBUG_EXCEPTION,
	}[s.Kind]
	switch {
	case !ok:
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("a subscription to %v events", s.Kind)}
	case s.Kind == xenevents.KindControlReg && s.Index != 0 && s.Index != 3 && s.Index != 4:
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("events of CR%d", s.Index)}
	case s.Kind == xenevents.KindSingleStep && len(e.pending) > C.MAX_SINGLESTEP_VCPUS:
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("single-step of %d vCPUs by LibVMI", len(e.pending)), Need: fmt.Sprintf("at most %d, or --driver native", C.MAX_SINGLESTEP_VCPUS)}
	}
	ev, errno := C.hp_subscribe(e.m, kind, s.Kind == xenevents.KindMSR, C.uint32_t(s.Index), C.bool(!s.Sync), C.bool(s.OnChange), C.uint32_t(len(e.pending)))
	if ev == nil {
		if _, err := e.dom.native.Info(context.Background()); err != nil {
			return err
		}
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("%v events (index %#x) by LibVMI", s.Kind, s.Index), Need: "another CPU, Xen or LibVMI", Err: errno}
	}
	e.subs[s] = ev
	if s.Kind == xenevents.KindMSR {
		return e.dom.native.MonitorAnew(s)
	}
	return nil
}

// Unsubscribe undoes Subscribe. While events are in the ring LibVMI keeps its handlers,
// and more of that kind may come.
func (e *Events) Unsubscribe(s xenevents.Subscription) error {
	if e.subs[s] == nil || slices.Contains(e.unwanted, s) {
		return nil
	}
	e.unwanted = append(e.unwanted, s)
	return errors.Join(e.Flush(), e.clear())
}

// clear takes the unwanted subscriptions away, if the ring is empty.
func (e *Events) clear() error {
	if len(e.unwanted) == 0 || e.m.suspended != 0 {
		return nil
	}
	return xenevents.WithPaused(e.dom, func() error {
		if e.ring.Waiting() != 0 {
			return nil
		}
		var errs []error
		for _, s := range e.unwanted {
			if status, errno := C.hp_clear(e.m, e.subs[s]); status != C.VMI_SUCCESS {
				errs = append(errs, e.dom.failed(fmt.Sprintf("end %v events of domain %d", s.Kind, e.dom.id), errno))
			}
			delete(e.subs, s)
		}
		e.unwanted = nil
		return errors.Join(errs...)
	})
}

// HoldWrites is xenevents.WriteHolder's. LibVMI can't ask for it, but does not mind.
func (e *Events) HoldWrites() error {
	for s := range e.subs {
		if s.Kind == xenevents.KindControlReg && !s.Sync {
			return fmt.Errorf("hold the writes of registers: nobody waits at those of CR%d", s.Index)
		}
	}
	if err := e.dom.native.HoldWrites(); err != nil {
		return err
	}
	e.holdsWrites = true
	return nil
}
