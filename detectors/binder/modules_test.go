package binder

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// The tests' struct module, and what it points to in its page.
const (
	listHead                     = 0xffffffff82b00000
	mList, mName, mKall, mState  = 16, 40, 112, 120
	mCore, mInit                 = 128, 152 // base u64, text_size u32
	mTable, mSyms, mNames        = 0x200, 0x300, 0x800
	stateLive, stateComing       = 0, 1
	stateUnformed                = 3
	textAt, initTextAt, textSize = 0x1000, 0x2000, 0x1000 // from the module's start
)

// modular gives the kernel modules.
func modular(p *isf.Builder) {
	p.Symbols = append(p.Symbols, isf.Symbol{Name: "modules", Addr: listHead}, isf.Symbol{Name: "parse_args", Addr: coming}, isf.Symbol{Name: "module_arch_freeing_init", Addr: going})
	layout := isf.Type{Kind: isf.Struct, Name: "module_layout"}
	p.Users["module_layout"] = isf.UserType{Kind: isf.Struct, Size: 24, Fields: map[string]isf.Field{"base": {Offset: 0}, "text_size": {Offset: 8}}}
	p.Users["module"] = isf.UserType{Kind: isf.Struct, Size: 256, Fields: map[string]isf.Field{"list": {Offset: mList}, "name": {Offset: mName}, "kallsyms": {Offset: mKall}, "state": {Offset: mState},
		"core_layout": {Offset: mCore, Type: layout}, "init_layout": {Offset: mInit, Type: layout}}}
	p.Users["mod_kallsyms"] = isf.UserType{Kind: isf.Struct, Size: 32, Fields: map[string]isf.Field{"symtab": {Offset: 0}, "num_symtab": {Offset: 8}, "strtab": {Offset: 16}}}
	p.Enums["module_state"] = isf.EnumType{Base: "int", Size: 4, Constants: map[string]int64{"MODULE_STATE_LIVE": stateLive, "MODULE_STATE_COMING": stateComing, "MODULE_STATE_UNFORMED": stateUnformed}}
}

// kmod is a module of the guest: one page each for its data, its code and its init
// code. Its functions are probed ("work", and "init" in the init code) or call them.
type kmod struct {
	b    *bench
	at   xenevents.GVA
	page xenevents.GPA
}

// Where its functions are, from its start.
const (
	work, outer, other = textAt + 0x10, textAt + 0x42, textAt + 0x80
	initFn             = initTextAt + 0x20
)

var le = binary.LittleEndian

func newModular(t *testing.T) *bench {
	t.Helper()
	b := newBenchOf(t, modular)
	b.head = b.space.Page(listHead + slide).GPA()
	b.list(listHead + slide)
	return b
}

// list has the guest's list of modules begin at an entry.
func (b *bench) list(at xenevents.GVA) { b.g.Poke(b.head, le.AppendUint64(nil, uint64(at))) }

// relocate is a load up to where the kernel tells of it.
func (b *bench) relocate(t *testing.T, name string, at xenevents.GVA) *kmod {
	t.Helper()
	m := &kmod{b: b, at: at}
	mod := make([]byte, 4096)
	le.PutUint64(mod[mList:], listHead+slide)
	copy(mod[mName:], name)
	le.PutUint64(mod[mKall:], uint64(at)+mTable)
	le.PutUint32(mod[mState:], stateComing)
	for place, from := range map[int]xenevents.GVA{mCore: textAt, mInit: initTextAt} {
		le.PutUint64(mod[place:], uint64(at+from))
		le.PutUint32(mod[place+8:], textSize)
	}
	m.symbols(mod, []string{"work", "outer", "other", "init", "init_module", "printk"}, []xenevents.GVA{work, outer, other, initFn, initFn, 8})
	code, init := make([]byte, 4096), make([]byte, 4096)
	fn := []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3} // endbr64; push rbp; pop rbp; ret
	copy(code[work-textAt:], fn)
	copy(code[other-textAt:], fn)
	copy(code[outer-textAt:], []byte{0xe8, 0xc9, 0xff, 0xff, 0xff, 0x90, 0xc3}) // call work; nop; ret
	copy(init[initFn-initTextAt:], fn)
	m.page = b.space.Page(at, mod...).GPA()
	b.space.Page(at+textAt, code...)
	b.space.Page(at+initTextAt, init...)
	b.list(at + mList)
	return m
}

