package probe

import (
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// ErrReadOnly says that the guest's own page tables don't let it write there.
var ErrReadOnly = errors.New("the guest may not write there itself")

// Write writes guest virtual memory as the vCPU sees it, all of p or nothing. Where
// the guest's page tables forbid that it fails with ErrReadOnly: such a page may be
// shared by many processes.
func (h *Hit) Write(p []byte, at xenevents.GVA) error {
	e := h.engine
	for page := at.Page(); page <= (at + xenevents.GVA(max(len(p), 1)-1)).Page(); page += xenevents.PageSize {
		t, err := e.mem.Translate(h.Space, page)
		if err != nil {
			return err
		}
		if !t.Writable {
			return fmt.Errorf("write to %v: %w", at, ErrReadOnly)
		}
		switch gfn := t.GPA.GFN(); {
		case e.set.Holds(gfn): // its copy would have to follow
			return fmt.Errorf("write to %v: a probe is in that page", at)
		case e.set.Protected(gfn): // so would probes
			return fmt.Errorf("write to %v: that is a page table that a probe follows", at)
		}
		if page+xenevents.PageSize == 0 {
			break
		}
	}
	_, err := e.mem.WriteGVA(h.Space, p, at)
	return err
}
