//go:build libvmi

package libvmi

// #include "glue.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native"
)

// Domain is an open domain: what the native driver's is, by way of LibVMI.
type Domain struct {
	*native.Frames // native's, mapped by LibVMI
	native         *native.Domain
	host           *Host
	id             xenevents.DomainID
	vmi            C.vmi_instance_t
	events         *Events
	pauses         int
	viewsOn        bool
	closed         bool
}

var _ interface {
	xenevents.Domain
	xenevents.Views
	xenevents.PageAllocator
	xenevents.Injector
	xenevents.Swapper
	xenevents.Prober
} = (*Domain)(nil)

// keepLimit runs what has LibVMI change the domain's memory limit, and puts that back.
func (d *Domain) keepLimit(ctx context.Context, f func() error) error {
	before, err := d.native.Info(ctx)
	if err != nil {
		return err
	}
	err = f()
	if e := d.native.SetMaxPages(before.MaxPages); !errors.Is(e, xenevents.ErrNoDomain) {
		err = errors.Join(err, e)
	}
	return err
}

// mapper maps frames by LibVMI, which maps all or none: where one is absent, the native
// driver maps the others.
type mapper struct {
	vmi C.vmi_instance_t
	own native.Mapper
}

func (m mapper) Map(gfns []uint64, errs []int32) ([]byte, error) {
	if mem := C.hp_map(m.vmi, (*C.uint64_t)(&gfns[0]), C.size_t(len(gfns))); mem != nil {
		return unsafe.Slice((*byte)(mem), len(gfns)*xenevents.PageSize), nil
	}
	return m.own.Map(gfns, errs)
}

func (m mapper) Unmap(mem []byte) error { return m.own.Unmap(mem) }

// Info asks the native driver.
func (d *Domain) Info(ctx context.Context) (xenevents.DomainInfo, error) { return d.native.Info(ctx) }

// MaxGFN asks the native driver: LibVMI has the highest frame of when it opened the domain.
func (d *Domain) MaxGFN() (xenevents.GFN, error) { return d.native.MaxGFN() }

// failed is the error of a call of LibVMI's, which says no more than that; errno is
// what is left of Xen's answer.
func (d *Domain) failed(what string, errno error) error {
	if _, err := d.native.Info(context.Background()); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if errno == nil {
		errno = errors.New("LibVMI failed")
	}
	return fmt.Errorf("%s: %w", what, errno)
}

