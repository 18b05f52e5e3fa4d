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
//	shadowed   its copy is shown, which may be run only
//
// and a frame may be protected and shadowed at once: then it is shadowed, where
// writes fault as well, and is protected again when the copy goes.

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
	if s.protected[gfn] == 0 && s.pages[gfn] == nil {
		if s.holes[gfn] {
			if err := xenevents.WithPaused(s.dom, func() error { return s.fill([]xenevents.GFN{gfn}) }); err != nil {
				return err
			}
		}
		if err := s.protect(gfn); err != nil {
			return fmt.Errorf("protect gfn %v: %w", gfn, err)
		}
	}
	s.protected[gfn]++
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
	if err := ifThere(s.dom.SetAccess(s.view, gfn, xenevents.AccessRWX)); err != nil {
		return fmt.Errorf("free gfn %v: %w", gfn, err)
	}
	return nil
}

// Protected says whether the guest's writes to gfn fault, whether it has a shadow
// page or not.
func (s *Set) Protected(gfn xenevents.GFN) bool { return s.protected[gfn] > 0 }

// Tables is how many frames are protected.
func (s *Set) Tables() int { return len(s.protected) }

// protect takes the right away. With AccessRPW, where Xen and the CPU have it, the
// CPU's own page walks go on writing accessed and dirty bits without a fault.
func (s *Set) protect(gfn xenevents.GFN) error {
	if !s.noRPW {
		err := s.dom.SetAccess(s.view, gfn, xenevents.AccessRPW)
		if !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
		s.noRPW = true
	}
	return s.dom.SetAccess(s.view, gfn, xenevents.AccessRX)
}
