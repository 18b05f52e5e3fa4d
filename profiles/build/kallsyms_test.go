package build

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
)

// layout is one of the ways in which scripts/kallsyms.c wrote the table.
type layout struct {
	name             string
	step             int  // alignment of the parts
	before, seqs     bool // offsets before the names; seqs_of_names
	percpu, relative bool // absolute per-CPU symbols; offsets from their own place
}

var layouts = []layout{
	{name: "5.10", step: 8, before: true, percpu: true},
	{name: "5.10 without SMP", step: 8, before: true},
	{name: "6.1 with updates", step: 8, before: true, percpu: true, seqs: true},
	{name: "6.12", step: 8, percpu: true, seqs: true},
	{name: "6.15", step: 8, seqs: true},
	{name: "7", step: 4, relative: true, seqs: true},
}

// symbolsOf makes n symbols as a kernel has them, sorted by address.
func symbolsOf(l layout, n int) []isf.Symbol {
	var all []isf.Symbol
	if l.percpu {
		all = append(all, isf.Symbol{Name: "fixed_percpu_data", Addr: 0}, isf.Symbol{Name: "current_task", Addr: 0x1fb00})
	}
	for i := len(all); i < n; i++ {
		all = append(all, isf.Symbol{Name: fmt.Sprintf("func_%d", i), Addr: 0xffffffff81000000 + uint64(16*i)})
	}
	all[n-1] = isf.Symbol{Name: "linux_banner", Addr: 0xffffffff81000000 + 8<<20}
	return all
}

// kallsymsTable is scripts/kallsyms.c in short: at what address the first byte
// of the table is must be known for its alignment.
func kallsymsTable(l layout, addr uint64, all []isf.Symbol) []byte {
	var tokens [256]string
	for i := range tokens {
		tokens[i] = string(rune('a'+i%26)) + "_x"
	}
	for c := 0x20; c < 0x7f; c++ {
		tokens[c] = string(rune(c))
	}
	tokens[0], tokens[1], tokens[0x80] = "zero_", "", "func_"
	pack := func(name string) (p []byte) {
		for name = "T" + name; name != ""; {
			token, n := name[0], 1
			if strings.HasPrefix(name, "func_") {
				token, n = 0x80, 5
			}
			p, name = append(p, token), name[n:]
		}
		return p
	}
	b := make([]byte, 0, 1<<16)
	align := func() {
		for (addr+uint64(len(b)))%uint64(l.step) != 0 {
			b = append(b, 0)
		}
	}
	base := uint64(0xffffffff81000000)
	offsets := func() {
		align()
		for _, s := range all {
			var off uint64
			switch {
			case l.relative:
				off = s.Addr - (addr + uint64(len(b)))
			case l.percpu && s.Addr >= base:
				off = base - 1 - s.Addr
			case l.percpu:
				off = s.Addr
			default:
				off = s.Addr - base
			}
			b = le.AppendUint32(b, uint32(off))
		}
		align()
		if !l.relative {
			b = le.AppendUint64(b, base)
		}
	}
	seqs := func() {
		align()
		for i := range all {
			b = append(b, byte(i>>16), byte(i>>8), byte(i|1)) // the last byte is not 0
		}
	}
	if l.before {
		offsets()
	}
	align()
	b = le.AppendUint32(b, uint32(len(all)))
	align()
	var markers []uint32
	start := len(b)
	for i, s := range all {
		if i%256 == 0 {
			markers = append(markers, uint32(len(b)-start))
		}
		p := pack(s.Name)
		if len(p) > 0x7f {
			b = append(b, byte(len(p)&0x7f|0x80), byte(len(p)>>7))
		} else {
			b = append(b, byte(len(p)))
		}
		b = append(b, p...)
	}
	align()
	for _, m := range markers {
		b = le.AppendUint32(b, m)
	}
	if l.before && l.seqs {
		seqs()
	}
	align()
	var index []uint16
	start = len(b)
	for _, token := range tokens {
		index = append(index, uint16(len(b)-start))
		b = append(append(b, token...), 0)
	}
	align()
	for _, i := range index {
		b = le.AppendUint16(b, i)
	}
	if !l.before {
		align()
		offsets()
		if l.seqs {
			seqs()
		}
	}
	return b
}

func decode(b []byte, addr uint64) ([]isf.Symbol, error) {
	work := maxWork
	return decodeKallsyms(b, addr, &work)
}

func TestKallsyms(t *testing.T) {
	for _, l := range layouts {
		// Each count leaves another padding behind each part.
		for n := 1000; n < 1009; n++ {
			want := symbolsOf(l, n)
			want[500].Name = strings.Repeat("long_name_", 30) // two bytes of length
			const addr = 0xffffffff82001230
			junk := bytes.Repeat([]byte{0, 1, 2, 0xff, 0xe8, 3, 0, 0, 0, 0, 0, 0}, 20) // with a number that could be num_syms
			b := slices.Concat(junk, kallsymsTable(l, addr+uint64(len(junk)), want), bytes.Repeat([]byte{0x5a}, 5000))
			got, err := decode(b, addr)
			if err != nil {
				t.Errorf("%s, %d symbols: %v", l.name, n, err)
			} else if !slices.Equal(got, want) {
				t.Errorf("%s, %d symbols: %d, from %v to %v", l.name, n, len(got), got[0], got[len(got)-1])
			}
		}
	}
}

