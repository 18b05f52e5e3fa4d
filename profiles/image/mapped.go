package image

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Mapped is a program or library as a process of the guest has it. All in it is the
// guest's: it is bounded, and may lie.
type Mapped struct {
	read     func(p []byte, at uint64) (int, error)
	bias     uint64 // what the addresses in the file are moved by
	segments []segment
	buildID  []byte
}

const (
	headerSize  = 64 // Elf64_Ehdr
	segmentSize = 56 // Elf64_Phdr
	symbolSize  = 24 // Elf64_Sym
	maxSegments = 64
	maxDynamic  = 1024    // entries
	maxChain    = 1 << 12 // symbols of one hash bucket
	maxListed   = 1 << 12 // symbols to look for near names in
	maxSameName = 32
)

// InMemory reads the headers of what is mapped from its first page on at base. read
// reads the process's memory; where it fails because a page is not there, so does
// this, with ErrNotThere.
func InMemory(base uint64, read func(p []byte, at uint64) (int, error)) (*Mapped, error) {
	m := &Mapped{read: read}
	header := make([]byte, headerSize)
	if err := m.get(header, base); err != nil {
		return nil, fmt.Errorf("its header: %w", err)
	}
	le := binary.LittleEndian
	if !bytes.HasPrefix(header, []byte(elf.ELFMAG)) || header[elf.EI_CLASS] != byte(elf.ELFCLASS64) || header[elf.EI_DATA] != byte(elf.ELFDATA2LSB) ||
		elf.Machine(le.Uint16(header[18:])) != elf.EM_X86_64 || le.Uint16(header[54:]) != segmentSize {
		return nil, errors.New("it is no 64-bit program or library for x86-64")
	}
	at, n := le.Uint64(header[32:]), int(le.Uint16(header[56:]))
	if n > maxSegments {
		return nil, fmt.Errorf("it has %d segments", n)
	}
	table := make([]byte, n*segmentSize)
	if err := m.get(table, base+at); err != nil {
		return nil, fmt.Errorf("its segments: %w", err)
	}
	based := false
	for b := table; len(b) > 0; b = b[segmentSize:] {
		s := segment{elf.ProgType(le.Uint32(b)), elf.ProgFlag(le.Uint32(b[4:])), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[32:]), le.Uint64(b[40:])}
		m.segments = append(m.segments, s)
		if s.kind == elf.PT_LOAD && s.offset < pageSize && !based {
			m.bias, based = base-s.addr&^(pageSize-1), true
		}
	}
	if !based {
		return nil, errors.New("its first page is in no segment")
	}
	for _, s := range m.segments {
		if s.kind == elf.PT_NOTE && m.buildID == nil && s.fileSize <= maxNotes {
			notes := make([]byte, s.fileSize)
			if m.get(notes, m.bias+s.addr) == nil {
				m.buildID = buildIDIn(notes)
			}
		}
	}
	return m, nil
}

const pageSize = 4096

// BuildID is the file's; nil where it has none, or it is not there.
func (m *Mapped) BuildID() []byte { return m.buildID }

// get reads all of p.
func (m *Mapped) get(p []byte, at uint64) error {
	if n, err := m.read(p, at); n < len(p) || err != nil {
		return fmt.Errorf("%w: %#x (%v)", ErrNotThere, at+uint64(max(n, 0)), err)
	}
	return nil
}

// Place finds a function by the symbols that programs link to, and adds to its
// offset; of no symbol, an offset in the file. Errors match ErrNoSymbol, ErrNotThere.
func (m *Mapped) Place(symbol string, add uint64) (Place, error) {
	p := Place{Offset: add, BuildID: m.buildID}
	if symbol != "" {
		addr, err := m.lookUp(symbol)
		if err != nil {
			return p, err
		}
		if p.Offset, err = fileOffset(m.segments, addr+add); err != nil {
			return p, fmt.Errorf("%s: %w", symbol, err)
		}
	}
	for _, s := range m.segments {
		if s.kind == elf.PT_LOAD && s.flags&elf.PF_X != 0 && p.Offset >= s.offset && p.Offset-s.offset < s.fileSize {
			code := make([]byte, min(CodeLen, s.fileSize-(p.Offset-s.offset)))
			if m.get(code, m.bias+s.addr+p.Offset-s.offset) == nil {
				p.Code = code
			}
			return p, nil
		}
	}
	return p, fmt.Errorf("there is no code at %#x of the file", p.Offset)
}

