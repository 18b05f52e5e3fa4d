package binder

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/xenevents"
)

// Location is where a probe is to be, in symbols.
type Location struct {
	Module string // "" for the kernel proper
	Symbol string // "" for an address
	// Offset is added to the symbol's address, or is the address, in bytes.
	Offset uint64
}

// maxOffset bounds an offset from a symbol, in bytes: larger than any function.
const maxOffset = 1 << 20

// ParseLocation reads "symbol", "symbol+0x10", "module!symbol" or "0xffff…".
func ParseLocation(text string) (Location, error) {
	fail := func(why string) (Location, error) {
		return Location{}, fmt.Errorf("no place for a probe: %q (%s); it is written like symbol, symbol+0x10, module!symbol or 0xffffffff81000000", text, why)
	}
	if strings.HasPrefix(text, "0x") {
		v, err := strconv.ParseUint(text, 0, 64)
		if err != nil {
			return fail("no address")
		}
		return Location{Offset: v}, nil
	}
	var l Location
	rest := text
	if module, after, ok := strings.Cut(text, "!"); ok {
		if !isName(module) {
			return fail("no module's name")
		}
		l.Module, rest = module, after
	}
	symbol, offset, ok := strings.Cut(rest, "+")
	if !isName(symbol) {
		return fail("no symbol's name")
	}
	l.Symbol = symbol
	if ok {
		v, err := strconv.ParseUint(offset, 0, 64)
		if err != nil || v > maxOffset {
			return fail("no offset in a function")
		}
		l.Offset = v
	}
	return l, nil
}

// isName says whether s can be a symbol of a kernel.
func isName(s string) bool {
	for _, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '.' || c == '$' || c == '-'
		if !letter {
			return false
		}
	}
	return s != "" && len(s) <= 512
}

// resolve finds the address in the guest.
func (l Location) resolve(k *guestos.Kernel) (xenevents.GVA, error) {
	if l.Symbol == "" {
		return xenevents.GVA(l.Offset), nil
	}
	var at xenevents.GVA
	var err error
	if l.Module != "" {
		at, err = k.ModuleSymbol(l.Module, l.Symbol)
	} else {
		at, err = k.Address(l.Symbol)
	}
	return at + xenevents.GVA(l.Offset), err
}
