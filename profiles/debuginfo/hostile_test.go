package debuginfo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
)

var le = binary.LittleEndian

// abbrevs of hostile files: a unit; a function that says where what is beside it begins, and
// one that does not; a pointer, a struct and a member that say of which type.
var abbrevs = []byte{
	1, 0x11, 1, 0x10, 0x17, 0, 0, // DW_AT_stmt_list
	2, 0x2e, 1, 0x01, 0x13, 0, 0, // DW_AT_sibling
	3, 0x2e, 1, 0, 0,
	4, 0x0f, 0, 0x49, 0x13, 0, 0, // DW_AT_type
	5, 0x13, 1, 0x03, 0x08, 0x0b, 0x0b, 0, 0, // DW_AT_name, DW_AT_byte_size
	7, 0x2e, 0, 0x03, 0x08, 0x11, 0x01, 0x36, 0x0b, 0, 0, // DW_AT_name, DW_AT_low_pc, DW_AT_calling_convention
	6, 0x0d, 0, 0x03, 0x08, 0x49, 0x13, 0x38, 0x0b, 0, 0, // DW_AT_name, DW_AT_type, DW_AT_data_member_location
	0,
}

// headLen is where the unit's own entry begins, and first the one behind it.
const (
	headLen = 11
	first   = headLen + 5
)

// unit is one of DWARF 4, with its table of lines at the beginning.
func unit(entries []byte) []byte {
	b := le.AppendUint32(nil, uint32(headLen-4+5+len(entries)))
	b = append(b, 4, 0, 0, 0, 0, 0, 8)
	return append(append(b, 1, 0, 0, 0, 0), entries...)
}

