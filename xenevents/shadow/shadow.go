// Package shadow hides patches: it is the only room that knows how an int3 is
// kept from the guest's eyes.
//
// A patched guest frame has a copy in a spare frame. In the probe view, the
// frame's number shows the copy, execute-only; the int3 is in the copy alone,
// and the guest's own memory is never written. A read by the guest faults and is
// served from view 0, a write faults, lands in the original in view 0, and the
// copy follows before the vCPU runs on.
package shadow

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// Int3 is the opcode of a patch.
const Int3 = 0xcc

// MaxInsn is the longest x86 instruction, and what Xen takes to emulate, in bytes.
const MaxInsn = 16

// Domain is what a Set needs of a driver's Domain.
type Domain interface {
	xenevents.Memory
	xenevents.Pauser
	xenevents.Views
	xenevents.PageAllocator
}

// Set is all that is hidden in one domain: the probe view and its shadow pages.
// It belongs to the goroutine that serves the domain's events.
type Set struct {
	dom    Domain
	view   xenevents.View
	pages  map[xenevents.GFN]*page
	unused int                      // of them, those without patches: Idle is asked at each event
	all    map[xenevents.GPA]*Patch // of all pages: one look-up at a hit
	last   *Patch                   // that Find found: a guest hits one again and again
	spares []xenevents.GFN          // of pages that are gone, for those to come
	max    xenevents.GFN            // the highest frame that the guest had when the view was made
	holes  map[xenevents.GFN]bool   // entries that were reverted and could not be filled
	open   bool
	one    [1]byte // for poke, which a hit may need: it must not allocate

	protected map[xenevents.GFN]int      // how often each: see ledger.go
	watched   map[xenevents.GFN]watchers // the same
	noRPW     bool                       // Xen or the CPU lacks AccessRPW
}

// page is a shadow page.
type page struct {
	gfn, shadow xenevents.GFN
	patches     map[uint16]*Patch // by offset
}

// Patch is one int3 in a shadow page.
type Patch struct {
	At xenevents.GPA
	// Original is the instruction that the guest has there, whole, even where
	// it goes on in the next page. Len is its length in bytes.
	Original [MaxInsn]byte
	Len      int
	// Owner is the caller's: what it wants to find again with the patch.
	Owner any
	// Displaced: the guest wrote other bytes there. The int3 is not in place
	// until they are as they were.
	Displaced bool
	// Withdrawn: its owner does not want it for now. The byte is the guest's own.
	Withdrawn bool
}

// inPlace says whether the int3 is in the copy.
func (p *Patch) inPlace() bool { return !p.Displaced && !p.Withdrawn }

// Open turns altp2m on, makes the probe view, and lets the guest run in it. The
// view shows the guest exactly as view 0 does.
func Open(dom Domain) (*Set, error) {
	if err := dom.EnableViews(); err != nil {
		return nil, err
	}
	s := &Set{dom: dom, pages: map[xenevents.GFN]*page{}, all: map[xenevents.GPA]*Patch{}, holes: map[xenevents.GFN]bool{}, protected: map[xenevents.GFN]int{}, watched: map[xenevents.GFN]watchers{}}
	if err := s.enter(); err != nil {
		return nil, errors.Join(err, dom.DisableViews())
	}
	s.open = true
	return s, nil
}

// superpage is how many frames one SetAccess fills where the host map has a
// 2 MiB page, as it has nearly everywhere; hugepage, where it has one of 1 GiB.
const (
	superpage = 512
	hugepage  = superpage * superpage
)

// enter makes the view and switches the domain to it. It fills the view before:
// an entry that a guest misses costs it an EPT violation. The guest runs on in
// view 0 meanwhile. Where the host maps single pages Xen fills the others when
// they are touched, which costs less than to ask for each.
func (s *Set) enter() error {
	var err error
	if s.max, err = s.dom.MaxGFN(); err != nil {
		return err
	}
	if s.view, err = s.dom.CreateView(); err != nil {
		return err
	}
	for gfn := xenevents.GFN(0); gfn <= s.max; gfn += superpage {
		if err := s.dom.SetAccess(s.view, gfn, xenevents.AccessRWX); err != nil && !errors.Is(err, xenevents.ErrAbsent) {
			return fmt.Errorf("fill the probe view: %w", err)
		}
	}
	return s.dom.SwitchView(s.view)
}

