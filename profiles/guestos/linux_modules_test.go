package guestos

import (
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Where the fields of the tests' struct module are, and those of its memory, of
// which there are three pieces.
const (
	moduleMem, memSize       = 128, 24
	memBase, memBytes        = 8, 16
	textPiece, initPiece     = 2, 1
	live, coming, unformed   = 4, 5, 7 // states
	codeSize                 = 0x100
	codeAt, initAt           = 0x1000, 0x2000 // from a module's start
	tableAt, symsAt, namesAt = 0x200, 0x300, 0x800
)

// addModuleText has the profile know where modules have code: as since Linux 6.4.
func addModuleText(b *isf.Builder) {
	b.Base["unsigned long"] = isf.BaseType{Kind: "int", Size: 8}
	piece := isf.Type{Kind: isf.Struct, Name: "module_memory"}
	b.Users["module_memory"] = isf.UserType{Kind: isf.Struct, Size: memSize, Fields: map[string]isf.Field{"base": {Offset: memBase}, "size": {Offset: memBytes}}}
	b.Users["module"].Fields["mem"] = isf.Field{Offset: moduleMem, Type: isf.Type{Kind: isf.Array, Count: 3, Subtype: &piece}}
	b.Enums["mod_mem_type"] = isf.EnumType{Base: "int", Size: 4, Constants: map[string]int64{"MOD_TEXT": textPiece, "MOD_INIT_TEXT": initPiece, "MOD_INVALID": -1}}
	b.Enums["module_state"] = isf.EnumType{Base: "int", Size: 4, Constants: map[string]int64{"MODULE_STATE_LIVE": live, "MODULE_STATE_COMING": coming, "MODULE_STATE_UNFORMED": unformed}}
}

// olderModuleText is as until Linux 6.3, at the same places.
func olderModuleText(b *isf.Builder) {
	delete(b.Users["module"].Fields, "mem")
	delete(b.Enums, "mod_mem_type")
	layout := isf.Type{Kind: isf.Struct, Name: "module_layout"}
	b.Users["module_layout"] = isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{"base": {Offset: memBase}, "size": {Offset: 40}, "text_size": {Offset: memBytes}}}
	b.Users["module"].Fields["core_layout"] = isf.Field{Offset: moduleMem + textPiece*memSize, Type: layout}
	b.Users["module"].Fields["init_layout"] = isf.Field{Offset: moduleMem + initPiece*memSize, Type: layout}
}

type symbol struct {
	name    string
	value   uint64
	section uint16
}

// code is a symbol of a module's code.
func code(name string, at uint64) symbol { return symbol{name, at, 1} }

// load puts a module into the guest, after another one in the list. It returns
// the address of its list entry.
func (g *guest) load(at uint64, name string, next uint64, symbols ...symbol) uint64 {
	mod := make([]byte, 4096)
	le.PutUint64(mod[moduleList:], next)
	copy(mod[moduleName:moduleName+56], name)
	le.PutUint32(mod[moduleState:], coming)
	for piece, from := range map[int]uint64{textPiece: codeAt, initPiece: initAt} {
		le.PutUint64(mod[moduleMem+piece*memSize+memBase:], at+from)
		le.PutUint32(mod[moduleMem+piece*memSize+memBytes:], codeSize)
	}
	le.PutUint64(mod[moduleKallsyms:], at+tableAt)
	le.PutUint64(mod[tableAt+8:], at+symsAt)
	le.PutUint64(mod[tableAt+16:], at+namesAt)
	le.PutUint32(mod[tableAt+24:], uint32(len(symbols)))
	text := []byte{0}
	for i, s := range symbols {
		le.PutUint32(mod[symsAt+24*i:], uint32(len(text)))
		le.PutUint16(mod[symsAt+24*i+6:], s.section)
		le.PutUint64(mod[symsAt+24*i+8:], s.value)
		text = append(append(text, s.name...), 0)
	}
	copy(mod[namesAt:], text)
	g.space.Page(xenevents.GVA(at), mod...)
	return at + moduleList
}

func (g *guest) poke64(t testing.TB, at xenevents.GVA, v uint64) {
	t.Helper()
	g.Poke(g.walk(t, at), le.AppendUint64(nil, v))
}

const one, two = 0xffffffffc0100000, 0xffffffffc0200000

// loaded is a guest with two modules.
func loaded(t testing.TB) (*guest, uint64) {
	g := newGuest(t, banner+"\n\x00")
	g.page(modulesAt, "")
	c, i := uint64(two+codeAt), uint64(two+initAt)
	last := g.load(two, "vuln_one", modulesAt+slide, code("vuln_copy", 0), code("vuln_copy_more", c+1), code("vuln_copy", c+2), code("x", c+3), code("init", i+4),
		code("alias", i+4), code("twice", c+5), code("twice", c+6), code("data", two+8), symbol{"printk", c + 7, 0}, code("end", c+codeSize-1), code("behind", c+codeSize))
	first := g.load(one, "vulnerable", last, code("vuln_copy", one+codeAt+1))
	g.poke64(t, modulesAt+slide, first)
	return g, first
}

