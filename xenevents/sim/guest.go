package sim

import (
	"fmt"
	"sync"

	"github.com/hprobe/hprobe/xenevents"
)

// Config describes a guest.
type Config struct {
	ID   xenevents.DomainID
	Name string
	// Frames of memory, from gfn 0; 1024 if zero. Each 512 of them that are
	// aligned are a superpage of the host map.
	Frames int
	VCPUs  int // 1 if zero
	// Without lacks what the guest's CPU can't do: events of these kinds, and
	// with KindSingleStep any step.
	Without []xenevents.Kind
	NoViews bool
}

// Guest is a running guest: what a test does to it from inside. Its methods may be
// called from any goroutine.
type Guest struct {
	config Config

	// mu guards all below, in the vCPUs and in open Domains and Events as well:
	// a guest is one machine, and everything happens in some order.
	mu       sync.Mutex
	gone     bool
	p2m      map[xenevents.GFN]*frame // view 0
	max      xenevents.GFN            // the highest that there ever was
	maxPages uint64
	unused   xenevents.GFN // of the guest's memory: what Frame gives out, downward
	vcpus    []*VCPU
	paused   int
	viewsOn  bool
	views    map[xenevents.View]*view
	events   *Events // of the one monitor
	seq      uint64  // of events

	accidents []string
}

// frame is a page of the machine. Its memory comes with its first use.
type frame struct {
	mem   []byte
	super bool // part of a superpage of the host map
}

func (f *frame) bytes() []byte {
	if f.mem == nil {
		f.mem = make([]byte, xenevents.PageSize)
	}
	return f.mem
}

// superpage is how many frames a superpage has.
const superpage = 512

func newGuest(c Config) *Guest {
	if c.Frames == 0 {
		c.Frames = 2 * superpage
	}
	c.VCPUs = max(c.VCPUs, 1)
	g := &Guest{config: c, p2m: map[xenevents.GFN]*frame{}, maxPages: uint64(c.Frames)}
	for gfn := range xenevents.GFN(c.Frames) {
		g.p2m[gfn] = &frame{super: int(gfn|(superpage-1)) < c.Frames}
	}
	g.max = xenevents.GFN(c.Frames - 1)
	g.unused = g.max
	g.views = map[xenevents.View]*view{xenevents.HostView: newView()}
	for i := range c.VCPUs {
		g.vcpus = append(g.vcpus, newVCPU(g, xenevents.VCPU(i)))
	}
	return g
}

// VCPU returns one of the guest's vCPUs.
func (g *Guest) VCPU(i int) *VCPU { return g.vcpus[i] }

// Frame gives out a frame of the guest's memory that nothing uses. It panics when
// there is none left.
func (g *Guest) Frame() xenevents.GFN {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.frame()
}

func (g *Guest) frame() xenevents.GFN {
	for ; g.p2m[g.unused] == nil; g.unused-- {
		if g.unused == 0 {
			panic("sim: the guest is out of memory")
		}
	}
	g.unused--
	return g.unused + 1
}

// Poke writes guest memory from nowhere, as a DMA before all began would.
func (g *Guest) Poke(at xenevents.GPA, p []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, err := g.copyOut(at, p, func(mem, part []byte) { copy(mem, part) }); err != nil {
		panic(fmt.Sprintf("sim: poke: %v", err))
	}
}

// Peek reads guest memory as view 0 shows it.
func (g *Guest) Peek(at xenevents.GPA, n int) []byte {
	g.mu.Lock()
	defer g.mu.Unlock()
	p := make([]byte, n)
	if _, err := g.copyOut(at, p, func(mem, part []byte) { copy(part, mem) }); err != nil {
		panic(fmt.Sprintf("sim: peek: %v", err))
	}
	return p
}

// copyOut calls move for each part of p that is in one frame.
func (g *Guest) copyOut(at xenevents.GPA, p []byte, move func(mem, part []byte)) (int, error) {
	for done := 0; done < len(p); {
		f := g.p2m[at.GFN()]
		if f == nil {
			return done, fmt.Errorf("gfn %v: %w", at.GFN(), xenevents.ErrAbsent)
		}
		part := p[done:min(len(p), done+int(xenevents.PageSize-at.Offset()))]
		move(f.bytes()[at.Offset():], part)
		done += len(part)
		at += xenevents.GPA(len(part))
	}
	return len(p), nil
}

