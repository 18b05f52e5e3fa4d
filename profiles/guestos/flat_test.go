package guestos

import (
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// flat is a guest's memory without page tables: what is read at an address is there. Before
// each read something may change it, as a guest does that runs on.
type flat struct {
	base   uint64
	b      []byte
	change func()
	reads  int
}

func (f *flat) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	if f.reads++; f.change != nil {
		f.change()
	}
	if uint64(at) < f.base || uint64(at) >= f.base+uint64(len(f.b)) {
		return 0, xenevents.ErrAbsent
	}
	n := copy(p, f.b[uint64(at)-f.base:])
	if n < len(p) {
		return n, xenevents.ErrAbsent
	}
	return n, nil
}

func (f *flat) WriteGPA([]byte, xenevents.GPA) (int, error) { panic("nobody writes to it") }

func (f *flat) put64(at, v uint64)         { le.PutUint64(f.b[at-f.base:], v) }
func (f *flat) put32(at uint64, v uint32)  { le.PutUint32(f.b[at-f.base:], v) }
func (f *flat) put(at uint64, text string) { copy(f.b[at-f.base:], text) }

// flatGuest is a kernel in such memory, of so many bytes from base on.
func flatGuest(t testing.TB, base uint64, size int, types func(*isf.Builder)) (*flat, *Kernel) {
	t.Helper()
	f := &flat{base: base, b: make([]byte, size)}
	return f, &Kernel{Profile: testProfile(t, types), mem: guestmem.NewReader(f), Space: xenevents.AddressSpace{Mode: xenevents.PagingNone}}
}

// structs adds types: "struct.field" and where in it that is.
func structs(b *isf.Builder, fields map[string]uint64) {
	for path, at := range fields {
		addField(b, path, isf.Field{Offset: at, Type: isf.Type{Kind: isf.Base, Name: "unsigned long"}})
	}
}

func addField(b *isf.Builder, path string, field isf.Field) {
	of, name, _ := strings.Cut(path, ".")
	if _, ok := b.Users[of]; !ok {
		b.Users[of] = isf.UserType{Kind: isf.Struct, Size: 512, Fields: map[string]isf.Field{}}
	}
	b.Users[of].Fields[name] = field
}

func inStruct(b *isf.Builder, path, kind string, at uint64) {
	addField(b, path, isf.Field{Offset: at, Type: isf.Type{Kind: isf.Struct, Name: kind}})
}

// pokes are a fuzzer's writes: where, in words from the memory's beginning, and what.
func pokes(in []byte, words int, poke func(word int, v uint64)) {
	for ; len(in) >= 10; in = in[10:] {
		poke(int(le.Uint16(in))%words, le.Uint64(in[2:]))
	}
}

// aPoke is one that a fuzzer can begin with.
func aPoke(word uint64, v uint64) []byte {
	return le.AppendUint64(le.AppendUint16(nil, uint16(word)), v)
}

// fuzzed puts memory back as it was, and then what a fuzzer writes.
func (f *flat) fuzzed(was, in []byte) {
	copy(f.b, was)
	f.reads = 0
	pokes(in, len(f.b)/8, func(word int, v uint64) { le.PutUint64(f.b[8*word:], v) })
}
