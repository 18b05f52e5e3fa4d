package isf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
)

// The compact form is tables that are searched where they are: opening it
// parses nothing, and a type is decoded when somebody asks for it. All numbers
// are little endian.
//
//	magic, then 9 × u64: symbols, types, and the offset and length … of the parts
//	symbols  by name: name offset u32, name length u32, address u64
//	byAddr   by address: index of the symbol u32
//	types    by kind and name: key offset u32, key length u32, JSON offset u32, JSON length u32
//	text     names and JSON
var magic = []byte("hprobe profile 1\n\x00\x00\x00\x00\x00\x00\x00")

const (
	headerSize = 24 + 5*8
	symbolSize = 16
	typeSize   = 16
	// MaxSize bounds a profile, in bytes.
	MaxSize = 1 << 30
)

// Keys of the types table: a letter for the kind, then the name.
const (
	keyMeta = "m"
	keyBase = "b"
	keyUser = "u"
	keyEnum = "e"
	keyFunc = "f"
)

// Profile is a read-only profile. It may be used from several goroutines.
type Profile struct {
	meta    Meta
	symbols part
	byAddr  part
	types   part
	text    part
}

// Profile makes a profile of what was collected.
func (b *Builder) Profile() (*Profile, error) {
	data, err := b.compact()
	if err != nil {
		return nil, err
	}
	return open(inMemory(data))
}

func (b *Builder) compact() ([]byte, error) {
	var text, symbols, byAddr, types bytes.Buffer
	le := binary.LittleEndian
	put := func(w *bytes.Buffer, s []byte) {
		w.Write(le.AppendUint32(le.AppendUint32(nil, uint32(text.Len())), uint32(len(s))))
		text.Write(s)
	}
	all := b.sorted()
	order := make([]int, len(all))
	for i, s := range all {
		put(&symbols, []byte(s.Name))
		symbols.Write(le.AppendUint64(nil, s.Addr))
		order[i] = i
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(all[x].Addr, all[y].Addr) })
	for _, i := range order {
		byAddr.Write(le.AppendUint32(nil, uint32(i)))
	}
	entries := map[string]any{keyMeta: b.Meta}
	for n, t := range b.Base {
		entries[keyBase+n] = t
	}
	for n, t := range b.Users {
		entries[keyUser+n] = t
	}
	for n, t := range b.Enums {
		entries[keyEnum+n] = t
	}
	for n, t := range b.Funcs {
		entries[keyFunc+n] = t
	}
	for _, key := range slices.Sorted(maps.Keys(entries)) {
		j, err := json.Marshal(entries[key])
		if err != nil {
			return nil, fmt.Errorf("profile: %s: %w", key, err)
		}
		put(&types, []byte(key))
		put(&types, j)
	}
	out := bytes.NewBuffer(slices.Clone(magic))
	for _, n := range []int{symbols.Len(), byAddr.Len(), types.Len(), text.Len(), 0} {
		out.Write(le.AppendUint64(nil, uint64(n)))
	}
	for _, part := range []*bytes.Buffer{&symbols, &byAddr, &types, &text} {
		out.Write(part.Bytes())
	}
	if out.Len() > MaxSize {
		return nil, fmt.Errorf("profile: %d bytes are too many", out.Len())
	}
	return out.Bytes(), nil
}

// open takes the compact form. Whatever its bytes say, no look-up leaves them.
func open(data part) (*Profile, error) {
	head := data.bytes(0, headerSize)
	if !bytes.HasPrefix(head, magic) {
		return nil, fmt.Errorf("this is no hprobe profile")
	}
	p := &Profile{}
	at := int64(headerSize)
	for i, to := range []*part{&p.symbols, &p.byAddr, &p.types, &p.text} {
		n := binary.LittleEndian.Uint64(head[len(magic)+8*i:])
		if n > uint64(data.n-at) {
			return nil, fmt.Errorf("the profile is cut off: part %d has %d bytes of %d", i, data.n-at, n)
		}
		*to = data.slice(at, int64(n))
		at += int64(n)
	}
	if p.byAddr.len()/4 != p.symbols.len()/symbolSize {
		return nil, fmt.Errorf("the profile is damaged: %d symbols, %d of them by address", p.symbols.len()/symbolSize, p.byAddr.len()/4)
	}
	if err := p.lookup(keyMeta, "the profile's head", &p.meta); err != nil {
		return nil, err
	}
	return p, nil
}

// WriteCompact writes the compact form.
func (p *Profile) WriteCompact(w io.Writer) error {
	head := slices.Clone(magic)
	for _, n := range []int{p.symbols.len(), p.byAddr.len(), p.types.len(), p.text.len(), 0} {
		head = binary.LittleEndian.AppendUint64(head, uint64(n))
	}
	if _, err := w.Write(head); err != nil {
		return fmt.Errorf("write profile: %w", err)
	}
	for _, part := range []*part{&p.symbols, &p.byAddr, &p.types, &p.text} {
		b := part.bytes(0, part.len())
		if b == nil && part.len() > 0 {
			return p.failed()
		}
		if _, err := w.Write(b); err != nil {
			return fmt.Errorf("write profile: %w", err)
		}
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
	return Symbol{Name: string(p.str(e)), Addr: binary.LittleEndian.Uint64(e[8:])}
}

// str returns the text that an entry points to, or nothing where it points out.
func (p *Profile) str(e []byte) []byte {
	if len(e) < 8 {
		return nil
	}
	off, n := uint64(binary.LittleEndian.Uint32(e)), uint64(binary.LittleEndian.Uint32(e[4:]))
	if off+n > uint64(p.text.len()) {
		return nil
	}
	return p.text.bytes(int(off), int(n))
}

// Addresses returns the addresses of all symbols of that name.
func (p *Profile) Addresses(name string) []uint64 {
	n := p.NumSymbols()
	nameOf := func(i int) []byte { return p.str(p.symbols.bytes(i*symbolSize, symbolSize)) }
	i := sort.Search(n, func(i int) bool { return string(nameOf(i)) >= name })
	var all []uint64
	for ; i < n && string(nameOf(i)) == name; i++ {
		all = append(all, p.SymbolAt(i).Addr)
	}
	return all
}

// Nearest returns the last symbol that is not behind addr.
func (p *Profile) Nearest(addr uint64) (Symbol, bool) {
	n := p.NumSymbols()
	at := func(i int) int {
		b := p.byAddr.bytes(4*i, 4)
		if b == nil {
			return n
		}
		return int(binary.LittleEndian.Uint32(b))
	}
	i := sort.Search(n, func(i int) bool {
		s := at(i)
		if s >= n {
			return true
		}
		e := p.symbols.bytes(s*symbolSize, symbolSize)
		return e == nil || binary.LittleEndian.Uint64(e[8:]) > addr
	})
	if i == 0 || at(i-1) >= n {
		return Symbol{}, false
	}
	return p.SymbolAt(at(i - 1)), p.failed() == nil
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

func (p *Profile) lookup(key, what string, to any) error {
	n := p.types.len() / typeSize
	keyOf := func(i int) []byte { return p.str(p.types.bytes(i*typeSize, typeSize)) }
	i := sort.Search(n, func(i int) bool { return string(keyOf(i)) >= key })
	var text []byte
	found := i < n && string(keyOf(i)) == key
	if found {
		text = p.str(p.types.bytes(i*typeSize+8, typeSize-8))
	}
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