// View is the probe view.
func (s *Set) View() xenevents.View { return s.view }

// Pages is how many shadow pages there are: each takes one spare frame.
func (s *Set) Pages() int { return len(s.pages) }

// Unused is how many of them have no patch: Reclaim takes them away.
func (s *Set) Unused() int { return s.unused }

// Insert puts an int3 at a guest physical address. original is the instruction
// there, of length bytes; where the guest has another, the patch is displaced
// from the start. Two patches at one address are a caller's mistake: share one.
//
// The domain is paused while the page is copied: a write between the copy and
// the moment when writes fault would be lost on the copy.
func (s *Set) Insert(at xenevents.GPA, original [MaxInsn]byte, length int) (*Patch, error) {
	if at.GFN() > s.max {
		return nil, fmt.Errorf("no patch at %v: that is not the guest's own memory", at)
	}
	pg := s.pages[at.GFN()]
	if pg != nil && pg.patches[uint16(at.Offset())] != nil {
		return nil, fmt.Errorf("there is a patch at %v already", at)
	}
	p := &Patch{At: at, Original: original, Len: length}
	if pg != nil {
		if err := s.place(pg, p); err != nil {
			return nil, err
		}
		if len(pg.patches) == 0 {
			s.unused--
		}
		pg.patches[uint16(at.Offset())] = p
		s.all[at] = p
		return p, nil
	}
	pg = &page{gfn: at.GFN(), patches: map[uint16]*Patch{uint16(at.Offset()): p}}
	err := xenevents.WithPaused(s.dom, func() error { return s.addPage(pg) })
	if err != nil {
		return nil, err
	}
	s.all[at] = p
	return p, nil
}

// place puts the int3 of a new patch into a copy that is there, if the guest has
// the patch's instruction.
func (s *Set) place(pg *page, p *Patch) error {
	var there [MaxInsn]byte
	here := there[:min(p.Len, xenevents.PageSize-int(p.At.Offset()))]
	if _, err := s.dom.ReadGPA(here, p.At); err != nil {
		return fmt.Errorf("read the instruction at %v: %w", p.At, err)
	}
	p.Displaced = !bytes.Equal(here, p.Original[:len(here)])
	if !p.inPlace() {
		return nil
	}
	return s.poke(pg, p, Int3)
}

// addPage hides a page behind its copy: remap before protect, as a remapped
// entry starts with full access.
func (s *Set) addPage(pg *page) (err error) {
	if pg.shadow, err = s.spare(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			s.spares = append(s.spares, pg.shadow)
		}
	}()
	if err = s.refresh(pg); err != nil {
		return err
	}
	if s.holes[pg.gfn] {
		if err = s.fill([]xenevents.GFN{pg.gfn}); err != nil {
			return err
		}
	}
	if err = s.dom.RemapGFN(s.view, pg.gfn, pg.shadow); err != nil {
		return err
	}
	if err = s.allowAs(pg.gfn, true); err != nil {
		// Not settled, perhaps, but what the guest writes to a copy is lost.
		return errors.Join(err, s.dom.RevertGFN(s.view, pg.gfn), s.fill([]xenevents.GFN{pg.gfn}))
	}
	s.pages[pg.gfn] = pg
	return nil
}

// fill gives the view entries that were reverted. Xen copies the host map's whole
// superpage, over the other copies there (altp2m_get_effective_entry): they are
// hidden anew, which costs two hypercalls for each, but once for all of gfns. Without it
// Xen would do so when the guest touches the entry, at least Xen 4.14, and the patches
// there would not be hit any more, without a word. The domain is paused.
func (s *Set) fill(gfns []xenevents.GFN) (err error) {
	near := map[xenevents.GFN]bool{}
	for _, gfn := range gfns {
		near[gfn/hugepage] = true
		err = errors.Join(err, ifThere(s.dom.SetAccess(s.view, gfn, xenevents.AccessRWX)))
	}
	for _, pg := range s.pages {
		if !near[pg.gfn/hugepage] {
			continue
		}
		e := s.dom.RemapGFN(s.view, pg.gfn, pg.shadow)
		if e == nil {
			e = s.allowAs(pg.gfn, true)
		}
		err = errors.Join(err, ifThere(e))
	}
	for table := range s.protected {
		if near[table/hugepage] && s.pages[table] == nil {
			err = errors.Join(err, ifThere(s.allowAs(table, false)))
		}
	}
	for frame := range s.watched {
		if near[frame/hugepage] && s.pages[frame] == nil && s.protected[frame] == 0 {
			err = errors.Join(err, ifThere(s.allowAs(frame, false)))
		}
	}
	for _, gfn := range gfns {
		if err != nil {
			s.holes[gfn] = true
		} else {
			delete(s.holes, gfn)
		}
	}
	return err
}

