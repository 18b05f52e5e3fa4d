// Package debuginfo reads a file's DWARF, in the terms of profiles: types and prototypes
// of a kernel and of programs, and the lines of source files. Files may be hostile: what
// is read of one has bounds in time and memory. debug/dwarf alone has none: it skips by
// what the file says, backwards too, and follows types as deep as they go.
package debuginfo

import (
	"bytes"
	"compress/zlib"
	"debug/dwarf"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// ErrNone says that a file has no DWARF.
var ErrNone = errors.New("it has no debug information (DWARF)")

// ErrTooMuch says that a file has more DWARF than is read.
var ErrTooMuch = errors.New("more debug information than is read of a file")

// Bounds of a file.
const (
	maxSize    = 3 << 30 // bytes, unpacked, all in memory: of Debian's kernels it has 900 MB
	maxEntries = 1 << 27 // that are looked at, with the rows of tables of lines: a minute
)

// Info is the debug information of one file. It belongs to one goroutine.
type Info struct {
	data               *dwarf.Data
	lines              []byte
	strings, linePaths []byte
	left               int
}

// sections that are read; those that DWARF 5 has added stand behind.
var sections = []string{"abbrev", "info", "line", "ranges", "str", "addr", "line_str", "str_offsets", "rnglists"}

// Load reads what is needed of a file. The error matches ErrNone where there is nothing.
func Load(f *elf.File) (*Info, error) {
	found := map[string][]byte{}
	left := uint64(maxSize)
	for _, name := range sections {
		b, err := section(f, name, left)
		if err != nil {
			return nil, fmt.Errorf("its section .debug_%s: %w", name, err)
		}
		found[name], left = b, left-uint64(len(b))
	}
	return fromSections(found)
}

func fromSections(found map[string][]byte) (*Info, error) {
	if len(found["info"]) == 0 {
		return nil, ErrNone
	}
	i := &Info{lines: found["line"], strings: found["str"], linePaths: found["line_str"], left: maxEntries}
	if err := i.checkUnits(found["info"], found["abbrev"]); err != nil {
		return nil, err
	}
	var err error
	i.data, err = dwarf.New(found["abbrev"], nil, nil, found["info"], found["line"], nil, found["ranges"], found["str"])
	for _, name := range sections[5:] {
		if err == nil && found[name] != nil {
			err = i.data.AddSection(".debug_"+name, found[name])
		}
	}
	if err != nil {
		return nil, fmt.Errorf("its debug information: %w", err)
	}
	return i, nil
}

// section reads one, which may be packed in the way of ELF, or in that of older linkers.
func section(f *elf.File, name string, most uint64) ([]byte, error) {
	if s := f.Section(".debug_" + name); s != nil {
		return plain(s, most)
	}
	s := f.Section(".zdebug_" + name)
	if s == nil {
		return nil, nil
	}
	in := s.Open()
	var head [12]byte
	if _, err := io.ReadFull(in, head[:]); err != nil || !bytes.HasPrefix(head[:], []byte("ZLIB")) {
		return plain(s, most) // it would not have become smaller
	}
	size := binary.BigEndian.Uint64(head[4:])
	if size > most {
		return nil, ErrTooMuch
	}
	z, err := zlib.NewReader(in)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(io.LimitReader(z, int64(size)))
}

// plain reads a section, which debug/elf unpacks where that is ELF's way.
func plain(s *elf.Section, most uint64) ([]byte, error) {
	if s.Size > most {
		return nil, ErrTooMuch
	}
	return s.Data()
}

func (i *Info) spend(n int) error {
	if i.left -= n; i.left < 0 {
		return ErrTooMuch
	}
	return nil
}
