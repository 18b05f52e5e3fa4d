package isf

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"iter"
	"slices"
	"sort"
)

// Profile is the symbols and types of one kernel or binary. Addresses are those
// it was linked for: a running kernel adds its KASLR slide.
type Profile struct {
	// Meta is what the file says of itself. Not to be changed.
	Meta Metadata

	names names

	// Symbols, by rising address.
	symbols   []symbolRow
	constData [][]byte // a symbol's constant data; 0 is none
	byName    index

	nodes      []node // 0 is "no type"
	bases      []baseRow
	aggregates []aggregateRow
	members    []memberRow
	enums      []enumRow
	constants  []constantRow

	baseIndex, aggregateIndex, enumIndex index
}

// Metadata is the head of an ISF file.
type Metadata struct {
	Format   string // schema version: "6.2.0"
	Producer Producer
	// Where symbols and types came from: "linux", "mac" or "windows", "" if
	// the file does not say.
	OS      string
	Symbols []Source
	Types   []Source
}

// Producer is the program that made a file.
type Producer struct {
	Name     string
	Version  string
	DateTime string // RFC 3339
}

// Source is a file that symbols or types were taken from.
type Source struct {
	Kind      string // "dwarf", "symtab" or "system-map"
	Name      string
	HashType  string // "sha256"
	HashValue string // in hexadecimal
}

type symbolRow struct {
	address uint64
	name    uint32
	node    uint32
	next    uint32 // the row + 1 of the next symbol of that name; 0: no more
	data    uint32 // in constData
}

type baseRow struct {
	name uint32
	base Base
}

// Symbol is a name for an address.
type Symbol struct {
	Name    string
	Address uint64
	// Type is the zero Type where the profile has none.
	Type Type
	// ConstantData is what is at the address, for the few symbols whose
	// content identifies a kernel. Not to be changed.
	ConstantData []byte
}

func (p *Profile) symbol(row uint32) Symbol {
	s := &p.symbols[row]
	return Symbol{Name: p.names.at(s.name), Address: s.address, Type: Type{p, s.node}, ConstantData: p.constData[s.data]}
}

func (p *Profile) symbolName(row int) string { return p.names.at(p.symbols[row].name) }

// Symbol finds a symbol by its name; of several the one with the lowest
// address. See Symbols for all.
func (p *Profile) Symbol(name string) (Symbol, bool) {
	row := p.byName.find(name, p.symbolName)
	if row < 0 {
		return Symbol{}, false
	}
	return p.symbol(uint32(row)), true
}

// Address is Symbol for those who need the address and an error. A name that
// several symbols share is no error: see Symbols.
func (p *Profile) Address(name string) (uint64, error) {
	row := p.byName.find(name, p.symbolName)
	if row < 0 {
		return 0, &NotFoundError{ErrNoSymbol, name}
	}
	return p.symbols[row].address, nil
}

// Symbols returns all symbols of that name by rising address. A kernel has
// many static functions that share a name.
func (p *Profile) Symbols(name string) []Symbol {
	row := p.byName.find(name, p.symbolName)
	if row < 0 {
		return nil
	}
	all := []Symbol{p.symbol(uint32(row))}
	// next always rises (the cache's reader checks it), so this ends.
	for next := p.symbols[row].next; next != 0; next = p.symbols[next-1].next {
		all = append(all, p.symbol(next-1))
	}
	return all
}

// NumSymbols counts the symbols, each address of a name by itself.
func (p *Profile) NumSymbols() int { return len(p.symbols) }

// AllSymbols yields every symbol by rising address.
func (p *Profile) AllSymbols() iter.Seq[Symbol] {
	return func(yield func(Symbol) bool) {
		for row := range p.symbols {
			if !yield(p.symbol(uint32(row))) {
				return
			}
		}
	}
}

// Nearest returns the last symbol at or before addr, and addr's distance from
// it in bytes. Of several symbols at one address it takes the first. It says
// nothing about whether addr is still in what the symbol names.
func (p *Profile) Nearest(addr uint64) (Symbol, uint64, bool) {
	row := sort.Search(len(p.symbols), func(i int) bool { return p.symbols[i].address > addr })
	if row == 0 {
		return Symbol{}, 0, false
	}
	row--
	for row > 0 && p.symbols[row-1].address == p.symbols[row].address {
		row--
	}
	return p.symbol(uint32(row)), addr - p.symbols[row].address, true
}

// At returns all symbols at exactly that address.
func (p *Profile) At(addr uint64) []Symbol {
	row := sort.Search(len(p.symbols), func(i int) bool { return p.symbols[i].address >= addr })
	var all []Symbol
	for ; row < len(p.symbols) && p.symbols[row].address == addr; row++ {
		all = append(all, p.symbol(uint32(row)))
	}
	return all
}

// After returns the first address above addr that has a symbol: an upper bound
// for the end of what is at addr. It is 0 where there is none.
func (p *Profile) After(addr uint64) uint64 {
	row := sort.Search(len(p.symbols), func(i int) bool { return p.symbols[i].address > addr })
	if row == len(p.symbols) {
		return 0
	}
	return p.symbols[row].address
}

// Base finds a base type.
func (p *Profile) Base(name string) (Base, bool) {
	row := p.baseIndex.find(name, func(i int) string { return p.names.at(p.bases[i].name) })
	if row < 0 {
		return Base{}, false
	}
	return p.bases[row].base, true
}

