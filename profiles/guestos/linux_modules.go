package guestos

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/near"
	"github.com/hprobe/hprobe/xenevents"
)

// The guest's lists are the guest's: what they may hold at most.
const (
	maxModules    = 1024
	maxModuleName = 64
	maxModuleText = 1 << 28 // bytes
)

// The kernel's functions that tell of modules that come and go, where their code is
// in place and none of it runs.
const (
	// load_module calls parse_args(mod->name, …) when the module is relocated and its
	// jump labels and calls of ftrace are patched. It runs the module's first code, the
	// setters of its parameters, and then do_init_module does.
	moduleComing = "parse_args"
	// module_arch_freeing_init(mod) is called before the memory of a module goes: that
	// of its init code when that has run, and all of it when the module is unloaded or
	// could not be loaded. It is there for architectures to do more (a weak symbol), so
	// no compiler inlines it.
	moduleGoing = "module_arch_freeing_init"
)

// Module is a module of the guest as it was when it was looked at. What it says is
// the guest's.
type Module struct {
	Name string // quote it
	// Formed: its code is in place. It is not while a module is being loaded until it
	// is relocated, nor while it is being freed.
	Formed bool
	// Live: its init function has returned, and the code that ran only then is gone or
	// about to go.
	Live bool
	// Text is where its code is, and Init where that of its init function and what that
	// calls; empty where it is gone.
	Text, Init TextRange

	at uint64 // of its struct module
}

// TextRange is where code is: End is behind its last byte.
type TextRange struct{ Start, End xenevents.GVA }

// Holds says whether an address is in it.
func (r TextRange) Holds(at xenevents.GVA) bool { return at >= r.Start && at < r.End }

// Is says whether both are the same module, loaded once.
func (m *Module) Is(o *Module) bool { return o != nil && m.at == o.at }

// GoesAt says whether it is the one of GoingModule's registers, whatever the guest says
// of it now. nil is none.
func (m *Module) GoesAt(regs *xenevents.Registers) bool { return m != nil && m.at == regs.RDI }

// Called says whether it is called so: to Linux's tools - and _ in a name are the same.
func (m *Module) Called(name string) bool { return underscored(name) == underscored(m.Name) }

func underscored(s string) string { return strings.ReplaceAll(s, "-", "_") }

// moduleLayout is where a module's fields are.
type moduleLayout struct {
	head                        uint64 // of the list of modules
	list, name, state, kallsyms uint64 // in struct module
	symtab, strtab, num         uint64 // in struct mod_kallsyms
	live, unformed              uint32 // states
	text, init                  span
	err                         error
}

// span is where in a struct module the address of some memory and its size are.
type span struct{ base, size uint64 }

func (k *Kernel) modules() (*moduleLayout, error) {
	k.modulesOnce.Do(func() { k.layout = k.findModuleLayout() })
	return &k.layout, k.layout.err
}

func (k *Kernel) findModuleLayout() (l moduleLayout) {
	fail := func(err error) moduleLayout { return moduleLayout{err: fmt.Errorf("modules of the guest: %w", err)} }
	head, err := k.Address("modules")
	if err != nil {
		return fail(err)
	}
	l.head = uint64(head)
	for _, f := range []struct {
		of, name string
		to       *uint64
	}{{"module", "list", &l.list}, {"module", "name", &l.name}, {"module", "state", &l.state}, {"module", "kallsyms", &l.kallsyms},
		{"mod_kallsyms", "symtab", &l.symtab}, {"mod_kallsyms", "strtab", &l.strtab}, {"mod_kallsyms", "num_symtab", &l.num}} {
		at, err := k.Profile.Field(f.of, f.name)
		if err != nil {
			return fail(err)
		}
		*f.to = at.Offset
	}
	if l.live, err = k.constant("module_state", "MODULE_STATE_LIVE"); err != nil {
		return fail(err)
	}
	if l.unformed, err = k.constant("module_state", "MODULE_STATE_UNFORMED"); err != nil {
		return fail(err)
	}
	if l.text, l.init, err = k.findModuleText(); err != nil {
		return fail(err)
	}
	return l
}

