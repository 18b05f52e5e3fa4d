package build

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// Kallsyms (kernel/kallsyms.c, scripts/kallsyms.c) is the kernel's own symbol
// table. It has no header and its parts have no fixed place; they are found by
// their shape. What they are, in order of the address:
//
//	Linux 4.20…6.4:  offsets, relative_base, num_syms, names, markers, (seqs_of_names,) token_table, token_index
//	Linux 6.5…:      num_syms, names, markers, token_table, token_index, offsets, relative_base, seqs_of_names
//	Linux 7.x:       as 6.5, but without relative_base, and with the parts aligned to 4 bytes, not 8
//
//	token_table    256 strings, each ended by a NUL: names are written in tokens, one byte each
//	token_index    for each token its offset in token_table, u16
//	names          for each symbol its length in tokens (since 6.1 ULEB128 of 2 bytes from 128 on), then its tokens;
//	               the first character that comes out is the type, as nm has it
//	markers        the offset in names of each 256th symbol, u32
//	offsets        for each symbol an i32: see addresses
type kallsyms struct {
	b    []byte // the segment
	addr uint64 // of its first byte

	tokens     [256][]byte
	tableStart int // offsets in b: of token_table,
	indexEnd   int // the end of token_index,
	numAt      int // num_syms,
	names      int // names
	num        int // symbols
	tries      int // of what looked like markers or num_syms
}

// symbol is one line of what /proc/kallsyms would show.
type symbol struct {
	name string
	kind byte
	addr uint64
}

// The bounds of kallsyms, far above and below what distributions have (150,000
// to 250,000 symbols, 3 MB of names).
const (
	minSymbols    = 1000
	maxSymbols    = 1 << 21
	maxNamesBytes = 64 << 20
	maxTokenBytes = 512 // a token; KSYM_NAME_LEN
	symsPerMarker = 256
	maxTokenTable = 1 << 16 // token_index has 16 bits for it
	maxNameLen    = 2048
	// What looks right and is not: once in a while by chance, often by malice.
	maxTables    = 16
	maxTries     = 4096
	maxNameBytes = 256 // of one name in tokens, on average over 256
)

var errNoKallsyms = errors.New("no kallsyms: the kernel was built without CONFIG_KALLSYMS, or it is no Linux kernel")

// findKallsyms finds and decodes the table in one of the segments.
func findKallsyms(m *Image) ([]symbol, error) {
	var problem error
	for _, s := range m.Segments {
		all, err := decodeKallsyms(s.Data, s.Addr)
		if err == nil {
			return all, nil
		}
		if !errors.Is(err, errNoKallsyms) {
			problem = err
		}
	}
	if problem != nil {
		return nil, problem
	}
	return nil, errNoKallsyms
}

// digits are the tokens of '0' to '9'. A character that occurs in names is its
// own token, and no kernel does without digits.
var digits = []byte("0\x001\x002\x003\x004\x005\x006\x007\x008\x009\x00")

func decodeKallsyms(b []byte, addr uint64) ([]symbol, error) {
	var problem error = errNoKallsyms
	for from, tables := 0, 0; ; {
		at := bytes.Index(b[from:], digits)
		if at < 0 || tables > maxTables {
			return nil, problem
		}
		at += from
		from = at + 1
		k := &kallsyms{b: b, addr: addr}
		if !k.findTokens(at) {
			continue
		}
		tables++
		if !k.findNames() {
			continue
		}
		all, err := k.symbols()
		if err == nil {
			return all, nil
		}
		problem = err
	}
}

// align rounds an offset up, so that its address is a multiple of n.
func (k *kallsyms) align(at, n int) int {
	return at + int(-(k.addr+uint64(at))&uint64(n-1))
}

