package guestos

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// The guest's lists are the guest's: what they may hold at most.
const (
	maxModules       = 1024
	maxModuleSymbols = 1 << 16
	maxModuleStrings = 4 << 20
	maxSymbolName    = 512
	elfSymbolSize    = 24 // Elf64_Sym: name u32, info u8, other u8, index u16, value u64, size u64
)

// ModuleSymbol finds a function or variable of a loaded module, by the symbol
// table that the kernel keeps of it for kallsyms.
func (k *Kernel) ModuleSymbol(module, symbol string) (xenevents.GVA, error) {
	mod, err := k.module(module)
	if err != nil {
		return 0, err
	}
	table, err := k.moduleKallsyms(mod)
	if err != nil {
		return 0, fmt.Errorf("symbols of module %s: %w", module, err)
	}
	syms := make([]byte, table.num*elfSymbolSize)
	if _, err := k.mem.ReadGVA(k.Space, syms, xenevents.GVA(table.symtab)); err != nil {
		return 0, fmt.Errorf("symbols of module %s: %w", module, err)
	}
	want := append([]byte(symbol), 0)
	name := make([]byte, len(want))
	for i := range table.num {
		e := syms[i*elfSymbolSize:]
		index, value := binary.LittleEndian.Uint32(e), binary.LittleEndian.Uint64(e[8:])
		if index > maxModuleStrings || value == 0 {
			continue
		}
		if _, err := k.mem.ReadGVA(k.Space, name, xenevents.GVA(table.strtab+uint64(index))); err != nil {
			continue
		}
		if bytes.Equal(name, want) {
			return xenevents.GVA(value), nil
		}
	}
	return 0, &absentError{fmt.Sprintf("module %s has no symbol %q", module, symbol)}
}

// module walks the kernel's list of modules and returns the address of one's
// struct module.
func (k *Kernel) module(name string) (uint64, error) {
	head, err := k.Address("modules")
	if err != nil {
		return 0, err
	}
	list, err := k.Profile.Field("module", "list")
	if err != nil {
		return 0, err
	}
	nameAt, err := k.Profile.Field("module", "name")
	if err != nil {
		return 0, err
	}
	at, err := k.read64(uint64(head))
	for range maxModules {
		if err != nil {
			return 0, fmt.Errorf("the guest's list of modules: %w", err)
		}
		if at == uint64(head) {
			return 0, &absentError{fmt.Sprintf("no module %q is loaded in the guest", name)}
		}
		mod := at - list.Offset
		got, err := k.text(mod+nameAt.Offset, 64)
		if err == nil && got == name {
			return mod, nil
		}
		at, err = k.read64(at)
		if err != nil {
			return 0, fmt.Errorf("the guest's list of modules: %w", err)
		}
	}
	return 0, fmt.Errorf("the guest's list of modules has no end: %q is not among the first %d", name, maxModules)
}

type moduleTable struct {
	symtab, strtab uint64
	num            int
}

func (k *Kernel) moduleKallsyms(mod uint64) (t moduleTable, err error) {
	at, err := k.Profile.Field("module", "kallsyms")
	if err != nil {
		return t, err
	}
	table, err := k.read64(mod + at.Offset)
	if err != nil {
		return t, err
	}
	var num uint32
	for _, f := range []struct {
		name string
		to   *uint64
	}{{"symtab", &t.symtab}, {"strtab", &t.strtab}} {
		at, err := k.Profile.Field("mod_kallsyms", f.name)
		if err != nil {
			return t, err
		}
		if *f.to, err = k.read64(table + at.Offset); err != nil {
			return t, err
		}
	}
	at, err = k.Profile.Field("mod_kallsyms", "num_symtab")
	if err != nil {
		return t, err
	}
	if num, err = k.read32(table + at.Offset); err != nil {
		return t, err
	}
	if num > maxModuleSymbols {
		return t, fmt.Errorf("%d symbols: more than a module has", num)
	}
	t.num = int(num)
	return t, nil
}
