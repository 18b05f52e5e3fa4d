package native

import (
	"context"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

// What is here is for the driver over LibVMI, which asks this one for what LibVMI
// does not do, or does not put back: see package xenevents/libvmi.

// PollFor is how long an Events of this host looks at its ring before it sleeps, in
// cycles of the TSC: see Options.Poll.
func (h *Host) PollFor() uint64 { return h.opts.poll(h.cpus) }

// Doorbell rings an event channel, and gives the CPU away.
type Doorbell = sys.Doorbell

// Doorbell makes one for a port of dom0's, or none (nil) where it is not worth while:
// see Options.Poll.
func (h *Host) Doorbell(port uint32) (*Doorbell, error) {
	if h.opts.Poll != 0 || h.cpus != 1 {
		return nil, nil
	}
	return h.xen.NewDoorbell(port)
}

// VMEventVersion is the version of the running Xen's vm_event interface.
func (h *Host) VMEventVersion() uint32 { return h.ver.VMEvent }

// SetMaxPages sets how many frames the domain may have: DomainInfo.MaxPages.
func (d *Domain) SetMaxPages(pages uint64) error {
	if err := d.setMaxMem(pages); err != nil {
		return fmt.Errorf("set the memory limit of domain %d: %w", d.id, err)
	}
	return nil
}

// MapBy has the domain's frames mapped by what f makes of this driver's own Mapper. It
// comes before the first frame is read.
func (d *Domain) MapBy(f func(own Mapper) Mapper) {
	d.Frames = NewFrames(f(d.mapper), d.host.opts.MaxFrames)
}

// MonitorAnew ends a subscription that another has made, and makes it as it is meant.
func (d *Domain) MonitorAnew(s xenevents.Subscription) error {
	if err := d.monitor(s, abi.MonitorDisable); err != nil {
		return err
	}
	return d.monitor(s, abi.MonitorEnable)
}

// HoldWrites has each write of a control register or MSR that is monitored wait for
// its reply: see xenevents.WriteHolder.
func (d *Domain) HoldWrites() error {
	err := d.host.domctlOn(d.id, abi.DomctlMonitorOp, func(u []byte, _ uint64) { le.PutUint32(u, abi.MonitorControlRegisters) }, nil)
	switch {
	case errors.Is(err, sys.EOPNOTSUPP), errors.Is(err, sys.ENOSYS):
		return &xenevents.UnsupportedError{Feature: "refusing writes of registers", Need: "Xen 4.14 or later", Err: err}
	case err != nil:
		return fmt.Errorf("hold the writes of registers of domain %d: %w", d.id, err)
	}
	return nil
}

// Attachable fails as Attach would, with ErrMonitored above all. It changes nothing.
func (d *Domain) Attachable(ctx context.Context) error {
	e, err := d.Attach(ctx)
	if err != nil {
		return err
	}
	return e.Close()
}

// RingPage is the page of a monitor's ring, seen by who does not read the ring itself.
// It belongs to one goroutine, and ends before its Domain.
type RingPage struct {
	dom  *Domain
	gfn  xenevents.GFN
	had  bool // the guest had the page before
	page []byte
}

// OpenRingPage maps the page, which must be done before the monitor attaches, as that
// takes it out of the guest's sight. Where an earlier monitor has left none the guest is
// given one.
func (d *Domain) OpenRingPage() (*RingPage, error) {
	gfn, err := d.param(abi.ParamMonitorRing)
	if err != nil {
		return nil, fmt.Errorf("find the monitor ring of domain %d: %w", d.id, err)
	}
	e := &Events{dom: d, ringGFN: xenevents.GFN(gfn)}
	if err := e.mapRing(); err != nil {
		return nil, err
	}
	return &RingPage{dom: d, gfn: e.ringGFN, had: e.hadRingPage, page: e.ring.page}, nil
}

// consumed is how many requests were taken out of the ring: whoever does keeps
// req_event one ahead (xen/include/public/io/ring.h).
func (p *RingPage) consumed() uint32 { return sys.Load32(p.page[abi.RingReqEvent:]) - 1 }

// Waiting is how many requests nobody has taken yet. It needs no system call.
func (p *RingPage) Waiting() uint32 { return sys.Load32(p.page[abi.RingReqProd:]) - p.consumed() }

// Await looks for a request n times.
func (p *RingPage) Await(n int) bool { return sys.Spin(p.page[abi.RingReqProd:], p.consumed(), n) }

// Close gives the guest the page back, or takes it away, as it was before: the monitor
// has detached. Twice is harmless.
func (p *RingPage) Close() error {
	if p.page == nil {
		return nil
	}
	page := p.page
	p.page = nil
	err := sys.Unmap(page)
	p.dom.Drop(p.gfn)
	_, frameErr := p.dom.frame(p.gfn)
	p.dom.Drop(p.gfn) // a mapping would keep the page from going
	switch there := frameErr == nil; {
	case frameErr != nil && !errors.Is(frameErr, xenevents.ErrAbsent):
		return errors.Join(err, frameErr)
	case there && !p.had:
		return errors.Join(err, p.dom.reservation(abi.MemoryDecreaseReservation, p.gfn))
	case !there && p.had:
		return errors.Join(err, p.dom.reservation(abi.MemoryPopulatePhysmap, p.gfn))
	}
	return err
}