func (m *kmod) symbols(mod []byte, names []string, at []xenevents.GVA) {
	le.PutUint64(mod[mTable:], uint64(m.at)+mSyms)
	le.PutUint32(mod[mTable+8:], uint32(len(names)))
	le.PutUint64(mod[mTable+16:], uint64(m.at)+mNames)
	text := []byte{0}
	for i, n := range names {
		le.PutUint32(mod[mSyms+24*i:], uint32(len(text)))
		le.PutUint16(mod[mSyms+24*i+6:], 1)
		le.PutUint64(mod[mSyms+24*i+8:], uint64(m.at+at[i]))
		text = append(append(text, n...), 0)
	}
	copy(mod[mNames:], text)
}

func (m *kmod) state(s uint32) { m.b.g.Poke(m.page+mState, le.AppendUint32(nil, s)) }

// run runs a function at an address that has no slide.
func (b *bench) run(t *testing.T, at xenevents.GVA, rdi uint64) {
	t.Helper()
	v := b.g.VCPU(0)
	v.Run(sim.Call(at, rdi))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := v.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// load loads a module: its init runs, and is thrown away.
func (b *bench) load(t *testing.T, name string, at xenevents.GVA) *kmod {
	t.Helper()
	m := b.relocate(t, name, at)
	b.run(t, coming+slide, uint64(at)+mName)
	b.run(t, at+initFn, 0)
	m.state(stateLive)
	mod := make([]byte, 4096) // without the names of init
	m.symbols(mod, []string{"work", "outer", "other"}, []xenevents.GVA{work, outer, other})
	b.g.Poke(m.page+mTable, mod[mTable:])
	b.run(t, going+slide, uint64(at))
	b.g.Poke(m.page+mInit, make([]byte, 12))
	b.space.Unmap(at + initTextAt)
	return m
}

// unload takes it away again, and gives its memory to nobody.
func (m *kmod) unload(t *testing.T) {
	t.Helper()
	m.state(stateUnformed)
	m.b.list(listHead + slide)
	m.b.run(t, going+slide, uint64(m.at))
	m.b.space.Unmap(m.at + textAt)
	m.b.space.Unmap(m.at)
}

// states are those of a binding's probes.
func (b *bench) states(t *testing.T, bound *Binding) (all []probe.Status) {
	t.Helper()
	states, _, err := b.engine.Probes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range bound.Probes {
		i := slices.IndexFunc(states, func(s probe.Status) bool { return s.ID == p.ID })
		all = append(all, states[i])
	}
	return all
}

// clean waits until nothing is hidden but the page of the kernel's functions that tell
// of modules, where there is a probe yet.
func (b *bench) clean(t *testing.T) {
	t.Helper()
	for until := time.Now().Add(20 * time.Second); ; {
		all, stats, err := b.engine.Probes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if stats.Shadows == min(len(all), 1) {
			return
		}
		if time.Now().After(until) {
			t.Fatalf("%d copies are left of %+v", stats.Shadows, all)
		}
	}
}

const place1, place2 xenevents.GVA = 0xffffffffc0100000, 0xffffffffc0200000

// TestModuleComesAndGoes: three loads at two addresses; a hit for each call, its init's
// among them, and nothing left when it is gone.
func TestModuleComesAndGoes(t *testing.T) {
	b := newModular(t)
	bound, err := b.binder.Bind(t.Context(), &watcher{at: []string{"mod-one!work", "mod_one!init", "mod_one!work+4", "mod_one!nosuch"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range b.states(t, bound) {
		if s.State != probe.Waiting || s.At != 0 || !strings.Contains(s.Detail, "before it runs") || !strings.Contains(s.Detail, "can't be told") {
			t.Errorf("%+v", s)
		}
	}
	b.load(t, "mod_two", place1).unload(t)
	for round, at := range []xenevents.GVA{place1, place2, place1} {
		m := b.load(t, "mod_one", at)
		for range 3 {
			b.run(t, at+work, 0)
		}
		n, s := uint64(round+1), b.states(t, bound)
		if s[0].State != probe.Armed || s[0].At != at+work || s[0].Hits != 3*n || s[2].Hits != 3*n || s[2].At != at+work+4 {
			t.Errorf("round %d: %+v", round, s)
		}
		if s[1].State != probe.Waiting || s[1].Hits != n || !strings.Contains(s[1].Detail, "is gone") {
			t.Errorf("round %d: init: %+v", round, s[1])
		}
		if s[3].State != probe.Waiting || s[3].Hits != 0 || !strings.Contains(s[3].Detail, `no function "nosuch" (near it: `) {
			t.Errorf("round %d: %+v", round, s[3])
		}
		m.unload(t)
		for i, s := range b.states(t, bound)[:3] {
			if s.State != probe.Waiting || s.At != 0 {
				t.Errorf("round %d: %d: %+v", round, i, s)
			}
		}
		b.clean(t)
		// Another one in the freed place is not probed.
		other := b.load(t, "mod_two", at)
		b.run(t, at+work, 0)
		other.unload(t)
	}
	if s := b.states(t, bound); s[0].Hits != 9 || s[1].Hits != 3 || s[2].Hits != 9 {
		t.Errorf("%+v", s)
	}
	if len(b.found) != 3 || b.found[0].Probe != "mod_one!nosuch" || b.found[0].Severity != detectors.Medium || !strings.Contains(b.found[0].Message, "nosuch") {
		t.Errorf("%+v", b.found)
	}
	if err := b.binder.Unbind(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
	if all, _, err := b.engine.Probes(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("it left %+v, %v", all, err)
	}
	b.clean(t)
}

// TestModuleThatIsThere: a probe in a loaded module is armed at once, and withdrawn
// with it.
func TestModuleThatIsThere(t *testing.T) {
	b := newModular(t)
	m := b.load(t, "mod_one", place1)
	bound, err := b.binder.Bind(t.Context(), &watcher{at: []string{"mod_one!work", "mod_one!init_module"}})
	if err != nil {
		t.Fatal(err)
	}
	b.run(t, place1+work, 0)
	if s := b.states(t, bound); s[0].State != probe.Armed || s[0].Hits != 1 || s[1].State != probe.Waiting || !strings.Contains(s[1].Detail, "loads again") {
		t.Errorf("%+v", s)
	}
	for bad, want := range map[string]string{"mod_one!wrok": `near it: "work"`, "mod_one!init": initAlias, "mod_one!work+0xfffff": "with code at"} {
		if _, err := b.binder.Bind(t.Context(), &watcher{at: []string{bad}}); !errors.Is(err, isf.ErrNotFound) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", bad, err)
		}
	}
	// One that is just being loaded or freed counts as not there.
	m.state(stateUnformed)
	late, err := b.binder.Bind(t.Context(), &watcher{at: []string{"mod_one!other"}})
	if err != nil {
		t.Fatal(err)
	}
	if s := b.states(t, late); s[0].State != probe.Waiting || !strings.Contains(s[0].Detail, "loads, before it runs") {
		t.Errorf("%+v", s)
	}
	m.unload(t)
	if s := b.states(t, bound); s[0].State != probe.Waiting || s[0].Hits != 1 {
		t.Errorf("%+v", s)
	}
	b.clean(t)
	// Those that are removed while they wait are not armed any more.
	if err := b.binder.Unbind(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
	b.load(t, "mod_one", place2)
	b.run(t, place2+other, 0)
	if s := b.states(t, late); s[0].Hits != 1 || s[0].At != place2+other {
		t.Errorf("%+v", s)
	}
	if err := b.binder.Unbind(t.Context(), late); err != nil {
		t.Fatal(err)
	}
}

// TestModuleWithReturns: the places that calls return to are in the module, too.
func TestModuleWithReturns(t *testing.T) {
	b := newModular(t)
	returns := 0
	w := &returner{watcher: watcher{at: []string{"mod_one!work"}, handle: func(h detectors.Hit) detectors.Outcome {
		if _, over := h.Return(); over {
			returns++
		}
		return detectors.Outcome{}
	}}}
	bound, err := b.binder.Bind(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	for round := range 2 {
		m := b.load(t, "mod_one", place1)
		b.run(t, place1+outer, 0)
		b.run(t, place1+outer, 0)
		if _, stats, err := b.engine.Probes(t.Context()); err != nil || stats.Sites != 1 || returns != 2*(round+1) {
			t.Errorf("%d returns, %+v, %v", returns, stats, err)
		}
		m.unload(t)
		if _, stats, err := b.engine.Probes(t.Context()); err != nil || stats.Sites != 0 {
			t.Errorf("%+v, %v", stats, err)
		}
		b.clean(t)
	}
	if err := b.binder.Unbind(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
}

// TestModuleThatFailsToLoad: its memory goes without its init having run.
func TestModuleThatFailsToLoad(t *testing.T) {
	b := newModular(t)
	bound, err := b.binder.Bind(t.Context(), &watcher{at: []string{"mod_one!work", "mod_one!init"}})
	if err != nil {
		t.Fatal(err)
	}
	m := b.relocate(t, "mod_one", place1)
	b.run(t, coming+slide, uint64(place1)+mName)
	if s := b.states(t, bound); s[0].State != probe.Armed || s[1].State != probe.Armed || s[1].At != place1+initFn {
		t.Errorf("%+v", s)
	}
	// What else parses arguments is no module.
	b.run(t, coming+slide, uint64(place2)+mName)
	m.unload(t)
	if s := b.states(t, bound); s[0].State != probe.Waiting || s[1].State != probe.Waiting || s[0].Hits+s[1].Hits != 0 {
		t.Errorf("%+v", s)
	}
	b.clean(t)
	// A module whose symbols can't be read is a finding.
	m = b.relocate(t, "mod_one", place1)
	b.g.Poke(m.page+mTable+8, le.AppendUint32(nil, ^uint32(0)))
	b.run(t, coming+slide, uint64(place1)+mName)
	if s := b.states(t, bound); s[0].State != probe.Waiting || !strings.Contains(s[0].Detail, "4294967295 symbols") || len(b.found) != 2 {
		t.Errorf("%+v, %+v", s, b.found)
	}
	// One of which the guest says nonsense when it goes is taken at its word before.
	m = b.relocate(t, "mod_one", place1)
	b.run(t, coming+slide, uint64(place1)+mName)
	if s := b.states(t, bound); s[0].State != probe.Armed {
		t.Errorf("%+v", s)
	}
	b.g.Poke(m.page+mCore+8, le.AppendUint32(nil, ^uint32(0)))
	m.unload(t)
	if s := b.states(t, bound); s[0].State != probe.Waiting || s[1].State != probe.Waiting {
		t.Errorf("%+v", s)
	}
	b.clean(t)
	if err := b.binder.Unbind(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
}

// TestBlind: where the guest writes over what tells of modules, that is said; a load
// that is seen later puts right what was missed.
func TestBlind(t *testing.T) {
	b := newModular(t)
	blind := func() string {
		all, _, err := b.engine.Probes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		byID := map[probe.ID]*probe.Status{}
		for i := range all {
			byID[all[i].ID] = &all[i]
		}
		return b.binder.Blind(byID)
	}
	bound, err := b.binder.Bind(t.Context(), &watcher{at: []string{"mod_one!work"}})
	if err != nil {
		t.Fatal(err)
	}
	m := b.load(t, "mod_one", place1)
	if got := blind(); got != "" {
		t.Errorf("%s", got)
	}
	write := func(c byte) {
		v := b.g.VCPU(0)
		v.Run(sim.Write(going+slide, c))
		if err := v.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	write(0x90)
	if got := blind(); !strings.Contains(got, "modules that go is displaced (") {
		t.Errorf("%s", got)
	}
	m.state(stateUnformed) // it goes unseen
	write(0xf3)
	if got := blind(); got != "" {
		t.Errorf("%s", got)
	}
	b.space.Unmap(place1 + textAt)
	m = b.load(t, "mod_one", place1) // at the same address, in another frame
	b.run(t, place1+work, 0)
	if s := b.states(t, bound); s[0].State != probe.Armed || s[0].Hits != 1 {
		t.Errorf("%+v", s)
	}
	m.unload(t)
	b.clean(t)
	if err := b.binder.Unbind(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
}

func TestProfileThatSeesNoModules(t *testing.T) {
	b := newBench(t)
	_, err := b.binder.Bind(t.Context(), &watcher{at: []string{"mod!work"}})
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "profile") {
		t.Errorf("%v", err)
	}
	if all, _, err := b.engine.Probes(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("it left %+v, %v", all, err)
	}
}
