package guestos

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// Bounds on a module's symbol table: the largest modules of Linux have some 60,000.
const (
	maxModuleSymbols = 1 << 17
	maxModuleStrings = 8 << 20
	maxSymbolName    = 512
)

// elfSymbolSize is that of an Elf64_Sym: name u32, info u8, other u8, section u16,
// value u64, size u64 (System V ABI, "Symbol Table").
const elfSymbolSize = 24

// moduleTable is what may be code of a module's symbol table.
type moduleTable struct {
	strings uint64 // where the names are
	entries []moduleSymbol
}

type moduleSymbol struct {
	name uint32 // where its name is
	at   xenevents.GVA
}

func (k *Kernel) moduleTable(m *Module) (t moduleTable, err error) {
	l, err := k.modules()
	if err != nil {
		return t, err
	}
	kallsyms, err := k.read64(m.at + l.kallsyms)
	if err != nil {
		return t, err
	}
	symtab, err := k.read64(kallsyms + l.symtab)
	if err != nil {
		return t, err
	}
	if t.strings, err = k.read64(kallsyms + l.strtab); err != nil {
		return t, err
	}
	num, err := k.read32(kallsyms + l.num)
	if err != nil {
		return t, err
	}
	if num > maxModuleSymbols {
		return t, fmt.Errorf("%d symbols: more than a module has", num)
	}
	raw := make([]byte, num*elfSymbolSize)
	if _, err := k.mem.ReadGVA(k.Space, raw, xenevents.GVA(symtab)); err != nil {
		return t, err
	}
	for ; len(raw) > 0; raw = raw[elfSymbolSize:] {
		name, section, value := binary.LittleEndian.Uint32(raw), binary.LittleEndian.Uint16(raw[6:]), binary.LittleEndian.Uint64(raw[8:])
		// Until its init has run a module's imports are here as well, as undefined
		// symbols (section 0) with the addresses of the kernel's functions.
		if name > 0 && name < maxModuleStrings && section != 0 && value != 0 {
			t.entries = append(t.entries, moduleSymbol{name, xenevents.GVA(value)})
		}
	}
	return t, nil
}

// nameReader reads strings of a table, whose pages it reads once: names are short, and
// many of them in a page.
type nameReader struct {
	k     *Kernel
	at    uint64
	pages map[uint64][]byte // nil: it can't be read
}

func (k *Kernel) newNameReader(at uint64) *nameReader {
	return &nameReader{k: k, at: at, pages: map[uint64][]byte{}}
}

// rest is what follows an offset in its page.
func (r *nameReader) rest(offset uint64) []byte {
	at := xenevents.GVA(r.at + offset)
	page, ok := r.pages[uint64(at.Page())]
	if !ok {
		page = make([]byte, xenevents.PageSize)
		if _, err := r.k.mem.ReadGVA(r.k.Space, page, at.Page()); err != nil {
			page = nil
		}
		r.pages[uint64(at.Page())] = page
	}
	if page == nil {
		return nil
	}
	return page[at.Offset():]
}

// is says whether the string at an offset is name. One that can't be read is not.
func (r *nameReader) is(offset uint32, name string) bool {
	at := uint64(offset)
	for {
		rest := r.rest(at)
		if len(rest) == 0 {
			return false
		}
		n := min(len(rest), len(name))
		if string(rest[:n]) != name[:n] {
			return false
		}
		if n < len(rest) {
			return rest[n] == 0
		}
		name, at = name[n:], at+uint64(n)
	}
}

// text is the string at an offset, at most maxSymbolName bytes of it; "" if it can't
// be read.
func (r *nameReader) text(offset uint32) string {
	var all []byte
	for at := uint64(offset); len(all) < maxSymbolName; {
		rest := r.rest(at)
		if len(rest) == 0 {
			return ""
		}
		if end := bytes.IndexByte(rest, 0); end >= 0 {
			all = append(all, rest[:end]...)
			break
		}
		all, at = append(all, rest...), at+uint64(len(rest))
	}
	return string(all[:min(len(all), maxSymbolName)])
}