// Bases yields all base types by name.
func (p *Profile) Bases() iter.Seq2[string, Base] {
	return func(yield func(string, Base) bool) {
		for _, r := range p.bases {
			if !yield(p.names.at(r.name), r.base) {
				return
			}
		}
	}
}

func (p *Profile) structAt(row int) Struct {
	r := &p.aggregates[row]
	return Struct{Name: p.names.at(r.name), Kind: r.kind, Size: r.size, p: p, row: uint32(row)}
}

// Struct finds a struct, union or class by its tag (or the typedef's name where
// it has no tag).
func (p *Profile) Struct(name string) (Struct, bool) {
	row := p.aggregateIndex.find(name, func(i int) string { return p.names.at(p.aggregates[i].name) })
	if row < 0 {
		return Struct{}, false
	}
	return p.structAt(row), true
}

// Structs yields all structs, unions and classes, without the prototypes.
func (p *Profile) Structs() iter.Seq[Struct] {
	return func(yield func(Struct) bool) {
		for row := range p.aggregates {
			if isPrototype(p.names.at(p.aggregates[row].name)) {
				continue
			}
			if !yield(p.structAt(row)) {
				return
			}
		}
	}
}

func (p *Profile) enumAt(row int) Enum {
	r := &p.enums[row]
	return Enum{Name: p.names.at(r.name), Size: r.size, BaseName: p.names.at(r.base), p: p, row: uint32(row)}
}

// Enum finds an enumeration.
func (p *Profile) Enum(name string) (Enum, bool) {
	row := p.enumIndex.find(name, func(i int) string { return p.names.at(p.enums[i].name) })
	if row < 0 {
		return Enum{}, false
	}
	return p.enumAt(row), true
}

// Enums yields all enumerations.
func (p *Profile) Enums() iter.Seq[Enum] {
	return func(yield func(Enum) bool) {
		for row := range p.enums {
			if !yield(p.enumAt(row)) {
				return
			}
		}
	}
}

// The form of prototypes in ISF: see the package's comment.
const (
	prototypeSuffix = "()"
	fieldResult     = "return"
	fieldVariadic   = "..."
)

func isPrototype(name string) bool {
	return len(name) > len(prototypeSuffix) && name[len(name)-len(prototypeSuffix):] == prototypeSuffix
}

// Function returns the prototype of a function. System calls have one under
// "sys_read", beside those of the functions that implement them.
func (p *Profile) Function(name string) (Prototype, bool) {
	s, ok := p.Struct(name + prototypeSuffix)
	if !ok {
		return Prototype{}, false
	}
	f := Prototype{Name: name}
	// In the order of the offsets: another program may have sorted the fields.
	members := slices.SortedStableFunc(s.Members(), func(a, b Member) int { return cmp.Compare(a.Offset, b.Offset) })
	for _, m := range members {
		switch m.Name {
		case fieldResult:
			f.Result = m.Type
		case fieldVariadic:
			f.Variadic = true
		default:
			f.Args = append(f.Args, Argument{m.Name, m.Type})
		}
	}
	return f, true
}

// Functions yields the names of all functions with a prototype.
func (p *Profile) Functions() iter.Seq[string] {
	return func(yield func(string) bool) {
		for _, r := range p.aggregates {
			if name := p.names.at(r.name); isPrototype(name) {
				if !yield(name[:len(name)-len(prototypeSuffix)]) {
					return
				}
			}
		}
	}
}

// Identity is what tells one kernel from another, and where to look for it in a
// running guest.
type Identity struct {
	Banner  string // "Linux version …", without the newline at its end; "" if unknown
	BuildID string // in hexadecimal; "" if unknown
	// BannerAt is the link-time address of linux_banner.
	BannerAt uint64
}

// Names of the symbols whose content identifies a kernel.
const (
	SymbolBanner = "linux_banner"
	SymbolNotes  = "__start_notes"
)

// Identity says which kernel the profile is of.
func (p *Profile) Identity() Identity {
	var id Identity
	if s, ok := p.Symbol(SymbolBanner); ok {
		id.BannerAt = s.Address
		id.Banner = CleanBanner(s.ConstantData)
	}
	if s, ok := p.Symbol(SymbolNotes); ok {
		id.BuildID = fmt.Sprintf("%x", buildID(s.ConstantData))
	}
	return id
}

// CleanBanner takes a banner as it is in memory: what is before the first NUL
// or newline, at most 4096 bytes.
func CleanBanner(b []byte) string {
	if i := bytes.IndexAny(b, "\x00\n"); i >= 0 {
		b = b[:i]
	}
	return string(b[:min(len(b), 4096)])
}

// buildID finds the GNU build id in ELF notes (gABI, "Note Section"): name size,
// descriptor size, type (3: build id), then both padded to 4 bytes.
func buildID(notes []byte) []byte {
	for len(notes) >= 12 {
		name, desc, kind := binary.LittleEndian.Uint32(notes), binary.LittleEndian.Uint32(notes[4:]), binary.LittleEndian.Uint32(notes[8:])
		notes = notes[12:]
		if uint64(name) > uint64(len(notes)) {
			return nil
		}
		owner := notes[:name]
		notes = notes[min(len(notes), int(name+3)&^3):]
		if uint64(desc) > uint64(len(notes)) {
			return nil
		}
		if kind == 3 && string(owner) == "GNU\x00" && desc <= 64 {
			return notes[:desc]
		}
		notes = notes[min(len(notes), int(desc+3)&^3):]
	}
	return nil
}