// findModuleText finds where a module's code is noted: since Linux 6.4 in an array of
// its pieces of memory, before in a struct for what stays and one for what init has.
func (k *Kernel) findModuleText() (text, init span, err error) {
	mem, err := k.Profile.Field("module", "mem")
	if errors.Is(err, isf.ErrNotFound) {
		return k.findModuleLayouts()
	}
	if err != nil {
		return text, init, err
	}
	if mem.Type.Kind != isf.Array || mem.Type.Subtype == nil {
		return text, init, fmt.Errorf("module.mem is %s, no array", mem.Type)
	}
	size, err := k.Profile.SizeOf(*mem.Type.Subtype)
	if err != nil {
		return text, init, err
	}
	for _, piece := range []struct {
		name string
		to   *span
	}{{"MOD_TEXT", &text}, {"MOD_INIT_TEXT", &init}} {
		i, err := k.constant("mod_mem_type", piece.name)
		if err != nil {
			return text, init, err
		}
		if uint64(i) >= mem.Type.Count {
			return text, init, fmt.Errorf("module.mem has no element %d (%s)", i, piece.name)
		}
		if *piece.to, err = k.span(mem.Type.Subtype.Name, "base", "size", mem.Offset+uint64(i)*size); err != nil {
			return text, init, err
		}
	}
	return text, init, nil
}

func (k *Kernel) findModuleLayouts() (text, init span, err error) {
	if text, err = k.span("module", "core_layout.base", "core_layout.text_size", 0); err != nil {
		return text, init, err
	}
	init, err = k.span("module", "init_layout.base", "init_layout.text_size", 0)
	return text, init, err
}

func (k *Kernel) span(of, base, size string, offset uint64) (s span, err error) {
	b, err := k.Profile.Field(of, base)
	if err != nil {
		return s, err
	}
	n, err := k.Profile.Field(of, size)
	return span{offset + b.Offset, offset + n.Offset}, err
}

// constant is a value of an enumeration.
func (k *Kernel) constant(enum, name string) (uint32, error) {
	e, err := k.Profile.EnumType(enum)
	if err != nil {
		return 0, err
	}
	v, ok := e.Constants[name]
	if !ok || v < 0 || v > 1<<20 {
		return 0, fmt.Errorf("enum %s has no %s: %w", enum, name, isf.ErrNotFound)
	}
	return uint32(v), nil
}

// ModuleEvents returns the entries of the kernel's functions that tell of modules: see
// ComingModule and GoingModule, which take the registers there. The error says what the
// profile lacks to see modules come and go.
func (k *Kernel) ModuleEvents() (coming, going xenevents.GVA, err error) {
	if _, err := k.modules(); err != nil {
		return 0, 0, err
	}
	if coming, err = k.Address(moduleComing); err == nil {
		going, err = k.Address(moduleGoing)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("modules of the guest that come and go: %w", err)
	}
	return coming, going, nil
}

// ComingModule is the module that is in place at a hit of ModuleEvents' first function,
// and has run nothing. nil: the call is not about a module.
func (k *Kernel) ComingModule(regs *xenevents.Registers) (*Module, error) {
	l, err := k.modules()
	if err != nil {
		return nil, err
	}
	want := regs.RDI - l.name
	var found *Module
	err = k.eachModule(func(at uint64) (bool, error) {
		if at != want {
			return true, nil
		}
		m, err := k.moduleAt(at)
		found = m
		return false, err
	})
	return found, err
}

// GoingModule is the module whose memory is about to be freed at a hit of ModuleEvents'
// second function: that of its init code where it is Live, else all.
func (k *Kernel) GoingModule(regs *xenevents.Registers) (*Module, error) {
	return k.moduleAt(regs.RDI) // it is in no list any more
}

// Module finds a module that is loaded, or just being loaded or freed.
func (k *Kernel) Module(name string) (*Module, error) {
	l, err := k.modules()
	if err != nil {
		return nil, err
	}
	var found *Module
	var names []string
	err = k.eachModule(func(at uint64) (bool, error) {
		text, err := k.text(at+l.name, maxModuleName)
		if err != nil {
			return true, nil // of the guest's names one that can't be read
		}
		if m := (Module{Name: text}); !m.Called(name) {
			names = append(names, text)
			return true, nil
		}
		found, err = k.moduleAt(at)
		return false, err
	})
	if err == nil && found == nil {
		err = &absentError{fmt.Sprintf("no module %q is loaded in the guest%s", name, near.Hint(name, names))}
	}
	return found, err
}

// eachModule walks the kernel's list of modules until each says no.
func (k *Kernel) eachModule(each func(at uint64) (more bool, err error)) error {
	l, err := k.modules()
	if err != nil {
		return err
	}
	at, err := k.read64(l.head)
	for range maxModules {
		if err != nil {
			return fmt.Errorf("the guest's list of modules: %w", err)
		}
		if at == l.head {
			return nil
		}
		if more, err := each(at - l.list); !more || err != nil {
			return err
		}
		at, err = k.read64(at)
	}
	if err != nil {
		return fmt.Errorf("the guest's list of modules: %w", err)
	}
	return fmt.Errorf("the guest's list of modules has no end: %d were looked at", maxModules)
}

