package image

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var le = binary.LittleEndian

// Where a built file has what. The code is at another address than its offset says.
const (
	noteAt     = 0x200
	dynamicAt  = 0x280
	hashAt     = 0x400
	versionsAt = 0x5c0
	symbolsAt  = 0x600
	stringsAt  = 0xa00
	codeAt     = 0x1000 // in the file
	codeAddr   = 0x3000
	sectionsAt = 0x1800
	fileSize   = 0x1a00
)

// builtSymbol is one of a built file.
type builtSymbol struct {
	name  string
	addr  uint64
	kind  byte // STT_FUNC is 2, STT_GNU_IFUNC 10
	local bool
	old   bool
}

var builtSymbols = []builtSymbol{{"sum", codeAddr + 0x10, 2, false, false}, {"sums", codeAddr + 0x20, 2, false, false}, {"twice", codeAddr + 0x30, 2, false, true}, {"twice", codeAddr + 0x40, 2, false, false},
	{"chooser", codeAddr + 0x50, 10, false, false}, {"data", 0x100, 2, false, false}, {"both", codeAddr + 0x60, 2, false, false}, {"both", codeAddr + 0x70, 2, false, false}}

var builtID = []byte("twenty bytes of an id")[:20]

func gnuHash(name string) uint32 {
	h := uint32(5381)
	for i := range len(name) {
		h = h*33 + uint32(name[i])
	}
	return h
}

// built is a small shared library: the symbols in one bucket of the hash table of either
// kind, and in a section for debug/elf.
func built(gnu bool) []byte {
	f := make([]byte, fileSize)
	copy(f, "\x7fELF\x02\x01\x01")
	le.PutUint16(f[16:], 3)  // ET_DYN
	le.PutUint16(f[18:], 62) // EM_X86_64
	le.PutUint32(f[20:], 1)
	le.PutUint64(f[32:], 64)
	le.PutUint64(f[40:], sectionsAt)
	le.PutUint16(f[52:], 64)
	le.PutUint16(f[54:], 56)
	le.PutUint16(f[58:], 64)
	n := 0
	segment := func(kind, flags uint32, offset, addr, size uint64) {
		b := f[64+56*n:]
		le.PutUint32(b, kind)
		le.PutUint32(b[4:], flags)
		le.PutUint64(b[8:], offset)
		le.PutUint64(b[16:], addr)
		le.PutUint64(b[32:], size)
		le.PutUint64(b[40:], size)
		n++
		le.PutUint16(f[56:], uint16(n))
	}
	segment(1, 4, 0, 0, 0x1000)
	segment(1, 5, codeAt, codeAddr, 0x800)
	segment(2, 6, dynamicAt, dynamicAt, 0x100)
	segment(4, 4, noteAt, noteAt, 16+20)
	le.PutUint32(f[noteAt:], 4)
	le.PutUint32(f[noteAt+4:], 20)
	le.PutUint32(f[noteAt+8:], 3)
	copy(f[noteAt+12:], "GNU\x00")
	copy(f[noteAt+16:], builtID)
	text := []byte{0}
	for i, s := range builtSymbols {
		b := f[symbolsAt+24*(i+1):]
		le.PutUint32(b, uint32(len(text)))
		b[4] = 1<<4 | s.kind
		le.PutUint16(b[6:], 1)
		le.PutUint64(b[8:], s.addr)
		text = append(append(text, s.name...), 0)
		version := uint16(2)
		if s.old {
			version |= 0x8000
		}
		le.PutUint16(f[versionsAt+2*(i+1):], version)
	}
	copy(f[stringsAt:], text)
	last := len(builtSymbols)
	if gnu { // one bucket, one word of the filter
		for i, v := range []uint32{1, 1, 1, 0, 0, 0, 1} {
			le.PutUint32(f[hashAt+4*i:], v)
		}
		for i, s := range builtSymbols {
			h := gnuHash(s.name) &^ 1
			if i == last-1 {
				h |= 1
			}
			le.PutUint32(f[hashAt+28+4*i:], h)
		}
	} else {
		le.PutUint32(f[hashAt:], 1)
		le.PutUint32(f[hashAt+4:], uint32(last+1))
		le.PutUint32(f[hashAt+8:], 1)
		for i := range last {
			le.PutUint32(f[hashAt+12+4*(i+1):], uint32((i+2)%(last+1)))
		}
	}
	entry := func(i int, tag, value uint64) {
		le.PutUint64(f[dynamicAt+16*i:], tag)
		le.PutUint64(f[dynamicAt+16*i+8:], value)
	}
	entry(0, 6, symbolsAt)
	entry(1, 5, stringsAt)
	entry(2, 10, uint64(len(text)))
	entry(3, map[bool]uint64{true: 0x6fff_fef5, false: 4}[gnu], hashAt)
	entry(4, 0x6fff_fff0, versionsAt)
	for i := range 0x800 {
		f[codeAt+i] = byte(i)
	}
	section := func(i int, kind uint32, link uint32, offset, size, entry uint64) {
		b := f[sectionsAt+64*i:]
		le.PutUint32(b[4:], kind)
		le.PutUint64(b[24:], offset)
		le.PutUint64(b[32:], size)
		le.PutUint32(b[40:], link)
		le.PutUint64(b[56:], entry)
	}
	section(1, 2, 2, symbolsAt, uint64(24*(last+1)), 24)
	section(2, 3, 0, stringsAt, uint64(len(text)), 0)
	le.PutUint16(f[60:], 3)
	return f
}