// ifThere is err, but for a frame that the guest has given back.
func ifThere(err error) error {
	if errors.Is(err, xenevents.ErrAbsent) {
		return nil
	}
	return err
}

// spare returns a frame for a copy.
func (s *Set) spare() (xenevents.GFN, error) {
	if n := len(s.spares); n > 0 {
		gfn := s.spares[n-1]
		s.spares = s.spares[:n-1]
		return gfn, nil
	}
	return s.dom.AllocGFN()
}

// Remove takes a patch away: no vCPU hits it any more. One that ran the int3 just
// before has an event on its way: Find answers false for it, and it must simply be
// tried again. The copy of a page without patches stays until Reclaim.
func (s *Set) Remove(p *Patch) error {
	pg := s.pages[p.At.GFN()]
	if pg == nil || pg.patches[uint16(p.At.Offset())] != p {
		return fmt.Errorf("no such patch at %v", p.At)
	}
	delete(pg.patches, uint16(p.At.Offset()))
	delete(s.all, p.At)
	s.last = nil
	if len(pg.patches) == 0 {
		s.unused++
	}
	if !p.inPlace() {
		return nil
	}
	return s.poke(pg, p, p.Original[0])
}

// Withdraw takes a patch's int3 out, or puts it in again, and leaves all else as
// it is: it costs one byte written, where Insert and Remove may cost a page. An
// event that is on its way is treated as after Remove.
func (s *Set) Withdraw(p *Patch, out bool) error {
	pg := s.pages[p.At.GFN()]
	if pg == nil || pg.patches[uint16(p.At.Offset())] != p {
		return fmt.Errorf("no such patch at %v", p.At)
	}
	if p.Withdrawn == out {
		return nil
	}
	if !p.Displaced {
		b := byte(Int3)
		if out {
			b = p.Original[0]
		}
		if err := s.poke(pg, p, b); err != nil {
			return err
		}
	}
	p.Withdrawn = out
	return nil
}

// Idle says whether Reclaim has something to do.
func (s *Set) Idle() bool {
	return s.unused > 0 || s.bare() && len(s.spares) > 0
}

// bare says whether nothing is hidden, protected or watched.
func (s *Set) bare() bool { return len(s.pages) == 0 && len(s.protected) == 0 && len(s.watched) == 0 }

// Reclaim takes away the copies of pages without patches, and with the last copy
// the spare frames: the guest has no more memory than before the first patch, and
// its view is what view 0 is. It must be called with the domain paused, while no
// reply is pending: see xenevents.Settler.
//
// Frames go with the last copy only because Xen, when a frame goes that a view
// ever showed elsewhere, empties that view, all other copies in it included
// (xen/arch/x86/mm/altp2m.c, p2m_altp2m_propagate_change).
func (s *Set) Reclaim() error {
	var holes []xenevents.GFN
	for gfn, pg := range s.pages {
		if len(pg.patches) > 0 {
			continue
		}
		// The entry first: while it shows the copy, the copy must be there.
		if err := ifThere(s.dom.RevertGFN(s.view, gfn)); err != nil {
			return err
		}
		delete(s.pages, gfn)
		s.unused--
		s.spares = append(s.spares, pg.shadow)
		holes = append(holes, gfn)
	}
	if s.bare() {
		return s.freeSpares()
	}
	return s.fill(holes)
}

func (s *Set) freeSpares() error {
	var errs []error
	for _, gfn := range s.spares {
		errs = append(errs, s.dom.FreeGFN(gfn))
	}
	s.spares = nil
	return errors.Join(errs...)
}

