package isf

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"sync"
)

// The compact form is tables that are searched where they are: opening it
// parses nothing, and a type is decoded when somebody asks for it. All numbers
// are little endian, and no entry of a table lies across a block's end.
//
//	magic, then 7 × u64: the length of each part, in bytes, and 0
//	symbols  by name: name offset u32, name length u32, address u64
//	types    by kind and name: key offset u32, key length u32, JSON offset u32, JSON length u32
//	names    a power of two of slots, by the low bits of a name's hash, or one behind: index of
//	         the first symbol of that name plus 1 u32 (0: an empty slot), high bits of the hash u32
//	addrs    the symbols' addresses by address u64
//	byAddr   their indexes u32
//	text     names and JSON
var magic = []byte("hprobe profile 2\n\x00\x00\x00\x00\x00\x00\x00")

const (
	numParts   = 6
	headerSize = 24 + (numParts+1)*8
	symbolSize = 16
	typeSize   = 16
	slotSize   = 8
	// MaxSize bounds a profile, in bytes, in each of its forms.
	MaxSize = 1 << 30
)

// Keys of the types table: a letter for the kind, then the name.
const (
	keyMeta = "m"
	keyBase = "b"
	keyUser = "u"
	keyEnum = "e"
	keyFunc = "f"
	keyVar  = "v"
)

var le = binary.LittleEndian

// Profile is a read-only profile. It may be used from several goroutines.
type Profile struct {
	meta    Meta
	symbols part
	types   part
	names   part
	addrs   part
	byAddr  part
	text    part
	layouts sync.Map // of structs, by name: *layout
}

func (p *Profile) parts() [numParts]*part {
	return [numParts]*part{&p.symbols, &p.types, &p.names, &p.addrs, &p.byAddr, &p.text}
}

// isCompact says whether these are the first bytes of a compact form, of whatever version.
func isCompact(head []byte) bool { return bytes.HasPrefix(head, magic[:len("hprobe profile ")]) }

// open takes the compact form. Whatever its bytes say, no look-up leaves them.
func open(data *blocks) (*Profile, error) {
	whole := part{blocks: data, n: data.size}
	if data.size > MaxSize {
		return nil, fmt.Errorf("more than %d bytes", MaxSize)
	}
	head := whole.bytes(0, headerSize)
	switch {
	case head == nil && data.err.Load() != nil:
		return nil, *data.err.Load()
	case head == nil:
		return nil, errors.New("the profile is cut off")
	case !bytes.HasPrefix(head, magic):
		return nil, errors.New("another version of hprobe wrote this profile: make it anew, with hprobe profile build")
	}
	p := &Profile{}
	at := int64(headerSize)
	for i, to := range p.parts() {
		n := le.Uint64(head[len(magic)+8*i:])
		if n > uint64(data.size-at) {
			return nil, fmt.Errorf("the profile is cut off: part %d has %d bytes of %d", i, data.size-at, n)
		}
		*to = part{blocks: data, at: at, n: int64(n)}
		at += int64(n)
	}
	n, slots := p.symbols.n/symbolSize, p.names.n/slotSize
	if p.symbols.n != n*symbolSize || p.types.n%typeSize != 0 || p.names.n != slots*slotSize || slots&(slots-1) != 0 || p.addrs.n != 8*n || p.byAddr.n != 4*n {
		return nil, errors.New("the profile is damaged: its tables are not of one size")
	}
	if err := p.lookup(keyMeta, "the profile's head", &p.meta); err != nil {
		return nil, err
	}
	return p, nil
}

// WriteCompact writes the compact form.
func (p *Profile) WriteCompact(w io.Writer) error {
	head := slices.Clone(magic)
	for _, part := range p.parts() {
		head = le.AppendUint64(head, uint64(part.n))
	}
	_, err := w.Write(le.AppendUint64(head, 0))
	for _, part := range p.parts() {
		if err == nil {
			err = part.writeTo(w)
		}
	}
	if err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	return nil
}

// Meta says of which kernel the profile is.
func (p *Profile) Meta() Meta { return p.meta }

// NumSymbols is how many symbols there are.
func (p *Profile) NumSymbols() int { return p.symbols.len() / symbolSize }

// SymbolAt returns symbol i, in the order of names.
func (p *Profile) SymbolAt(i int) Symbol {
	e := p.symbols.bytes(i*symbolSize, symbolSize)
	if e == nil {
		return Symbol{}
	}
	return Symbol{Name: string(p.str(e)), Addr: le.Uint64(e[8:])}
}