const base = 0x7f00_0000_0000

// inMemory is a file as a process has it.
func inMemory(f []byte) func([]byte, uint64) (int, error) {
	return func(p []byte, at uint64) (int, error) {
		for i := range p {
			off := at + uint64(i) - base
			if off >= codeAddr && off < codeAddr+0x800 {
				off = off - codeAddr + codeAt
			} else if off >= 0x1000 {
				return i, errors.New("not mapped")
			}
			if off >= uint64(len(f)) {
				return i, errors.New("not mapped")
			}
			p[i] = f[off]
		}
		return len(p), nil
	}
}

type finder interface {
	Place(symbol string, add uint64) (Place, error)
}

func finders(t *testing.T) map[string]finder {
	t.Helper()
	all := map[string]finder{}
	path := filepath.Join(t.TempDir(), "lib.so")
	if err := os.WriteFile(path, built(true), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	all["file"] = f
	for name, gnu := range map[string]bool{"memory": true, "memory, by the older hash": false} {
		m, err := InMemory(base, inMemory(built(gnu)))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(m.BuildID(), builtID) {
			t.Errorf("%s: build id %s", name, BuildIDText(m.BuildID()))
		}
		all[name] = m
	}
	return all
}

// TestPlace: file and memory say the same.
func TestPlace(t *testing.T) {
	for name, f := range finders(t) {
		for _, c := range []struct {
			symbol string
			add    uint64
			want   uint64
			err    string
		}{
			{"sum", 0, codeAt + 0x10, ""}, {"sum", 4, codeAt + 0x14, ""}, {"sums", 0, codeAt + 0x20, ""}, {"", codeAt + 0x7ff, codeAt + 0x7ff, ""},
			{"chooser", 0, 0, "chooses one of several"}, {"data", 0, 0, "not in the program's code"}, {"both", 0, 0, "several functions"},
			{"summ", 0, 0, "near it: sum, sums"}, {"nothing-like-it", 0, 0, "no such function"}, {"", 0x10, 0, "no code at 0x10"}, {"", codeAt + 0x800, 0, "no code"}, {"sum", 0x900, 0, "not in the program's code"},
		} {
			p, err := f.Place(c.symbol, c.add)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("%s: %q+%#x: %+v, %v", name, c.symbol, c.add, p, err)
				}
				continue
			}
			if err != nil || p.Offset != c.want || !bytes.Equal(p.BuildID, builtID) || len(p.Code) == 0 || len(p.Code) > CodeLen || p.Code[0] != byte(c.want-codeAt) {
				t.Errorf("%s: %q+%#x: %+v, %v", name, c.symbol, c.add, p, err)
			}
		}
		if _, err := f.Place("nosuch", 0); !errors.Is(err, ErrNoSymbol) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A version that new programs don't get: debug/elf sees none in this file.
	m, err := InMemory(base, inMemory(built(true)))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := m.Place("twice", 0); err != nil || p.Offset != codeAt+0x40 {
		t.Errorf("%+v, %v", p, err)
	}
}

