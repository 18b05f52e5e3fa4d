// Package guestmem walks guest page tables and reads guest virtual memory, with
// a bound on everything: the tables and the memory are the guest's, and may lie.
package guestmem

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// Memory is what a Reader reads physical memory with: xenevents.Domain has it.
type Memory interface {
	ReadGPA(p []byte, at xenevents.GPA) (int, error)
	WriteGPA(p []byte, at xenevents.GPA) (int, error)
}

// Loader is a Memory that reads one word without a detour: a hit walks four
// levels of tables for each argument. at is a multiple of 8.
type Loader interface {
	Load64(at xenevents.GPA) (uint64, error)
}

// Reader reads a guest's virtual memory. It belongs to one goroutine. It keeps
// no translation between calls: the guest may change its tables at any time.
type Reader struct {
	mem    Memory
	loader Loader  // nil: mem is none
	entry  [8]byte // of a page table; here, as value is, so that nothing is allocated
	value  [8]byte
}

// NewReader reads through mem.
func NewReader(mem Memory) *Reader {
	loader, _ := mem.(Loader)
	return &Reader{mem: mem, loader: loader}
}

// Translation is where a guest virtual address is.
type Translation struct {
	GPA      xenevents.GPA
	PageSize uint64 // in bytes: 4 KiB, 2 MiB, 4 MiB or 1 GiB
	Writable bool   // by all levels of the walk
	User     bool
	NX       bool
	// Entries are the addresses of the Levels table entries of the walk, root
	// first. They are there as well where the walk failed: what it ended at is
	// the last.
	Entries [5]xenevents.GPA
	Levels  int
}

// NotMappedError says where a walk ended. It matches xenevents.ErrNotMapped.
type NotMappedError struct {
	Space xenevents.AddressSpace
	At    xenevents.GVA
	Level int // 1 is the last table
	Entry uint64
}

func (e *NotMappedError) Error() string {
	if e.Level == 0 {
		return fmt.Sprintf("%v in address space %v: no canonical address", e.At, e.Space)
	}
	return fmt.Sprintf("%v in address space %v: not mapped by the guest (level %d entry is %#x)", e.At, e.Space, e.Level, e.Entry)
}

// Is makes it match xenevents.ErrNotMapped.
func (e *NotMappedError) Is(target error) bool { return target == xenevents.ErrNotMapped }

// Bits of a page-table entry (Intel SDM vol. 3, 4.5).
const (
	present  = 1 << 0
	writable = 1 << 1
	user     = 1 << 2
	large    = 1 << 7
	nx       = 1 << 63
	addrMask = 0x000f_ffff_ffff_f000
)

// Translate walks the guest's tables for one address.
func (r *Reader) Translate(space xenevents.AddressSpace, at xenevents.GVA) (t Translation, err error) {
	err = r.walk(space, at, &t)
	return t, err
}

// walk is Translate into a zeroed t: a hit does it for each argument, and a
// Translation is long.
func (r *Reader) walk(space xenevents.AddressSpace, at xenevents.GVA, t *Translation) error {
	switch space.Mode {
	case xenevents.PagingNone:
		*t = Translation{GPA: xenevents.GPA(at), PageSize: xenevents.PageSize, Writable: true, User: true}
		return nil
	case xenevents.Paging4Level:
		return r.walk64(space, at, 4, t)
	case xenevents.Paging5Level:
		return r.walk64(space, at, 5, t)
	case xenevents.PagingPAE:
		return r.walkPAE(space, at, t)
	case xenevents.PagingLegacy:
		return r.walk32(space, at, t)
	}
	return &xenevents.UnsupportedError{Feature: space.Mode.String() + " paging"}
}

func (r *Reader) walk64(space xenevents.AddressSpace, at xenevents.GVA, levels int, t *Translation) error {
	if top := int64(at) >> (11 + 9*levels); top != 0 && top != -1 {
		return &NotMappedError{Space: space, At: at}
	}
	return r.walkEntries(space, at, levels, t)
}

// walkPAE takes the four top entries from memory; the CPU keeps them in
// registers, and reloads them when CR3 is written.
func (r *Reader) walkPAE(space xenevents.AddressSpace, at xenevents.GVA, t *Translation) error {
	if at>>32 != 0 {
		return &NotMappedError{Space: space, At: at}
	}
	return r.walkEntries(space, at, 3, t)
}

func (r *Reader) walkEntries(space xenevents.AddressSpace, at xenevents.GVA, levels int, t *Translation) error {
	table := space.Root
	t.Writable, t.User = true, true
	loader := r.loader
	for level := levels; level >= 1; level-- {
		shift := 12 + 9*(level-1)
		from := table + xenevents.GPA(uint64(at)>>shift&511*8)
		t.Entries[levels-level] = from
		t.Levels++
		var e uint64
		var err error
		if loader != nil && from%8 == 0 { // else the guest's root is odd
			e, err = loader.Load64(from)
		} else {
			e, err = r.readEntry(from)
		}
		if err != nil {
			return fmt.Errorf("level %d table of %v: %w", level, at, err)
		}
		if e&present == 0 {
			return &NotMappedError{Space: space, At: at, Level: level, Entry: e}
		}
		if level > 3 && e&large != 0 { // reserved: a CPU faults
			return &NotMappedError{Space: space, At: at, Level: level, Entry: e}
		}
		if top := space.Mode == xenevents.PagingPAE && level == 3; !top { // those have no such bits
			t.Writable = t.Writable && e&writable != 0
			t.User = t.User && e&user != 0
			t.NX = t.NX || e&nx != 0
			if level == 1 || level <= 3 && e&large != 0 {
				t.PageSize = 1 << shift
				mask := xenevents.GPA(t.PageSize - 1)
				t.GPA = xenevents.GPA(e&addrMask)&^mask | xenevents.GPA(at)&mask
				return nil
			}
		}
		table = xenevents.GPA(e & addrMask)
	}
	panic("unreachable: level 1 returns")
}

