package build

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Segment is a run of a kernel's memory.
type Segment struct {
	Addr uint64 // of its first byte
	Data []byte
}

// Image is a kernel's memory, as it was linked or as it runs.
type Image struct {
	Segments []Segment
}

// errNotInImage: the image has no bytes at that address.
var errNotInImage = errors.New("not in the kernel image")

// bytes returns n bytes at addr: a part of the image, not to be changed.
func (m *Image) bytes(addr, n uint64) ([]byte, error) {
	for _, s := range m.Segments {
		size := uint64(len(s.Data))
		if addr < s.Addr || addr-s.Addr > size || n > size-(addr-s.Addr) {
			continue
		}
		return s.Data[addr-s.Addr:][:n:n], nil
	}
	return nil, fmt.Errorf("%d bytes at %#x: %w", n, addr, errNotInImage)
}

// upTo is bytes, but returns fewer where the image ends before.
func (m *Image) upTo(addr, n uint64) []byte {
	for _, s := range m.Segments {
		if addr >= s.Addr && addr-s.Addr < uint64(len(s.Data)) {
			b := s.Data[addr-s.Addr:]
			return b[:min(n, uint64(len(b)))]
		}
	}
	return nil
}

func (m *Image) uint64(addr uint64) (uint64, error) {
	b, err := m.bytes(addr, 8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// cstring returns the text up to the first NUL, which must be among the first
// limit bytes.
func (m *Image) cstring(addr, limit uint64) (string, error) {
	b := m.upTo(addr, limit)
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return "", fmt.Errorf("text at %#x: %w", addr, errNotInImage)
	}
	return string(b[:end]), nil
}

// maxSegments bounds the program headers of a kernel; it has 4 to 6.
const maxSegments = 64

// imageOfELF takes the loadable segments of a vmlinux.
func imageOfELF(b []byte) (*Image, error) {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("kernel ELF: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 {
		return nil, fmt.Errorf("a kernel for %v, %v: hprobe knows x86-64 only", f.Machine, f.Class)
	}
	var m Image
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD || p.Filesz == 0 {
			continue
		}
		if p.Off > uint64(len(b)) || p.Filesz > uint64(len(b))-p.Off || len(m.Segments) == maxSegments {
			return nil, fmt.Errorf("kernel ELF: its segment at %#x lies outside of the file", p.Vaddr)
		}
		m.Segments = append(m.Segments, Segment{p.Vaddr, b[p.Off:][:p.Filesz:p.Filesz]})
	}
	if len(m.Segments) == 0 {
		return nil, errors.New("kernel ELF: nothing in it to load")
	}
	slices.SortStableFunc(m.Segments, func(x, y Segment) int { return len(y.Data) - len(x.Data) })
	return &m, nil
}