// TestNotThere: what is not in memory is said to be so.
func TestNotThere(t *testing.T) {
	whole := inMemory(built(true))
	without := func(from, to uint64) func([]byte, uint64) (int, error) {
		return func(p []byte, at uint64) (int, error) {
			if at-base < to && at-base+uint64(len(p)) > from {
				n, _ := whole(p[:max(from, at-base)-(at-base)], at)
				return n, errors.New("swapped out")
			}
			return whole(p, at)
		}
	}
	for _, header := range [][2]uint64{{0, 64}, {64, 120}} {
		if _, err := InMemory(base, without(header[0], header[1])); !errors.Is(err, ErrNotThere) {
			t.Error(err)
		}
	}
	for _, part := range [][2]uint64{{dynamicAt, dynamicAt + 8}, {hashAt, hashAt + 8}, {symbolsAt, symbolsAt + 100}, {stringsAt, stringsAt + 10}} {
		m, err := InMemory(base, without(part[0], part[1]))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.Place("sum", 0); !errors.Is(err, ErrNotThere) {
			t.Errorf("without %#x: %v", part[0], err)
		}
	}
	m, err := InMemory(base, without(codeAddr, codeAddr+0x800))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := m.Place("sum", 0); err != nil || p.Offset != codeAt+0x10 || p.Code != nil {
		t.Errorf("%+v, %v", p, err)
	}
	m, err = InMemory(base, without(noteAt, noteAt+36))
	if err != nil || m.BuildID() != nil {
		t.Errorf("%v, %v", m, err)
	}
}

func TestStatic(t *testing.T) {
	f := built(true)
	le.PutUint32(f[64+2*56:], 0) // no PT_DYNAMIC
	m, err := InMemory(base, inMemory(f))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Place("sum", 0); !errors.Is(err, ErrNoSymbol) || !strings.Contains(err.Error(), "statically") {
		t.Error(err)
	}
	if p, err := m.Place("", codeAt); err != nil || p.Offset != codeAt {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	for name, change := range map[string]func([]byte) []byte{
		"is no program": func([]byte) []byte { return []byte("#!/bin/sh\n") },
		"is a ET_REL":   func(f []byte) []byte { le.PutUint16(f[16:], 1); return f },
		"EM_AARCH64":    func(f []byte) []byte { le.PutUint16(f[18:], 183); return f },
	} {
		path := filepath.Join(dir, "x")
		if err := os.WriteFile(path, change(built(true)), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(filepath.Join(dir, "none")); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// FuzzInMemory: whatever a process has where its program should be, there is an answer,
// soon, and no panic; what is found is in the code.
func FuzzInMemory(f *testing.F) {
	f.Add(built(true)[:0xb00], "sum")
	f.Add(built(false)[:0xb00], "both")
	f.Fuzz(func(t *testing.T, mem []byte, symbol string) {
		reads := 0
		m, err := InMemory(base, func(p []byte, at uint64) (int, error) {
			if reads++; reads > 100_000 {
				t.Fatal("too many reads")
			}
			if at < base || at-base >= uint64(len(mem)) {
				return 0, errors.New("not mapped")
			}
			n := copy(p, mem[at-base:])
			if n < len(p) {
				return n, fmt.Errorf("not mapped")
			}
			return n, nil
		})
		if err != nil {
			return
		}
		p, err := m.Place(symbol, 0)
		if err == nil && (len(p.Code) > CodeLen || len(p.BuildID) > maxBuildID) {
			t.Errorf("%+v", p)
		}
	})
}
