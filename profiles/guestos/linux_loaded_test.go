package guestos

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
)

// A guest with modules, one in each 0x200 bytes behind the list's head.
const (
	loadedBase  = modulesAt &^ 0xfff
	loadedSize  = 0x2000
	moduleRoom  = 0x200
	usesAt      = loadedBase + 0x1800
	taintsTable = loadedBase + 0x1c00
)

func loadedTypes(newer bool) func(*isf.Builder) {
	return func(b *isf.Builder) {
		if !newer {
			olderModuleText(b)
		}
		structs(b, map[string]uint64{"module.refcnt": 0x100, "module.taints": 0x108, "module.source_list": 0x110, "module_use.source_list": 0, "module_use.source": 0x20, "taint_flag.c_true": 0})
		b.Users["taint_flag"] = isf.UserType{Kind: isf.Struct, Size: 3, Fields: b.Users["taint_flag"].Fields}
		b.Symbols = append(b.Symbols, isf.Symbol{Name: "taint_flags", Addr: taintsTable})
		b.Enums["module_state"].Constants["MODULE_STATE_GOING"] = 99
	}
}

func moduleOf(n int) uint64 { return loadedBase + 0x200 + uint64(n)*moduleRoom }

// newLoaded is one with modules a, b, c; c uses a.
func newLoaded(t testing.TB, newer bool) (*flat, *Kernel) {
	f, k := flatGuest(t, loadedBase, loadedSize, loadedTypes(newer))
	nodes := []uint64{modulesAt}
	l, err := k.modules()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.loadedModules(); err != nil {
		t.Fatal(err)
	}
	for n := range 3 {
		at := moduleOf(n)
		nodes = append(nodes, at+moduleList)
		f.put(at+moduleName, string(rune('a'+n)))
		f.put32(at+0x100, uint32(n+1))
		f.put64(at+0x108, 0b101)
		f.put64(at+0x110, at+0x110)
		f.put64(at+0x118, at+0x110)
		for i, p := range k.loaded.pieces {
			f.put32(at+p.size, uint32(0x1000*(i+1)))
		}
		f.put32(at+moduleState, live)
		f.put64(at+l.text.base, 0xffffffffc0000000+uint64(n))
	}
	for i, at := range nodes {
		next := nodes[(i+1)%len(nodes)]
		f.put64(at, next)
		f.put64(next+8, at)
	}
	f.put64(moduleOf(0)+0x110, usesAt)
	f.put64(moduleOf(0)+0x118, usesAt)
	f.put64(usesAt, moduleOf(0)+0x110)
	f.put64(usesAt+8, moduleOf(0)+0x110)
	f.put64(usesAt+0x20, moduleOf(2))
	f.put(taintsTable, "PG FF RR")
	return f, k
}

func TestLoaded(t *testing.T) {
	for _, newer := range []bool{true, false} {
		f, k := newLoaded(t, newer)
		f.put32(moduleOf(1)+moduleState, coming)
		size := uint64(0)
		for i := range k.loaded.pieces {
			size += 0x1000 * uint64(i+1)
		}
		all, err := k.Loaded(t.Context())
		want := []LoadedModule{{Name: "a", State: "Live", Base: 0xffffffffc0000000, Size: size, Refs: 0, Users: []string{"c"}, Taints: "PR"},
			{Name: "b", State: "Loading", Base: 0xffffffffc0000001, Size: size, Refs: 1, Users: []string{}, Taints: "PR"},
			{Name: "c", State: "Live", Base: 0xffffffffc0000002, Size: size, Refs: 2, Users: []string{}, Taints: "PR"}}
		if err != nil || fmt.Sprintf("%+v", all) != fmt.Sprintf("%+v", want) {
			t.Errorf("%+v, %v", all, err)
		}
		f.put32(moduleOf(1)+moduleState, k.layout.unformed)
		if all, err := k.Loaded(t.Context()); len(all) != 2 || err != nil {
			t.Errorf("one that is being made: %+v, %v", all, err)
		}
		for name, c := range map[string]struct {
			at, value uint64
			why       string
			found     int
		}{
			"a circle":            {moduleOf(2) + moduleList, moduleOf(1) + moduleList, "the list of modules goes in a circle", 2},
			"a circle of users":   {usesAt, usesAt, `of module "a": the list of its users goes in a circle`, 2},
			"nowhere":             {moduleOf(0) + moduleList, 0x1234, "is cut off behind 1 entries", 1},
			"a user from nowhere": {usesAt + 0x20, 0x1234, `of module "a": the list of its users is cut off`, 2},
		} {
			was := slices.Clone(f.b)
			f.put64(c.at, c.value)
			if all, err := k.Loaded(t.Context()); len(all) != c.found || !partial(err, c.why) {
				t.Errorf("%s: %+v, %v", name, all, err)
			}
			copy(f.b, was)
		}
	}
}

// FuzzLoaded has the guest write its list of modules.
func FuzzLoaded(f *testing.F) {
	mem, k := newLoaded(f, true)
	was := slices.Clone(mem.b)
	f.Add(aPoke((moduleOf(1)+moduleList-loadedBase)/8, moduleOf(0)+moduleList))
	f.Add(aPoke((usesAt-loadedBase)/8, usesAt))
	f.Fuzz(func(t *testing.T, b []byte) {
		mem.fuzzed(was, b)
		all, err := k.Loaded(t.Context())
		if p := (*PartialError)(nil); err != nil && !errors.As(err, &p) || len(all) > maxModules {
			t.Errorf("%d, %v", len(all), err)
		}
		if mem.reads > 10_000_000 {
			t.Errorf("%d reads", mem.reads)
		}
	})
}