// dynamic is what PT_DYNAMIC says of the symbols.
type dynamic struct {
	symbols, strings, stringsSize, gnuHash, hash, versions uint64
}

func (m *Mapped) dynamic() (d dynamic, err error) {
	i := slices.IndexFunc(m.segments, func(s segment) bool { return s.kind == elf.PT_DYNAMIC })
	if i < 0 {
		return d, fmt.Errorf("%w: it is linked statically, its symbols are in its file alone", ErrNoSymbol)
	}
	table := make([]byte, 16*maxDynamic)
	n, err := m.read(table, m.bias+m.segments[i].addr)
	if n < 16 {
		return d, fmt.Errorf("its dynamic section: %w: %v", ErrNotThere, err)
	}
	for b := table[:n]; len(b) >= 16; b = b[16:] {
		tag, value := elf.DynTag(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[8:])
		switch tag {
		case elf.DT_NULL:
			return d, nil
		case elf.DT_SYMTAB:
			d.symbols = m.relocated(value)
		case elf.DT_STRTAB:
			d.strings = m.relocated(value)
		case elf.DT_STRSZ:
			d.stringsSize = value
		case elf.DT_GNU_HASH:
			d.gnuHash = m.relocated(value)
		case elf.DT_HASH:
			d.hash = m.relocated(value)
		case elf.DT_VERSYM:
			d.versions = m.relocated(value)
		}
	}
	return d, nil
}

// relocated is an address in the dynamic section: some loaders add the bias there.
func (m *Mapped) relocated(addr uint64) uint64 {
	for _, s := range m.segments {
		if s.kind == elf.PT_LOAD && addr-m.bias-s.addr < s.memorySize {
			return addr
		}
	}
	return m.bias + addr
}

func (m *Mapped) lookUp(name string) (uint64, error) {
	if len(name) > maxName {
		return 0, fmt.Errorf("%q…: %w", name[:32], ErrNoSymbol)
	}
	d, err := m.dynamic()
	if err != nil {
		return 0, err
	}
	var indices []uint32
	switch {
	case d.symbols == 0 || d.strings == 0:
		return 0, fmt.Errorf("%q: %w: it has no symbols that programs link to", name, ErrNoSymbol)
	case d.gnuHash != 0:
		indices, err = m.gnuChain(d.gnuHash, name)
	case d.hash != 0:
		indices, err = m.chain(d.hash, name)
	default:
		err = fmt.Errorf("%q: %w: it has no hash table", name, ErrNoSymbol)
	}
	if err != nil {
		return 0, err
	}
	var found []function
	for _, i := range indices {
		f, ok, err := m.symbol(&d, i)
		if err != nil {
			return 0, err
		}
		if ok && f.name == name && len(found) < maxSameName {
			found = append(found, f)
		}
	}
	if len(found) == 0 {
		return 0, fmt.Errorf("%q: %w: only what programs link to can be seen in memory%s", name, ErrNoSymbol, near(name, m.listed(&d)))
	}
	return choose(name, found)
}