// poke writes one byte of a shadow page.
func (s *Set) poke(pg *page, p *Patch, b byte) error {
	s.one[0] = b
	if _, err := s.dom.WriteGPA(s.one[:], pg.shadow.GPA()+xenevents.GPA(p.At.Offset())); err != nil {
		return fmt.Errorf("write the shadow page of gfn %v: %w", pg.gfn, err)
	}
	return nil
}

// Find returns the patch at an offset of a frame, if there is one, and whether
// its int3 is in place.
func (s *Set) Find(gfn xenevents.GFN, offset uint64) (*Patch, bool) {
	at := gfn.GPA() + xenevents.GPA(offset)
	p := s.last
	if p == nil || p.At != at {
		if p = s.all[at]; p == nil {
			return nil, false
		}
		s.last = p
	}
	return p, p.inPlace()
}

// Holds says whether gfn has a shadow page.
func (s *Set) Holds(gfn xenevents.GFN) bool { return s.pages[gfn] != nil }

// Displaced returns the patches of a frame that are displaced.
func (s *Set) Displaced(gfn xenevents.GFN) (all []*Patch) {
	if pg := s.pages[gfn]; pg != nil {
		for _, p := range pg.patches {
			if p.Displaced {
				all = append(all, p)
			}
		}
	}
	return all
}

// Change gives a displaced patch another instruction: what the guest has there now.
func (s *Set) Change(p *Patch, original [MaxInsn]byte, length int) error {
	pg := s.pages[p.At.GFN()]
	if pg == nil || pg.patches[uint16(p.At.Offset())] != p || !p.Displaced {
		return fmt.Errorf("no displaced patch at %v", p.At)
	}
	p.Original, p.Len = original, length
	return s.place(pg, p)
}

// Refresh copies a guest page to its shadow anew, after a write by the guest.
// It returns the patches whose state changed: displaced now, or in place again.
func (s *Set) Refresh(gfn xenevents.GFN) ([]*Patch, error) {
	pg := s.pages[gfn]
	if pg == nil {
		return nil, nil // taken away while the vCPU stepped
	}
	before := map[*Patch]bool{}
	for _, p := range pg.patches {
		before[p] = p.Displaced
	}
	err := s.refresh(pg)
	var changed []*Patch
	for p, was := range before {
		if p.Displaced != was {
			changed = append(changed, p)
		}
	}
	return changed, err
}

// refresh writes the copy with all int3s in it at once: another vCPU may be
// running there.
func (s *Set) refresh(pg *page) error {
	content := make([]byte, xenevents.PageSize)
	if _, err := s.dom.ReadGPA(content, pg.gfn.GPA()); err != nil {
		return fmt.Errorf("copy gfn %v: %w", pg.gfn, err)
	}
	for off, p := range pg.patches {
		here := min(p.Len, len(content)-int(off))
		p.Displaced = !bytes.Equal(content[off:int(off)+here], p.Original[:here])
		if p.inPlace() {
			content[off] = Int3
		}
	}
	if _, err := s.dom.WriteGPA(content, pg.shadow.GPA()); err != nil {
		return fmt.Errorf("write the shadow page of gfn %v: %w", pg.gfn, err)
	}
	return nil
}

// Leave moves the guest back to view 0: no int3 can be hit any more. What is on
// its way must still be answered before Close.
func (s *Set) Leave() error { return s.dom.SwitchView(xenevents.HostView) }

// Close takes everything away: view, shadow pages, altp2m. The guest must have
// left the view (Leave), and no event may be open. It goes on past errors. Twice
// is harmless.
func (s *Set) Close() error {
	if !s.open {
		return nil
	}
	s.open = false
	errs := []error{s.dom.DestroyView(s.view)}
	if errs[0] != nil {
		// Turning altp2m off takes the view away all the same.
		errs = nil
	}
	errs = append(errs, s.dom.DisableViews())
	for _, pg := range s.pages {
		s.spares = append(s.spares, pg.shadow)
	}
	errs = append(errs, s.freeSpares())
	clear(s.pages)
	s.unused = 0
	clear(s.all)
	s.last = nil
	clear(s.protected)
	clear(s.watched)
	return errors.Join(errs...)
}
