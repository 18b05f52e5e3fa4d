package main

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
)

func (r *Report) guest() error {
	if err := r.kallsyms("/proc/kallsyms"); err != nil {
		return err
	}
	b, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		return err
	}
	return r.btf(b)
}

// linkedText is where _text is without KASLR, and kernelText from where on KASLR moves what
// there is.
const (
	linkedText = 0xffffffff81000000
	kernelText = 0xffffffff80000000
)

// kallsyms reads the kernel's own symbols: those of modules and of BPF have a word more.
func (r *Report) kallsyms(path string) error {
	type symbol struct {
		name string
		addr uint64
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var all []symbol
	slide, known := uint64(0), false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		words := strings.Fields(lines.Text())
		if len(words) != 3 {
			continue
		}
		addr, err := strconv.ParseUint(words[0], 16, 64)
		if err != nil {
			return err
		}
		if words[2] == "_text" {
			slide, known = addr-linkedText, true
		}
		all = append(all, symbol{words[2], addr})
	}
	if !known {
		return errors.New("no _text in /proc/kallsyms")
	}
	for i := range all {
		if all[i].addr >= kernelText {
			all[i].addr -= slide
		}
	}
	seen := map[symbol]bool{}
	for _, s := range all {
		if !seen[s] {
			r.symbol(s.name, s.addr)
			seen[s] = true
		}
	}
	return nil
}

func (r *Report) symbol(name string, addr uint64) {
	r.NumSymbols++
	r.Symbols.add(name, fmt.Sprintf("%#x", addr))
}

func (r *Report) structure(name, what string) {
	r.NumStructs++
	r.Structs.add(name, what)
}

// btf reads structs and unions as include/uapi/linux/btf.h has them.
func (r *Report) btf(b []byte) error {
	le := binary.LittleEndian
	if len(b) < 24 || le.Uint16(b) != 0xeb9f {
		return errors.New("no BTF")
	}
	head := le.Uint32(b[4:])
	types := b[head+le.Uint32(b[8:]):][:le.Uint32(b[12:])]
	names := b[head+le.Uint32(b[16:]):][:le.Uint32(b[20:])]
	text := func(off uint32) string {
		s, _, _ := strings.Cut(string(names[off:min(int(off)+512, len(names))]), "\x00")
		return s
	}
	var all []aggregate // by ID
	// What follows the 12 bytes of each kind: so many bytes, or so many for each of vlen.
	fixed := map[uint32]int{1: 4, 3: 12, 14: 4, 17: 4}
	each := map[uint32]int{4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
	for all = append(all, aggregate{}); len(types) > 0; {
		name, info, size := text(le.Uint32(types)), le.Uint32(types[4:]), le.Uint32(types[8:])
		kind, n := info>>24&31, int(info&0xffff)
		types = types[12:]
		a := aggregate{kind: kind, name: name, of: size}
		if kind == 4 || kind == 5 {
			var m members
			for i := range n {
				e := types[12*i:]
				off, bits := le.Uint32(e[8:]), uint32(0)
				if info>>31 != 0 { // some members are bit fields
					off, bits = off&0xffffff, off>>24
				}
				m.add(text(le.Uint32(e)), uint64(off), uint64(bits))
			}
			a.what = m.text(kind == 5, uint64(size))
		}
		all = append(all, a)
		types = types[fixed[kind]+n*each[kind]:]
	}
	r.aggregates(all)
	return nil
}

// aggregate is a struct (4), union (5), enum (6, 19) or typedef (8) of the type of.
type aggregate struct {
	kind       uint32
	name, what string
	of         uint32
}

func (r *Report) aggregates(all []aggregate) {
	taken := map[string]bool{}
	for _, a := range all {
		taken[a.name] = taken[a.name] || slices.Contains([]uint32{4, 5, 6, 19}, a.kind)
	}
	// One without a name is called as the first typedef of it that is no other's name.
	for _, a := range all {
		if a.kind != 8 || taken[a.name] || int(a.of) >= len(all) {
			continue
		}
		if of := &all[a.of]; of.name == "" && slices.Contains([]uint32{4, 5, 6, 19}, of.kind) {
			of.name, taken[a.name] = a.name, true
		}
	}
	is := map[string]string{}
	unclear := map[uint32]bool{}
	for _, a := range all {
		if a.what == "" || a.name == "" {
			continue
		}
		if old, ok := is[a.name]; ok && old != a.what {
			unclear[nameHash(a.name)] = true
		}
		is[a.name] = a.what
	}
	for name, what := range is {
		if !unclear[nameHash(name)] {
			r.structure(name, what)
		}
	}
	r.Unclear = slices.Collect(maps.Keys(unclear))
}

// members are those of a struct, as both sides write them. Those without a name have none
// in BTF, and a made-up one in a profile.
type members []string

func (m *members) add(name string, bitOffset, bits uint64) {
	*m = append(*m, fmt.Sprintf("%s@%d:%d", name, bitOffset, bits))
}

func (m members) text(union bool, size uint64) string {
	slices.Sort(m)
	return fmt.Sprint(union, size, slices.Compact(m))
}