// function finds one as a probe does.
func function(k *Kernel, module, name string, offset uint64) (xenevents.GVA, error) {
	m, err := k.Module(module)
	if err != nil {
		return 0, err
	}
	s, err := k.Symbols(m)
	if err != nil {
		return 0, err
	}
	return s.Function(name, offset)
}

func TestModuleFunction(t *testing.T) {
	for layout, change := range map[string]func(*isf.Builder){"since 6.4": nil, "until 6.3": olderModuleText} {
		g, _ := loaded(t)
		k := g.find(t, testProfile(t, change))
		c, i := xenevents.GVA(two+codeAt), xenevents.GVA(two+initAt)
		for _, x := range []struct {
			module, symbol string
			offset         uint64
			want           xenevents.GVA
			err            string
		}{
			{"vuln_one", "vuln_copy", 0, c + 2, ""}, {"vuln-one", "vuln_copy", 0x10, c + 0x12, ""}, {"vulnerable", "vuln_copy", 0, one + codeAt + 1, ""}, {"vuln_one", "x", 0, c + 3, ""},
			{"vuln_one", "vuln_copy_more", 0, c + 1, ""}, {"vuln_one", "init", 0, i + 4, ""}, {"vuln_one", "alias", 0, i + 4, ""}, {"vuln_one", "end", 0, c + codeSize - 1, ""},
			{"vuln_one", "vuln_cop", 0, 0, `module "vuln_one" has no function "vuln_cop" (near it: "vuln_copy", `}, {"vuln_one", "", 0, 0, "no function"},
			{"vuln_one", "data", 0, 0, "that is no code"}, {"vuln_one", "printk", 0, 0, "no function"}, {"vuln_one", "behind", 0, 0, "that is no code"},
			{"vuln_one", "end", 1, 0, "with code at +0x1"}, {"vuln_one", "init", 1 << 20, 0, "with code at +0x100000"},
			{"nosuch", "x", 0, 0, `no module "nosuch" is loaded in the guest (near it: "vuln_one", "vulnerable")`}, {"", "x", 0, 0, "no module"},
		} {
			got, err := function(k, x.module, x.symbol, x.offset)
			if got != x.want || (err == nil) != (x.err == "") || err != nil && (!strings.Contains(err.Error(), x.err) || !errors.Is(err, isf.ErrNotFound)) {
				t.Errorf("%s: %s!%s is %v, %v", layout, x.module, x.symbol, got, err)
			}
		}
		if _, err := function(k, "vuln_one", "twice", 0); err == nil || !strings.Contains(err.Error(), "2 functions") {
			t.Errorf("%v", err)
		}
	}
}

func TestHostileModules(t *testing.T) {
	g, first := loaded(t)
	k := g.find(t, testProfile(t, nil))
	for name, c := range map[string]struct {
		at    xenevents.GVA
		value uint64
		want  string
	}{
		"a list without end":         {two + moduleList, first, "has no end"},
		"a list into nothing":        {two + moduleList, 0x1234, "list of modules"},
		"a list out of the space":    {two + moduleList, 1 << 60, "no canonical address"},
		"a table into nothing":       {two + moduleKallsyms, 0x1234, `symbols of module "vuln_one"`},
		"more symbols than there be": {two + tableAt + 24, 0xffffffff, "4294967295 symbols"},
		"symbols into nothing":       {two + tableAt + 8, 0x1234, `symbols of module "vuln_one"`},
		"strings into nothing":       {two + tableAt + 16, 0x1234, "no function"},
		"strings over the top":       {two + tableAt + 16, ^uint64(0), "no function"},
		"code without end":           {two + moduleMem + textPiece*memSize + memBytes, 0xffffffff, "more than a module has"},
		"code over the top":          {two + moduleMem + textPiece*memSize + memBase, ^uint64(0) - 3, "more than a module has"},
		"code that is gone":          {two + moduleMem + textPiece*memSize + memBase, 0, "no function"},
	} {
		old, err := k.read64(uint64(c.at))
		if err != nil {
			t.Fatal(err)
		}
		g.poke64(t, c.at, c.value)
		what := "vuln_one"
		if strings.Contains(name, "list") {
			what = "nosuch"
		}
		if got, err := function(k, what, "nosuch", 0); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		g.poke64(t, c.at, old)
	}
}

