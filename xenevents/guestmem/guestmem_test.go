package guestmem

import (
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
)

// memory is a guest's physical memory, frame by frame; the frames that are not
// in it are absent.
type memory struct {
	frames map[xenevents.GFN][]byte
	reads  int
}

func newMemory() *memory { return &memory{frames: map[xenevents.GFN][]byte{}} }

func (m *memory) frame(gfn xenevents.GFN) []byte {
	if m.frames[gfn] == nil {
		m.frames[gfn] = make([]byte, xenevents.PageSize)
	}
	return m.frames[gfn]
}

func (m *memory) each(p []byte, at xenevents.GPA, f func(frame, p []byte) int) (int, error) {
	for done := 0; done < len(p); {
		b := m.frames[at.GFN()]
		if b == nil {
			return done, xenevents.ErrAbsent
		}
		n := f(b[at.Offset():], p[done:])
		done += n
		at += xenevents.GPA(n)
	}
	return len(p), nil
}

func (m *memory) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	m.reads++
	return m.each(p, at, func(frame, p []byte) int { return copy(p, frame) })
}

func (m *memory) WriteGPA(p []byte, at xenevents.GPA) (int, error) {
	return m.each(p, at, func(frame, p []byte) int { return copy(frame, p) })
}

func (m *memory) put64(at xenevents.GPA, v uint64) {
	binary.LittleEndian.PutUint64(m.frame(at.GFN())[at.Offset():], v)
}

func (m *memory) put32(at xenevents.GPA, v uint32) {
	binary.LittleEndian.PutUint32(m.frame(at.GFN())[at.Offset():], v)
}

// The tables of most tests: the root is frame 1, and each index is another.
const (
	root = xenevents.GPA(0x1000)
	at   = xenevents.GVA(0xffff_8123_4567_89ab)
)

var (
	space = xenevents.AddressSpace{Root: root, Mode: xenevents.Paging4Level}
	index = [5]uint64{1: uint64(at) >> 12 & 511, 2: uint64(at) >> 21 & 511, 3: uint64(at) >> 30 & 511, 4: uint64(at) >> 39 & 511}
)

// tables builds the walk of at: the table of level n is frame 5-n, its entry e[n].
func tables(e4, e3, e2, e1 uint64) *memory {
	m := newMemory()
	for i, e := range []uint64{e4, e3, e2, e1} {
		m.put64(xenevents.GPA(i+1)<<12+xenevents.GPA(8*index[4-i]), e)
	}
	return m
}

const rwu = present | writable | user

