package sim

import (
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// maxViews is Xen's MAX_ALTP2M, view 0 included.
const maxViews = 10

// view is an altp2m view. It begins empty; what it has not is filled from view 0
// when the guest touches it. Of view 0 itself the entries hold access rights only.
type view struct {
	entries map[xenevents.GFN]entry
	// lo and hi span the frames that were ever shown under another number, as
	// Xen's min_remapped_gfn and max_remapped_gfn do.
	lo, hi xenevents.GFN
}

type entry struct {
	frame  *frame
	access xenevents.Access
}

func newView() *view {
	v := &view{}
	v.reset()
	return v
}

func (v *view) reset() {
	v.entries = map[xenevents.GFN]entry{}
	v.lo, v.hi = ^xenevents.GFN(0), 0
}

// dropped follows a frame that left the host map: as Xen does, bluntly, where it
// may be one that the view shows elsewhere (p2m_altp2m_propagate_change).
func (v *view) dropped(gfn xenevents.GFN) {
	if gfn >= v.lo && gfn <= v.hi {
		v.reset()
		return
	}
	delete(v.entries, gfn)
}

// look finds what a view shows under a number, on behalf of a vCPU.
func (g *Guest) look(id xenevents.View, gfn xenevents.GFN) (entry, error) {
	e := entry{g.p2m[gfn], xenevents.AccessRWX}
	w := g.views[id]
	if had, ok := w.entries[gfn]; ok {
		if id != xenevents.HostView {
			return had, nil
		}
		e.access = had.access
	}
	if e.frame == nil {
		return e, fmt.Errorf("gfn %v: %w", gfn, xenevents.ErrAbsent)
	}
	if id != xenevents.HostView {
		if e.frame.super && !w.split(gfn) {
			g.copySuperpage(w, gfn)
		}
		w.entries[gfn] = e
	}
	return e, nil
}

// fill gives a view an entry before a monitor changes it. Where the host map has a
// superpage Xen copies that whole, over all that the view had there
// (altp2m_get_effective_entry with prepopulate).
func (g *Guest) fill(w *view, gfn xenevents.GFN) (entry, error) {
	if e, ok := w.entries[gfn]; ok {
		return e, nil
	}
	f := g.p2m[gfn]
	if f == nil {
		return entry{}, fmt.Errorf("gfn %v: %w", gfn, xenevents.ErrAbsent)
	}
	w.entries[gfn] = entry{f, xenevents.AccessRWX}
	if f.super {
		g.copySuperpage(w, gfn)
	}
	return w.entries[gfn], nil
}

func (g *Guest) copySuperpage(w *view, gfn xenevents.GFN) {
	for n := gfn &^ (superpage - 1); n <= gfn|(superpage-1); n++ {
		w.entries[n] = entry{g.p2m[n], xenevents.AccessRWX}
	}
}

// split says whether the view has a part of a superpage, so that the guest's touch
// fills one entry (since Xen 4.17; before, it was as fill is).
func (v *view) split(gfn xenevents.GFN) bool {
	for n := gfn &^ (superpage - 1); n <= gfn|(superpage-1); n++ {
		if _, ok := v.entries[n]; ok {
			return true
		}
	}
	return false
}

// altView returns a view other than 0.
func (g *Guest) altView(id xenevents.View) (*view, error) {
	if err := g.check(); err != nil {
		return nil, err
	}
	if w := g.views[id]; w != nil && id != xenevents.HostView {
		return w, nil
	}
	return nil, fmt.Errorf("domain %d has no view %d to change", g.config.ID, id)
}

func (g *Guest) enableViews() error {
	switch {
	case g.check() != nil:
		return g.check()
	case g.config.NoViews:
		return &xenevents.UnsupportedError{Feature: "altp2m", Need: "a guest with views"}
	}
	g.viewsOn = true
	return nil
}

func (g *Guest) disableViews() error {
	if err := g.check(); err != nil {
		return err
	}
	for _, v := range g.vcpus {
		v.view, v.after = xenevents.HostView, xenevents.HostView
	}
	for id := range g.views {
		if id != xenevents.HostView {
			delete(g.views, id)
		}
	}
	g.viewsOn = false
	g.run()
	return nil
}

func (g *Guest) createView() (xenevents.View, error) {
	switch {
	case g.check() != nil:
		return 0, g.check()
	case !g.viewsOn:
		return 0, fmt.Errorf("altp2m of domain %d is off", g.config.ID)
	}
	for id := xenevents.View(1); id < maxViews; id++ {
		if g.views[id] == nil {
			g.views[id] = newView()
			return id, nil
		}
	}
	return 0, fmt.Errorf("domain %d has %d views already", g.config.ID, maxViews)
}

func (g *Guest) destroyView(id xenevents.View) error {
	if _, err := g.altView(id); err != nil {
		return err
	}
	for _, v := range g.vcpus {
		if v.view == id || v.fast && v.after == id {
			return fmt.Errorf("vCPU %d is in view %d: %w", v.id, id, xenevents.ErrBusy)
		}
	}
	delete(g.views, id)
	return nil
}

func (g *Guest) switchView(id xenevents.View) error {
	if id != xenevents.HostView || g.check() != nil {
		if _, err := g.altView(id); err != nil {
			return err
		}
	}
	for _, v := range g.vcpus {
		v.view = id
	}
	return nil
}

func (g *Guest) remap(id xenevents.View, gfn, to xenevents.GFN) error {
	w, err := g.altView(id)
	if err != nil {
		return err
	}
	e, err := g.fill(w, gfn)
	if err != nil {
		return err
	}
	target := g.p2m[to]
	if had, ok := w.entries[to]; ok {
		target = had.frame
	}
	if target == nil {
		return fmt.Errorf("gfn %v: %w", to, xenevents.ErrAbsent)
	}
	w.entries[gfn] = entry{target, e.access}
	w.lo, w.hi = min(w.lo, to), max(w.hi, to)
	return nil
}

func (g *Guest) revert(id xenevents.View, gfn xenevents.GFN) error {
	w, err := g.altView(id)
	if err != nil {
		return err
	}
	if _, err := g.fill(w, gfn); err != nil {
		return err
	}
	g.mishap("an entry was reverted")
	delete(w.entries, gfn)
	return nil
}

func (g *Guest) setAccess(id xenevents.View, gfn xenevents.GFN, a xenevents.Access) error {
	if a == xenevents.AccessRPW {
		return &xenevents.UnsupportedError{Feature: "access r_pw", Need: "real hardware"}
	}
	if id == xenevents.HostView && g.check() == nil {
		if g.p2m[gfn] == nil {
			return fmt.Errorf("gfn %v: %w", gfn, xenevents.ErrAbsent)
		}
		if g.views[id].entries[gfn] = (entry{nil, a}); a == xenevents.AccessRWX {
			delete(g.views[id].entries, gfn)
		}
		return nil
	}
	w, err := g.altView(id)
	if err != nil {
		return err
	}
	e, err := g.fill(w, gfn)
	if err != nil {
		return err
	}
	w.entries[gfn] = entry{e.frame, a}
	return nil
}
