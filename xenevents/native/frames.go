package native

import (
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
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

// Mapper maps a domain's frames: this driver's own, or LibVMI's.
type Mapper interface {
	// Map maps the frames one after the other, readable and writable. errs has an
	// entry for each: not 0, and the frame is absent and its part of the mapping must
	// not be touched. It fails with ErrNoDomain when the domain is gone.
	Map(gfns []uint64, errs []int32) ([]byte, error)
	Unmap(mem []byte) error
}

// Frames is a guest's memory: xenevents.Memory (but MaxGFN), Swapper and what
// guestmem takes for a Loader. It keeps runs of frames mapped, so that reading again
// what was read before costs no system call. It replaces by the clock algorithm: a
// hit sets one flag and moves nothing.
//
// A mapping keeps showing the machine frame that it was made of. When the guest
// gives that frame up and gets another (ballooning), it is stale: CheckPages drops
// everything when the domain's number of pages changed.
//
// It belongs to one goroutine, as the Domain does.
type Frames struct {
	mapper Mapper
	max    int // runs
	runs   map[xenevents.GFN]*run
	// near finds the runs that were used last without a map: a hit reads four
	// page-table entries and an argument, the same ones again and again.
	near  [nearRuns]*run
	order []xenevents.GFN // the clock: keys of runs
	hand  int
	pages uint64 // of the domain, when it was last checked
}

// NewFrames keeps up to maxFrames mapped, or 4096 if that is 0. It must not be copied
// once it was used.
func NewFrames(m Mapper, maxFrames int) Frames {
	if maxFrames <= 0 {
		maxFrames = defaultFrames
	}
	return Frames{mapper: m, max: max(maxFrames/runFrames, 1), runs: map[xenevents.GFN]*run{}}
}

// frame returns the memory of one frame. It is valid until the next call.
func (c *Frames) frame(gfn xenevents.GFN) ([]byte, error) {
	key, n := gfn/runFrames, int(gfn%runFrames)
	near := &c.near[key%nearRuns]
	r := *near
	if r == nil || r.key != key {
		r = c.runs[key]
		*near = r
	}
	if r != nil && r.errs[n] != 0 { // absent then: it may be there now
		c.Drop(gfn)
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

func (c *Frames) load(key xenevents.GFN) (*run, error) {
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
	if r.mem, err = c.mapper.Map(gfns[:], r.errs[:]); err != nil {
		return nil, err
	}
	c.runs[key] = r
	c.order = append(c.order, key)
	return r, nil
}

func (c *Frames) evict() {
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

func (c *Frames) dropRun(key xenevents.GFN) {
	r := c.runs[key]
	if r == nil {
		return
	}
	// Fails only for an address that is none: a bug, which the next access shows.
	_ = c.mapper.Unmap(r.mem)
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

// Drop forgets the mapping that has gfn in it: another frame may be there now.
func (c *Frames) Drop(gfn xenevents.GFN) { c.dropRun(gfn / runFrames) }

// CheckPages drops all mappings when the domain has more or fewer pages than at the
// last check: its physmap changed.
func (c *Frames) CheckPages(pages uint64) {
	if c.pages != pages && c.pages != 0 {
		for key := range c.runs {
			c.dropRun(key)
		}
	}
	c.pages = pages
}

// Unmap drops all mappings, and makes no more.
func (c *Frames) Unmap() {
	for key := range c.runs {
		c.dropRun(key)
	}
	c.runs = nil
}

// Load64 reads an aligned word, which is never torn: see guestmem.Loader.
func (c *Frames) Load64(at xenevents.GPA) (uint64, error) {
	gfn, off := at.GFN(), at.Offset()
	if r := c.near[gfn/runFrames%nearRuns]; r != nil && r.key == gfn/runFrames && r.errs[gfn%runFrames] == 0 {
		r.used = true
		return sys.Load64(r.mem[uint64(gfn%runFrames)*sys.PageSize+off:]), nil
	}
	f, err := c.frame(at.GFN())
	if err != nil {
		return 0, err
	}
	return sys.Load64(f[off:]), nil
}

// CompareAndSwap64 changes an aligned word: see xenevents.Swapper.
func (c *Frames) CompareAndSwap64(at xenevents.GPA, old, v uint64) (bool, error) {
	f, err := c.frame(at.GFN())
	if err != nil {
		return false, err
	}
	if at%8 != 0 {
		return false, fmt.Errorf("%v is no multiple of 8", at)
	}
	return sys.CompareAndSwap64(f[at.Offset():], old, v), nil
}

// ReadGPA copies guest memory into p.
func (c *Frames) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	if len(p) == 8 && at%8 == 0 {
		v, err := c.Load64(at)
		if err != nil {
			return 0, err
		}
		le.PutUint64(p, v)
		return 8, nil
	}
	for done := 0; done < len(p); {
		f, err := c.frame(at.GFN())
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
func (c *Frames) WriteGPA(p []byte, at xenevents.GPA) (int, error) {
	if off := at.Offset(); len(p) == 8 && off%8 == 0 {
		f, err := c.frame(at.GFN())
		if err != nil {
			return 0, err
		}
		sys.Store64(f[off:], le.Uint64(p))
		return 8, nil
	}
	for done := 0; done < len(p); {
		f, err := c.frame(at.GFN())
		if err != nil {
			return done, err
		}
		n := copy(f[at.Offset():], p[done:])
		done += n
		at += xenevents.GPA(n)
	}
	return len(p), nil
}