// findTokens takes the token table that has the token of '0' at an offset, and
// checks it against the index behind it.
func (k *kallsyms) findTokens(zero int) bool {
	end := zero
	for range 256 - '0' {
		n := bytes.IndexByte(k.b[end:min(len(k.b), end+maxTokenBytes)], 0)
		if n < 0 {
			return false
		}
		end += n + 1
	}
	for _, alignment := range []int{8, 4, 2} {
		at := k.align(end, alignment)
		if at+512 > len(k.b) {
			continue
		}
		index := func(i int) int { return int(binary.LittleEndian.Uint16(k.b[at+2*i:])) }
		start := zero - index('0')
		if start < 0 || index(0) != 0 || end-start > maxTokenTable {
			continue
		}
		ok := true
		for i := range k.tokens {
			from, to := start+index(i), end
			if i < 255 {
				to = start + index(i+1)
			}
			if from >= to || to > end || bytes.IndexByte(k.b[from:to], 0) != to-from-1 {
				ok = false
				break
			}
			k.tokens[i] = k.b[from : to-1]
		}
		if ok {
			k.tableStart, k.indexEnd = start, at+512
			return true
		}
	}
	return false
}

// findNames finds the markers, somewhere before the tokens, and from them the
// names, which end there, and num_syms.
func (k *kallsyms) findNames() bool {
	u32 := func(at int) uint32 { return binary.LittleEndian.Uint32(k.b[at:]) }
	for at := k.align(k.tableStart-8, 4); at >= 8 && at > k.tableStart-maxNamesBytes; at -= 4 {
		if u32(at) != 0 {
			continue
		}
		n := 1 // markers: they rise by the bytes of 256 names
		for next := at + 4; next+4 <= k.tableStart; next += 4 {
			if d := int64(u32(next)) - int64(u32(next-4)); d < 2*symsPerMarker || d > maxNameBytes*symsPerMarker {
				break
			}
			n++
		}
		if n < minSymbols/symsPerMarker {
			continue
		}
		if k.tries++; k.tries > maxTries {
			return false
		}
		if k.findNum(at, n, int(u32(at+4*(n-1)))) {
			return true
		}
	}
	return false
}

// findNum finds num_syms and the names before n markers, of which the last one
// is given.
func (k *kallsyms) findNum(markers, n, last int) bool {
	end := markers - last - 2 // at least one name is behind the last marker
	for at := k.align(end-8, 4); at >= 0 && at > end-maxNameBytes*symsPerMarker; at -= 4 {
		num := int(binary.LittleEndian.Uint32(k.b[at:]))
		if (num+symsPerMarker-1)/symsPerMarker != n || num < minSymbols || num > maxSymbols {
			continue
		}
		k.numAt, k.num = at, num
		for _, alignment := range []int{8, 4} {
			k.names = k.align(at+4, alignment)
			if k.tries++; k.tries > maxTries {
				return false
			}
			if k.namesFit(markers) {
				return true
			}
		}
	}
	return false
}

// namesFit goes through all names, and checks the markers behind them.
func (k *kallsyms) namesFit(markers int) bool {
	at := k.names
	for i := range k.num {
		if i%symsPerMarker == 0 {
			want := binary.LittleEndian.Uint32(k.b[markers+4*(i/symsPerMarker):])
			if uint32(at-k.names) != want {
				return false
			}
		}
		start, n := k.name(at)
		if n == 0 {
			return false
		}
		at = start + n
	}
	return at <= markers && markers-at < 8
}

// name returns where the tokens of the name at an offset start, and how many
// they are: 0 where there is no name.
func (k *kallsyms) name(at int) (start, n int) {
	if at+2 > k.tableStart {
		return 0, 0
	}
	n = int(k.b[at])
	start = at + 1
	if n&0x80 != 0 {
		n = n&0x7f | int(k.b[at+1])<<7
		start = at + 2
	}
	if start+n > k.tableStart {
		return 0, 0
	}
	return start, n
}