// moduleAt reads a struct module.
func (k *Kernel) moduleAt(at uint64) (*Module, error) {
	l, err := k.modules()
	if err != nil {
		return nil, err
	}
	m := &Module{at: at}
	if m.Name, err = k.text(at+l.name, maxModuleName); err != nil {
		return nil, fmt.Errorf("a module of the guest: %w", err)
	}
	state, err := k.read32(at + l.state)
	if err != nil {
		return nil, fmt.Errorf("module %q: %w", m.Name, err)
	}
	m.Formed, m.Live = state != l.unformed, state == l.live
	if m.Text, err = k.textRange(at, l.text); err != nil {
		return nil, fmt.Errorf("module %q: %w", m.Name, err)
	}
	if m.Init, err = k.textRange(at, l.init); err != nil {
		return nil, fmt.Errorf("module %q: %w", m.Name, err)
	}
	return m, nil
}

func (k *Kernel) textRange(at uint64, s span) (r TextRange, err error) {
	base, err := k.read64(at + s.base)
	if err != nil {
		return r, err
	}
	size, err := k.read32(at + s.size)
	if err != nil || base == 0 {
		return r, err
	}
	if end := base + uint64(size); size <= maxModuleText && end >= base {
		return TextRange{xenevents.GVA(base), xenevents.GVA(end)}, nil
	}
	return r, fmt.Errorf("%d bytes of code at %#x: more than a module has", size, base)
}

// Holds says whether the module has code at an address.
func (m *Module) Holds(at xenevents.GVA) bool { return m.Text.Holds(at) || m.Init.Holds(at) }

// NoFunctionError says that a module has no function of a name. It matches
// isf.ErrNotFound.
type NoFunctionError struct {
	Module, Function string
	why              string
}

func (e *NoFunctionError) Error() string {
	return fmt.Sprintf("module %q has no function %q%s", e.Module, e.Function, e.why)
}

// Is makes it match isf.ErrNotFound.
func (e *NoFunctionError) Is(target error) bool { return target == isf.ErrNotFound }

// ModuleSymbols are the names of a module's code, as it is now: those of its init code
// are there until it is Live. They belong to the goroutine of the Kernel.
type ModuleSymbols struct {
	module *Module
	table  moduleTable
	names  *nameReader
}

// Symbols reads the symbol table that the kernel keeps of a module for kallsyms.
func (k *Kernel) Symbols(m *Module) (*ModuleSymbols, error) {
	table, err := k.moduleTable(m)
	if err != nil {
		return nil, fmt.Errorf("symbols of module %q: %w", m.Name, err)
	}
	return &ModuleSymbols{module: m, table: table, names: k.newNameReader(table.strings)}, nil
}

// Function finds a function, or a place in it. It fails with a *NoFunctionError where
// there is none; what is named so may be data.
func (s *ModuleSymbols) Function(name string, offset uint64) (xenevents.GVA, error) {
	var found []xenevents.GVA
	data := false
	for _, e := range s.table.entries {
		if !s.names.is(e.name, name) {
			continue
		}
		if !s.module.Holds(e.at) {
			data = true
			continue
		}
		found = append(found, e.at)
	}
	slices.Sort(found)
	found = slices.Compact(found) // an alias at the same place is no other function
	fail := func(why string) (xenevents.GVA, error) {
		return 0, &NoFunctionError{Module: s.module.Name, Function: name, why: why}
	}
	switch {
	case len(found) > 1:
		return 0, fmt.Errorf("module %q has %d functions called %q: give an address", s.module.Name, len(found), name)
	case len(found) == 0 && data:
		return fail(": that is no code")
	case len(found) == 0:
		return fail(near.Hint(name, s.functions()))
	}
	at := found[0] + xenevents.GVA(offset)
	if !s.module.Holds(at) {
		return fail(fmt.Sprintf(" with code at %+#x", offset))
	}
	return at, nil
}

// functions are the names of the module's functions, as many as may be looked at.
func (s *ModuleSymbols) functions() (all []string) {
	const enough = 4096
	for _, e := range s.table.entries {
		if !s.module.Holds(e.at) {
			continue
		}
		if name := s.names.text(e.name); name != "" {
			all = append(all, name)
		}
		if len(all) == enough {
			break
		}
	}
	slices.SortFunc(all, cmp.Compare[string])
	return all
}