// str returns the text that an entry points to, or nothing where it points out.
func (p *Profile) str(e []byte) []byte {
	if len(e) < 8 {
		return nil
	}
	return p.text.bytes(int(le.Uint32(e)), int(le.Uint32(e[4:])))
}

// named is where symbol i is, if that is its name.
func (p *Profile) named(i int, name string) (uint64, bool) {
	e := p.symbols.bytes(i*symbolSize, symbolSize)
	if e == nil || int(le.Uint32(e[4:])) != len(name) || string(p.str(e)) != name {
		return 0, false
	}
	return le.Uint64(e[8:]), true
}

// Addresses returns the addresses of all symbols of that name.
func (p *Profile) Addresses(name string) []uint64 {
	var all []uint64
	for i, at, ok := p.first(name); ok; at, ok = p.named(i, name) {
		all = append(all, at)
		i++
	}
	return all
}

// first finds the first symbol of that name, and where it is.
func (p *Profile) first(name string) (i int, at uint64, ok bool) {
	slots := p.names.len() / slotSize
	hash := hashOf(name)
	for n := range slots {
		e := p.names.bytes((int(hash)+n)&(slots-1)*slotSize, slotSize)
		if e == nil || le.Uint32(e) == 0 {
			break
		}
		if le.Uint32(e[4:]) != uint32(hash>>32) {
			continue
		}
		i = int(le.Uint32(e)) - 1
		if at, ok = p.named(i, name); ok {
			return i, at, true
		}
	}
	return 0, 0, false
}

// hashOf is FNV-1a, of 64 bits.
func hashOf[text string | []byte](name text) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 0x100000001b3
	}
	return h
}

// Nearest returns the last symbol that is not behind addr.
func (p *Profile) Nearest(addr uint64) (Symbol, bool) {
	i := p.addrs.notOver(addr)
	e := p.byAddr.bytes(4*(i-1), 4)
	if e == nil {
		return Symbol{}, false
	}
	s := p.SymbolAt(int(le.Uint32(e)))
	return s, s.Addr <= addr && p.failed() == nil
}

// UserType finds a struct or union.
func (p *Profile) UserType(name string) (t UserType, err error) {
	err = p.lookup(keyUser+name, "struct "+name, &t)
	return t, err
}

// BaseType finds a scalar.
func (p *Profile) BaseType(name string) (t BaseType, err error) {
	err = p.lookup(keyBase+name, "type "+name, &t)
	return t, err
}

// EnumType finds an enumeration.
func (p *Profile) EnumType(name string) (t EnumType, err error) {
	err = p.lookup(keyEnum+name, "enum "+name, &t)
	return t, err
}

// Func finds the prototype of a function.
func (p *Profile) Func(name string) (t Func, err error) {
	err = p.lookup(keyFunc+name, "prototype of "+name, &t)
	return t, err
}

// Var finds the type of a variable.
func (p *Profile) Var(name string) (t Type, err error) {
	err = p.lookup(keyVar+name, "type of "+name, &t)
	return t, err
}

func (p *Profile) lookup(key, what string, to any) error {
	text, found := p.find(key)
	if err := p.failed(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if !found {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	if err := json.Unmarshal(text, to); err != nil {
		return fmt.Errorf("%s: the profile is damaged: %w", what, err)
	}
	return nil
}

// find is the JSON of an entry of the types.
func (p *Profile) find(key string) ([]byte, bool) {
	n := p.types.len() / typeSize
	keyOf := func(i int) []byte { return p.str(p.types.bytes(i*typeSize, typeSize)) }
	i := sort.Search(n, func(i int) bool { return string(keyOf(i)) >= key })
	if i >= n || string(keyOf(i)) != key {
		return nil, false
	}
	return p.str(p.types.bytes(i*typeSize+8, typeSize-8)), true
}

// each calls f with all entries of a kind: for writing ISF.
func (p *Profile) each(kind string, f func(name string, j json.RawMessage) error) error {
	for i := range p.types.len() / typeSize {
		e := p.types.bytes(i*typeSize, typeSize)
		if key := p.str(e); len(key) > 0 && string(key[:1]) == kind {
			if err := f(string(key[1:]), p.str(e[8:])); err != nil {
				return err
			}
		}
	}
	return p.failed()
}
