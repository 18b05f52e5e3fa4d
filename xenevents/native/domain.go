package native

import (
	"context"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

// Domain is an open domain: xenevents.Domain, Views, PageAllocator, Injector
// and Prober.
type Domain struct {
	Frames
	host   *Host
	id     xenevents.DomainID
	pauses int
	events *Events

	viewsOn   bool
	views     map[xenevents.View]bool
	spares    map[xenevents.GFN]bool
	nextSpare xenevents.GFN // 0: none was asked for yet
	maxPages  uint64        // before the first spare frame
	closed    bool
}

var _ interface {
	xenevents.Domain
	xenevents.Views
	xenevents.PageAllocator
	xenevents.Injector
	xenevents.Swapper
	xenevents.Prober
} = (*Domain)(nil)

// Open opens a domain; it changes nothing in it.
func (h *Host) Open(ctx context.Context, id xenevents.DomainID) (xenevents.Domain, error) {
	if id == 0 {
		return nil, fmt.Errorf("domain 0 is this one: hprobe watches guests: %w", xenevents.ErrNoDomain)
	}
	if _, err := h.domainInfo(id); err != nil {
		return nil, err
	}
	return &Domain{
		Frames: NewFrames(privMapper{h.xen, id}, h.opts.MaxFrames),
		host:   h, id: id, views: map[xenevents.View]bool{}, spares: map[xenevents.GFN]bool{},
	}, ctx.Err()
}

// Info asks Xen, and xenstore for the name.
func (d *Domain) Info(ctx context.Context) (xenevents.DomainInfo, error) {
	info, err := d.host.domainInfo(d.id)
	if err != nil {
		return info, err
	}
	one := []xenevents.DomainInfo{info}
	d.host.addNames(ctx, one)
	return one[0], nil
}

// Pause holds all vCPUs. Xen counts, and so does the Domain: Close undoes what is left.
func (d *Domain) Pause() error {
	if err := d.host.domctlOn(d.id, abi.DomctlPause, nil, nil); err != nil {
		return fmt.Errorf("pause domain %d: %w", d.id, err)
	}
	d.pauses++
	return nil
}

// Unpause undoes one Pause of this Domain.
func (d *Domain) Unpause() error {
	if d.pauses == 0 {
		return fmt.Errorf("unpause domain %d: it was not paused from here", d.id)
	}
	d.pauses--
	if err := d.host.domctlOn(d.id, abi.DomctlUnpause, nil, nil); err != nil {
		return fmt.Errorf("unpause domain %d: %w", d.id, err)
	}
	return nil
}

// Registers reads a vCPU's CPU record.
func (d *Domain) Registers(v xenevents.VCPU) (r xenevents.Registers, err error) {
	err = d.host.domctlOn(d.id, abi.DomctlGetContextPartial, func(u []byte, data uint64) {
		le.PutUint32(u, abi.CPURecord)
		le.PutUint32(u[4:], uint32(v))
		le.PutUint64(u[8:], abi.CPURecordSize)
		le.PutUint64(u[16:], data)
	}, func(mem []byte) { r = decodeCPU(mem[dataOffset:]) })
	switch {
	case errors.Is(err, sys.ENODATA), errors.Is(err, sys.EINVAL), errors.Is(err, sys.ENOENT):
		// hvm_save_one: no record of a vCPU that is down (ENODATA), no such vCPU (the others).
		return r, fmt.Errorf("vCPU %d of domain %d: %w: %w", v, d.id, xenevents.ErrVCPUDown, err)
	case err != nil:
		return r, fmt.Errorf("registers of vCPU %d of domain %d: %w", v, d.id, err)
	}
	return r, nil
}

func decodeCPU(b []byte) (r xenevents.Registers) {
	for n, at := range abi.CPUGPR {
		*r.GPR(n) = le.Uint64(b[at:])
	}
	for _, f := range []struct {
		to *uint64
		at int
	}{
		{&r.RIP, abi.CPURIP}, {&r.RFLAGS, abi.CPURFLAGS}, {&r.CR0, abi.CPUCR0}, {&r.CR2, abi.CPUCR2}, {&r.CR3, abi.CPUCR3}, {&r.CR4, abi.CPUCR4},
		{&r.DR6, abi.CPUDR6}, {&r.DR7, abi.CPUDR7}, {&r.EFER, abi.CPUEFER}, {&r.STAR, abi.CPUSTAR}, {&r.LSTAR, abi.CPULSTAR},
		{&r.SysenterCS, abi.CPUSysenterCS}, {&r.SysenterESP, abi.CPUSysenterESP}, {&r.SysenterEIP, abi.CPUSysenterEIP},
		{&r.FSBase, abi.CPUFSBase}, {&r.GSBase, abi.CPUGSBase}, {&r.ShadowGS, abi.CPUShadowGS}, {&r.GDTRBase, abi.CPUGDTRBase},
	} {
		*f.to = le.Uint64(b[f.at:])
	}
	r.CS, r.SS = le.Uint16(b[abi.CPUCS:]), le.Uint16(b[abi.CPUSS:])
	return r
}

// InjectInt3 gives the guest the #BP of its own int3 (dm_op.h, inject_event).
func (d *Domain) InjectInt3(v xenevents.VCPU, insnLen uint8) error {
	op := make([]byte, 40)
	le.PutUint32(op, abi.DMInjectEvent)
	le.PutUint32(op[8:], uint32(v))
	op[12] = 3 // #BP
	op[13] = abi.TrapSWException
	op[14] = insnLen
	le.PutUint32(op[16:], ^uint32(0)) // no error code
	if err := d.host.xen.DMOp(uint16(d.id), op); err != nil {
		return fmt.Errorf("inject #BP into vCPU %d of domain %d: %w", v, d.id, err)
	}
	return nil
}

// Close undoes everything: events, views, spare frames, pauses, mappings. It
// goes on past errors and reports them all. Those of a domain that is gone are
// none: there is nothing left to undo.
func (d *Domain) Close() error {
	if d.closed {
		return nil
	}
	d.closed = true
	var errs []error
	undo := func(err error) {
		if !errors.Is(err, xenevents.ErrNoDomain) && !errors.Is(err, xenevents.ErrDomainGone) {
			errs = append(errs, err)
		}
	}
	if d.events != nil {
		undo(d.events.Close())
	}
	if d.viewsOn {
		undo(d.DisableViews())
	}
	for gfn := range d.spares {
		undo(d.FreeGFN(gfn))
	}
	undo(d.restoreMaxMem())
	for d.pauses > 0 {
		undo(d.Unpause())
	}
	d.Unmap()
	return errors.Join(errs...)
}

// Ticks reads the TSC of this processor.
func (d *Domain) Ticks() uint64 { return sys.TSC() }

// TicksPerSecond is how fast that counts, as Xen found when it booted.
func (d *Domain) TicksPerSecond() uint64 { return uint64(d.host.khz) * 1000 }