func hostile(t *testing.T, sections map[string][]byte) *Info {
	t.Helper()
	if sections["abbrev"] == nil {
		sections["abbrev"] = abbrevs
	}
	i, err := fromSections(sections)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func ref(at int) []byte { return le.AppendUint32(nil, uint32(at)) }

// TestHostileWalks: what leads backwards, or as deep as it likes, comes to an end.
func TestHostileWalks(t *testing.T) {
	for name, entries := range map[string][]byte{
		"backwards": append(append([]byte{2}, ref(first)...), 0, 0),
		"round":     append(append(append([]byte{3, 2}, ref(first+1)...), 2), append(ref(first), 0, 0, 0)...),
		"deep":      bytes.Repeat([]byte{3}, 8<<20),
	} {
		i := hostile(t, map[string][]byte{"info": unit(entries)})
		if _, err := i.Functions("f", 0, func(uint64) bool { return true }); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		n := 0
		for w := i.Walk(); ; n++ {
			e, err := w.Next()
			if err == nil && e != nil && e.Tag.String() == "Subprogram" {
				err = w.Skip(e)
			}
			if err != nil || e == nil {
				break
			}
		}
		if n > 4 {
			t.Errorf("%s: %d steps", name, n)
		}
	}
	i := hostile(t, map[string][]byte{"info": unit(bytes.Repeat([]byte{3}, 1000))})
	i.left = 500
	if _, err := i.Functions("f", 0, func(uint64) bool { return true }); !errors.Is(err, ErrTooMuch) {
		t.Error(err)
	}
}

// TestHostileTypes: a million pointers that lead to the next, and structs that do.
func TestHostileTypes(t *testing.T) {
	const many = 1_000_000
	var pointers, structs []byte
	for n := range many {
		pointers = append(append(pointers, 4), ref(first+5*(n+1))...)
	}
	i := hostile(t, map[string][]byte{"info": unit(pointers)})
	if of, err := NewConverter(i, isf.NewBuilder(), true).At(first); err != nil || of.Kind != isf.Pointer {
		t.Errorf("%v, %v", of.Kind, err)
	}
	const size = 3 + 7 + 1
	for n := range many {
		structs = append(structs, 5, 0, 8, 6, 0)
		structs = append(append(structs, ref(first+(size)*(n+1))...), 0, 0)
	}
	out := isf.NewBuilder()
	c := NewConverter(hostile(t, map[string][]byte{"info": unit(structs)}), out, true)
	if of, err := c.At(first); err != nil || of.Kind != isf.Struct {
		t.Fatalf("%v, %v", of, err)
	}
	if all, err := c.Members(100_000); all || err != nil || len(out.Users) == 0 || len(out.Users) > 2000 {
		t.Errorf("%t, %v: %d structs", all, err, len(out.Users))
	}
}

// TestHostileSizes: what claims to be larger than it may be is refused before memory is
// taken for it.
func TestHostileSizes(t *testing.T) {
	wide := []byte{1, 0x11, 0}
	for range maxAttributes + 1 {
		wide = append(wide, 0x03, 0x19)
	}
	for name, c := range map[string]struct {
		sections map[string][]byte
		want     error
	}{
		"attributes":  {map[string][]byte{"info": unit(nil), "abbrev": append(wide, 0, 0, 0)}, ErrTooMuch},
		"units":       {map[string][]byte{"info": bytes.Repeat(unit(nil), maxUnits+1), "abbrev": abbrevs}, ErrTooMuch},
		"a name":      {map[string][]byte{"info": unit(nil), "abbrev": abbrevs, "str": bytes.Repeat([]byte("a"), maxString+2)}, ErrTooMuch},
		"no abbrevs":  {map[string][]byte{"info": append(unit(nil)[:6:6], 0xff, 0xff, 0, 0, 8, 0, 0, 0, 0, 0)}, errDamaged},
		"no DWARF":    {nil, ErrNone},
		"a cut unit":  {map[string][]byte{"info": {1, 0, 0, 0}, "abbrev": abbrevs}, errDamaged},
		"only a head": {map[string][]byte{"info": {0xff, 0xff, 0xff, 0xff, 1}, "abbrev": abbrevs}, errDamaged},
	} {
		if _, err := fromSections(c.sections); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	head := func(version byte) []byte { // of a table of lines, up to its lists
		b := []byte{0xff, 0xff, 0, 0, version, 0}
		if version >= 5 {
			b = append(b, 8, 0)
		}
		return append(b, 0xff, 0, 0, 0, 1, 1, 1, 0xfb, 14, 1)
	}
	huge := binary.AppendUvarint([]byte{1, 1, 0x08}, 1<<40)
	long := append(bytes.Repeat([]byte("a"), 1<<20), 0)
	for name, lines := range map[string][]byte{
		"2^40 folders":             append(head(5), huge...),
		"folders of nothing":       append(head(5), binary.AppendUvarint([]byte{0}, 1<<20)...),
		"nothing":                  {},
		"many files of one folder": append(append(append(head(4), long...), 0), append(bytes.Repeat([]byte{'a', 0, 1, 0, 0}, 1000), 0)...),
	} {
		i := hostile(t, map[string][]byte{"info": unit([]byte{0}), "line": lines})
		if _, err := i.Line("a.c", 1, func(uint64) bool { return true }); !errors.Is(err, errDamaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestCalls: LLVM says of a function whose arguments it has changed that no debugger should
// call it. No language is none that calls like C.
func TestCalls(t *testing.T) {
	entry := append(le.AppendUint64([]byte{7, 'f', 0}, 0x1000), 3)
	info := unit(entry)
	for language, want := range map[byte]Calls{0x0c: CallsChanged, 0x21: CallsChanged, 0x16: CallsOther} {
		withLanguage := append([]byte{1, 0x11, 1, 0x10, 0x17, 0x13, 0x0b, 0, 0}, abbrevs[7:]...)
		b := append(append(append([]byte{}, info[:headLen+5]...), language), info[headLen+5:]...)
		le.PutUint32(b, uint32(len(b)-4))
		found, err := hostile(t, map[string][]byte{"info": b, "abbrev": withLanguage}).Functions("f", 0, func(at uint64) bool { return at == 0x1000 })
		if err != nil || len(found) != 1 || found[0].Calls != want || found[0].Addr != 0x1000 {
			t.Errorf("%#x: %+v, %v", language, found, err)
		}
	}
}
