package shadow

import (
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// The ledger of page permissions. A frame of the guest is, in the probe view,
//
//	free       rwx, what it is in view 0
//	protected  the guest's writes fault
//	watched    accesses of some kinds fault, for whoever watches the frame
//	shadowed   its copy is shown, which may be run only
//
// and it may be all of these at once: it has the rights that all of them leave it. EPT
// has no right to write without that to read: where reads fault, writes do as well.

// Protect has the guest's writes to a frame fault in the probe view. It counts:
// each Protect needs its Unprotect. It fails with ErrAbsent for what is not the
// guest's own memory.
//
// When it returns no vCPU in the view writes there without a fault (Xen flushes
// what the vCPUs have of the old rights before it answers).
func (s *Set) Protect(gfn xenevents.GFN) error {
	if gfn > s.max {
		return fmt.Errorf("gfn %v is not the guest's own memory: %w", gfn, xenevents.ErrAbsent)
	}
	s.protected[gfn]++
	if s.protected[gfn] > 1 || s.pages[gfn] != nil {
		return nil
	}
	if err := s.allow(gfn); err != nil {
		delete(s.protected, gfn)
		return fmt.Errorf("protect gfn %v: %w", gfn, err)
	}
	return nil
}

// Unprotect takes back one Protect.
func (s *Set) Unprotect(gfn xenevents.GFN) error {
	switch s.protected[gfn] {
	case 0:
		return fmt.Errorf("gfn %v is not protected", gfn)
	case 1:
	default:
		s.protected[gfn]--
		return nil
	}
	delete(s.protected, gfn)
	if s.pages[gfn] != nil {
		return nil
	}
	if err := ifThere(s.allow(gfn)); err != nil {
		return fmt.Errorf("free gfn %v: %w", gfn, err)
	}
	return nil
}

// watchers are how many watch each kind of access: reads, writes, execution.
type watchers [3]int

// kinds are what is watched of a frame.
func (w watchers) kinds() (a xenevents.Access) {
	for i, n := range w {
		if n > 0 {
			a |= 1 << i
		}
	}
	return a
}

// Watch has the guest's accesses of some kinds to a frame fault in the probe view; of
// other kinds as well, where the frame is more than watched. It counts: each Watch
// needs its Unwatch. Else it is as Protect.
func (s *Set) Watch(gfn xenevents.GFN, a xenevents.Access) error {
	if gfn > s.max {
		return fmt.Errorf("gfn %v is not the guest's own memory: %w", gfn, xenevents.ErrAbsent)
	}
	before := s.watched[gfn]
	s.addWatch(gfn, a, 1)
	if s.watched[gfn].kinds() == before.kinds() {
		return nil
	}
	if err := s.allow(gfn); err != nil {
		s.addWatch(gfn, a, -1)
		return fmt.Errorf("watch gfn %v: %w", gfn, err)
	}
	return nil
}

// Unwatch takes back one Watch.
func (s *Set) Unwatch(gfn xenevents.GFN, a xenevents.Access) error {
	before := s.watched[gfn]
	if before.kinds()&a != a {
		return fmt.Errorf("gfn %v is not watched for %v", gfn, a)
	}
	s.addWatch(gfn, a, -1)
	if s.watched[gfn].kinds() == before.kinds() {
		return nil
	}
	if err := ifThere(s.allow(gfn)); err != nil {
		return fmt.Errorf("free gfn %v: %w", gfn, err)
	}
	return nil
}

func (s *Set) addWatch(gfn xenevents.GFN, a xenevents.Access, n int) {
	w := s.watched[gfn]
	for i := range w {
		if a&(1<<i) != 0 {
			w[i] += n
		}
	}
	if s.watched[gfn] = w; w == (watchers{}) {
		delete(s.watched, gfn)
	}
}

// Watched says whether accesses to gfn fault because of a Watch.
func (s *Set) Watched(gfn xenevents.GFN) bool { return s.watched[gfn] != (watchers{}) }

// Protected says whether the guest's writes to gfn fault, whether it has a shadow
// page or not.
func (s *Set) Protected(gfn xenevents.GFN) bool { return s.protected[gfn] > 0 }

// Tables is how many frames are protected.
func (s *Set) Tables() int { return len(s.protected) }

// allow gives a frame, in the view, the rights that it should have. An entry that was
// reverted is filled before.
func (s *Set) allow(gfn xenevents.GFN) error {
	if s.holes[gfn] {
		if err := xenevents.WithPaused(s.dom, func() error { return s.fill([]xenevents.GFN{gfn}) }); err != nil {
			return err
		}
	}
	return s.allowAs(gfn, s.pages[gfn] != nil)
}

// allowAs is allow for a frame that shows its copy, or does not. A table that is
// nothing else gets AccessRPW where Xen and the CPU have it: the CPU's own page walks
// go on writing accessed and dirty bits without a fault.
func (s *Set) allowAs(gfn xenevents.GFN, shadowed bool) error {
	a := xenevents.AccessRWX
	if s.protected[gfn] > 0 {
		a = xenevents.AccessRX
	}
	if shadowed {
		a = xenevents.AccessX
	}
	watched := s.watched[gfn].kinds()
	if watched&xenevents.AccessR != 0 {
		watched |= xenevents.AccessW
	}
	if s.protected[gfn] > 0 && !shadowed && watched == 0 && !s.noRPW {
		err := s.dom.SetAccess(s.view, gfn, xenevents.AccessRPW)
		if !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		s.noRPW = true
	}
	return s.dom.SetAccess(s.view, gfn, a&^watched)
}