// Pause holds all vCPUs. Xen counts, and so does the Domain: Close undoes what is left.
func (d *Domain) Pause() error {
	if status, errno := C.hp_pause_vm(d.vmi); status != C.VMI_SUCCESS {
		return d.failed(fmt.Sprintf("pause domain %d", d.id), errno)
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
	if status, errno := C.hp_resume_vm(d.vmi); status != C.VMI_SUCCESS {
		return d.failed(fmt.Sprintf("unpause domain %d", d.id), errno)
	}
	return nil
}

// Registers reads a vCPU's registers.
func (d *Domain) Registers(v xenevents.VCPU) (r xenevents.Registers, err error) {
	var all C.registers_t
	if status, errno := C.hp_get_vcpuregs(d.vmi, &all, C.ulong(v)); status != C.VMI_SUCCESS {
		if _, err := d.native.Info(context.Background()); err != nil {
			return r, err
		}
		return r, fmt.Errorf("vCPU %d of domain %d: %w: %w", v, d.id, xenevents.ErrVCPUDown, errors.Join(errno, errors.New("LibVMI has no registers of it")))
	}
	decodeRegisters((*C.x86_registers_t)(unsafe.Pointer(&all)), &r)
	return r, nil
}

func decodeRegisters(x *C.x86_registers_t, r *xenevents.Registers) {
	r.RAX, r.RCX, r.RDX, r.RBX = uint64(x.rax), uint64(x.rcx), uint64(x.rdx), uint64(x.rbx)
	r.RSP, r.RBP, r.RSI, r.RDI = uint64(x.rsp), uint64(x.rbp), uint64(x.rsi), uint64(x.rdi)
	r.R8, r.R9, r.R10, r.R11 = uint64(x.r8), uint64(x.r9), uint64(x.r10), uint64(x.r11)
	r.R12, r.R13, r.R14, r.R15 = uint64(x.r12), uint64(x.r13), uint64(x.r14), uint64(x.r15)
	r.RIP, r.RFLAGS = uint64(x.rip), uint64(x.rflags)
	r.CR0, r.CR2, r.CR3, r.CR4 = uint64(x.cr0), uint64(x.cr2), uint64(x.cr3), uint64(x.cr4)
	r.DR6, r.DR7 = uint64(x.dr6), uint64(x.dr7)
	r.EFER, r.STAR, r.LSTAR = uint64(x.msr_efer), uint64(x.msr_star), uint64(x.msr_lstar)
	r.SysenterCS, r.SysenterESP, r.SysenterEIP = uint64(x.sysenter_cs), uint64(x.sysenter_esp), uint64(x.sysenter_eip)
	r.FSBase, r.GSBase, r.ShadowGS, r.GDTRBase = uint64(x.fs_base), uint64(x.gs_base), uint64(x.shadow_gs), uint64(x.gdtr_base)
	r.CS, r.SS = uint16(x.cs_sel), uint16(x.ss_sel)
}

// InjectInt3 gives the guest the #BP of its own int3: LibVMI does so with the reply,
// if that was not sent yet, and the native driver afterwards.
func (d *Domain) InjectInt3(v xenevents.VCPU, insnLen uint8) error {
	if e := d.events; e != nil && !e.closed && e.inject(v) {
		return nil
	}
	return d.native.InjectInt3(v, insnLen)
}

// AllocGFN adds a frame that nothing in the guest knows of. It is the native driver's:
// LibVMI takes a number for it, and knows none that is free.
func (d *Domain) AllocGFN() (xenevents.GFN, error) { return d.native.AllocGFN() }

// FreeGFN takes a frame of AllocGFN away again.
func (d *Domain) FreeGFN(gfn xenevents.GFN) error { return d.native.FreeGFN(gfn) }

// Features is the native driver's answer, but for what LibVMI can't.
func (d *Domain) Features(ctx context.Context) ([]xenevents.Feature, error) {
	all, err := d.native.Features(ctx)
	for i := range all {
		switch f := &all[i]; f.Name {
		case "r-pw":
			f.Answer, f.Detail, f.Fix = xenevents.No, "LibVMI has no name for it", "--driver native"
		case "monitored":
			if d.events != nil && !d.events.closed {
				f.Answer, f.Need, f.Detail, f.Fix = xenevents.Yes, xenevents.Optional, "by this hprobed", ""
			}
		}
	}
	return append(all, xenevents.Feature{
		Name: "replies-out-of-order", Title: "replies in any order", Answer: xenevents.No,
		Detail: "LibVMI replies in the order of the events: a vCPU that waits for a slow verdict hits again, unseen, while others have events",
	}), err
}

// Ticks reads the TSC of this processor.
func (d *Domain) Ticks() uint64 { return d.native.Ticks() }

// TicksPerSecond is how fast that counts.
func (d *Domain) TicksPerSecond() uint64 { return d.native.TicksPerSecond() }

// Close undoes everything, as the native driver's does.
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
	for d.pauses > 0 {
		undo(d.Unpause())
	}
	if d.vmi != nil {
		undo(d.destroy())
	}
	undo(d.native.Close())
	return errors.Join(errs...)
}

func (d *Domain) destroy() error {
	ended := func() error {
		C.hp_destroy(d.vmi)
		d.vmi = nil
		return nil
	}
	err := d.keepLimit(context.Background(), ended)
	if d.vmi != nil { // the domain is gone, and nothing to keep
		return ended()
	}
	return err
}