func (r *Reader) walk32(space xenevents.AddressSpace, at xenevents.GVA, t *Translation) error {
	t.Writable, t.User = true, true
	if at>>32 != 0 {
		return &NotMappedError{Space: space, At: at}
	}
	table := space.Root
	for level := 2; level >= 1; level-- {
		shift := 12 + 10*(level-1)
		from := table + xenevents.GPA(uint64(at)>>shift&1023*4)
		t.Entries[2-level] = from
		t.Levels++
		e, err := r.read32(from)
		if err != nil {
			return fmt.Errorf("level %d table of %v: %w", level, at, err)
		}
		if e&present == 0 {
			return &NotMappedError{Space: space, At: at, Level: level, Entry: uint64(e)}
		}
		t.Writable = t.Writable && e&writable != 0
		t.User = t.User && e&user != 0
		if level == 2 && e&large != 0 { // PSE-36: bits 13 to 20 are 32 to 39 of the address
			t.PageSize = 4 << 20
			t.GPA = xenevents.GPA(e&0xffc00000) | xenevents.GPA(e>>13&0xff)<<32 | xenevents.GPA(at&(4<<20-1))
			return nil
		}
		table = xenevents.GPA(e &^ 0xfff)
	}
	t.PageSize = xenevents.PageSize
	t.GPA = table | xenevents.GPA(at.Offset())
	return nil
}

func (r *Reader) readEntry(at xenevents.GPA) (uint64, error) {
	if _, err := r.mem.ReadGPA(r.entry[:], at); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(r.entry[:]), nil
}

func (r *Reader) read32(at xenevents.GPA) (uint32, error) {
	if _, err := r.mem.ReadGPA(r.entry[:4], at); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(r.entry[:4]), nil
}

// ReadGVA fills p from guest virtual memory. At the first page that is not
// mapped or absent it returns how many bytes came before it, and the error.
func (r *Reader) ReadGVA(space xenevents.AddressSpace, p []byte, at xenevents.GVA) (int, error) {
	return r.each(space, p, at, false)
}

// WriteGVA writes p to guest virtual memory. It ignores the guest's own
// protection: what is mapped is written.
func (r *Reader) WriteGVA(space xenevents.AddressSpace, p []byte, at xenevents.GVA) (int, error) {
	return r.each(space, p, at, true)
}

func (r *Reader) each(space xenevents.AddressSpace, p []byte, at xenevents.GVA, write bool) (int, error) {
	for done := 0; done < len(p); {
		t, err := r.Translate(space, at)
		if err != nil {
			return done, err
		}
		n := min(len(p)-done, int(t.PageSize-uint64(at)&(t.PageSize-1)))
		m := 0
		if write {
			m, err = r.mem.WriteGPA(p[done:done+n], t.GPA)
		} else {
			m, err = r.mem.ReadGPA(p[done:done+n], t.GPA)
		}
		done += m
		if err != nil {
			return done, fmt.Errorf("%v in address space %v: %w", at, space, err)
		}
		if at += xenevents.GVA(n); at == 0 && done < len(p) { // behind the last address there is none
			return done, &NotMappedError{Space: space, At: at}
		}
	}
	return len(p), nil
}

// ReadUint64 reads 8 bytes.
func (r *Reader) ReadUint64(space xenevents.AddressSpace, at xenevents.GVA) (uint64, error) {
	if r.loader != nil && at%8 == 0 {
		var t Translation
		if err := r.walk(space, at, &t); err != nil {
			return 0, err
		}
		v, err := r.loader.Load64(t.GPA)
		if err != nil {
			return 0, fmt.Errorf("%v in address space %v: %w", at, space, err)
		}
		return v, nil
	}
	if _, err := r.ReadGVA(space, r.value[:], at); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(r.value[:]), nil
}

// ReadUint32 reads 4 bytes.
func (r *Reader) ReadUint32(space xenevents.AddressSpace, at xenevents.GVA) (uint32, error) {
	if _, err := r.ReadGVA(space, r.value[:4], at); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint32(r.value[:4]), nil
}

// ReadCString reads a NUL-terminated string of at most limit bytes. One without
// an end within that comes cut off, without an error. The bytes are the
// guest's: quote them before a terminal sees them.
func (r *Reader) ReadCString(space xenevents.AddressSpace, at xenevents.GVA, limit int) (string, error) {
	var all []byte
	for len(all) < limit {
		chunk := make([]byte, min(limit-len(all), 64, int(xenevents.PageSize-at.Offset())))
		n, err := r.ReadGVA(space, chunk, at)
		if end := bytes.IndexByte(chunk[:n], 0); end >= 0 {
			return string(append(all, chunk[:end]...)), nil
		}
		all = append(all, chunk[:n]...)
		if err != nil {
			return string(all), err
		}
		at += xenevents.GVA(n)
	}
	return string(all), nil
}