// Balloon has the guest give up a frame.
func (g *Guest) Balloon(gfn xenevents.GFN) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.drop(gfn)
}

// drop takes a frame out of the host map, which splits its superpage. Every view
// follows: see view.dropped.
func (g *Guest) drop(gfn xenevents.GFN) {
	g.mishap("a frame was freed")
	delete(g.p2m, gfn)
	for n := gfn &^ (superpage - 1); n <= gfn|(superpage-1); n++ {
		if f := g.p2m[n]; f != nil {
			f.super = false
		}
	}
	for v, w := range g.views {
		if v != xenevents.HostView {
			w.dropped(gfn)
		}
	}
}

// mishap notes what goes wrong in Xen when an entry goes away while a vCPU has
// not yet carried out a reply: see xenevents.Settler.
func (g *Guest) mishap(what string) {
	for _, v := range g.vcpus {
		if v.unsettled() {
			g.accidents = append(g.accidents, fmt.Sprintf("%s while vCPU %d had a reply to carry out", what, v.id))
		}
	}
}

// Accidents says what would have harmed a real guest.
func (g *Guest) Accidents() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.accidents...)
}

// Destroy ends the guest, as xl destroy does.
func (g *Guest) Destroy() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gone = true
	for _, v := range g.vcpus {
		v.end(xenevents.ErrDomainGone)
	}
	if g.events != nil {
		g.events.wakeUp()
	}
}

func (g *Guest) ended() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.gone
}

func (g *Guest) info() (xenevents.DomainInfo, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.check(); err != nil {
		return xenevents.DomainInfo{}, err
	}
	return xenevents.DomainInfo{
		ID: g.config.ID, UUID: [16]byte{15: byte(g.config.ID)}, Name: g.config.Name, HVM: true, HAP: true, Paused: g.paused > 0,
		VCPUs: len(g.vcpus), MaxVCPU: xenevents.VCPU(len(g.vcpus) - 1), Pages: uint64(len(g.p2m)), MaxPages: g.maxPages,
	}, nil
}

// check fails once the guest is gone.
func (g *Guest) check() error {
	if g.gone {
		return fmt.Errorf("domain %d: %w", g.config.ID, xenevents.ErrNoDomain)
	}
	return nil
}

// run lets the vCPUs run, in turns, until each waits or has nothing to do.
func (g *Guest) run() {
	for progress := true; progress && g.paused == 0 && !g.gone; {
		progress = false
		for _, v := range g.vcpus {
			if v.advance() {
				progress = true
			}
		}
	}
}

// Leaks says what a monitor that is gone should have undone. It is empty when the
// guest is as it was.
func (g *Guest) Leaks() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.gone {
		return nil // it took everything along
	}
	var all []string
	leak := func(is bool, format string, args ...any) {
		if is {
			all = append(all, fmt.Sprintf(format, args...))
		}
	}
	leak(g.events != nil, "the monitor ring is open")
	leak(g.viewsOn, "altp2m is on")
	leak(len(g.views) > 1, "%d views", len(g.views)-1)
	leak(len(g.views[xenevents.HostView].entries) > 0, "access rights in view 0")
	for gfn := range g.p2m {
		leak(gfn >= xenevents.GFN(g.config.Frames), "spare frame %v", gfn)
	}
	leak(g.maxPages != uint64(g.config.Frames), "the memory limit is %d frames", g.maxPages)
	leak(g.paused > 0, "paused %d times", g.paused)
	for _, v := range g.vcpus {
		leak(v.waiting, "vCPU %d waits for a reply", v.id)
		leak(v.stepping || v.fast, "vCPU %d is in single-step", v.id)
		leak(v.view != xenevents.HostView, "vCPU %d is in view %d", v.id, v.view)
		leak(v.unsettled(), "vCPU %d has a reply to carry out", v.id)
	}
	return all
}
