package probe

import (
	"bytes"
	"debug/elf"
	"debug/gosym"
	"os"
	"slices"
	"testing"

	"golang.org/x/arch/x86/x86asm"
)

func TestBegins(t *testing.T) {
	nops := bytes.Repeat([]byte{0x90}, 32)
	call := []byte{0xe8, 1, 2, 3, 4}
	mov := []byte{0x48, 0xb8, 0xff, 0xd0}
	for name, c := range map[string]struct {
		code []byte
		want bool
	}{
		"after a call":      {slices.Concat(nops, call), true},
		"after endbr64":     {slices.Concat(nops, endbr64, call), true},
		"in a mov":          {slices.Concat(nops, mov), false},
		"in a call":         {slices.Concat(nops, call[:3]), false},
		"too little":        {nops[:14], false},
		"what never runs":   {slices.Concat(nops, []byte{0xe8, 0x06, 0x06, 0x06, 0x06}), true},
		"vzeroupper":        {bytes.Repeat([]byte{0xc5, 0xf8, 0x77}, 20), false},
		"behind that":       {slices.Concat(bytes.Repeat([]byte{0xc5, 0xf8, 0x77}, 12), nops, call[:5]), true},
		"what is not known": {slices.Concat(nops[:20], []byte{0x62, 0xf1, 0xfe, 0x48}, nops[:9]), false}, // an EVEX prefix
	} {
		if got := known(c.code); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestBeginsInRealCode: in this program itself no place in the middle of an
// instruction passes, though an attacker may look for one; nearly all that calls
// return to does.
func TestBeginsInRealCode(t *testing.T) {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := f.Section(".text")
	code := make([]byte, 400_000)
	if _, err := text.ReadAt(code, int64(text.Size/2)&^15); err != nil {
		t.Fatal(err)
	}
	var begins, calls, passed, middle, wrong int
	in := map[int]bool{}
	lines, err := f.Section(".gopclntab").Data()
	if err != nil {
		t.Fatal(err)
	}
	table, err := gosym.NewTable(nil, gosym.NewLineTable(lines, text.Addr))
	if err != nil {
		t.Fatal(err)
	}
	base := text.Addr + text.Size/2&^15
	for _, fn := range table.Funcs {
		if fn.Entry < base || fn.End > base+uint64(len(code)) {
			continue
		}
		for at, end := int(fn.Entry-base), int(fn.End-base); at < end; {
			n, err := lengthOf(code[at:end])
			if err != nil {
				break // what comes then is not known to begin anywhere
			}
			in[at] = true
			for i := 1; i < n; i++ {
				in[at+i] = false
			}
			at += n
		}
	}
	for at, first := range in {
		if at < farthest || at%11 != 0 {
			continue
		}
		before := code[at-farthest : at]
		if !first {
			middle++
			if known(before) {
				wrong++
				if wrong < 5 {
					t.Errorf("in the middle at %#x: % x", at, before[farthest-32:])
				}
			}
			continue
		}
		begins++
		if x, err := x86asm.Decode(code[at-5:], 64); err == nil && x.Op == x86asm.CALL && x.Len == 5 && in[at-5] {
			calls++
			if known(before) {
				passed++
			}
		}
	}
	if wrong > 0 || passed*100 < calls*90 || calls < 200 {
		t.Errorf("%d of %d places in the middle pass, %d of %d that calls return to", wrong, middle, passed, calls)
	}
	t.Logf("%d of %d places in the middle pass, %d of %d that calls return to; %d begin", wrong, middle, passed, calls, begins)
}