func (k *kallsyms) symbols() ([]symbol, error) {
	addrs, err := k.addresses()
	if err != nil {
		return nil, err
	}
	all := make([]symbol, 0, k.num)
	name := make([]byte, 0, maxNameLen)
	at := k.names
	for i := range k.num {
		start, n := k.name(at)
		name = name[:0]
		for _, token := range k.b[start : start+n] {
			name = append(name, k.tokens[token]...)
			if len(name) > maxNameLen {
				return nil, fmt.Errorf("kallsyms: symbol %d has a name of more than %d bytes", i, maxNameLen)
			}
		}
		if len(name) < 2 {
			return nil, fmt.Errorf("kallsyms: symbol %d has no name", i)
		}
		all = append(all, symbol{string(name[1:]), name[0], addrs[i]})
		at = start + n
	}
	return all, nil
}

// kernelBase is where x86-64 Linux is linked, and where its slide starts from
// (__START_KERNEL_map).
const kernelBase = 0xffff_ffff_8000_0000

// addresses reads the offsets, wherever they are and whatever they count from.
// The table is sorted by address, and so wrong guesses do not stand.
func (k *kallsyms) addresses() ([]uint64, error) {
	for _, alignment := range []int{8, 4} {
		at := k.align(k.indexEnd, alignment)
		if a := k.fromBase(at, k.align(at+4*k.num, 8)); a != nil { // Linux 6.5…
			return a, nil
		}
		if a := k.fromHere(at); a != nil { // Linux 7.x
			return a, nil
		}
	}
	base := k.align(k.numAt-7, 8) - 8 // Linux 4.20…6.4
	if k.align(k.numAt, 8) == k.numAt {
		base = k.numAt - 8
	}
	for _, n := range []int{4 * k.num, (4*k.num + 7) &^ 7} {
		if a := k.fromBase(base-n, base); a != nil {
			return a, nil
		}
	}
	return nil, fmt.Errorf("kallsyms: the addresses of its %d symbols are not where they are in Linux 4.20 to 7.2", k.num)
}

// fromBase takes offsets from relative_base. Until Linux 6.14 x86-64 has
// CONFIG_KALLSYMS_ABSOLUTE_PERCPU: an offset that is not negative is then the
// address of a per-CPU variable, and a negative one counts down from base - 1.
func (k *kallsyms) fromBase(offsets, base int) []uint64 {
	if offsets < 0 || base < 0 || base+8 > len(k.b) || offsets+4*k.num > len(k.b) {
		return nil
	}
	from := binary.LittleEndian.Uint64(k.b[base:])
	if from < kernelBase {
		return nil
	}
	// The last symbol is far behind base: it tells which of both it is.
	perCPU := k.int32(offsets, k.num-1) < 0
	return k.sorted(func(i int) uint64 {
		switch off := k.int32(offsets, i); {
		case !perCPU:
			return from + uint64(uint32(off))
		case off < 0:
			return from - 1 - uint64(int64(off))
		default:
			return uint64(off)
		}
	})
}

// fromHere takes offsets from the place of each offset itself.
func (k *kallsyms) fromHere(offsets int) []uint64 {
	if offsets+4*k.num > len(k.b) {
		return nil
	}
	return k.sorted(func(i int) uint64 {
		return k.addr + uint64(offsets+4*i) + uint64(int64(k.int32(offsets, i)))
	})
}

func (k *kallsyms) int32(offsets, i int) int32 {
	return int32(binary.LittleEndian.Uint32(k.b[offsets+4*i:]))
}

// sorted collects the addresses if they rise and end in the kernel.
func (k *kallsyms) sorted(addr func(i int) uint64) []uint64 {
	all := make([]uint64, k.num)
	for i := range all {
		all[i] = addr(i)
		if i > 0 && all[i] < all[i-1] {
			return nil
		}
	}
	if all[0] == all[k.num-1] || all[k.num-1] < kernelBase {
		return nil
	}
	return all
}
