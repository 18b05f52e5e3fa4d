package profiler

import (
	"bufio"
	"cmp"
	"debug/elf"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Symbols maps addresses to function names.
type Symbols struct {
	addrs []uint64
	names []string
}

// maxSymbolSize is how far behind a symbol an address may be: tables without
// sizes would give every stray address to the last function.
const maxSymbolSize = 1 << 16

// Name returns the function that holds addr, and false if none is known.
func (s *Symbols) Name(addr uint64) (string, bool) {
	if s == nil {
		return "", false
	}
	i, found := slices.BinarySearch(s.addrs, addr)
	if !found {
		i--
	}
	if i < 0 || addr-s.addrs[i] > maxSymbolSize {
		return "", false
	}
	return s.names[i], true
}

type symbol struct {
	addr uint64
	name string
}

func newSymbols(all []symbol) *Symbols {
	slices.SortStableFunc(all, func(a, b symbol) int { return cmp.Compare(a.addr, b.addr) })
	s := &Symbols{}
	for _, x := range all {
		s.addrs = append(s.addrs, x.addr)
		s.names = append(s.names, x.name)
	}
	return s
}

// ReadKallsyms reads "address type name" lines: Linux's /proc/kallsyms, and
// /proc/xen/xensyms, which dom0's kernel has of the running Xen. Of a name like
// "arch/x86/mm/p2m-ept.c#ept_get_entry" the file's name is dropped.
func ReadKallsyms(r io.Reader) (*Symbols, error) {
	var all []symbol
	for in := bufio.NewScanner(r); in.Scan(); {
		f := strings.Fields(in.Text())
		if len(f) < 3 {
			continue
		}
		addr, err := strconv.ParseUint(f[0], 16, 64)
		if err != nil {
			return nil, fmt.Errorf("kallsyms: line %q: %w", in.Text(), err)
		}
		name := f[2][strings.LastIndexByte(f[2], '#')+1:]
		if plain, _, ok := strings.Cut(name, ".isra."); ok {
			name = plain
		}
		if plain, _, ok := strings.Cut(name, ".part."); ok {
			name = plain
		}
		all = append(all, symbol{addr, name})
	}
	return newSymbols(all), nil
}

// ReadELF takes the functions of a static program that was not stripped.
func ReadELF(path string) (*Symbols, error) {
	f, err := elf.Open(path)
	if err != nil {
		return nil, fmt.Errorf("symbols: %w", err)
	}
	defer f.Close()
	table, err := f.Symbols()
	if err != nil {
		return nil, fmt.Errorf("symbols of %s: %w", path, err)
	}
	var all []symbol
	for _, s := range table {
		if elf.ST_TYPE(s.Info) == elf.STT_FUNC {
			all = append(all, symbol{s.Value, s.Name})
		}
	}
	return newSymbols(all), nil
}