func TestTranslate4Level(t *testing.T) {
	entries := func(n int) (e [5]xenevents.GPA) {
		for i := range n {
			e[i] = xenevents.GPA(i+1)<<12 + xenevents.GPA(8*index[4-i])
		}
		return e
	}
	for name, c := range map[string]struct {
		m    *memory
		want Translation
	}{
		"4 KiB": {tables(0x2000|rwu, 0x3000|rwu, 0x4000|rwu, 0xabcd_e000|rwu),
			Translation{GPA: 0xabcd_e9ab, PageSize: 4 << 10, Writable: true, User: true, Entries: entries(4), Levels: 4}},
		"a PAT bit is no page size": {tables(0x2000|rwu, 0x3000|rwu, 0x4000|rwu, 0xabcd_e000|rwu|large),
			Translation{GPA: 0xabcd_e9ab, PageSize: 4 << 10, Writable: true, User: true, Entries: entries(4), Levels: 4}},
		"2 MiB": {tables(0x2000|rwu, 0x3000|rwu, 0x8000_0000|rwu|large, 0),
			Translation{GPA: 0x8007_89ab, PageSize: 2 << 20, Writable: true, User: true, Entries: entries(3), Levels: 3}},
		"2 MiB with PAT": {tables(0x2000|rwu, 0x3000|rwu, 0x8000_0000|rwu|large|1<<12, 0),
			Translation{GPA: 0x8000_0000 + xenevents.GPA(at&0x1f_ffff), PageSize: 2 << 20, Writable: true, User: true, Entries: entries(3), Levels: 3}},
		"1 GiB": {tables(0x2000|rwu, 0x1_0000_0000|rwu|large, 0, 0),
			Translation{GPA: 0x1_0000_0000 + xenevents.GPA(at&0x3fff_ffff), PageSize: 1 << 30, Writable: true, User: true, Entries: entries(2), Levels: 2}},
		"rights are those of all levels": {tables(0x2000|rwu, 0x3000|present|user, 0x4000|rwu|nx, 0x5000|present|writable),
			Translation{GPA: 0x59ab, PageSize: 4 << 10, NX: true, Entries: entries(4), Levels: 4}},
		"bits that software may use": {tables(0x2000|rwu|0xe00|0x7f<<52, 0x3000|rwu, 0x4000|rwu, 0x5000|rwu|0xe00|0x7ff<<52),
			Translation{GPA: 0x59ab, PageSize: 4 << 10, Writable: true, User: true, Entries: entries(4), Levels: 4}},
		"the highest address": {tables(0x2000|rwu, 0x3000|rwu, 0x4000|rwu, 0x000f_ffff_ffff_f000|rwu),
			Translation{GPA: 0x000f_ffff_ffff_f9ab, PageSize: 4 << 10, Writable: true, User: true, Entries: entries(4), Levels: 4}},
	} {
		got, err := NewReader(c.m).Translate(space, at)
		if err != nil || got != c.want {
			t.Errorf("%s: %v\n%+v\nwant\n%+v", name, err, got, c.want)
		}
		if c.m.reads != c.want.Levels {
			t.Errorf("%s: %d reads", name, c.m.reads)
		}
	}
}

