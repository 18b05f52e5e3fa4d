package xenevents

import (
	"errors"
	"fmt"
)

// What a driver's calls fail with; match with errors.Is.
var (
	// ErrNoDomain: there is no such domain (any more).
	ErrNoDomain = errors.New("no such domain")
	// ErrDomainGone: the domain shut down, crashed or was destroyed while it
	// was open.
	ErrDomainGone = errors.New("the domain is gone")
	// ErrAbsent: no memory at that guest physical address.
	ErrAbsent = errors.New("no guest memory there")
	// ErrNotMapped: the guest's page tables map nothing at that address.
	ErrNotMapped = errors.New("not mapped by the guest")
	// ErrVCPUDown: the vCPU runs nothing and has no registers: there is none of
	// that index, or the guest has not started it yet, or took it offline.
	ErrVCPUDown = errors.New("the vCPU is not up")
	// ErrMonitored: another program has the domain's monitor ring, or died
	// with it.
	ErrMonitored = errors.New("the domain already has a monitor")
	// ErrBusy: not now; drain the events and try again.
	ErrBusy = errors.New("busy")
	// ErrInterrupted: Events.Interrupt was called.
	ErrInterrupted = errors.New("interrupted")
	// ErrClosed: the handle was closed.
	ErrClosed = errors.New("closed")
)

// UnsupportedError says that a driver, hypervisor, CPU or domain lacks
// something. It matches errors.ErrUnsupported.
type UnsupportedError struct {
	Feature string // what was asked for, in the field's words: "altp2m views"
	Need    string // what would have to be there, and how to get it; "" if nothing helps
	Err     error  // what the hypervisor answered; may be nil
}

func (e *UnsupportedError) Error() string {
	s := e.Feature + " is not supported here"
	if e.Need != "" {
		s += ": " + e.Need
	}
	if e.Err != nil {
		s += fmt.Sprintf(" (%v)", e.Err)
	}
	return s
}

// Unwrap returns the hypervisor's answer.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// Is makes an UnsupportedError match errors.ErrUnsupported.
func (e *UnsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }
