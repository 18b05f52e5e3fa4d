package pagewatch_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
	"github.com/hprobe/hprobe/xenevents/pagewatch"
)

const frames = 16

// guest is memory of a few frames, and the ledger of who may not write there.
type guest struct {
	t         *testing.T
	mem       [frames * xenevents.PageSize]byte
	protected map[xenevents.GFN]int
	// protect is called before a frame is protected.
	protect func(xenevents.GFN) error
}

func (g *guest) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	if at >= xenevents.GPA(len(g.mem)) {
		return 0, xenevents.ErrAbsent
	}
	if n := copy(p, g.mem[at:]); n < len(p) {
		return n, xenevents.ErrAbsent
	}
	return len(p), nil
}

func (g *guest) WriteGPA(p []byte, at xenevents.GPA) (int, error) { return copy(g.mem[at:], p), nil }

func (g *guest) Protect(gfn xenevents.GFN) error {
	if gfn >= frames {
		return fmt.Errorf("gfn %v: %w", gfn, xenevents.ErrAbsent)
	}
	if g.protect != nil {
		if err := g.protect(gfn); err != nil {
			return err
		}
	}
	g.protected[gfn]++
	return nil
}

func (g *guest) Unprotect(gfn xenevents.GFN) error {
	if g.protected[gfn]--; g.protected[gfn] < 0 {
		g.t.Errorf("gfn %v is let go of too often", gfn)
	}
	if g.protected[gfn] == 0 {
		delete(g.protected, gfn)
	}
	return nil
}

func (g *guest) set(table xenevents.GFN, index int, to xenevents.GFN, flags uint64) {
	binary.LittleEndian.PutUint64(g.mem[int(table)*xenevents.PageSize+8*index:], uint64(to.GPA())|flags)
}

const (
	page  xenevents.GVA = 0x40_1000 // entries 0, 0, 2, 1
	other               = page + xenevents.PageSize
	there               = 7
	noRun               = 1<<63 | there
)

var space = xenevents.AddressSpace{Root: 1 * xenevents.PageSize, Mode: xenevents.Paging4Level}

// newGuest has tables in frames 1, 2, 3 and 4, root first, for page in frame 8 and
// other in frame 9.
func newGuest(t *testing.T) *guest {
	g := &guest{t: t, protected: map[xenevents.GFN]int{}}
	g.set(1, 0, 2, there)
	g.set(2, 0, 3, there)
	g.set(3, 2, 4, there)
	g.set(4, 1, 8, there)
	g.set(4, 2, 9, there)
	return g
}

func add(t *testing.T, s *pagewatch.Set, at xenevents.GVA) *pagewatch.Watch {
	t.Helper()
	w, err := s.Add(space, at, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// written is what a write to a frame came to.
func written(t *testing.T, s *pagewatch.Set, gfn xenevents.GFN, want ...pagewatch.Kind) []pagewatch.Change {
	t.Helper()
	all, err := s.Written(gfn, nil)
	if err != nil {
		t.Fatal(err)
	}
	var kinds []pagewatch.Kind
	for _, c := range all {
		kinds = append(kinds, c.Kind)
	}
	if fmt.Sprint(kinds) != fmt.Sprint(want) {
		t.Errorf("changes %v, want %v", kinds, want)
	}
	return all
}

func (g *guest) holds(want ...xenevents.GFN) {
	g.t.Helper()
	wants := map[xenevents.GFN]int{}
	for _, gfn := range want {
		wants[gfn] = 1
	}
	if fmt.Sprint(wants) != fmt.Sprint(g.protected) {
		g.t.Errorf("protected are %v, want %v", g.protected, wants)
	}
}

func TestFollows(t *testing.T) {
	g := newGuest(t)
	s := pagewatch.New(g, g)
	a, b := add(t, s, page+0x123), add(t, s, other)
	g.holds(1, 2, 3, 4)
	if at, err := a.Where(); at != 8*xenevents.PageSize || err != nil || a.Page != page {
		t.Errorf("%v at %v, %v", a.Page, at, err)
	}
	written(t, s, 4) // accessed bits, or other pages
	g.set(4, 1, 10, there)
	if c := written(t, s, 4, pagewatch.PageMoved); c[0].Watch != a || c[0].Was != 8*xenevents.PageSize {
		t.Errorf("%+v", c)
	}
	g.set(4, 1, 10, noRun)
	written(t, s, 4, pagewatch.PageGone)
	if _, err := a.Where(); !errors.Is(err, pagewatch.ErrNotRunnable) {
		t.Error(err)
	}
	g.set(4, 1, 10, there)
	written(t, s, 4, pagewatch.PageMapped)
	// A large page, and back: the table is the guest's own meanwhile.
	g.set(3, 2, 0, there|1<<7)
	written(t, s, 3, pagewatch.PageMoved, pagewatch.PageMoved)
	g.holds(1, 2, 3)
	if at, err := b.Where(); at != 2*xenevents.PageSize || err != nil {
		t.Errorf("%v, %v", at, err)
	}
	g.set(3, 2, 5, there)
	written(t, s, 3, pagewatch.PageGone, pagewatch.PageGone)
	g.holds(1, 2, 3, 5)
	if err := s.Remove(a); err != nil {
		t.Error(err)
	}
	g.holds(1, 2, 3, 5)
	g.set(1, 0, 0, 0)
	written(t, s, 1, pagewatch.SpaceEnded)
	g.holds()
	if err := errors.Join(s.Remove(a), s.Remove(b)); err != nil || s.Len() != 0 {
		t.Errorf("%d watches, %v", s.Len(), err)
	}
	if _, err := s.Add(space, page, nil); !errors.Is(err, pagewatch.ErrEnded) || s.Len() != 0 {
		t.Error(err)
	}
	g.holds()
}

// TestChangesWhileWalked: whatever the guest does to a table up to the moment when
// it is protected is seen.
func TestChangesWhileWalked(t *testing.T) {
	g := newGuest(t)
	s := pagewatch.New(g, g)
	g.protect = func(gfn xenevents.GFN) error {
		switch gfn {
		case 2:
			g.set(2, 0, 6, there)
			g.set(6, 2, 7, there)
		case 7:
			g.set(7, 1, 11, there)
		}
		return nil
	}
	w := add(t, s, page)
	if at, err := w.Where(); at != 11*xenevents.PageSize || err != nil {
		t.Errorf("%v, %v", at, err)
	}
	g.holds(1, 2, 6, 7)
}

// TestUnsettled: tables that change with each walk have an end, and are looked at
// again.
func TestUnsettled(t *testing.T) {
	g := newGuest(t)
	s := pagewatch.New(g, g)
	next := xenevents.GFN(4)
	g.protect = func(xenevents.GFN) error {
		next = 4 + (next-3)%11
		g.set(3, 2, next, there) // by a vCPU that is not in the view
		return nil
	}
	w := add(t, s, page)
	_, err := w.Where()
	if errors.Is(err, pagewatch.ErrUnsettled) != s.Unsettled() {
		t.Errorf("unsettled %v: %v", s.Unsettled(), err)
	}
	g.protect = nil
	g.set(3, 2, 4, there)
	changes, err := s.Recheck(nil)
	if err != nil || s.Unsettled() {
		t.Errorf("%+v, %v", changes, err)
	}
	written(t, s, 3)
	g.holds(1, 2, 3, 4)
}

// TestLedgerFails: what can't be protected is looked at again.
func TestLedgerFails(t *testing.T) {
	broken := errors.New("broken")
	g := newGuest(t)
	s := pagewatch.New(g, g)
	g.protect = func(gfn xenevents.GFN) error {
		if gfn == 3 {
			return broken
		}
		return nil
	}
	if _, err := s.Add(space, page, nil); !errors.Is(err, broken) || s.Len() != 0 {
		t.Error(err)
	}
	g.holds()
	g.set(2, 0, 0, 0)
	w := add(t, s, page)
	g.set(2, 0, 3, there)
	if _, err := s.Written(2, nil); !errors.Is(err, broken) || !s.Unsettled() {
		t.Error(err)
	}
	g.protect = nil
	changes, err := s.Recheck(nil)
	if err != nil || len(changes) != 1 || changes[0].Kind != pagewatch.PageMapped || changes[0].Watch != w || s.Unsettled() {
		t.Errorf("%+v, %v", changes, err)
	}
}

// TestHostileTables: frames that are not there, and tables that are their own.
func TestHostileTables(t *testing.T) {
	g := newGuest(t)
	s := pagewatch.New(g, g)
	w := add(t, s, page)
	for _, to := range []xenevents.GFN{1 << 20, 1 << 39, frames} {
		g.set(2, 0, to, there)
		written(t, s, 2, pagewatch.PageGone)
		if _, err := w.Where(); !errors.Is(err, xenevents.ErrAbsent) {
			t.Errorf("to %v: %v", to, err)
		}
		g.holds(1, 2)
		g.set(2, 0, 3, there)
		written(t, s, 2, pagewatch.PageMapped)
	}
	g.set(1, 0, 1, there) // the root is each of the tables
	written(t, s, 1, pagewatch.PageGone)
	g.holds(1)
	g.set(1, 2, 1, there)
	g.set(1, 1, 1, there)
	written(t, s, 1, pagewatch.PageMapped)
	g.holds(1)
}

// TestTouches: what is written beside the entries of a walk changes nothing.
func TestTouches(t *testing.T) {
	g := newGuest(t)
	s := pagewatch.New(g, g)
	add(t, s, page)
	for _, c := range []struct {
		at   xenevents.GPA
		n    int
		want bool
	}{
		{0x4008, 8, true}, {0x4000, 8, false}, {0x4010, 8, false}, {0x4000, 9, true}, {0x400f, 1, true}, {0x3010, 8, true}, {0x3008, 8, false},
		{0x1000, 4, true}, {0x1ff8, 8, false}, {0x5008, 8, false},
	} {
		if got := s.Touches(c.at, c.n); got != c.want {
			t.Errorf("%d bytes at %v: %v", c.n, c.at, got)
		}
	}
	// The last entry of a root, whichever it is, says when a process has ended.
	g.set(1, 100, 2, there)
	g.set(1, 0, 0, 0)
	written(t, s, 1, pagewatch.PageGone)
	if !s.Touches(0x1000+8*100, 8) || s.Touches(0x2000, 8) {
		t.Error("another entry of the root")
	}
}

// TestExpected: where a page would be.
func TestExpected(t *testing.T) {
	g := newGuest(t)
	s := pagewatch.New(g, g)
	add(t, s, page)
	for _, c := range []struct {
		at    xenevents.GPA
		value uint64
		want  []xenevents.GPA
	}{
		{0x4008, 0x7007, []xenevents.GPA{0x7000}},
		{0x4008, 0x7006, nil}, {0x4008, 1<<63 | 0x7007, nil}, {0x4010, 0x7007, nil},
		{0x3010, 0x7007, nil}, {0x3010, 0x40_0087, []xenevents.GPA{0x40_1000}}, {0x2000, 0x4000_0087, []xenevents.GPA{0x4040_1000}}, {0x1000, 0x87, nil},
	} {
		var got []xenevents.GPA
		s.Expected(c.at, c.value, func(_ *pagewatch.Watch, at xenevents.GPA) { got = append(got, at) })
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("%#x at %v: %v, want %v", c.value, c.at, got, c.want)
		}
	}
}

func TestRoots(t *testing.T) {
	lower := xenevents.AddressSpace{Root: 2 * xenevents.PageSize, Mode: xenevents.Paging4Level}
	upper := lower
	upper.Root += xenevents.PageSize
	g := &guest{t: t}
	check := func(text string, space, user, kernel xenevents.AddressSpace) {
		t.Helper()
		if u, k := pagewatch.Roots(g, space); u != user || k != kernel {
			t.Errorf("%s: %v and %v, want %v and %v", text, u, k, user, kernel)
		}
	}
	none := xenevents.AddressSpace{}
	check("empty", lower, lower, none)
	g.set(2, 17, 9, noRun)
	g.set(2, 255, 10, noRun)
	g.set(2, 300, 11, there)
	check("alone", lower, lower, none)
	g.set(3, 17, 9, there|1<<5)
	check("another one", upper, upper, none)
	g.set(3, 255, 10, there)
	g.set(3, 400, 12, there)
	check("kernel's", lower, upper, lower)
	check("user's", upper, upper, lower)
	pae := lower
	pae.Mode = xenevents.PagingPAE
	check("PAE", pae, pae, none)
}

func TestAccessed(t *testing.T) {
	for _, c := range []struct {
		mode xenevents.PagingMode
		e    uint64
		want uint64
		ok   bool
	}{
		{xenevents.Paging4Level, 0x1007, 0x1027, true},
		{xenevents.Paging5Level, 0x1001, 0x1021, true},
		{xenevents.Paging4Level, 0x1027, 0x1027, false}, // a dirty bit, or somebody was quicker
		{xenevents.Paging4Level, 0x1006, 0x1006, false},
		{xenevents.PagingLegacy, 0x1007, 0x1007, false},
	} {
		if got, ok := pagewatch.Accessed(c.mode, c.e); got != c.want || ok != c.ok {
			t.Errorf("%v %#x: %#x, %v", c.mode, c.e, got, ok)
		}
	}
}

// FuzzTables: whatever the guest has for tables and writes to them, what is said of
// a page is what its walk finds, all that the walk needs is protected, and nothing
// else is.
func FuzzTables(f *testing.F) {
	f.Add([]byte{1, 0, 2, 7, 2, 0, 3, 7, 3, 2, 4, 7, 4, 1, 8, 7, 4, 1, 9, 7, 1, 0, 1, 7})
	f.Fuzz(func(t *testing.T, writes []byte) {
		g := newGuest(t)
		s := pagewatch.New(g, g)
		reader := guestmem.NewReader(g)
		watches := map[*pagewatch.Watch]bool{add(t, s, page): true, add(t, s, other): true}
		for len(writes) >= 4 {
			table, index, to, flags := xenevents.GFN(writes[0]%frames), int(writes[1]%4), xenevents.GFN(writes[2]%(frames+2)), uint64(writes[3])
			writes = writes[4:]
			// Of some writes there is no event, and of some none is needed.
			held := g.protected[table] > 0 && s.Touches(table.GPA()+xenevents.GPA(8*index), 8)
			g.set(table, index, to, flags)
			if !held {
				continue
			}
			changes, err := s.Written(table, nil)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range changes {
				if c.Kind == pagewatch.SpaceEnded {
					delete(watches, c.Watch)
				}
			}
			wants := map[xenevents.GFN]int{}
			for w := range watches {
				walk, err := reader.Translate(w.Space, w.Page)
				at, where := w.Where()
				if (err == nil && !walk.NX) != (where == nil) || where == nil && at != walk.GPA {
					t.Errorf("%v is at %v, %v; the walk finds %v, %v", w.Page, at, where, walk.GPA, err)
				}
				for _, e := range walk.Entries[:walk.Levels] {
					if e.GFN() < frames {
						wants[e.GFN()] = 1
					}
				}
			}
			if fmt.Sprint(wants) != fmt.Sprint(g.protected) {
				t.Fatalf("protected are %v, want %v", g.protected, wants)
			}
		}
	})
}
