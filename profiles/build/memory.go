package build

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/hprobe/hprobe/profiles/debuginfo"
	"github.com/hprobe/hprobe/profiles/isf"
)

var le = binary.LittleEndian

// memory is a kernel's: the sections of an image, or what a running guest has mapped.
// All that is asked for is at the address that it was linked for.
type memory struct {
	pieces []*piece
	// slide is what KASLR added to the addresses of the pieces and to the pointers in
	// them: 0 of an image.
	slide uint64
	// left bounds how many bytes of whole pieces are read.
	left uint64
	// located takes the symbols as they were found, where their addresses are not yet
	// those that the kernel was linked for; or it is nil.
	located func(*memory, []isf.Symbol) error
	// debug is an image, whose symbols and debug information are taken where the kernel has
	// no kallsyms or no BTF; or it is nil.
	debug *elf.File
}

// piece is a part of a kernel's memory.
type piece struct {
	name       string
	addr, size uint64      // size in bytes; neither has to be true
	data       io.ReaderAt // nil: it can't be read
	mapped     bool        // it is at its address when the kernel runs
	symbols    bool        // the table of symbols may be in it
	order      int         // of the search for it, of a guest's
	notes      bool        // it is ELF notes
}

// elfMemory is what a kernel's image has.
func elfMemory(f *elf.File) *memory {
	m := &memory{left: 8 * maxImage, debug: f} // sections may overlap
	for _, s := range f.Sections {
		if s.Type != elf.SHT_PROGBITS && s.Type != elf.SHT_NOTE {
			continue
		}
		p := &piece{name: s.Name, addr: s.Addr, size: s.Size, mapped: s.Flags&elf.SHF_ALLOC != 0, notes: s.Type == elf.SHT_NOTE}
		p.symbols = p.mapped && !p.notes && s.Flags&elf.SHF_EXECINSTR == 0
		if s.Flags&elf.SHF_COMPRESSED == 0 {
			p.data = s.ReaderAt
		}
		m.pieces = append(m.pieces, p)
	}
	return m
}

func (m *memory) named(name string) *piece {
	for _, p := range m.pieces {
		if p.name == name {
			return p
		}
	}
	return nil
}

// read reads a whole piece, whose size is only claimed.
func (m *memory) read(p *piece) ([]byte, error) {
	if p.data == nil || p.size > maxImage {
		return nil, fmt.Errorf("%q is packed, or has %d bytes", p.name, p.size)
	}
	if p.size > m.left {
		return nil, fmt.Errorf("%q has %d bytes: with what was read before that is more than a kernel's", p.name, p.size)
	}
	m.left -= p.size
	var b bytes.Buffer
	b.Grow(int(min(p.size, 32<<20)) + bytes.MinRead)
	n, err := b.ReadFrom(io.NewSectionReader(p.data, 0, int64(p.size)))
	if err == nil && uint64(n) < p.size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", p.name, err)
	}
	return b.Bytes(), nil
}

// at is what there is from an address on, at most n bytes, and nil where nothing is.
func (m *memory) at(addr uint64, n int) []byte {
	addr += m.slide
	for _, p := range m.pieces {
		if !p.mapped || p.data == nil || addr < p.addr || addr-p.addr >= p.size {
			continue
		}
		b := make([]byte, min(uint64(n), p.size-(addr-p.addr)))
		if got, _ := p.data.ReadAt(b, int64(addr-p.addr)); got > 0 {
			return b[:got]
		}
	}
	return nil
}

// pointer reads a pointer into the kernel, and is 0 where there is none.
func (m *memory) pointer(addr uint64) uint64 {
	b := m.at(addr, 8)
	if len(b) < 8 {
		return 0
	}
	return le.Uint64(b) - m.slide
}

// symbols are those of kallsyms, or of an image's own table of symbols.
func (m *memory) symbols(ctx context.Context) ([]isf.Symbol, error) {
	all, err := m.kallsyms(ctx)
	if !errors.Is(err, errNoKallsyms) || m.debug == nil {
		return all, err
	}
	own, err2 := m.debug.Symbols()
	if err2 != nil {
		return nil, err
	}
	for _, s := range own {
		switch elf.ST_TYPE(s.Info) {
		case elf.STT_NOTYPE, elf.STT_OBJECT, elf.STT_FUNC:
			if s.Name != "" && s.Section != elf.SHN_UNDEF && len(s.Name) <= maxName {
				all = append(all, isf.Symbol{Name: s.Name, Addr: s.Value})
			}
		}
	}
	if len(all) == 0 {
		return nil, err
	}
	return all, nil
}

// types adds those of BTF, or of an image's debug information.
func (m *memory) types(modules []moduleTypes, out *isf.Builder) (map[string]isf.Type, error) {
	if m.debug == nil || m.named(".BTF") != nil || len(modules) > 0 {
		return addBTF(m, modules, out)
	}
	d, err := debuginfo.Load(m.debug)
	switch {
	case errors.Is(err, debuginfo.ErrNone):
		return nil, errors.New("neither BTF nor debug information in it: hprobe needs a kernel with CONFIG_DEBUG_INFO_BTF, as the distributions have, or a vmlinux that was not stripped")
	case err != nil:
		return nil, err
	}
	return addDWARF(d, out)
}
