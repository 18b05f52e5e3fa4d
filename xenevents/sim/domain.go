package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// Domain is an open guest: xenevents.Domain, Views, PageAllocator, Injector and
// Prober.
type Domain struct {
	guest *Guest

	// Guarded by guest.mu.
	events   *Events
	pauses   int
	viewsOn  bool
	views    map[xenevents.View]bool
	spares   map[xenevents.GFN]bool
	next     xenevents.GFN // 0: no spare frame was asked for yet
	maxPages uint64        // before the first one
	closed   bool
}

var _ interface {
	xenevents.Domain
	xenevents.Views
	xenevents.PageAllocator
	xenevents.Injector
	xenevents.Prober
	xenevents.Swapper
} = (*Domain)(nil)

// with runs f while nothing else happens to the guest.
func (d *Domain) with(f func(g *Guest) error) error {
	d.guest.mu.Lock()
	defer d.guest.mu.Unlock()
	if d.closed {
		return xenevents.ErrClosed
	}
	if err := d.guest.check(); err != nil {
		return err
	}
	return f(d.guest)
}

// Info says what the guest has.
func (d *Domain) Info(ctx context.Context) (xenevents.DomainInfo, error) {
	info, err := d.guest.info()
	return info, errors.Join(err, ctx.Err())
}

// ReadGPA copies guest memory into p.
func (d *Domain) ReadGPA(p []byte, at xenevents.GPA) (n int, err error) {
	err = d.with(func(g *Guest) (err error) {
		n, err = g.copyOut(at, p, func(mem, part []byte) { copy(part, mem) })
		return err
	})
	return n, err
}

// WriteGPA copies p into guest memory.
func (d *Domain) WriteGPA(p []byte, at xenevents.GPA) (n int, err error) {
	err = d.with(func(g *Guest) (err error) {
		n, err = g.copyOut(at, p, func(mem, part []byte) { copy(mem, part) })
		return err
	})
	return n, err
}

// CompareAndSwap64 changes a word, if it is what it should be.
func (d *Domain) CompareAndSwap64(at xenevents.GPA, old, v uint64) (swapped bool, err error) {
	err = d.with(func(g *Guest) error {
		f := g.p2m[at.GFN()]
		switch {
		case f == nil:
			return fmt.Errorf("gfn %v: %w", at.GFN(), xenevents.ErrAbsent)
		case at%8 != 0:
			return fmt.Errorf("%v is no multiple of 8", at)
		}
		word := f.bytes()[at.Offset() : at.Offset()+8]
		if swapped = binary.LittleEndian.Uint64(word) == old; swapped {
			binary.LittleEndian.PutUint64(word, v)
		}
		return nil
	})
	return swapped, err
}

// MaxGFN is the highest frame number that there ever was.
func (d *Domain) MaxGFN() (top xenevents.GFN, err error) {
	err = d.with(func(g *Guest) error {
		top = g.max
		return nil
	})
	return top, err
}

// Registers reads a vCPU's registers.
func (d *Domain) Registers(v xenevents.VCPU) (r xenevents.Registers, err error) {
	err = d.with(func(g *Guest) error {
		if int(v) >= len(g.vcpus) {
			return fmt.Errorf("vCPU %d of domain %d: %w", v, g.config.ID, xenevents.ErrVCPUDown)
		}
		r = g.vcpus[v].regs
		return nil
	})
	return r, err
}

// Pause holds all vCPUs.
func (d *Domain) Pause() error {
	return d.with(func(g *Guest) error {
		g.paused++
		d.pauses++
		return nil
	})
}

// Unpause undoes one Pause of this Domain.
func (d *Domain) Unpause() error {
	return d.with(func(g *Guest) error {
		if d.pauses == 0 {
			return fmt.Errorf("unpause domain %d: it was not paused from here", g.config.ID)
		}
		d.unpause(g)
		return nil
	})
}

func (d *Domain) unpause(g *Guest) {
	d.pauses--
	g.paused--
	g.run()
}

// EnableViews turns altp2m on.
func (d *Domain) EnableViews() error {
	return d.with(func(g *Guest) error {
		err := g.enableViews()
		d.viewsOn = err == nil
		return err
	})
}

// DisableViews turns altp2m off.
func (d *Domain) DisableViews() error {
	return d.with(func(g *Guest) error {
		d.viewsOn = false
		clear(d.views)
		return g.disableViews()
	})
}

// CreateView makes a view.
func (d *Domain) CreateView() (v xenevents.View, err error) {
	err = d.with(func(g *Guest) error {
		v, err = g.createView()
		d.views[v] = err == nil
		return err
	})
	return v, err
}

