package build

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/profiles/isf"
)

// The kernel's own symbol table (kernel/kallsyms.c, scripts/kallsyms.c): names
// packed by a table of 256 tokens, a marker for each 256 names, and addresses as
// 32-bit offsets. It has no header. The order of its parts changed in Linux 6.4;
// in Linux 7 the parts are aligned to 4 bytes instead of 8, and each offset counts
// from its own place instead of from relative_base:
//
//	before: offsets, relative_base, num_syms, names, markers, (seqs_of_names,) token_table, token_index
//	6.4:    num_syms, names, markers, token_table, token_index, offsets, relative_base, (seqs_of_names)
//	7:      num_syms, names, markers, token_table, token_index, offsets, seqs_of_names
//
// seqs_of_names came with Linux 6.2, and with updates of 6.1.
type table struct {
	b      []byte // the section, or what stands for it
	addr   uint64 // of its first byte
	step   int    // what parts are aligned to, in bytes
	tokens [256][]byte
	index  int // where token_table is …
	after  int // … and the end of token_index
	numAt  int // where num_syms is …
	names  int // … and the names
	num    int // symbols
	work   *int
}

const (
	maxSymbols = 1 << 21
	perMarker  = 256
	maxName    = 512       // KSYM_NAME_LEN, in bytes
	allNames   = 128 << 20 // bytes: four times what the largest kernels have
	// maxWork bounds the search, in tokens, names and places for num_syms looked at: a
	// hostile image may have many places that look like a table. Kernels take a tenth.
	maxWork = 1 << 26
)

// errNoKallsyms says that a section has no such table.
var errNoKallsyms = errors.New("no kallsyms in it: is it a Linux kernel with CONFIG_KALLSYMS?")

var errTooMuchWork = errors.New("kallsyms: too many places look like the table and are none")

// kallsyms finds the table in the pieces that may have it, and decodes it.
func (m *memory) kallsyms(ctx context.Context) ([]isf.Symbol, error) {
	work := maxWork
	var unread error
	for _, p := range m.pieces {
		if !p.symbols {
			continue
		}
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		b, err := m.read(p)
		if err != nil {
			unread = cmp.Or(unread, err)
			continue
		}
		all, err := decodeKallsyms(b, p.addr, &work)
		if errors.Is(err, errNoKallsyms) {
			continue
		}
		return all, err
	}
	if unread != nil {
		return nil, fmt.Errorf("%w (not all could be read: %w)", errNoKallsyms, unread)
	}
	return nil, errNoKallsyms
}

// decodeKallsyms finds the table in a piece of a kernel and decodes it.
func decodeKallsyms(b []byte, addr uint64, work *int) ([]isf.Symbol, error) {
	// The tokens of the digits, which no kernel does without.
	digits := []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")
	for from := 0; ; {
		at := bytes.Index(b[from:], digits)
		if at < 0 {
			return nil, errNoKallsyms
		}
		at += from
		from = at + 1
		for _, step := range []int{8, 4} {
			t := &table{b: b, addr: addr, step: step, work: work}
			if *work -= 256; *work < 0 {
				return nil, errTooMuchWork
			}
			if t.findTokens(at) && t.findNames() {
				return t.symbols()
			}
		}
	}
}

// findTokens reads the 256 tokens around the one of '0'. What is before the
// first one need not end with a NUL (seqs_of_names does not): it is the one from
// which on the index fits.
func (t *table) findTokens(zero int) bool {
	at := zero
	for range '0' - 1 { // back to the second token: each ends with a NUL
		end := at - 1
		if end < 0 || t.b[end] != 0 {
			return false
		}
		at = bytes.LastIndexByte(t.b[max(0, end-64):end], 0) + 1 + max(0, end-64)
	}
	end := at - 1
	if end < 0 || t.b[end] != 0 {
		return false
	}
	for first := end; first >= max(0, end-64) && *t.work >= 0; first-- {
		if first < end && t.b[first] == 0 {
			return false
		}
		if t.align(first) == first && t.readTokens(first) {
			return true
		}
	}
	return false
}

// readTokens reads the 256 tokens from an offset on, and checks the index
// behind them.
func (t *table) readTokens(at int) bool {
	t.index = at
	*t.work -= len(t.tokens)
	offsets := make([]int, 256)
	for i := range t.tokens {
		end := bytes.IndexByte(t.b[at:min(len(t.b), at+64)], 0)
		if end < 0 {
			return false
		}
		offsets[i] = at - t.index
		t.tokens[i] = t.b[at : at+end]
		at += end + 1
	}
	at = t.align(at)
	if at+512 > len(t.b) {
		return false
	}
	for i, want := range offsets {
		if int(le.Uint16(t.b[at+2*i:])) != want {
			return false
		}
	}
	t.after = t.align(at + 512)
	return true
}

// align rounds an offset up to where the next part begins.
func (t *table) align(at int) int {
	mask := uint64(t.step - 1)
	return int((t.addr+uint64(at)+mask)&^mask - t.addr)
}

// How far before the tokens the names may begin, in bytes, and how many symbols
// a kernel has at least.
const (
	maxNames   = 16 << 20
	minSymbols = 1000
)

