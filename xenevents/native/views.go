package native

import (
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

// altp2m runs one HVMOP_altp2m.
func (d *Domain) altp2m(cmd uint32, fill func(u []byte), read func(u []byte)) error {
	_, err := d.host.xen.Hypercall(abi.HypercallHVMOp, func(mem []byte, addr uint64) [5]uint64 {
		le.PutUint32(mem, abi.Altp2mVersion)
		le.PutUint32(mem[4:], cmd)
		le.PutUint16(mem[8:], uint16(d.id))
		if fill != nil {
			fill(mem[abi.Altp2mUnion:])
		}
		return [5]uint64{abi.HVMAltp2m, addr}
	}, func(mem []byte) {
		if read != nil {
			read(mem[abi.Altp2mUnion:])
		}
	})
	switch {
	case errors.Is(err, sys.ESRCH):
		return fmt.Errorf("domain %d: %w", d.id, xenevents.ErrNoDomain)
	case errors.Is(err, sys.EBUSY):
		return fmt.Errorf("altp2m of domain %d: %w", d.id, xenevents.ErrBusy)
	case errors.Is(err, sys.EOPNOTSUPP), errors.Is(err, sys.ENOSYS):
		return &xenevents.UnsupportedError{Feature: "altp2m", Need: needAltp2m, Err: err}
	}
	return err
}

const needAltp2m = `an Intel CPU with EPT, altp2m=1 on Xen's command line and altp2m="external" in the guest's configuration`

// EnableViews turns altp2m on for the domain.
func (d *Domain) EnableViews() error {
	if err := d.altp2m(abi.Altp2mSetState, func(u []byte) { u[0] = 1 }, nil); err != nil {
		if errors.Is(err, sys.EINVAL) || errors.Is(err, sys.EPERM) || errors.Is(err, sys.EACCES) {
			return &xenevents.UnsupportedError{Feature: "altp2m", Need: needAltp2m, Err: err}
		}
		return fmt.Errorf("turn altp2m on: %w", err)
	}
	d.viewsOn = true
	return nil
}

// DisableViews turns altp2m off; Xen moves all vCPUs to view 0 and frees the views.
func (d *Domain) DisableViews() error {
	if err := d.altp2m(abi.Altp2mSetState, func(u []byte) { u[0] = 0 }, nil); err != nil {
		return fmt.Errorf("turn altp2m off: %w", err)
	}
	d.viewsOn = false
	clear(d.views)
	return nil
}

// CreateView makes an empty view: Xen fills its entries from view 0 as they are
// touched, each time with an EPT violation, or by SetAccess.
func (d *Domain) CreateView() (v xenevents.View, err error) {
	err = d.altp2m(abi.Altp2mCreate, func(u []byte) {
		le.PutUint16(u[2:], uint16(xenevents.AccessRWX))
	}, func(u []byte) { v = xenevents.View(le.Uint16(u)) })
	if err != nil {
		return 0, fmt.Errorf("create an altp2m view: %w", err)
	}
	d.views[v] = true
	return v, nil
}

// DestroyView frees a view that no vCPU is in.
func (d *Domain) DestroyView(v xenevents.View) error {
	if err := d.altp2m(abi.Altp2mDestroy, func(u []byte) { le.PutUint16(u, uint16(v)) }, nil); err != nil {
		return fmt.Errorf("destroy view %d: %w", v, err)
	}
	delete(d.views, v)
	return nil
}

// SwitchView moves all vCPUs to v.
func (d *Domain) SwitchView(v xenevents.View) error {
	if err := d.altp2m(abi.Altp2mSwitch, func(u []byte) { le.PutUint16(u, uint16(v)) }, nil); err != nil {
		return fmt.Errorf("switch to view %d: %w", v, err)
	}
	return nil
}

// RemapGFN lets gfn show frame to in view v.
func (d *Domain) RemapGFN(v xenevents.View, gfn, to xenevents.GFN) error {
	if err := d.changeGFN(v, uint64(gfn), uint64(to)); err != nil {
		return fmt.Errorf("remap gfn %v to %v in view %d: %w", gfn, to, v, err)
	}
	return nil
}

// RevertGFN takes back what RemapGFN and SetAccess did to gfn in view v. Xen
// drops the entry, and fills it from view 0 when the guest touches it. Filling it
// here, by SetAccess, would take along the other pages that v remaps, where the
// host map has a superpage there: Xen copies that whole, over them.
func (d *Domain) RevertGFN(v xenevents.View, gfn xenevents.GFN) error {
	if err := d.changeGFN(v, uint64(gfn), abi.InvalidGFN); err != nil {
		return fmt.Errorf("revert gfn %v in view %d: %w", gfn, v, err)
	}
	return nil
}

func (d *Domain) changeGFN(v xenevents.View, from, to uint64) error {
	return d.absent(xenevents.GFN(from), d.altp2m(abi.Altp2mChangeGFN, func(u []byte) {
		le.PutUint16(u, uint16(v))
		le.PutUint64(u[8:], from)
		le.PutUint64(u[16:], to)
	}, nil))
}

// absent takes an error of an operation on a view: Xen answers ESRCH for a gfn
// that the host p2m does not map, too.
func (d *Domain) absent(gfn xenevents.GFN, err error) error {
	if !errors.Is(err, xenevents.ErrNoDomain) {
		return err
	}
	if _, infoErr := d.host.domainInfo(d.id); infoErr != nil {
		return err
	}
	return fmt.Errorf("gfn %v: %w", gfn, xenevents.ErrAbsent)
}

// SetAccess sets the access rights of gfn in view v.
func (d *Domain) SetAccess(v xenevents.View, gfn xenevents.GFN, a xenevents.Access) error {
	access := uint16(a)
	if a == xenevents.AccessRPW {
		if d.host.ver.Major == 4 && d.host.ver.Minor < abi.MinorWithRPW {
			return &xenevents.UnsupportedError{Feature: "access r_pw", Need: "Xen 4.20 or later, and a CPU with EPT paging-write"}
		}
		access = abi.AccessRPW
	}
	err := d.altp2m(abi.Altp2mSetAccess, func(u []byte) {
		le.PutUint16(u, uint16(v))
		le.PutUint16(u[2:], access)
		le.PutUint64(u[8:], uint64(gfn))
	}, nil)
	if err = d.absent(gfn, err); err != nil {
		return fmt.Errorf("set access %v on gfn %v in view %d: %w", a, gfn, v, err)
	}
	return nil
}