func TestKallsymsThatAreNone(t *testing.T) {
	l := layouts[3]
	good := kallsymsTable(l, 0, symbolsOf(l, 1200))
	tokens := bytes.Index(good, []byte("zero_\x00\x00"))
	for name, change := range map[string]func(b []byte) []byte{
		"nothing":            func([]byte) []byte { return nil },
		"zeros":              func(b []byte) []byte { return make([]byte, len(b)) },
		"no index":           func(b []byte) []byte { return b[:tokens+300] },
		"a wrong index":      func(b []byte) []byte { b[bytes.LastIndex(b[:tokens+2000], []byte("_x\x00"))+100]++; return b },
		"no names":           func(b []byte) []byte { return b[tokens:] },
		"fewer symbols":      func(b []byte) []byte { le.PutUint32(b, 999); return b },
		"too many symbols":   func(b []byte) []byte { le.PutUint32(b, 1<<22); return b },
		"wrong markers":      func(b []byte) []byte { clear(b[tokens-40 : tokens]); return b },
		"an empty name":      func(b []byte) []byte { b[8] = 0; return b },
		"a name without end": func(b []byte) []byte { b[8], b[9] = 0xff, 0xff; return b },
	} {
		if got, err := decode(change(slices.Clone(good)), 0); !errors.Is(err, errNoKallsyms) {
			t.Errorf("%s: %d symbols, %v", name, len(got), err)
		}
	}
	// The addresses are elsewhere, or not sorted.
	for name, change := range map[string]func(b []byte) []byte{
		"no addresses": func(b []byte) []byte { return b[:len(b)-3*1200-8-4*1200] },
		"unsorted":     func(b []byte) []byte { le.PutUint32(b[len(b)-3*1200-8-4:], 0xffffffff); return b },
		"another base": func(b []byte) []byte { le.PutUint64(b[len(b)-3*1200-8:], 0x1000); return b },
	} {
		if got, err := decode(change(slices.Clone(good)), 0); err == nil || !strings.Contains(err.Error(), "addresses") {
			t.Errorf("%s: %d symbols, %v", name, len(got), err)
		}
	}
	long := symbolsOf(l, 1200)
	long[7].Name = strings.Repeat("func_", 200)
	if got, err := decode(kallsymsTable(l, 0, long), 0); err == nil || !strings.Contains(err.Error(), "1001") {
		t.Errorf("a name of 1000 bytes: %d symbols, %v", len(got), err)
	}
}

// TestKallsymsGivesUp: a hostile image that looks like a table again and again.
func TestKallsymsGivesUp(t *testing.T) {
	l := layouts[5]
	good := kallsymsTable(l, 0, symbolsOf(l, 1200))
	tokens := good[bytes.Index(good, []byte("zero_\x00\x00")):]
	tokens = tokens[:len(tokens)-7*1200]
	// Each of these is a num_syms of names that are 1 byte long, as far as the eye sees.
	fake := bytes.Repeat([]byte{1, 1, 1, 0}, 1<<18)
	b := slices.Concat(fake, tokens, fake, tokens)
	if _, err := decode(b, 0); err == nil {
		t.Error("it has symbols")
	}
	work := 1000
	if _, err := decodeKallsyms(slices.Concat(b, good), 0, &work); !errors.Is(err, errTooMuchWork) || work < -2000 {
		t.Errorf("with %d left: %v", work, err)
	}
}

// TestKallsymsSearchIsCounted: tokens without names before them, again and again. Each
// would have the search go through all that is before it.
func TestKallsymsSearchIsCounted(t *testing.T) {
	good := kallsymsTable(layouts[5], 0, symbolsOf(layouts[5], 1200))
	tokens := good[bytes.Index(good, []byte("zero_\x00\x00")):]
	tokens = tokens[:len(tokens)-7*1200]
	tokens = tokens[:len(tokens)&^7]
	b := append(make([]byte, 1<<20), bytes.Repeat(tokens, 2000)...)
	work := 1 << 20
	if _, err := decodeKallsyms(b, 0, &work); !errors.Is(err, errTooMuchWork) {
		t.Errorf("with %d left: %v", work, err)
	}
}

// patch writes bytes over a copy of b: each four bytes of how are a place and a
// value. So the fuzzer's inputs stay short.
func patch(b, how []byte) []byte {
	b = slices.Clone(b)
	for ; len(how) >= 4; how = how[4:] {
		b[(int(how[0])|int(how[1])<<8|int(how[2])<<16)%len(b)] = how[3]
	}
	return b
}

func FuzzKallsyms(f *testing.F) {
	var tables [][]byte
	for i, l := range layouts {
		tables = append(tables, kallsymsTable(l, 0, symbolsOf(l, 1024+8*i)))
		f.Add(uint8(i), []byte{})
		f.Add(uint8(i), []byte{0, 0, 0, 0xff, 1, 0, 0, 0x10})
	}
	f.Fuzz(func(t *testing.T, which uint8, how []byte) {
		work := 1 << 20
		all, err := decodeKallsyms(patch(tables[int(which)%len(tables)], how), 0, &work)
		if len(how) == 0 && (err != nil || len(all) < 1024) {
			t.Errorf("%d symbols, %v", len(all), err)
		}
		for _, s := range all {
			if len(s.Name) > maxName {
				t.Fatalf("a name of %d bytes", len(s.Name))
			}
		}
	})
}
