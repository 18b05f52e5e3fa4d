// Package pagewatch follows where a guest has a page: it write-protects, in the
// probe view, the guest's page tables on the walk from the root to the entry of a
// watched address, walks again whenever one of them was written, and says what
// became of the page.
//
// The tables are the guest's, and may be anything: a loop, a frame that is not
// there, a page of code. What is watched is bounded, and so is the work of a write.
package pagewatch

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// MaxWatches bounds the watches of one guest, and so the tables (five for each)
// and the work of one write: as many walks, if all watches share the table.
const MaxWatches = 1024

// maxTries bounds the walks of one look: each that finds a new table protects it.
// Who changes them meanwhile has a step under way, one for each vCPU.
const maxTries = 16

// ErrTooMany says that MaxWatches are there.
var ErrTooMany = errors.New("too many watched pages in this guest")

// ErrUnsettled says that the guest changed its tables as often as they were walked.
var ErrUnsettled = errors.New("the guest changes its page tables while they are walked")

// ErrNotRunnable says that the guest has the page, but must not run it.
var ErrNotRunnable = errors.New("mapped, but not to be run")

// ErrEnded says that an address space has no user memory any more: its process
// exited, or has not begun. Its root may be another's tomorrow.
var ErrEnded = errors.New("the address space has ended")

// Ledger is where page permissions are kept: shadow.Set.
type Ledger interface {
	// Protect has the guest's writes to a frame fault from now on. It counts.
	Protect(gfn xenevents.GFN) error
	Unprotect(gfn xenevents.GFN) error
}

// Kind is what became of a page.
type Kind uint8

// The kinds of changes.
const (
	PageMapped Kind = iota + 1 // it is there now, and may be run
	PageMoved                  // it is in another frame
	PageGone                   // it is not there, or may not be run
	SpaceEnded                 // nor will it be again: the watch is over, and removed
)

func (k Kind) String() string {
	return [...]string{"none", "mapped", "moved", "gone", "ended"}[min(k, SpaceEnded)]
}

// Change is one change.
type Change struct {
	Watch *Watch
	Kind  Kind
	Was   xenevents.GPA // PageMoved, PageGone: of the page's first byte
}

// Watch is a page of an address space that is followed.
type Watch struct {
	Space xenevents.AddressSpace
	Page  xenevents.GVA
	// Owner is the caller's: what it wants to find again with the watch.
	Owner any

	tables  []xenevents.GFN // those on the walk, each once
	entries []xenevents.GPA // what the walk read of them
	at      xenevents.GPA
	mapped  bool
	why     error // it is not mapped
	removed bool
}

// Where returns the page's address in guest physical memory, or why it has none:
// ErrNotMapped, ErrNotRunnable, ErrAbsent for a table that is not the guest's own
// memory, ErrUnsettled.
func (w *Watch) Where() (xenevents.GPA, error) {
	if !w.mapped {
		return 0, w.why
	}
	return w.at, nil
}

// Set is what is watched in one guest. It belongs to the goroutine that serves the
// guest's events.
type Set struct {
	mem    guestmem.Memory
	reader *guestmem.Reader
	ledger Ledger
	tables map[xenevents.GFN][]*Watch
	all    int
	// unsettled are the watches that Recheck looks at again.
	unsettled map[*Watch]bool
}

// New makes an empty Set.
func New(mem guestmem.Memory, ledger Ledger) *Set {
	return &Set{mem: mem, reader: guestmem.NewReader(mem), ledger: ledger, tables: map[xenevents.GFN][]*Watch{}, unsettled: map[*Watch]bool{}}
}

// Len is how many watches there are.
func (s *Set) Len() int { return s.all }

// Add watches a page, which need not be there: see Where. It fails where there is
// no such address space, or no room.
func (s *Set) Add(space xenevents.AddressSpace, page xenevents.GVA, owner any) (*Watch, error) {
	if s.all >= MaxWatches {
		return nil, fmt.Errorf("%w: %d", ErrTooMany, MaxWatches)
	}
	w := &Watch{Space: space, Page: page.Page(), Owner: owner}
	s.all++
	ended, err := s.look(w)
	if ended {
		err = fmt.Errorf("%v: %w", space, ErrEnded)
	}
	if err != nil {
		return nil, errors.Join(err, s.Remove(w))
	}
	return w, nil
}

// Remove ends a watch. Twice is harmless.
func (s *Set) Remove(w *Watch) error {
	if w.removed {
		return nil
	}
	w.removed = true
	s.all--
	delete(s.unsettled, w)
	return s.keep(w, nil)
}

// Written has the watches walk again whose tables are in a frame that the guest
// wrote to, and appends to changes what became of their pages. It goes on past
// errors.
func (s *Set) Written(gfn xenevents.GFN, changes []Change) ([]Change, error) {
	// A copy: a walk may end elsewhere than in this table.
	return s.again(slices.Clone(s.tables[gfn]), changes)
}

// Touches says whether a write of n bytes to a protected frame may change what is
// known of a watch: whether Written has something to do.
func (s *Set) Touches(at xenevents.GPA, n int) bool {
	const longest = 8 // of an entry, in bytes
	for _, w := range s.tables[at.GFN()] {
		if s.unsettled[w] || len(w.entries) <= 1 { // at the root: see ended
			return true
		}
		for _, e := range w.entries {
			if e+longest > at && e < at+xenevents.GPA(n) {
				return true
			}
		}
	}
	return false
}

