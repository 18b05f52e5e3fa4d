// Package image knows the files of user programs and libraries (ELF, x86-64): where a
// symbol is in the file, and which build it is. It reads the operator's own copy, or
// what a process of the guest has mapped of it.
package image

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// ErrNoSymbol says that a file has no such function.
var ErrNoSymbol = errors.New("no such function in it")

// ErrNotThere says that what is asked for is not in the guest's memory now.
var ErrNotThere = errors.New("not in the guest's memory now")

// CodeLen is how much of a place's code is kept: the longest instruction, in bytes.
const CodeLen = 15

// Place is a place in a file.
type Place struct {
	Offset  uint64 // of its first byte in the file
	Code    []byte // what is there, at most CodeLen bytes; nil: not known
	BuildID []byte // the file's, as its linker made it; nil: it has none
}

// BuildIDText writes a build id as tools do.
func BuildIDText(id []byte) string {
	if len(id) == 0 {
		return "none"
	}
	return hex.EncodeToString(id)
}

// segment is a part of the file that is mapped.
type segment struct {
	kind                 elf.ProgType
	flags                elf.ProgFlag
	offset, addr         uint64
	fileSize, memorySize uint64
}

// File is an operator's copy of a program or library.
type File struct {
	elf      *elf.File
	debug    *elf.File // nil: there is no file of its own for debug information
	loaded   *loaded   // nil: nobody asked yet
	segments []segment
	buildID  []byte
}

// Open reads one. It stays open until Close.
func Open(path string) (*File, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s is no program that can be read: %w", path, err)
	}
	x, err := fileOf(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return x, nil
}

// Close closes the file.
func (f *File) Close() error {
	if f.debug != nil {
		return errors.Join(f.elf.Close(), f.debug.Close())
	}
	return f.elf.Close()
}

func fileOf(f *elf.File) (*File, error) {
	x := &File{elf: f}
	return x, x.read()
}

func (f *File) read() error {
	if f.elf.Class != elf.ELFCLASS64 || f.elf.Machine != elf.EM_X86_64 || f.elf.Type != elf.ET_EXEC && f.elf.Type != elf.ET_DYN {
		return fmt.Errorf("it is a %v for %v, no 64-bit program or library for x86-64", f.elf.Type, f.elf.Machine)
	}
	if s := f.elf.Section(".text"); s != nil && s.Type == elf.SHT_NOBITS {
		return errors.New("it has symbols alone, and no code: give the program itself, and this one as its debug file (--debug-file)")
	}
	for _, p := range f.elf.Progs {
		f.segments = append(f.segments, segment{p.Type, p.Flags, p.Off, p.Vaddr, p.Filesz, p.Memsz})
	}
	f.buildID = buildIDOf(f.elf)
	return nil
}

// buildIDOf reads the build id of a program, or of what was split from one: that has
// sections alone that are still in the file.
func buildIDOf(f *elf.File) (id []byte) {
	read := func(size uint64, from io.ReaderAt) {
		if id != nil || size > maxNotes {
			return
		}
		notes := make([]byte, size)
		if _, err := from.ReadAt(notes, 0); err == nil {
			id = buildIDIn(notes)
		}
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_NOTE {
			read(p.Filesz, p)
		}
	}
	for _, s := range f.Sections {
		if s.Type == elf.SHT_NOTE && s.Flags&elf.SHF_COMPRESSED == 0 {
			read(s.Size, s)
		}
	}
	return id
}

// Place finds a function, and adds to its offset; of no symbol, an offset in the file.
// The error matches ErrNoSymbol where there is none, and has names that are near.
func (f *File) Place(symbol string, add uint64) (Place, error) {
	if symbol == "" {
		return f.placeAt(add)
	}
	all, err := f.functions()
	if err != nil {
		return Place{}, err
	}
	addr, err := choose(symbol, all)
	if err != nil {
		return Place{}, err
	}
	p, err := f.at(addr + add)
	if err != nil {
		return p, fmt.Errorf("%s: %w", symbol, err)
	}
	return p, nil
}

// at is the place of an address.
func (f *File) at(addr uint64) (Place, error) {
	offset, err := fileOffset(f.segments, addr)
	if err != nil {
		return Place{}, err
	}
	return f.placeAt(offset)
}

func (f *File) placeAt(offset uint64) (Place, error) {
	p := Place{Offset: offset, BuildID: f.buildID}
	for _, s := range f.elf.Progs {
		if s.Type == elf.PT_LOAD && s.Flags&elf.PF_X != 0 && p.Offset >= s.Off && p.Offset < s.Off+s.Filesz {
			p.Code = make([]byte, min(CodeLen, s.Off+s.Filesz-p.Offset))
			if _, err := s.ReadAt(p.Code, int64(p.Offset-s.Off)); err != nil {
				return p, fmt.Errorf("the code at %#x: %w", p.Offset, err)
			}
			return p, nil
		}
	}
	return p, fmt.Errorf("there is no code at %#x of the file", p.Offset)
}

// function is a symbol that may be one.
type function struct {
	name   string
	addr   uint64
	global bool
	old    bool // a version that new programs don't get
	choice bool // its address is that of what chooses the real function
}

