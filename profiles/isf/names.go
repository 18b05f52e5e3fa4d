package isf

import (
	"errors"
	"fmt"
)

// names keeps all strings of a profile in one piece: a string is its number.
// A profile has some 500,000 of them; as Go strings they would cost the
// garbage collector more than all the rest.
type names struct {
	text string
	ends []uint32 // string n is text[ends[n-1]:ends[n]]
}

func (n *names) at(i uint32) string {
	if i == 0 {
		return n.text[:n.ends[0]]
	}
	return n.text[n.ends[i-1]:n.ends[i]]
}

func (n *names) len() int { return len(n.ends) }

const maxNames = 1 << 26 // bytes of text, and so names as well, are below 2^31

// namesBuilder interns strings. Number 0 is the empty string.
type namesBuilder struct {
	text  []byte
	ends  []uint32
	known map[string]uint32
	err   error
}

func newNamesBuilder() *namesBuilder {
	return &namesBuilder{known: map[string]uint32{"": 0}, ends: []uint32{0}}
}

var errTooMuchText = errors.New("more names than any kernel has")

func (b *namesBuilder) add(s []byte) uint32 {
	if n, ok := b.known[string(s)]; ok {
		return n
	}
	return b.append(string(s))
}

func (b *namesBuilder) addString(s string) uint32 {
	if n, ok := b.known[s]; ok {
		return n
	}
	return b.append(s)
}

func (b *namesBuilder) append(s string) uint32 {
	if len(b.ends) >= maxNames || len(b.text)+len(s) >= 1<<31 {
		b.err = errTooMuchText
		return 0
	}
	n := uint32(len(b.ends))
	b.text = append(b.text, s...)
	b.ends = append(b.ends, uint32(len(b.text)))
	b.known[s] = n
	return n
}

func (b *namesBuilder) done() names { return names{text: string(b.text), ends: b.ends} }

// index finds the row of a table by the row's name: an open hash table of row
// numbers + 1, 0 for an empty slot, at most half full. Built once and kept in
// the cache file, as building it would take most of the time of opening one.
type index struct {
	slots []uint32 // a power of two
}

// hash is FNV-1a with a final mix; its values are part of the cache's format.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := 0; i < len(s); i++ {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h ^ h>>32
}

// newIndex indexes rows 0 to n-1. Of rows with the same name the first is
// found; dup is told of each other one and the row before it of that name.
func newIndex(n int, name func(row int) string, dup func(row, before int)) index {
	size := 4
	for size < 2*n {
		size *= 2
	}
	x := index{slots: make([]uint32, size)}
	last := map[int]int{} // first row of a name: last row of that name
	for row := range n {
		s := name(row)
		slot := hash(s) & uint64(size-1)
		for ; x.slots[slot] != 0; slot = (slot + 1) & uint64(size-1) {
			first := int(x.slots[slot] - 1)
			if name(first) != s {
				continue
			}
			before, ok := last[first]
			if !ok {
				before = first
			}
			if dup != nil {
				dup(row, before)
			}
			last[first] = row
			break
		}
		if x.slots[slot] == 0 {
			x.slots[slot] = uint32(row + 1)
		}
	}
	return x
}

// find returns the row with that name, or -1. It always ends, whatever the
// slots hold: they may come from a file.
func (x *index) find(s string, name func(row int) string) int {
	mask := uint64(len(x.slots) - 1)
	slot := hash(s) & mask
	for range x.slots {
		row := x.slots[slot]
		if row == 0 {
			return -1
		}
		if name(int(row-1)) == s {
			return int(row - 1)
		}
		slot = (slot + 1) & mask
	}
	return -1
}

// check says whether the slots fit a table of n rows.
func (x *index) check(n int) error {
	size := len(x.slots)
	if size < 4 || size&(size-1) != 0 {
		return fmt.Errorf("an index of %d slots", size)
	}
	for _, row := range x.slots {
		if int64(row) > int64(n) {
			return fmt.Errorf("an index of %d rows points to row %d", n, row)
		}
	}
	return nil
}