// DestroyView frees a view that no vCPU is in.
func (d *Domain) DestroyView(v xenevents.View) error {
	return d.with(func(g *Guest) error {
		err := g.destroyView(v)
		if err == nil {
			delete(d.views, v)
		}
		return err
	})
}

// SwitchView moves all vCPUs to v.
func (d *Domain) SwitchView(v xenevents.View) error {
	return d.with(func(g *Guest) error { return g.switchView(v) })
}

// RemapGFN lets gfn show frame to in view v.
func (d *Domain) RemapGFN(v xenevents.View, gfn, to xenevents.GFN) error {
	return d.with(func(g *Guest) error { return g.remap(v, gfn, to) })
}

// RevertGFN drops v's entry of gfn: it comes anew from view 0.
func (d *Domain) RevertGFN(v xenevents.View, gfn xenevents.GFN) error {
	return d.with(func(g *Guest) error { return g.revert(v, gfn) })
}

// SetAccess sets the access rights of gfn in view v.
func (d *Domain) SetAccess(v xenevents.View, gfn xenevents.GFN, a xenevents.Access) error {
	return d.with(func(g *Guest) error { return g.setAccess(v, gfn, a) })
}

// AllocGFN adds a frame above all that the guest ever had.
func (d *Domain) AllocGFN() (gfn xenevents.GFN, err error) {
	err = d.with(func(g *Guest) error {
		if d.next == 0 {
			d.next, d.maxPages = g.max+1, g.maxPages
		}
		for gfn = d.next; g.p2m[gfn] != nil; gfn++ {
		}
		g.maxPages = max(g.maxPages, uint64(len(g.p2m)+1))
		g.p2m[gfn] = &frame{}
		g.max = max(g.max, gfn)
		d.spares[gfn] = true
		return nil
	})
	return gfn, err
}

// FreeGFN takes a frame of AllocGFN away again.
func (d *Domain) FreeGFN(gfn xenevents.GFN) error {
	return d.with(func(g *Guest) error {
		if !d.spares[gfn] {
			return fmt.Errorf("gfn %v of domain %d is no spare frame", gfn, g.config.ID)
		}
		d.free(g, gfn)
		return nil
	})
}

func (d *Domain) free(g *Guest, gfn xenevents.GFN) {
	g.drop(gfn)
	delete(d.spares, gfn)
	if len(d.spares) == 0 {
		g.maxPages = d.maxPages
	}
}

// InjectInt3 gives the guest its own int3 when the event has had its reply.
func (d *Domain) InjectInt3(v xenevents.VCPU, insnLen uint8) error {
	return d.with(func(g *Guest) error {
		if int(v) >= len(g.vcpus) {
			return fmt.Errorf("vCPU %d of domain %d: %w", v, g.config.ID, xenevents.ErrVCPUDown)
		}
		g.vcpus[v].inject = insnLen
		return nil
	})
}

// Features says what the guest's configuration has.
func (d *Domain) Features(ctx context.Context) ([]xenevents.Feature, error) {
	c := d.guest.config
	one := func(name, title string, need xenevents.Need, yes bool) xenevents.Feature {
		f := xenevents.Feature{Name: name, Title: title, Need: need, Answer: xenevents.No, Fix: "change sim.Config"}
		if yes {
			f.Answer, f.Fix = xenevents.Yes, ""
		}
		return f
	}
	all := []xenevents.Feature{one("altp2m", "altp2m views (hidden breakpoints)", xenevents.Required, !c.NoViews)}
	for _, k := range []xenevents.Kind{xenevents.KindInt3, xenevents.KindSingleStep, xenevents.KindControlReg, xenevents.KindMSR, xenevents.KindCPUID} {
		has := true
		for _, without := range c.Without {
			has = has && without != k
		}
		all = append(all, one(k.String(), k.String()+" events", xenevents.Optional, has))
	}
	return all, ctx.Err()
}

// Close undoes everything.
func (d *Domain) Close() error {
	d.guest.mu.Lock()
	events := d.events
	d.guest.mu.Unlock()
	if events != nil {
		if err := events.Close(); err != nil {
			return err
		}
	}
	err := d.with(func(g *Guest) error {
		if d.viewsOn {
			if err := g.disableViews(); err != nil {
				return err
			}
		}
		for gfn := range d.spares {
			d.free(g, gfn)
		}
		for d.pauses > 0 {
			d.unpause(g)
		}
		return nil
	})
	d.guest.mu.Lock()
	defer d.guest.mu.Unlock()
	d.closed = true
	if errors.Is(err, xenevents.ErrClosed) || errors.Is(err, xenevents.ErrNoDomain) {
		return nil // twice; or there is nothing left to undo
	}
	return err
}
