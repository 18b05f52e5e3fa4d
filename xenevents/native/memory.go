package native

import (
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

// privMapper maps frames through /dev/xen/privcmd.
type privMapper struct {
	xen *sys.Privcmd
	dom xenevents.DomainID
}

func (m privMapper) Map(gfns []uint64, errs []int32) ([]byte, error) {
	mem, err := m.xen.Map(uint16(m.dom), gfns, errs)
	if errors.Is(err, sys.ESRCH) {
		return nil, fmt.Errorf("domain %d: %w", m.dom, xenevents.ErrNoDomain)
	}
	return mem, err
}

func (m privMapper) Unmap(mem []byte) error { return sys.Unmap(mem) }

// MaxGFN asks Xen for the highest frame number that the domain ever had.
func (d *Domain) MaxGFN() (xenevents.GFN, error) {
	n, err := d.host.xen.Hypercall(abi.HypercallMemoryOp, func(mem []byte, addr uint64) [5]uint64 {
		le.PutUint16(mem, uint16(d.id))
		return [5]uint64{abi.MemoryMaximumGPFN, addr}
	}, nil)
	if errors.Is(err, sys.ESRCH) {
		return 0, fmt.Errorf("domain %d: %w", d.id, xenevents.ErrNoDomain)
	}
	if err != nil {
		return 0, fmt.Errorf("highest gfn of domain %d: %w", d.id, err)
	}
	return xenevents.GFN(n), nil
}

// reservation runs populate_physmap or decrease_reservation for one frame.
func (d *Domain) reservation(op uint64, gfn xenevents.GFN) error {
	n, err := d.host.xen.Hypercall(abi.HypercallMemoryOp, func(mem []byte, addr uint64) [5]uint64 {
		le.PutUint64(mem, addr+dataOffset) // extents
		le.PutUint64(mem[8:], 1)
		le.PutUint16(mem[24:], uint16(d.id))
		le.PutUint64(mem[dataOffset:], uint64(gfn))
		return [5]uint64{op, addr}
	}, nil)
	if errors.Is(err, sys.ESRCH) {
		return fmt.Errorf("domain %d: %w", d.id, xenevents.ErrNoDomain)
	}
	if err != nil {
		return err
	}
	if n != 1 {
		return sys.ENOMEM
	}
	return nil
}

func (d *Domain) setMaxMem(pages uint64) error {
	return d.host.domctlOn(d.id, abi.DomctlMaxMem, func(u []byte, _ uint64) { le.PutUint64(u, pages*(sys.PageSize/1024)) }, nil)
}

// roomForOne raises the domain's memory limit by one frame if it has none to spare.
func (d *Domain) roomForOne() error {
	info, err := d.host.domainInfo(d.id)
	if err != nil {
		return err
	}
	if d.maxPages == 0 {
		d.maxPages = info.MaxPages
	}
	if info.Pages+1 <= info.MaxPages {
		return nil
	}
	return d.setMaxMem(info.Pages + 1)
}

func (d *Domain) restoreMaxMem() error {
	if d.maxPages == 0 {
		return nil
	}
	pages := d.maxPages
	d.maxPages = 0
	return d.setMaxMem(pages)
}

// AllocGFN adds a frame above all that the domain ever had: nothing in the
// guest knows of it.
func (d *Domain) AllocGFN() (xenevents.GFN, error) {
	if d.nextSpare == 0 {
		top, err := d.MaxGFN()
		if err != nil {
			return 0, err
		}
		d.nextSpare = top + 1
	}
	gfn := d.nextSpare
	for ; d.spares[gfn]; gfn++ {
	}
	if err := d.roomForOne(); err != nil {
		return 0, fmt.Errorf("raise the memory limit of domain %d: %w", d.id, err)
	}
	if err := d.reservation(abi.MemoryPopulatePhysmap, gfn); err != nil {
		return 0, fmt.Errorf("no spare frame for domain %d (is the host out of memory?): %w", d.id, err)
	}
	d.spares[gfn] = true
	d.Drop(gfn)
	f, err := d.frame(gfn)
	if err != nil {
		return 0, fmt.Errorf("map the spare frame %v: %w", gfn, errors.Join(err, d.FreeGFN(gfn)))
	}
	clear(f) // Xen scrubs a frame when it is given up, unless told not to
	return gfn, nil
}

// FreeGFN takes a frame of AllocGFN away again.
func (d *Domain) FreeGFN(gfn xenevents.GFN) error {
	if !d.spares[gfn] {
		return fmt.Errorf("gfn %v of domain %d is no spare frame", gfn, d.id)
	}
	d.Drop(gfn)
	if err := d.reservation(abi.MemoryDecreaseReservation, gfn); err != nil {
		return fmt.Errorf("free the spare frame %v of domain %d: %w", gfn, d.id, err)
	}
	delete(d.spares, gfn)
	if len(d.spares) == 0 {
		return d.restoreMaxMem()
	}
	return nil
}
