package image

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/hprobe/hprobe/profiles/debuginfo"
	"github.com/hprobe/hprobe/profiles/isf"
)

// ErrNoLine says that a file has no code of a line.
var ErrNoLine = errors.New("no code of such a line in it")

// Found is a place in a file, and what DWARF says of it.
type Found struct {
	Place
	// Types is a profile with the prototype of the function whose first instruction the
	// place is, by the name that it was asked for, and the types that this leads to. nil:
	// not known, and Untyped is why; "" where the file has no DWARF or it is no function.
	Types   *isf.Profile
	Untyped string
	// Clipped: it leads to more types than Types has, which are those that are nearest.
	Clipped bool
	// Copied is how many copies of the function the compiler has put into others.
	Copied int
	// Others are the offsets in the file of what else the line has code at.
	Others []uint64
}

// Debug takes symbols and DWARF from a file of their own, which has to be of the same
// build. It stays open until Close.
func (f *File) Debug(path string) error {
	d, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s is no file with debug information: %w", path, err)
	}
	if err := f.sameBuild(d, path); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", path, err), d.Close())
	}
	f.debug, f.loaded = d, nil
	return nil
}

// sameBuild compares build ids, or where one has none the checksum that the program has of
// its debug file (.gnu_debuglink).
func (f *File) sameBuild(d *elf.File, path string) error {
	if d.Class != elf.ELFCLASS64 || d.Machine != elf.EM_X86_64 {
		return fmt.Errorf("it is for %v, not for x86-64", d.Machine)
	}
	if id := buildIDOf(d); id != nil && f.buildID != nil {
		if bytes.Equal(id, f.buildID) {
			return nil
		}
		return fmt.Errorf("it is of another build than the program: its build id is %s, the program's %s", BuildIDText(id), BuildIDText(f.buildID))
	}
	_, want, ok := debugLink(f.elf)
	if !ok {
		return errors.New("nothing tells of which build it is: it or the program has no build id, and the program no .gnu_debuglink")
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	sum := crc32.NewIEEE()
	_, err = io.Copy(sum, file)
	if err = errors.Join(err, file.Close()); err == nil && sum.Sum32() != want {
		err = fmt.Errorf("it is of another build than the program: its checksum is %08x, and the program says %08x (.gnu_debuglink)", sum.Sum32(), want)
	}
	return err
}

// debugLink is the name and the checksum of a program's debug file, as objcopy
// --add-gnu-debuglink leaves them.
func debugLink(f *elf.File) (name string, sum uint32, ok bool) {
	s := f.Section(".gnu_debuglink")
	if s == nil || s.Size > 4096 {
		return "", 0, false
	}
	b, err := s.Data()
	end := bytes.IndexByte(b, 0)
	if at := (end + 4) &^ 3; err == nil && end >= 0 && at+4 <= len(b) {
		return string(b[:end]), binary.LittleEndian.Uint32(b[at:]), true
	}
	return "", 0, false
}

// files are those that symbols and DWARF may be in.
func (f *File) files() []*elf.File {
	if f.debug != nil {
		return []*elf.File{f.debug, f.elf}
	}
	return []*elf.File{f.elf}
}

// info reads the DWARF, once.
func (f *File) info() (*debuginfo.Info, error) {
	if f.loaded == nil {
		f.loaded = &loaded{err: debuginfo.ErrNone}
		for _, one := range f.files() {
			if f.loaded.info, f.loaded.err = debuginfo.Load(one); !errors.Is(f.loaded.err, debuginfo.ErrNone) {
				break
			}
		}
	}
	return f.loaded.info, f.loaded.err
}

type loaded struct {
	info *debuginfo.Info
	err  error
}

// hint says where DWARF may be had.
func (f *File) hint() string {
	if name, _, ok := debugLink(f.elf); ok && f.debug == nil {
		return fmt.Sprintf("its debug information is in a file of its own, %q: give that one, too (--debug-file)", name)
	}
	return "give one that was built with -g and not stripped, or its debug file (--debug-file)"
}

func (f *File) isCode(addr uint64) bool {
	_, err := fileOffset(f.segments, addr)
	return err == nil
}

// Find finds a function, by its symbol or by DWARF, which has static ones that were
// stripped of it, and adds to its offset; of no symbol, an offset in the file. The error
// matches ErrNoSymbol where there is none.
func (f *File) Find(symbol string, add uint64) (Found, error) {
	var out Found
	var err error
	out.Place, err = f.Place(symbol, add)
	if symbol == "" || err == nil && add != 0 || err != nil && !errors.Is(err, ErrNoSymbol) {
		return out, err
	}
	info, infoErr := f.info()
	switch {
	case infoErr != nil && err != nil && errors.Is(infoErr, debuginfo.ErrNone):
		return out, fmt.Errorf("%w, nor has it DWARF, which would tell of all: %s", err, f.hint())
	case infoErr != nil && err != nil:
		return out, errors.Join(err, infoErr)
	case infoErr != nil:
		if !errors.Is(infoErr, debuginfo.ErrNone) {
			out.Untyped = infoErr.Error()
		}
		return out, nil
	}
	addr := uint64(0)
	if err == nil {
		addr, _ = address(f.segments, out.Offset)
	}
	all, infoErr := info.Functions(symbol, addr, f.isCode)
	if infoErr != nil {
		out.Untyped = infoErr.Error()
		return out, err
	}
	return f.choose(out, symbol, add, addr, all, err)
}

// choose takes the one function that is meant: at an address, or if that is 0 by its name
// alone.
func (f *File) choose(out Found, symbol string, add, addr uint64, all []debuginfo.Function, missing error) (Found, error) {
	names, err := f.namesAt()
	if err != nil {
		return out, err
	}
	var inlined []uint64
	copied := 0
	here := slices.DeleteFunc(slices.Clone(all), func(one debuginfo.Function) bool {
		if one.Addr == 0 && one.Name == symbol {
			inlined, copied = append(inlined, one.Copies...), copied+one.Copied
		}
		return one.Addr == 0 || addr != 0 && one.Addr != addr
	})
	whole := func(one debuginfo.Function) bool { return !changed(names[one.Addr], &one) }
	if slices.ContainsFunc(here, whole) {
		here = slices.DeleteFunc(here, func(one debuginfo.Function) bool { return !whole(one) })
	}
	switch {
	case len(here) == 0 && addr != 0:
		out.Untyped = "its DWARF says nothing of it"
		return out, nil
	case len(here) == 0 && copied > 0:
		return out, fmt.Errorf("%q: %w: the compiler has put it into others, %d times: probe these (image:PATH+OFFSET), at %s", symbol, ErrNoSymbol, copied, f.offsetsText(inlined))
	case len(here) == 0:
		return out, missing
	}
	one := slices.MinFunc(here, func(a, b debuginfo.Function) int {
		return cmp.Or(rank(a, symbol)-rank(b, symbol), cmp.Compare(a.Addr, b.Addr))
	})
	if addr == 0 {
		var places []uint64
		for _, other := range here {
			places = append(places, other.Addr)
		}
		slices.Sort(places)
		if places = slices.Compact(places); len(places) > 1 {
			return out, fmt.Errorf("%q: %d functions have that name: say which by its offset in the file (image:PATH+0x…), %s, or by its line (image:PATH!file.c:123)", symbol, len(places), f.offsetsText(places))
		}
		if out.Place, err = f.at(one.Addr + add); err != nil {
			return out, fmt.Errorf("%s: %w", symbol, err)
		}
	}
	if out.Copied = one.Copied; add != 0 {
		return out, nil
	}
	return out, f.prototype(&out, &one, symbol, whole(one))
}

// rank has a function of the name come before others that are at its address.
func rank(one debuginfo.Function, symbol string) int {
	if one.Name == symbol || one.Symbol == symbol {
		return 0
	}
	return 1
}

// prototype adds a function's, if what its callers do can be told from it.
func (f *File) prototype(out *Found, one *debuginfo.Function, symbol string, whole bool) error {
	switch {
	case one.Calls == debuginfo.CallsOther:
		out.Untyped = "it is not of C or C++, and other languages have other ways to pass arguments"
		return nil
	case one.Calls == debuginfo.CallsChanged || !whole:
		out.Untyped = "the compiler has made one of it that takes other arguments"
		return nil
	}
	b := isf.NewBuilder()
	b.Meta.BuildID, b.Meta.Source = BuildIDText(out.BuildID), "DWARF"
	all, err := f.loaded.info.Prototype(one, symbol, b)
	if err != nil {
		out.Untyped = err.Error()
		return nil
	}
	if one.Calls == debuginfo.CallsLikeCPP && byValue(b.Funcs[symbol]) {
		out.Untyped = "it takes or returns a class of C++ by value, which may be in registers or not"
		return nil
	}
	out.Clipped = !all
	out.Types, err = b.Profile()
	return err
}

func byValue(p isf.Func) bool {
	is := func(t isf.Type) bool { return t.Kind == isf.Struct || t.Kind == isf.Union }
	return is(p.Return) || slices.ContainsFunc(p.Params, func(one isf.Param) bool { return is(one.Type) })
}

// namesAt are the symbols by address.
func (f *File) namesAt() (map[uint64][]string, error) {
	all, err := f.functions()
	names := map[uint64][]string{}
	for _, one := range all {
		names[one.addr] = append(names[one.addr], one.name)
	}
	return names, err
}

// changes are how compilers call what they made of a function with other arguments:
// name.constprop.0, name.isra.0; of others (name.lto_priv.0) they are the same.
var changes = []string{".constprop.", ".isra.", ".part.", ".argelim", ".argprom"}

// changed says whether what is there is not a function itself, but what the compiler made
// of it. symbols are those at its address.
func changed(symbols []string, one *debuginfo.Function) bool {
	for _, name := range []string{one.Name, one.Symbol} {
		if name == "" || slices.Contains(symbols, name) {
			continue
		}
		for _, s := range symbols {
			rest, of := strings.CutPrefix(s, name)
			if of && strings.HasPrefix(rest, ".") && slices.ContainsFunc(changes, func(c string) bool { return strings.Contains(rest, c) }) {
				return true
			}
		}
	}
	return false
}

// FindLine finds where the first statement of a line begins, in the order of addresses.
// file is a path, or the end of one. The error matches ErrNoLine where there is none.
func (f *File) FindLine(file string, line int) (Found, error) {
	var out Found
	info, err := f.info()
	if err != nil {
		return out, fmt.Errorf("lines are found by DWARF: %w: %s", err, f.hint())
	}
	found, err := info.Line(file, line, f.isCode)
	switch {
	case err != nil:
		return out, err
	case len(found.Files) > 1 && !slices.Contains(found.Files, file):
		return out, fmt.Errorf("several source files end with %q: say more of the path of one, %s", file, quotedAll(found.Files))
	case len(found.Places) == 0 && found.Next > 0:
		return out, fmt.Errorf("%s:%d: %w; the next one with code is %d", file, line, ErrNoLine, found.Next)
	case len(found.Places) == 0:
		return out, fmt.Errorf("%s:%d: %w, nor of one behind it", file, line, ErrNoLine)
	}
	for _, addr := range found.Places[1:] {
		if offset, err := fileOffset(f.segments, addr); err == nil {
			out.Others = append(out.Others, offset)
		}
	}
	out.Place, err = f.at(found.Places[0])
	return out, err
}

func quotedAll(all []string) string {
	var text []string
	for _, one := range all {
		text = append(text, fmt.Sprintf("%q", one))
	}
	return strings.Join(text, ", ")
}

// offsetsText lists the first of some addresses by their offsets in the file.
func (f *File) offsetsText(addrs []uint64) string {
	var offsets []uint64
	for _, addr := range addrs {
		if offset, err := fileOffset(f.segments, addr); err == nil {
			offsets = append(offsets, offset)
		}
	}
	return OffsetsText(offsets)
}

// OffsetsText lists the first of some offsets.
func OffsetsText(offsets []uint64) string {
	const most = 4
	var text []string
	for _, one := range offsets[:min(len(offsets), most)] {
		text = append(text, fmt.Sprintf("%#x", one))
	}
	if len(offsets) > most {
		text = append(text, "…")
	}
	return strings.Join(text, ", ")
}
