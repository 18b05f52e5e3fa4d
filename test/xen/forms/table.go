package forms

import (
	"bufio"
	_ "embed"
	"encoding/hex"
	"fmt"
	"strings"
)

//go:generate go run ./extract

//go:embed forms.txt
var extracted string

//go:embed hand.txt
var byHand string

// straddling are forms of byHand that are run once more each across the end of
// a page: by their text.
var straddling = []string{"movabs $0x123456789abcdef0,%rax", "push $0x12345678", "nopw 0x0(%rax,%rax)", "mov %rcx,0x1234", "call ."}

// Cases returns the table: what real code has, most frequent first, then what is
// listed by hand, then all that has registers only; each form once.
func Cases() ([]*Case, error) {
	var all []*Case
	seen := map[string]bool{}
	once := func(f *Form) {
		if key := f.Key(); !seen[key] {
			seen[key] = true
			all = append(all, &Case{Form: f})
		}
	}
	add := func(table string, text func(fields []string) string) error {
		for s := bufio.NewScanner(strings.NewReader(table)); s.Scan(); {
			fields := strings.Fields(s.Text())
			if len(fields) < 2 || fields[0] == "#" {
				continue
			}
			code, err := hex.DecodeString(fields[0])
			if err != nil {
				return fmt.Errorf("%q: %w", s.Text(), err)
			}
			f, err := Decode(code)
			if err != nil || len(f.Code) != len(code) {
				return fmt.Errorf("%q: %v of %d bytes: %w", s.Text(), f, len(code), err)
			}
			f.Text = text(fields)
			for _, straddle := range straddling {
				if straddle == f.Text {
					all = append(all, &Case{Form: f, Straddles: true})
				}
			}
			once(f)
		}
		return nil
	}
	if err := add(extracted, func(f []string) string { return strings.Join(f[5:], " ") }); err != nil {
		return nil, fmt.Errorf("forms.txt: %w", err)
	}
	if err := add(byHand, func(f []string) string { return strings.Join(f[1:], " ") }); err != nil {
		return nil, fmt.Errorf("hand.txt: %w", err)
	}
	for _, f := range registers() {
		once(f)
	}
	place(all)
	return all, nil
}
