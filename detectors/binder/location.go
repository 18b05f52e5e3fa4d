package binder

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/xenevents"
)

// Location is where a probe is to be, in symbols.
type Location struct {
	Module string // "" for the kernel proper
	Symbol string // "" for an address
	// Offset is added to the symbol's address, or is the address, in bytes. In an
	// image without a symbol it is one in its file.
	Offset uint64
	// Image is the path of a user program or library, or the last part of it; "" for
	// the kernel.
	Image string
	// File and Line are of the image's source; "" and 0 where the place is no line.
	File string
	Line int
	// Callee, if not "": where the function of the Symbol calls this one. Kernels may
	// have it under several names: "one|another".
	Callee string
}

// maxCallees bounds what a function may be called in kernels of all versions.
const maxCallees = 8

// Entry says whether it is a function's first instruction, as far as its text tells.
func (l Location) Entry() bool { return l.Symbol != "" && l.Offset == 0 && l.Callee == "" }

// callees are the names of the Callee.
func (l Location) callees() []string { return strings.Split(l.Callee, "|") }

// maxOffset bounds an offset from a symbol, in bytes: larger than any function.
const maxOffset = 1 << 20

// ParseLocation reads "symbol", "symbol+0x10", "symbol:callee", "module!symbol" or
// "0xffff…", and those in images.
func ParseLocation(text string) (Location, error) {
	fail := func(why string) (Location, error) {
		return Location{}, fmt.Errorf("no place for a probe: %q (%s); it is written like symbol, symbol+0x10, caller:callee, module!symbol, image:PATH!symbol or 0xffffffff81000000", text, why)
	}
	if at, ok := strings.CutPrefix(text, imagePrefix); ok {
		return parseImage(at)
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
	if caller, callees, ok := strings.Cut(rest, ":"); ok {
		l.Symbol, l.Callee = caller, callees
		switch names := l.callees(); {
		case l.Module != "":
			return fail("a call is found in the kernel proper only")
		case !isName(caller) || slices.ContainsFunc(names, func(c string) bool { return !isName(c) }):
			return fail("no symbol's name")
		case len(names) > maxCallees:
			return fail(fmt.Sprintf("more than %d functions", maxCallees))
		}
		return l, nil
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

// endless are the functions of Linux that are known not to return. A probe would
// wait for ever where they were called, and many others come by there.
var endless = []string{"do_exit", "do_group_exit", "make_task_dead", "rewind_stack_and_make_dead", "__x64_sys_exit", "__x64_sys_exit_group", "__ia32_sys_exit", "__ia32_sys_exit_group",
	"kthread_exit", "kthread_complete_and_exit", "panic", "do_task_dead", "cpu_startup_entry", "rest_init", "start_kernel", "__stack_chk_fail"}

// MayReturn says why a location is no place for a probe of returns, if it is none.
func (l Location) MayReturn() error {
	switch {
	case l.Line > 0:
		return fmt.Errorf("returns are seen from a function's first instruction on, not from a line: name the function of %s:%d", l.File, l.Line)
	case l.Callee != "":
		return fmt.Errorf("returns are seen from a function's first instruction on, not from where one is called: that of %s", l.Callee)
	case l.Symbol != "" && l.Offset != 0:
		return fmt.Errorf("returns are seen from a function's first instruction on: %s, not %s+%#x", l.Symbol, l.Symbol, l.Offset)
	case l.Module == "" && l.Image == "" && slices.Contains(endless, l.Symbol):
		return fmt.Errorf("%s does not return", l.Symbol)
	}
	return nil
}

// InProcess says why a location is none in a process, if it is none.
func (l Location) InProcess() error {
	if l.Symbol != "" && l.Image == "" {
		return fmt.Errorf("in a process a probe is at an address, 0x401000 for instance, or in a file, image:/bin/sh!main: %s is a place in the kernel", l.Symbol)
	}
	return nil
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

// resolve finds the address of a place in the kernel proper.
func (l Location) resolve(k *guestos.Kernel) (xenevents.GVA, error) {
	if l.Symbol == "" {
		return xenevents.GVA(l.Offset), nil
	}
	if l.Callee != "" {
		return findCall(k, l.Symbol, l.callees())
	}
	at, err := k.Address(l.Symbol)
	return at + xenevents.GVA(l.Offset), err
}