func TestModulesComeAndGo(t *testing.T) {
	g, _ := loaded(t)
	k := g.find(t, testProfile(t, nil))
	coming, going, err := k.ModuleEvents()
	if err != nil || coming != 0xffffffff81002000+slide || going != 0xffffffff81003000+slide {
		t.Errorf("%v, %v, %v", coming, going, err)
	}
	m, err := k.ComingModule(&xenevents.Registers{RDI: two + moduleName})
	if err != nil || m == nil || m.Name != "vuln_one" || !m.Formed || m.Live || m.Text != (TextRange{two + codeAt, two + codeAt + codeSize}) || m.Init.Start != two+initAt {
		t.Errorf("%+v, %v", m, err)
	}
	for _, rdi := range []uint64{two, two + moduleName + 1, 0, ^uint64(0)} {
		if m, err := k.ComingModule(&xenevents.Registers{RDI: rdi}); err != nil || m != nil {
			t.Errorf("%#x: %+v, %v", rdi, m, err)
		}
	}
	g.poke64(t, two+moduleState, live)
	gone, err := k.GoingModule(&xenevents.Registers{RDI: two})
	if err != nil || !gone.Live || !gone.Is(m) || gone.Is(nil) {
		t.Errorf("%+v, %v", gone, err)
	}
	g.poke64(t, two+moduleState, unformed)
	if gone, err = k.GoingModule(&xenevents.Registers{RDI: two}); err != nil || gone.Live || gone.Formed {
		t.Errorf("%+v, %v", gone, err)
	}
	if other, err := k.Module("vulnerable"); err != nil || other.Is(m) {
		t.Errorf("%+v, %v", other, err)
	}
	if _, err = k.GoingModule(&xenevents.Registers{RDI: 0x1234}); !errors.Is(err, xenevents.ErrNotMapped) {
		t.Errorf("%v", err)
	}
}

// TestProfileWithoutModules: what a profile lacks is said, not guessed.
func TestProfileWithoutModules(t *testing.T) {
	field := func(of, name string) func(*isf.Builder) {
		return func(b *isf.Builder) { delete(b.Users[of].Fields, name) }
	}
	without := func(symbol string) func(*isf.Builder) {
		return func(b *isf.Builder) {
			for i := range b.Symbols {
				if b.Symbols[i].Name == symbol {
					b.Symbols[i].Name += "_not"
				}
			}
		}
	}
	for want, change := range map[string]func(*isf.Builder){
		`"modules"`: without("modules"), `"parse_args"`: without("parse_args"), `"module_arch_freeing_init"`: without("module_arch_freeing_init"),
		`"list"`: field("module", "list"), `"state"`: field("module", "state"), `"core_layout"`: field("module", "mem"), `"symtab"`: field("mod_kallsyms", "symtab"), `"base"`: field("module_memory", "base"),
		"MOD_INIT_TEXT":     func(b *isf.Builder) { delete(b.Enums["mod_mem_type"].Constants, "MOD_INIT_TEXT") },
		"has no element 99": func(b *isf.Builder) { b.Enums["mod_mem_type"].Constants["MOD_TEXT"] = 99 },
		"MODULE_STATE_LIVE": func(b *isf.Builder) { delete(b.Enums["module_state"].Constants, "MODULE_STATE_LIVE") },
		"no array":          func(b *isf.Builder) { b.Users["module"].Fields["mem"] = isf.Field{Type: isf.Type{Kind: isf.Pointer}} },
	} {
		g, _ := loaded(t)
		k := g.find(t, testProfile(t, change))
		if _, _, err := k.ModuleEvents(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// FuzzModules: whatever the guest says of a module, nothing is read without end, and
// no function is found that is not in its code.
func FuzzModules(f *testing.F) {
	mod := make([]byte, 4096)
	f.Add(mod)
	f.Fuzz(func(t *testing.T, b []byte) {
		g, _ := loaded(t)
		k := g.find(t, testProfile(t, nil))
		g.Poke(g.walk(t, two), b[:min(len(b), xenevents.PageSize)])
		for _, name := range []string{"vuln_one", "vulnerable"} {
			m, err := k.Module(name)
			if err != nil {
				continue
			}
			s, err := k.Symbols(m)
			if err != nil {
				continue
			}
			for _, symbol := range []string{"vuln_copy", "x", "", "nosuch"} {
				if at, err := s.Function(symbol, 1); err == nil && !m.Holds(at) {
					t.Errorf("%s!%s is at %v, which is not in %+v", name, symbol, at, m)
				}
			}
		}
		if _, err := k.ComingModule(&xenevents.Registers{RDI: two + moduleName}); err != nil && err.Error() == "" {
			t.Error(err)
		}
	})
}
