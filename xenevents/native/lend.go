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

// HoldVCPU keeps one vCPU from running, until ReleaseVCPU. It is what Xen's gdbsx is
// made of, counts apart from pauses and events, and needs the domain to be paused
// (xen/arch/x86/domctl.c and gdbsx.c, XEN_DOMCTL_gdbsx_pausevcpu). Close does not undo it.
func (d *Domain) HoldVCPU(v xenevents.VCPU) error { return d.holdVCPU(abi.DomctlPauseVCPU, v) }

// ReleaseVCPU undoes HoldVCPU. The domain must be paused.
func (d *Domain) ReleaseVCPU(v xenevents.VCPU) error { return d.holdVCPU(abi.DomctlUnpauseVCPU, v) }

func (d *Domain) holdVCPU(cmd uint32, v xenevents.VCPU) error {
	err := d.host.domctlOn(d.id, cmd, func(u []byte, _ uint64) { le.PutUint32(u, uint32(v)) }, nil)
	switch {
	case errors.Is(err, sys.ENOSYS), errors.Is(err, sys.EOPNOTSUPP):
		return &xenevents.UnsupportedError{Feature: "holding one vCPU", Need: "a Xen that was built with CONFIG_GDBSX, as Debian's is", Err: err}
	case err != nil:
		return fmt.Errorf("hold or release vCPU %d of domain %d: %w", v, d.id, err)
	}
	return nil
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

// RingPage says where in the guest's memory a monitor's ring goes, and whether there
// is a page. A monitor takes it out of the guest's sight; GiveRingPage puts one back.
func (d *Domain) RingPage() (gfn xenevents.GFN, there bool, err error) {
	at, err := d.param(abi.ParamMonitorRing)
	if err != nil {
		return 0, false, fmt.Errorf("find the monitor ring of domain %d: %w", d.id, err)
	}
	gfn = xenevents.GFN(at)
	d.Drop(gfn)
	_, err = d.frame(gfn)
	d.Drop(gfn) // a mapping would keep the page from going
	if errors.Is(err, xenevents.ErrAbsent) {
		return gfn, false, nil
	}
	return gfn, err == nil, err
}

// GiveRingPage gives the guest a page at gfn.
func (d *Domain) GiveRingPage(gfn xenevents.GFN) error {
	if err := d.reservation(abi.MemoryPopulatePhysmap, gfn); err != nil {
		return fmt.Errorf("give domain %d a page for the monitor ring: %w", d.id, err)
	}
	return nil
}
