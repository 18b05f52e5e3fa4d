package isf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"runtime"
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

// Profile is a read-only profile. It may be used from several goroutines. Its parts may
// be in memory that goes with it (openSealed): whatever reads them keeps it alive.
type Profile struct {
	meta    Meta
	symbols []byte
	byAddr  []byte
	types   []byte
	text    []byte
}

// Profile makes a profile of what was collected.
func (b *Builder) Profile() (*Profile, error) {
	data, err := b.compact()
	if err != nil {
		return nil, err
	}
	return open(data)
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
func open(data []byte) (*Profile, error) {
	if !bytes.HasPrefix(data, magic) || len(data) < headerSize {
		return nil, fmt.Errorf("this is no hprobe profile")
	}
	var parts [4][]byte
	rest := data[headerSize:]
	for i := range parts {
		n := binary.LittleEndian.Uint64(data[len(magic)+8*i:])
		if n > uint64(len(rest)) {
			return nil, fmt.Errorf("the profile is cut off: part %d has %d bytes of %d", i, len(rest), n)
		}
		parts[i], rest = rest[:n:n], rest[n:]
	}
	p := &Profile{symbols: parts[0], byAddr: parts[1], types: parts[2], text: parts[3]}
	if len(p.byAddr)/4 != len(p.symbols)/symbolSize {
		return nil, fmt.Errorf("the profile is damaged: %d symbols, %d of them by address", len(p.symbols)/symbolSize, len(p.byAddr)/4)
	}
	if err := p.lookup(keyMeta, "the profile's head", &p.meta); err != nil {
		return nil, err
	}
	return p, nil
}

// WriteCompact writes the compact form.
func (p *Profile) WriteCompact(w io.Writer) error {
	defer runtime.KeepAlive(p)
	head := slices.Clone(magic)
	for _, n := range []int{len(p.symbols), len(p.byAddr), len(p.types), len(p.text), 0} {
		head = binary.LittleEndian.AppendUint64(head, uint64(n))
	}
	for _, part := range [][]byte{head, p.symbols, p.byAddr, p.types, p.text} {
		if _, err := w.Write(part); err != nil {
			return fmt.Errorf("write profile: %w", err)
		}
	}
	return nil
}

// Meta says of which kernel the profile is.
func (p *Profile) Meta() Meta { return p.meta }

// NumSymbols is how many symbols there are.
func (p *Profile) NumSymbols() int { return len(p.symbols) / symbolSize }

// SymbolAt returns symbol i, in the order of names.
func (p *Profile) SymbolAt(i int) Symbol {
	defer runtime.KeepAlive(p)
	e := p.symbols[i*symbolSize:]
	return Symbol{Name: string(p.str(e)), Addr: binary.LittleEndian.Uint64(e[8:])}
}

// str returns the text that an entry points to, or nothing where it points out.
func (p *Profile) str(e []byte) []byte {
	off, n := uint64(binary.LittleEndian.Uint32(e)), uint64(binary.LittleEndian.Uint32(e[4:]))
	if off+n > uint64(len(p.text)) {
		return nil
	}
	return p.text[off : off+n]
}

// Addresses returns the addresses of all symbols of that name.
func (p *Profile) Addresses(name string) []uint64 {
	defer runtime.KeepAlive(p)
	n := p.NumSymbols()
	i := sort.Search(n, func(i int) bool { return string(p.str(p.symbols[i*symbolSize:])) >= name })
	var all []uint64
	for ; i < n && string(p.str(p.symbols[i*symbolSize:])) == name; i++ {
		all = append(all, binary.LittleEndian.Uint64(p.symbols[i*symbolSize+8:]))
	}
	return all
}

// Nearest returns the last symbol that is not behind addr.
func (p *Profile) Nearest(addr uint64) (Symbol, bool) {
	defer runtime.KeepAlive(p)
	n := p.NumSymbols()
	at := func(i int) int { return int(binary.LittleEndian.Uint32(p.byAddr[4*i:])) }
	i := sort.Search(n, func(i int) bool {
		s := at(i)
		return s >= n || binary.LittleEndian.Uint64(p.symbols[s*symbolSize+8:]) > addr
	})
	if i == 0 || at(i-1) >= n {
		return Symbol{}, false
	}
	return p.SymbolAt(at(i - 1)), true
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
	defer runtime.KeepAlive(p)
	n := len(p.types) / typeSize
	i := sort.Search(n, func(i int) bool { return string(p.str(p.types[i*typeSize:])) >= key })
	if i == n || string(p.str(p.types[i*typeSize:])) != key {
		return fmt.Errorf("%s: %w", what, ErrNotFound)
	}
	if err := json.Unmarshal(p.str(p.types[i*typeSize+8:]), to); err != nil {
		return fmt.Errorf("%s: the profile is damaged: %w", what, err)
	}
	return nil
}

// each calls f with all entries of a kind: for writing ISF.
func (p *Profile) each(kind string, f func(name string, j json.RawMessage) error) error {
	defer runtime.KeepAlive(p)
	for i := range len(p.types) / typeSize {
		e := p.types[i*typeSize:]
		if key := p.str(e); len(key) > 0 && string(key[:1]) == kind {
			if err := f(string(key[1:]), p.str(e[8:])); err != nil {
				return err
			}
		}
	}
	return nil
}