// symbol reads one; false where it is no function of this file.
func (m *Mapped) symbol(d *dynamic, i uint32) (f function, ok bool, err error) {
	var b [symbolSize]byte
	if err := m.get(b[:], d.symbols+symbolSize*uint64(i)); err != nil {
		return f, false, fmt.Errorf("its symbols: %w", err)
	}
	le := binary.LittleEndian
	name, info, section := uint64(le.Uint32(b[:])), b[4], elf.SectionIndex(le.Uint16(b[6:]))
	f.addr, f.global = le.Uint64(b[8:]), elf.ST_BIND(info) != elf.STB_LOCAL
	kind := elf.ST_TYPE(info)
	f.choice = kind == elf.STT_GNU_IFUNC
	if section == elf.SHN_UNDEF || f.addr == 0 || name >= d.stringsSize || kind != elf.STT_FUNC && kind != elf.STT_NOTYPE && !f.choice {
		return f, false, nil
	}
	text := make([]byte, min(maxName+1, d.stringsSize-name))
	n, readErr := m.read(text, d.strings+name)
	end := bytes.IndexByte(text[:max(n, 0)], 0)
	switch {
	case end >= 0:
		f.name = string(text[:end])
	case readErr != nil:
		return f, false, fmt.Errorf("the names of its symbols: %w: %v", ErrNotThere, readErr)
	default:
		return f, false, nil
	}
	if d.versions != 0 {
		if m.get(b[:2], d.versions+2*uint64(i)) == nil {
			f.old = le.Uint16(b[:])&0x8000 != 0
		}
	}
	return f, true, nil
}

// gnuChain are the symbols in a name's bucket of DT_GNU_HASH whose hash is its.
func (m *Mapped) gnuChain(table uint64, name string) (all []uint32, err error) {
	le := binary.LittleEndian
	var b [16]byte
	if err := m.get(b[:], table); err != nil {
		return nil, fmt.Errorf("its hash table: %w", err)
	}
	buckets, first, bloom := le.Uint32(b[:]), le.Uint32(b[4:]), uint64(le.Uint32(b[8:]))
	if buckets == 0 {
		return nil, nil
	}
	h := uint32(5381)
	for i := range len(name) {
		h = h*33 + uint32(name[i])
	}
	bucketsAt := table + 16 + 8*bloom
	if err := m.get(b[:4], bucketsAt+4*uint64(h%buckets)); err != nil {
		return nil, fmt.Errorf("its hash table: %w", err)
	}
	i := le.Uint32(b[:])
	if i < first {
		return nil, nil
	}
	for range maxChain {
		if err := m.get(b[:4], bucketsAt+4*uint64(buckets)+4*uint64(i-first)); err != nil {
			return nil, fmt.Errorf("its hash table: %w", err)
		}
		link := le.Uint32(b[:])
		if link|1 == h|1 {
			all = append(all, i)
		}
		if link&1 != 0 {
			break
		}
		i++
	}
	return all, nil
}

// chain are the symbols in a name's bucket of DT_HASH.
func (m *Mapped) chain(table uint64, name string) (all []uint32, err error) {
	le := binary.LittleEndian
	var b [8]byte
	if err := m.get(b[:], table); err != nil {
		return nil, fmt.Errorf("its hash table: %w", err)
	}
	buckets := le.Uint32(b[:])
	if buckets == 0 {
		return nil, nil
	}
	h := uint32(0)
	for i := range len(name) {
		h = h<<4 + uint32(name[i])
		h = (h ^ h>>24&0xf0) & 0x0fff_ffff
	}
	at := table + 8 + 4*uint64(h%buckets)
	for range maxChain {
		if err := m.get(b[:4], at); err != nil {
			return nil, fmt.Errorf("its hash table: %w", err)
		}
		i := le.Uint32(b[:])
		if i == 0 {
			break
		}
		all = append(all, i)
		at = table + 8 + 4*uint64(buckets) + 4*uint64(i)
	}
	return all, nil
}

// listed are the first symbols, as far as they are there: to find a name that may
// have been meant.
func (m *Mapped) listed(d *dynamic) (all []function) {
	for i := range uint32(maxListed) {
		f, ok, err := m.symbol(d, i+1)
		if err != nil {
			break
		}
		if ok {
			all = append(all, f)
		}
	}
	return all
}