func (f *File) functions() (all []function, err error) {
	var symbols []elf.Symbol
	for _, one := range f.files() {
		found, err := one.Symbols()
		if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
			return nil, fmt.Errorf("its symbols: %w", err)
		}
		symbols = append(symbols, found...)
	}
	dynamic, err := f.elf.DynamicSymbols()
	if err != nil && !errors.Is(err, elf.ErrNoSymbols) {
		return nil, fmt.Errorf("its dynamic symbols: %w", err)
	}
	for _, s := range append(symbols, dynamic...) {
		kind := elf.ST_TYPE(s.Info)
		if s.Section == elf.SHN_UNDEF || s.Value == 0 || kind != elf.STT_FUNC && kind != elf.STT_NOTYPE && kind != elf.STT_GNU_IFUNC {
			continue
		}
		name, version, _ := strings.Cut(s.Name, "@")
		all = append(all, function{name: name, addr: s.Value, global: elf.ST_BIND(s.Info) != elf.STB_LOCAL, choice: kind == elf.STT_GNU_IFUNC,
			old: s.HasVersion && s.VersionIndex.IsHidden() || version != "" && !strings.HasPrefix(version, "@")})
	}
	return all, nil
}

// choose finds the one function of a name: of several a global one, and of those the
// one that new programs get.
func choose(name string, all []function) (uint64, error) {
	var found []function
	for _, f := range all {
		if f.name == name {
			found = append(found, f)
		}
	}
	if len(found) == 0 {
		return 0, fmt.Errorf("%q: %w%s", name, ErrNoSymbol, near(name, all))
	}
	for _, better := range []func(function) bool{func(f function) bool { return f.global }, func(f function) bool { return !f.old }} {
		if slices.ContainsFunc(found, better) {
			found = slices.DeleteFunc(found, func(f function) bool { return !better(f) })
		}
	}
	for _, f := range found {
		if f.addr != found[0].addr {
			return 0, fmt.Errorf("%q: several functions have that name, at %#x and %#x: say which by its offset in the file (image:PATH+0x…)", name, found[0].addr, f.addr)
		}
	}
	if found[0].choice {
		return 0, fmt.Errorf("%q: what is at that name runs once, and chooses one of several functions by the CPU: probe that one (it is called like __%s_avx2)", name, name)
	}
	return found[0].addr, nil
}

// near are names that somebody may have meant.
func near(name string, all []function) string {
	const most, closest, longest = 3, 3, 64 // longer names take long to compare
	type candidate struct {
		name string
		far  int
	}
	var best []candidate
	seen := map[string]bool{}
	for _, f := range all {
		if f.name == "" || seen[f.name] || len(f.name) > maxName {
			continue
		}
		seen[f.name] = true
		far := closest + 1
		if len(name) <= longest {
			far = distance(name, f.name, closest)
		}
		if far > closest && !strings.Contains(f.name, name) {
			continue
		}
		best = append(best, candidate{f.name, min(far, closest+1)})
	}
	slices.SortFunc(best, func(a, b candidate) int {
		return cmp.Or(cmp.Compare(a.far, b.far), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	var names []string
	for _, c := range best[:min(len(best), most)] {
		names = append(names, c.name)
	}
	if len(names) == 0 {
		return ""
	}
	return " (near it: " + strings.Join(names, ", ") + ")"
}

// distance is how many letters must change from a to b, or more than limit.
func distance(a, b string, limit int) int {
	if d := len(a) - len(b); d > limit || -d > limit {
		return limit + 1
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// fileOffset is where the code of an address is in the file.
func fileOffset(segments []segment, addr uint64) (uint64, error) {
	for _, s := range segments {
		if s.kind == elf.PT_LOAD && s.flags&elf.PF_X != 0 && addr >= s.addr && addr-s.addr < s.fileSize {
			return s.offset + addr - s.addr, nil
		}
	}
	return 0, fmt.Errorf("%#x is not in the program's code", addr)
}

// address is where an offset of the file is when it runs, but for where it was loaded.
func address(segments []segment, offset uint64) (uint64, bool) {
	for _, s := range segments {
		if s.kind == elf.PT_LOAD && s.flags&elf.PF_X != 0 && offset >= s.offset && offset-s.offset < s.fileSize {
			return s.addr + offset - s.offset, true
		}
	}
	return 0, false
}

const (
	maxName    = 512
	maxNotes   = 1 << 16 // bytes
	maxBuildID = 64      // bytes; 20 are usual
)

// buildIDIn finds the build id in a note segment: NT_GNU_BUILD_ID of "GNU".
func buildIDIn(notes []byte) []byte {
	const idType = 3
	for len(notes) >= 12 {
		nameLen, descLen, kind := binary.LittleEndian.Uint32(notes), binary.LittleEndian.Uint32(notes[4:]), binary.LittleEndian.Uint32(notes[8:])
		notes = notes[12:]
		padded := func(n uint32) uint64 { return (uint64(n) + 3) &^ 3 }
		if padded(nameLen)+padded(descLen) > uint64(len(notes)) {
			return nil
		}
		name, desc := notes[:nameLen], notes[padded(nameLen):][:descLen]
		if kind == idType && bytes.Equal(name, []byte("GNU\x00")) && descLen > 0 && descLen <= maxBuildID {
			return bytes.Clone(desc)
		}
		notes = notes[padded(nameLen)+padded(descLen):]
	}
	return nil
}
