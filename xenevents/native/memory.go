package native

import (
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

// Frames are mapped by runs of runFrames, aligned: a mapping costs 29 µs for
// one frame and 1 µs for each more (measured in the lab), and who reads one
// frame of a page-table walk or of a list soon reads its neighbours.
const (
	runFrames     = 16
	defaultFrames = 4096
	nearRuns      = 64
)

// run is a mapping of runFrames frames. A frame with an entry in errs is absent.
type run struct {
	key  xenevents.GFN
	mem  []byte
	errs [runFrames]int32
	used bool // since the clock's hand last passed
}

// frameCache keeps runs of guest frames mapped, so that reading again what was
// read before costs no system call. It replaces by the clock algorithm: a hit
// sets one flag and moves nothing.
//
// A mapping keeps showing the machine frame that it was made of. When the guest
// gives that frame up and gets another (ballooning), the cache is stale: check
// drops everything when the domain's number of pages changed.
type frameCache struct {
	xen  *sys.Privcmd
	dom  uint16
	max  int // runs
	runs map[xenevents.GFN]*run
	// near finds the runs that were used last without a map: a hit reads four
	// page-table entries and an argument, the same ones again and again.
	near  [nearRuns]*run
	order []xenevents.GFN // the clock: keys of runs
	hand  int
	pages uint64 // of the domain, when it was last checked
}

func (c *frameCache) init(xen *sys.Privcmd, dom uint16, maxFrames int) {
	if maxFrames <= 0 {
		maxFrames = defaultFrames
	}
	*c = frameCache{xen: xen, dom: dom, max: max(maxFrames/runFrames, 1), runs: map[xenevents.GFN]*run{}}
}

// frame returns the memory of one frame. It is valid until the next call.
func (c *frameCache) frame(gfn xenevents.GFN) ([]byte, error) {
	key, n := gfn/runFrames, int(gfn%runFrames)
	near := &c.near[key%nearRuns]
	r := *near
	if r == nil || r.key != key {
		r = c.runs[key]
		*near = r
	}
	if r != nil && r.errs[n] != 0 { // absent then: it may be there now
		c.drop(gfn)
		r = nil
	}
	if r == nil {
		var err error
		if r, err = c.load(key); err != nil {
			return nil, err
		}
		if r.errs[n] != 0 {
			return nil, fmt.Errorf("gfn %v: %w", gfn, xenevents.ErrAbsent)
		}
	}
	r.used = true
	return r.mem[n*sys.PageSize : (n+1)*sys.PageSize : (n+1)*sys.PageSize], nil
}

func (c *frameCache) load(key xenevents.GFN) (*run, error) {
	if c.runs == nil {
		return nil, xenevents.ErrClosed
	}
	if len(c.order) >= c.max {
		c.evict()
	}
	var gfns [runFrames]uint64
	for i := range gfns {
		gfns[i] = uint64(key)*runFrames + uint64(i)
	}
	r := &run{key: key}
	var err error
	if r.mem, err = c.xen.Map(c.dom, gfns[:], r.errs[:]); err != nil {
		if errors.Is(err, sys.ESRCH) {
			return nil, fmt.Errorf("domain %d: %w", c.dom, xenevents.ErrNoDomain)
		}
		return nil, err
	}
	c.runs[key] = r
	c.order = append(c.order, key)
	return r, nil
}

func (c *frameCache) evict() {
	for {
		c.hand %= len(c.order)
		key := c.order[c.hand]
		if r := c.runs[key]; r.used {
			r.used = false
			c.hand++
			continue
		}
		c.dropRun(key)
		return
	}
}

func (c *frameCache) dropRun(key xenevents.GFN) {
	r := c.runs[key]
	if r == nil {
		return
	}
	// Fails only for an address that is none: a bug, which the next access shows.
	_ = sys.Unmap(r.mem)
	delete(c.runs, key)
	if near := &c.near[key%nearRuns]; *near == r {
		*near = nil
	}
	for i, k := range c.order {
		if k == key {
			last := len(c.order) - 1
			c.order[i] = c.order[last]
			c.order = c.order[:last]
			break
		}
	}
}

// drop forgets the mapping that has gfn in it.
func (c *frameCache) drop(gfn xenevents.GFN) { c.dropRun(gfn / runFrames) }

// check drops all mappings when the domain has more or fewer pages than at the
// last check: its physmap changed.
func (c *frameCache) check(pages uint64) {
	if c.pages != pages && c.pages != 0 {
		for key := range c.runs {
			c.dropRun(key)
		}
	}
	c.pages = pages
}

func (c *frameCache) close() error {
	for key := range c.runs {
		c.dropRun(key)
	}
	c.runs = nil
	return nil
}

// Load64 reads an aligned word, which is never torn: see guestmem.Loader.
func (d *Domain) Load64(at xenevents.GPA) (uint64, error) {
	gfn, off := at.GFN(), at.Offset()
	if r := d.frames.near[gfn/runFrames%nearRuns]; r != nil && r.key == gfn/runFrames && r.errs[gfn%runFrames] == 0 {
		r.used = true
		return sys.Load64(r.mem[uint64(gfn%runFrames)*sys.PageSize+off:]), nil
	}
	f, err := d.frames.frame(at.GFN())
	if err != nil {
		return 0, err
	}
	return sys.Load64(f[off:]), nil
}

// CompareAndSwap64 changes an aligned word: see xenevents.Swapper.
func (d *Domain) CompareAndSwap64(at xenevents.GPA, old, v uint64) (bool, error) {
	f, err := d.frames.frame(at.GFN())
	if err != nil {
		return false, err
	}
	if at%8 != 0 {
		return false, fmt.Errorf("%v is no multiple of 8", at)
	}
	return sys.CompareAndSwap64(f[at.Offset():], old, v), nil
}

// ReadGPA copies guest memory into p.
func (d *Domain) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	if len(p) == 8 && at%8 == 0 {
		v, err := d.Load64(at)
		if err != nil {
			return 0, err
		}
		le.PutUint64(p, v)
		return 8, nil
	}
	for done := 0; done < len(p); {
		f, err := d.frames.frame(at.GFN())
		if err != nil {
			return done, err
		}
		n := copy(p[done:], f[at.Offset():])
		done += n
		at += xenevents.GPA(n)
	}
	return len(p), nil
}

// WriteGPA copies p into guest memory.
func (d *Domain) WriteGPA(p []byte, at xenevents.GPA) (int, error) {
	if off := at.Offset(); len(p) == 8 && off%8 == 0 {
		f, err := d.frames.frame(at.GFN())
		if err != nil {
			return 0, err
		}
		sys.Store64(f[off:], le.Uint64(p))
		return 8, nil
	}
	for done := 0; done < len(p); {
		f, err := d.frames.frame(at.GFN())
		if err != nil {
			return done, err
		}
		n := copy(f[at.Offset():], p[done:])
		done += n
		at += xenevents.GPA(n)
	}
	return len(p), nil
}

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
	d.frames.drop(gfn)
	f, err := d.frames.frame(gfn)
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
	d.frames.drop(gfn)
	if err := d.reservation(abi.MemoryDecreaseReservation, gfn); err != nil {
		return fmt.Errorf("free the spare frame %v of domain %d: %w", gfn, d.id, err)
	}
	delete(d.spares, gfn)
	if len(d.spares) == 0 {
		return d.restoreMaxMem()
	}
	return nil
}