// Expected calls each with the watches whose page would be in a frame if the guest
// wrote value to the entry at at, which would be the last of their walk: with the
// address of the page's first byte. That is what a write is about to come to, not
// what has become of anything.
func (s *Set) Expected(at xenevents.GPA, value uint64, each func(*Watch, xenevents.GPA)) {
	if value&present == 0 || value&noExecute != 0 {
		return
	}
	for _, w := range slices.Clone(s.tables[at.GFN()]) {
		i := slices.Index(w.entries, at)
		if i < 0 || !wide(w.Space) {
			continue
		}
		levels := 4
		if w.Space.Mode == xenevents.Paging5Level {
			levels = 5
		}
		level := levels - i
		if level > 1 && (value&large == 0 || level > 3) {
			continue
		}
		size := xenevents.GPA(1) << (12 + 9*(level-1))
		each(w, xenevents.GPA(value&addrMask)&^(size-1)|xenevents.GPA(w.Page)&(size-1))
	}
}

// Unsettled says whether Recheck has something to do.
func (s *Set) Unsettled() bool { return len(s.unsettled) > 0 }

// Recheck is Written for the watches that could not be followed: the guest changed
// its tables as they were walked, or the hypervisor would not protect one.
func (s *Set) Recheck(changes []Change) ([]Change, error) {
	all := make([]*Watch, 0, len(s.unsettled))
	for w := range s.unsettled {
		all = append(all, w)
	}
	return s.again(all, changes)
}

func (s *Set) again(watches []*Watch, changes []Change) ([]Change, error) {
	var errs error
	for _, w := range watches {
		if w.removed {
			continue
		}
		was, had := w.at, w.mapped
		ended, err := s.look(w)
		errs = errors.Join(errs, err)
		switch {
		case ended:
			errs = errors.Join(errs, s.Remove(w))
			changes = append(changes, Change{w, SpaceEnded, was})
		case !had && w.mapped:
			changes = append(changes, Change{Watch: w, Kind: PageMapped})
		case had && !w.mapped:
			changes = append(changes, Change{w, PageGone, was})
		case had && w.at != was:
			changes = append(changes, Change{w, PageMoved, was})
		}
	}
	return changes, errs
}

// look walks until all tables of the walk were protected before it began: what it
// read then holds until the next fault. It says whether the address space ended.
// An error is the ledger's: the guest's own mistakes are w.why.
func (s *Set) look(w *Watch) (ended bool, err error) {
	w.mapped = false
	for range maxTries {
		t, walkErr := s.reader.Translate(w.Space, w.Page)
		grown, err := s.grow(w, &t)
		absent := errors.Is(err, xenevents.ErrAbsent)
		switch {
		case err != nil && !absent:
			w.why = err
			s.unsettled[w] = true
			return false, err
		case grown:
			continue
		case absent:
			// Nothing there can be followed, but the entry that leads there is.
			walkErr = err
		}
		delete(s.unsettled, w)
		w.why = walkErr
		w.entries = append(w.entries[:0], t.Entries[:t.Levels]...)
		if err := s.keep(w, tables(&t)); err != nil {
			return false, err
		}
		if walkErr != nil {
			return t.Levels <= 1 && s.ended(w), nil
		}
		if t.NX {
			w.why = fmt.Errorf("%v in address space %v: %w", w.Page, w.Space, ErrNotRunnable)
			return false, nil
		}
		w.at, w.mapped = t.GPA, true
		return false, nil
	}
	w.why = ErrUnsettled
	s.unsettled[w] = true
	return false, nil
}

// tables are the frames of a walk, each once: a hostile one may go in a circle.
func tables(t *guestmem.Translation) []xenevents.GFN {
	all := make([]xenevents.GFN, 0, len(t.Entries))
	for _, e := range t.Entries[:t.Levels] {
		if !slices.Contains(all, e.GFN()) {
			all = append(all, e.GFN())
		}
	}
	return all
}

// grow protects the tables of a walk that are not yet, and says whether there were
// some: what was read of those may have changed meanwhile.
func (s *Set) grow(w *Watch, t *guestmem.Translation) (grown bool, err error) {
	for _, gfn := range tables(t) {
		if slices.Contains(w.tables, gfn) {
			continue
		}
		if len(s.tables[gfn]) == 0 {
			if err := s.ledger.Protect(gfn); err != nil {
				return grown, err
			}
			grown = true
		}
		s.tables[gfn] = append(s.tables[gfn], w)
		w.tables = append(w.tables, gfn)
	}
	return grown, nil
}

// keep lets go of all tables but some.
func (s *Set) keep(w *Watch, some []xenevents.GFN) error {
	var errs error
	w.tables = slices.DeleteFunc(w.tables, func(gfn xenevents.GFN) bool {
		if slices.Contains(some, gfn) {
			return false
		}
		s.tables[gfn] = slices.DeleteFunc(s.tables[gfn], func(x *Watch) bool { return x == w })
		if len(s.tables[gfn]) == 0 {
			delete(s.tables, gfn)
			errs = errors.Join(errs, s.ledger.Unprotect(gfn))
		}
		return true
	})
	return errs
}
