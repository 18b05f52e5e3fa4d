//go:build libvmi

package libvmi

// #include "glue.h"
import "C"

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/hprobe/hprobe/xenevents"
)

const needAltp2m = `an Intel CPU with EPT, altp2m=1 on Xen's command line and altp2m="external" in the guest's configuration`

// slat is the error of one of LibVMI's functions for views (second level address
// translation, as it calls them).
func (d *Domain) slat(status C.status_t, errno error, what string, args ...any) error {
	if status == C.VMI_SUCCESS {
		return nil
	}
	what = fmt.Sprintf(what, args...)
	switch {
	case errors.Is(errno, syscall.EBUSY):
		return fmt.Errorf("%s: %w", what, xenevents.ErrBusy)
	case errors.Is(errno, syscall.EOPNOTSUPP), errors.Is(errno, syscall.ENOSYS):
		return &xenevents.UnsupportedError{Feature: "altp2m", Need: needAltp2m, Err: errno}
	}
	return d.failed(what, errno)
}

// EnableViews turns altp2m on for the domain.
func (d *Domain) EnableViews() error {
	status, errno := C.hp_slat_control(d.vmi, true)
	if err := d.slat(status, errno, "turn altp2m on"); err != nil {
		if errors.Is(errno, syscall.EINVAL) || errors.Is(errno, syscall.EPERM) || errors.Is(errno, syscall.EACCES) {
			return &xenevents.UnsupportedError{Feature: "altp2m", Need: needAltp2m, Err: err}
		}
		return err
	}
	d.viewsOn = true
	return nil
}

// DisableViews turns altp2m off; Xen moves all vCPUs to view 0 and frees the views.
func (d *Domain) DisableViews() error {
	status, errno := C.hp_slat_control(d.vmi, false)
	if err := d.slat(status, errno, "turn altp2m off"); err != nil {
		return err
	}
	d.viewsOn = false
	return nil
}

// CreateView makes an empty view.
func (d *Domain) CreateView() (xenevents.View, error) {
	var v C.uint16_t
	status, errno := C.hp_slat_create(d.vmi, &v)
	return xenevents.View(v), d.slat(status, errno, "create an altp2m view")
}

// DestroyView frees a view that no vCPU is in.
func (d *Domain) DestroyView(v xenevents.View) error {
	status, errno := C.hp_slat_destroy(d.vmi, C.uint16_t(v))
	return d.slat(status, errno, "destroy view %d", v)
}

// SwitchView moves all vCPUs to v.
func (d *Domain) SwitchView(v xenevents.View) error {
	status, errno := C.hp_slat_switch(d.vmi, C.uint16_t(v))
	return d.slat(status, errno, "switch to view %d", v)
}

// RemapGFN lets gfn show frame to in view v.
func (d *Domain) RemapGFN(v xenevents.View, gfn, to xenevents.GFN) error {
	status, errno := C.hp_slat_change_gfn(d.vmi, C.uint16_t(v), C.addr_t(gfn), C.addr_t(to))
	return d.absent(gfn, errno, d.slat(status, errno, "remap gfn %v to %v in view %d", gfn, to, v))
}

// RevertGFN takes back what RemapGFN and SetAccess did to gfn in view v.
func (d *Domain) RevertGFN(v xenevents.View, gfn xenevents.GFN) error {
	status, errno := C.hp_slat_change_gfn(d.vmi, C.uint16_t(v), C.addr_t(gfn), ^C.addr_t(0))
	return d.absent(gfn, errno, d.slat(status, errno, "revert gfn %v in view %d", gfn, v))
}

// absent takes an error of an operation on a view: Xen answers ESRCH for a gfn that the
// host p2m does not map, too.
func (d *Domain) absent(gfn xenevents.GFN, errno, err error) error {
	if err == nil || errors.Is(err, xenevents.ErrNoDomain) || !errors.Is(errno, syscall.ESRCH) {
		return err
	}
	return fmt.Errorf("%w: gfn %v: %w", err, gfn, xenevents.ErrAbsent)
}

// traps is what LibVMI wants in place of access rights: the accesses that give an event.
func traps(a xenevents.Access) C.vmi_mem_access_t {
	var t C.vmi_mem_access_t
	if a&xenevents.AccessR == 0 {
		t |= C.VMI_MEMACCESS_R
	}
	if a&xenevents.AccessW == 0 {
		t |= C.VMI_MEMACCESS_W
	}
	if a&xenevents.AccessX == 0 {
		t |= C.VMI_MEMACCESS_X
	}
	if t == 0 {
		return C.VMI_MEMACCESS_N
	}
	return t
}

// SetAccess sets the access rights of gfn in view v. LibVMI does that while it is
// attached only; before, it is the native driver's.
func (d *Domain) SetAccess(v xenevents.View, gfn xenevents.GFN, a xenevents.Access) error {
	if a == xenevents.AccessRPW {
		return &xenevents.UnsupportedError{Feature: "access r_pw by LibVMI", Need: "--driver native"}
	}
	if d.events == nil || d.events.closed {
		return d.native.SetAccess(v, gfn, a)
	}
	status, errno := C.hp_set_mem_event(d.events.m.vmi, C.addr_t(gfn), traps(a), C.uint16_t(v))
	return d.absent(gfn, errno, d.slat(status, errno, "set access %v on gfn %v in view %d", a, gfn, v))
}