// findNames finds num_syms and the names, somewhere before the tokens: at a
// number that as many names follow, and then the markers that fit them.
func (t *table) findNames() bool {
	for at := t.align(t.index-8) - 8; at >= 0 && at > t.index-maxNames && *t.work >= 0; at -= t.step {
		*t.work--
		n := le.Uint32(t.b[at:])
		if n < minSymbols || n > maxSymbols || t.step == 8 && le.Uint32(t.b[at+4:]) != 0 {
			continue
		}
		t.numAt, t.num, t.names = at, int(n), t.align(at+4)
		var first, last int // offsets of name 256 and of the last one with a marker
		end, ok := t.walk(func(i, at int, _ []byte) {
			if i == perMarker {
				first = at
			}
			if i%perMarker == 0 {
				last = at
			}
		})
		if ok && t.marked(t.align(end), first, last) {
			return true
		}
	}
	return false
}

// marked checks that the markers are at an offset.
func (t *table) marked(at, first, last int) bool {
	n := (t.num + perMarker - 1) / perMarker
	if at+4*n > len(t.b) {
		return false
	}
	marker := func(i int) int { return int(le.Uint32(t.b[at+4*i:])) }
	return marker(0) == 0 && marker(1) == first && marker(n-1) == last
}

// walk goes through all names and hands each to f: its number, its offset in
// the names, and its packed bytes. It returns where they end.
func (t *table) walk(f func(i, at int, packed []byte)) (end int, ok bool) {
	at := t.names
	for i := range t.num {
		if *t.work--; *t.work < 0 || at+2 > t.index {
			return 0, false
		}
		start, n := at, int(t.b[at])
		at++
		if n&0x80 != 0 { // since 6.1: two bytes for a long one
			n = n&0x7f | int(t.b[at])<<7
			at++
		}
		if n == 0 || at+n > t.index {
			return 0, false
		}
		f(i, start-t.names, t.b[at:at+n])
		at += n
	}
	return at, true
}

func (t *table) symbols() ([]isf.Symbol, error) {
	addrs, err := t.addresses()
	if err != nil {
		return nil, err
	}
	all := make([]isf.Symbol, 0, t.num)
	var name []byte
	total, longest := 0, 0
	_, ok := t.walk(func(i, _ int, packed []byte) {
		name = name[:0]
		for _, token := range packed {
			name = append(name, t.tokens[token]...)
		}
		total, longest = total+len(name), max(longest, len(name))
		if len(name) > 1 && longest <= maxName && total <= allNames { // the first letter is the type, as nm has it
			all = append(all, isf.Symbol{Name: string(name[1:]), Addr: addrs[i]})
		}
	})
	switch {
	case longest > maxName || total > allNames:
		return nil, fmt.Errorf("kallsyms: its %d names have %d bytes, one of them %d: more than a kernel's", t.num, total, longest)
	case !ok || len(all) == 0:
		return nil, errNoKallsyms
	}
	return all, nil
}

// kernelText is where x86-64 Linux is linked to: an address from there on is
// what tells the right table of offsets.
const kernelText = 0xffffffff80000000

// addresses reads the offsets, on whichever side of the names they are.
func (t *table) addresses() ([]uint64, error) {
	size := t.align(t.after+4*t.num) - t.after
	for _, at := range []struct{ offsets, base int }{
		{t.after, t.after + size},                     // since 6.4
		{t.numAt - 8 - roundUp(4*t.num), t.numAt - 8}, // before
	} {
		if at.offsets < 0 || at.base < 0 || at.base+8 > len(t.b) {
			continue
		}
		base := le.Uint64(t.b[at.base:])
		if addrs, ok := relative(t.b[at.offsets:], t.num, base); ok {
			return addrs, nil
		}
	}
	if addrs, ok := t.placeRelative(); ok { // since 7
		return addrs, nil
	}
	return nil, fmt.Errorf("kallsyms: the addresses of its %d names are not where they are in the kernels that hprobe knows", t.num)
}

// placeRelative reads offsets that count from their own addresses.
func (t *table) placeRelative() ([]uint64, bool) {
	if t.after+4*t.num > len(t.b) {
		return nil, false
	}
	addrs := make([]uint64, t.num)
	for i := range addrs {
		at := t.after + 4*i
		addrs[i] = t.addr + uint64(at) + uint64(int64(int32(le.Uint32(t.b[at:]))))
	}
	return addrs, addrs[0] >= kernelText && slices.IsSorted(addrs)
}

func roundUp(n int) int { return (n + 7) &^ 7 }

// relative turns offsets into addresses. With CONFIG_KALLSYMS_ABSOLUTE_PERCPU
// (x86-64 until Linux 6.14) an offset that is not negative is an address of its
// own, of a per-CPU variable.
func relative(b []byte, num int, base uint64) ([]uint64, bool) {
	if base < kernelText {
		return nil, false
	}
	negative := 0
	for i := range num {
		if int32(le.Uint32(b[4*i:])) < 0 {
			negative++
		}
	}
	percpu := negative > num/2
	addrs := make([]uint64, num)
	for i := range addrs {
		off := int32(le.Uint32(b[4*i:]))
		switch {
		case !percpu:
			addrs[i] = base + uint64(uint32(off))
		case off < 0:
			addrs[i] = base + uint64(-1-int64(off))
		default:
			addrs[i] = uint64(uint32(off))
		}
	}
	// The table is sorted by address.
	return addrs, slices.IsSorted(addrs)
}