func TestTranslateEnds(t *testing.T) {
	for name, c := range map[string]struct {
		m     *memory
		at    xenevents.GVA
		level int
		entry uint64
	}{
		"level 4":           {tables(writable, 0, 0, 0), at, 4, writable},
		"level 3":           {tables(0x2000|rwu, 0, 0, 0), at, 3, 0},
		"level 2":           {tables(0x2000|rwu, 0x3000|rwu, 0x4000, 0), at, 2, 0x4000},
		"level 1: swapped":  {tables(0x2000|rwu, 0x3000|rwu, 0x4000|rwu, 0xdead_0000), at, 1, 0xdead_0000},
		"PS at level 4":     {tables(0x2000|rwu|large, 0x3000|rwu, 0x4000|rwu, 0x5000|rwu), at, 4, 0x2000 | rwu | large},
		"not canonical":     {tables(0x2000|rwu, 0x3000|rwu, 0x4000|rwu, 0x5000|rwu), at &^ (1 << 63), 0, 0},
		"just no canonical": {newMemory(), 0x0000_8000_0000_0000, 0, 0},
	} {
		_, err := NewReader(c.m).Translate(space, c.at)
		var not *NotMappedError
		if !errors.As(err, &not) || !errors.Is(err, xenevents.ErrNotMapped) || not.Level != c.level || not.Entry != c.entry || not.At != c.at || not.Space != space {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := NewReader(newMemory()).Translate(space, at); !errors.Is(err, xenevents.ErrAbsent) || !strings.Contains(err.Error(), "level 4") {
		t.Errorf("a root that is not there: %v", err)
	}
	if _, err := NewReader(tables(0x2000|rwu, 0x7fff_ffff_f000|rwu, 0, 0)).Translate(space, at); !errors.Is(err, xenevents.ErrAbsent) || !strings.Contains(err.Error(), "level 2") {
		t.Errorf("a table that is not there: %v", err)
	}
	if _, err := NewReader(newMemory()).Translate(xenevents.AddressSpace{Mode: 9}, at); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a mode that is none: %v", err)
	}
}

// TestTranslateSelfMap is Windows' and some hypervisors' trick: a root that
// points to itself, so that the tables show in the address space.
func TestTranslateSelfMap(t *testing.T) {
	m := newMemory()
	m.put64(root+8*511, uint64(root)|rwu)
	got, err := NewReader(m).Translate(space, 0xffff_ffff_ffff_f123)
	if err != nil || got.GPA != root+0x123 || got.Levels != 4 || m.reads != 4 {
		t.Errorf("%+v, %v after %d reads", got, err, m.reads)
	}
}

func TestTranslateOtherModes(t *testing.T) {
	m := newMemory()
	r := NewReader(m)
	// 5 levels: an address that 4 levels can't have.
	m.put64(0x9000+8*0x101, 0x1000|rwu)
	m.put64(0x1000+8*0x1ff, 0x2000|rwu)
	m.put64(0x2000, 0x3000|rwu)
	m.put64(0x3000+8, 0x4000|rwu)
	m.put64(0x4000+16, 0x7000|rwu)
	five := xenevents.AddressSpace{Root: 0x9000, Mode: xenevents.Paging5Level}
	a := xenevents.GVA(0xff<<56 | 0x101<<48 | 0x1ff<<39 | 1<<21 | 2<<12 | 0x77)
	if got, err := r.Translate(five, a); err != nil || got.GPA != 0x7077 || got.Levels != 5 || got.Entries[0] != 0x9000+8*0x101 || got.Entries[4] != 0x4010 {
		t.Errorf("5 levels: %+v, %v", got, err)
	}
	if _, err := r.Translate(five, a&^(1<<63)); !errors.Is(err, xenevents.ErrNotMapped) {
		t.Errorf("5 levels, not canonical: %v", err)
	}
	// PAE: the four top entries are at a 32-byte boundary, and have no rights.
	pae := xenevents.AddressSpace{Root: 0xa020, Mode: xenevents.PagingPAE}
	m.put64(0xa020+8*3, 0xb000|present)
	m.put64(0xb000+8*0x1ff, 0xc000|rwu)
	m.put64(0xc000+8*0x1fe, 0x8_0000_d000|present|writable)
	m.put64(0xb000+8*1, 0x4020_0000|rwu|large)
	if got, err := r.Translate(pae, 0xffff_e123); err != nil || got.GPA != 0x8_0000_d123 || !got.Writable || got.User || got.Levels != 3 {
		t.Errorf("PAE: %+v, %v", got, err)
	}
	if got, err := r.Translate(pae, 0xc02f_f123); err != nil || got.GPA != 0x402f_f123 || got.PageSize != 2<<20 || got.Levels != 2 {
		t.Errorf("PAE, 2 MiB: %+v, %v", got, err)
	}
	// Legacy, with the 4 MiB pages above 4 GiB of PSE-36.
	old := xenevents.AddressSpace{Root: 0xe000, Mode: xenevents.PagingLegacy}
	m.put32(0xe000+4*0x300, 0xf000|rwu)
	m.put32(0xf000+4*0x3ff, 0x1_2000|present|user)
	m.put32(0xe000+4*0x301, 0x0080_0000|rwu|large|5<<13)
	if got, err := r.Translate(old, 0xc03f_f456); err != nil || got.GPA != 0x1_2456 || got.Writable || !got.User || got.Levels != 2 || got.Entries[1] != 0xf000+4*0x3ff {
		t.Errorf("legacy: %+v, %v", got, err)
	}
	if got, err := r.Translate(old, 0xc04a_b456); err != nil || got.GPA != 5<<32+0x8a_b456 || got.PageSize != 4<<20 || got.Levels != 1 {
		t.Errorf("legacy, 4 MiB: %+v, %v", got, err)
	}
	for _, s := range []xenevents.AddressSpace{pae, old} {
		if _, err := r.Translate(s, 1<<32); !errors.Is(err, xenevents.ErrNotMapped) {
			t.Errorf("%v: an address of more than 32 bits: %v", s, err)
		}
		if _, err := r.Translate(s, 0x1000); !errors.Is(err, xenevents.ErrNotMapped) {
			t.Errorf("%v: not present: %v", s, err)
		}
	}
	if got, err := r.Translate(xenevents.AddressSpace{}, 0x1234); err != nil || got.GPA != 0x1234 || got.PageSize != 4096 {
		t.Errorf("no paging: %+v, %v", got, err)
	}
}

// twoPages maps 0x400000 and 0x401000 to frames that are not neighbours, and
// nothing behind them.
func twoPages() (*memory, xenevents.GVA) {
	m := newMemory()
	m.put64(root, 0x2000|rwu)
	m.put64(0x2000, 0x3000|rwu)
	m.put64(0x3000+16, 0x4000|rwu)
	m.put64(0x4000, 0x9000|rwu)
	m.put64(0x4008, 0x7000|present) // read-only to the guest
	for i := range 4096 {
		m.frame(9)[i], m.frame(7)[i] = 'a', 'b'
	}
	return m, 0x400000
}

func TestReadCrossesPages(t *testing.T) {
	m, base := twoPages()
	r := NewReader(m)
	p := make([]byte, 10)
	if n, err := r.ReadGVA(space, p, base+0xffb); n != 10 || err != nil || string(p) != "aaaaabbbbb" {
		t.Errorf("%d, %v: %q", n, err, p)
	}
	if n, err := r.ReadGVA(space, p, base+0x1ffb); n != 5 || !errors.Is(err, xenevents.ErrNotMapped) {
		t.Errorf("at the end: %d, %v", n, err)
	}
	if n, err := r.ReadGVA(space, nil, 0xdead); n != 0 || err != nil {
		t.Errorf("nothing: %d, %v", n, err)
	}
	if n, err := r.WriteGVA(space, []byte("0123456789"), base+0xffb); n != 10 || err != nil || string(m.frame(9)[0xffb:]) != "01234" || string(m.frame(7)[:6]) != "56789b" {
		t.Errorf("write: %d, %v: %q %q", n, err, m.frame(9)[0xffb:], m.frame(7)[:6])
	}
	if v, err := r.ReadUint64(space, base+0xffb); err != nil || v != 0x3736353433323130 {
		t.Errorf("%#x, %v", v, err)
	}
	if v, err := r.ReadUint32(space, base+0xffd); err != nil || v != 0x35343332 {
		t.Errorf("%#x, %v", v, err)
	}
	if v, err := r.ReadUint64(space, base+0x1ffd); !errors.Is(err, xenevents.ErrNotMapped) || v != 0 {
		t.Errorf("%#x, %v", v, err)
	}
	// Mapped to memory that is not there.
	m.put64(0x4008, 0x7777_7000|rwu)
	if n, err := r.ReadGVA(space, p, base+0xffb); n != 5 || !errors.Is(err, xenevents.ErrAbsent) {
		t.Errorf("absent: %d, %v", n, err)
	}
	// The guest changed its tables: no old translation is used.
	m.put64(0x4000, 0x7000|rwu)
	if _, err := r.ReadGVA(space, p[:2], base); err != nil || string(p[:2]) != "56" {
		t.Errorf("after a change: %q, %v", p[:2], err)
	}
}

// TestReadDoesNotWrap: memory ends with the last address, it does not begin anew.
func TestReadDoesNotWrap(t *testing.T) {
	m := newMemory()
	m.put64(root, 0x2000|rwu)
	m.put64(root+8*511, 0x2000|rwu)
	for _, table := range []xenevents.GPA{0x2000, 0x3000, 0x4000} {
		m.put64(table, uint64(table+0x1000)|rwu)
		m.put64(table+8*511, uint64(table+0x1000)|rwu)
	}
	m.frame(5)
	p := make([]byte, 16)
	if n, err := NewReader(m).ReadGVA(space, p, ^xenevents.GVA(7)); n != 8 || !errors.Is(err, xenevents.ErrNotMapped) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestReadCString(t *testing.T) {
	m, base := twoPages()
	r := NewReader(m)
	copy(m.frame(7)[3:], "\x00rest")
	for _, c := range []struct {
		at    xenevents.GVA
		limit int
		want  string
	}{
		{base + 0xffd, 100, "aaabbb"}, {base + 0xffd, 6, "aaabbb"}, {base + 0xffd, 5, "aaabb"}, {base + 0xffd, 3, "aaa"}, {base + 0x1003, 100, ""},
		{base, 0, ""}, {base, -1, ""}, {base, 200, strings.Repeat("a", 200)}, {base + 0x1004, 5, "restb"},
	} {
		if got, err := r.ReadCString(space, c.at, c.limit); got != c.want || err != nil {
			t.Errorf("%v, %d: %q, %v", c.at, c.limit, got, err)
		}
	}
	if got, err := r.ReadCString(space, base+0x1ffe, 100); got != "bb" || !errors.Is(err, xenevents.ErrNotMapped) {
		t.Errorf("into nothing: %q, %v", got, err)
	}
	// It ends just before nothing.
	m.frame(7)[4095] = 0
	if got, err := r.ReadCString(space, base+0x1ffe, 100); got != "b" || err != nil {
		t.Errorf("before nothing: %q, %v", got, err)
	}
}

// FuzzTranslate has the guest write its tables: eight frames full of entries of
// its choice. Whatever points elsewhere points to nothing.
func FuzzTranslate(f *testing.F) {
	f.Add(uint8(3), uint64(at), []byte("\x67\x10\x00\x00\x00\x00\x00\x00"))
	f.Add(uint8(4), uint64(1)<<55, []byte("\x67\x10\x00\x00\x00\x00\x00\x00"))
	f.Add(uint8(2), uint64(0xc0000000), []byte("\x67\x20\x00\x00\x00\x00\x00\x00"))
	f.Add(uint8(1), uint64(0xc0000000), []byte("\xe7\x20\x00\x00"))
	f.Add(uint8(3), ^uint64(0), []byte("\xe7\x10\x00\x00\x00\x00\x00\x80\x67\x30\x00\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, mode uint8, a uint64, raw []byte) {
		m := newMemory()
		for i := range 8 {
			frame := m.frame(xenevents.GFN(i))
			for n := 0; n < len(frame) && len(raw) > 0; {
				n += copy(frame[n:], raw)
			}
		}
		s := xenevents.AddressSpace{Root: 0x1000, Mode: xenevents.PagingMode(mode % 6)}
		r := NewReader(m)
		got, err := r.Translate(s, xenevents.GVA(a))
		if m.reads > 5 {
			t.Fatalf("%d reads for one walk", m.reads)
		}
		if err == nil && (got.PageSize < 4096 || uint64(got.GPA)&(got.PageSize-1) != a&(got.PageSize-1) || s.Mode != xenevents.PagingNone && got.Levels != m.reads) {
			t.Errorf("%+v after %d reads", got, m.reads)
		}
		m.reads = 0
		text, err := r.ReadCString(s, xenevents.GVA(a), 4096)
		if len(text) > 4096 || m.reads > 6*(4096/64+2) {
			t.Errorf("%d bytes by %d reads, %v", len(text), m.reads, err)
		}
		p := make([]byte, 3*4096)
		m.reads = 0
		n, err := r.ReadGVA(s, p, xenevents.GVA(a))
		if m.reads > 4*6 || n > len(p) || (n == len(p)) != (err == nil) {
			t.Errorf("%d bytes by %d reads, %v", n, m.reads, err)
		}
	})
}
