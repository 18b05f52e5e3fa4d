package debuginfo

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// What debug/dwarf takes memory for before it has read it is looked at here first: units,
// attributes of an entry, tables of lines.
const (
	maxUnits      = 1 << 20  // files that were compiled
	maxAttributes = 256      // of one entry; compilers have some twenty
	maxString     = 1 << 20  // bytes: names of C++ may be long
	maxPaths      = 64 << 20 // bytes of all paths in a table of lines
)

// errDamaged is what no compiler writes.
var errDamaged = errors.New("the debug information is damaged")

// checkUnits looks at the heads of units (DWARF 5, 7.5.1), and at their abbreviations.
func (i *Info) checkUnits(info, abbrev []byte) error {
	for all := i.strings; len(all) > 0; {
		end := bytes.IndexByte(all, 0)
		if end < 0 {
			end = len(all) - 1
		}
		if end > maxString {
			return ErrTooMuch
		}
		all = all[end+1:]
	}
	seen := map[uint64]bool{}
	for n := 0; len(info) >= 4; n++ {
		b := cursor{rest: info}
		length := b.length()
		if unit := b.rest; length <= uint64(len(unit)) {
			info = unit[length:]
		} else {
			info = nil
		}
		if length == 0 { // what fills a gap
			continue
		}
		if n >= maxUnits {
			return ErrTooMuch
		}
		if b.word(2) >= 5 {
			b.skip(2)
		}
		at := b.word(b.wide())
		if b.failed || at > uint64(len(abbrev)) {
			return errDamaged
		}
		if !seen[at] {
			seen[at] = true
			if err := i.checkAbbrevs(abbrev[at:]); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkAbbrevs looks at the abbreviations of a unit (7.5.3).
func (i *Info) checkAbbrevs(table []byte) error {
	const implicit = 0x21 // a value that stands here, DW_FORM_implicit_const
	b := cursor{rest: table}
	for b.uleb() != 0 && !b.failed {
		b.uleb() // the tag
		b.skip(1)
		for n := 0; ; n++ {
			name, form := b.uleb(), b.uleb()
			if form == implicit {
				b.uleb()
			}
			if b.failed || name == 0 && form == 0 {
				break
			}
			if n >= maxAttributes {
				return ErrTooMuch
			}
		}
	}
	return i.spend((len(table) - len(b.rest)) / 8)
}

// checkTable looks at the head of a table of lines (6.2.4), and at how much its paths take
// when each is put together of a folder's and a file's name.
func (i *Info) checkTable(at int64, folder string) error {
	if at < 0 || at >= int64(len(i.lines)) {
		return fmt.Errorf("a table of lines at %#x: %w", at, errDamaged)
	}
	b := cursor{rest: i.lines[at:]}
	b.length()
	version := b.word(2)
	if version >= 5 {
		b.skip(2) // sizes of an address and of a segment's selector
	}
	b.skip(b.wide()) // the head's own length
	b.skip(4)        // the shortest instruction, whether rows are statements, the lines of short ones
	if version >= 4 {
		b.skip(1) // operations in one instruction
	}
	n := b.word(1)        // operations, and
	b.skip(max(n, 1) - 1) // how many operands each has
	count, longest := b.paths(version, i)
	if longest += len(folder); b.failed || count*longest > maxPaths {
		return fmt.Errorf("a table of lines at %#x: %w", at, errDamaged)
	}
	return i.spend(count)
}

// paths passes by the lists of folders and files.
func (b *cursor) paths(version uint64, i *Info) (count, longest int) {
	for list := range 2 {
		if version < 5 {
			for !b.failed {
				n := textLen(b.rest, 0)
				b.skip(uint64(n) + 1)
				if n == 0 {
					break
				}
				if list == 1 { // its folder, time and size
					b.uleb()
					b.uleb()
					b.uleb()
				}
				count, longest = count+1, max(longest, n)
			}
			continue
		}
		var forms []uint64
		for range b.word(1) {
			b.uleb()
			forms = append(forms, b.uleb())
		}
		entries := b.uleb()
		if entries > uint64(len(b.rest)) || len(forms) == 0 && entries > 0 {
			b.failed = true
		}
		for n := uint64(0); n < entries && !b.failed; n++ {
			for _, f := range forms {
				longest = max(longest, b.form(f, i))
			}
			count++
		}
	}
	return count, longest
}

// cursor reads what stands before what debug/dwarf reads.
type cursor struct {
	rest   []byte
	wide64 bool
	failed bool
}

// length is what a unit or table begins with: how long it is, behind that.
func (b *cursor) length() uint64 {
	n := b.word(4)
	if b.wide64 = n == 0xffffffff; b.wide64 {
		n = b.word(8)
	}
	return n
}

// wide is how many bytes an offset in a section takes.
func (b *cursor) wide() uint64 {
	if b.wide64 {
		return 8
	}
	return 4
}

func (b *cursor) skip(n uint64) {
	if n > uint64(len(b.rest)) {
		b.failed, b.rest = true, nil
		return
	}
	b.rest = b.rest[n:]
}

func (b *cursor) word(n uint64) uint64 {
	var w [8]byte
	copy(w[:n], b.rest)
	b.skip(n)
	return binary.LittleEndian.Uint64(w[:])
}

func (b *cursor) uleb() uint64 {
	v, n := binary.Uvarint(b.rest)
	if n <= 0 {
		b.failed, b.rest = true, nil
		return 0
	}
	b.rest = b.rest[n:]
	return v
}

// Forms of an entry of the lists (DWARF 5, 7.5.6).
const (
	formBlock    = 0x09
	formData1    = 0x0b
	formData2    = 0x05
	formData4    = 0x06
	formData8    = 0x07
	formData16   = 0x1e
	formString   = 0x08
	formStrp     = 0x0e
	formUdata    = 0x0f
	formLineStrp = 0x1f
)

// form passes by a value, and says how long a text it is.
func (b *cursor) form(form uint64, i *Info) int {
	switch form {
	case formString:
		n := textLen(b.rest, 0)
		b.skip(uint64(n) + 1)
		return n
	case formStrp:
		return textLen(i.strings, b.word(b.wide()))
	case formLineStrp:
		return textLen(i.linePaths, b.word(b.wide()))
	case formUdata:
		b.uleb()
	case formBlock:
		b.skip(b.uleb())
	case formData1:
		b.skip(1)
	case formData2:
		b.skip(2)
	case formData4:
		b.skip(4)
	case formData8:
		b.skip(8)
	case formData16:
		b.skip(16)
	default:
		b.failed = true
	}
	return 0
}

func textLen(section []byte, at uint64) int {
	section = section[min(at, uint64(len(section))):]
	if n := bytes.IndexByte(section, 0); n >= 0 {
		return n
	}
	return len(section)
}
