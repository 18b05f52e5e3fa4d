package guestos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// A guest of the simulator with so much of a kernel as this room looks at. The
// numbers are of no Linux: all must come from the profile.
const (
	banner = "Linux version 6.12.1-amd64 (a@b) #1 SMP"
	slide  = 15 << 21

	entry     = 0xffffffff81800040
	bannerAt  = 0xffffffff82000100
	notesAt   = 0xffffffff82001000
	rootAt    = 0xffffffff82a10000
	modulesAt = 0xffffffff82b00010
	percpu    = 0x1fb00

	moduleList, moduleName, moduleKallsyms, moduleState = 16, 40, 112, 120
)

var le = binary.LittleEndian

func testProfile(t testing.TB, change func(*isf.Builder)) *isf.Profile {
	t.Helper()
	b := isf.NewBuilder()
	b.Meta.Banner = banner
	b.Symbols = []isf.Symbol{{Name: "entry_SYSCALL_64", Addr: entry}, {Name: "linux_banner", Addr: bannerAt}, {Name: "init_top_pgt", Addr: rootAt},
		{Name: "modules", Addr: modulesAt}, {Name: "current_task", Addr: percpu}, {Name: "do_exit", Addr: 0xffffffff81001000},
		{Name: "parse_args", Addr: 0xffffffff81002000}, {Name: "module_arch_freeing_init", Addr: 0xffffffff81003000}}
	fields := func(all ...any) isf.UserType {
		u := isf.UserType{Kind: isf.Struct, Size: 512, Fields: map[string]isf.Field{}}
		for i := 0; i < len(all); i += 2 {
			u.Fields[all[i].(string)] = isf.Field{Offset: uint64(all[i+1].(int)), Type: isf.Type{Kind: isf.Base, Name: "unsigned long"}}
		}
		return u
	}
	b.Users = map[string]isf.UserType{
		"module":       fields("list", moduleList, "name", moduleName, "kallsyms", moduleKallsyms, "state", moduleState),
		"mod_kallsyms": fields("symtab", 8, "num_symtab", 24, "strtab", 16),
		"task_struct":  fields("pid", 0x54, "tgid", 0x58, "comm", 0x70),
		"pt_regs":      fields("di", 0x70, "si", 0x68, "dx", 0x60, "r10", 0x38, "r8", 0x48, "r9", 0x40),
		"pcpu_hot":     fields("current_task", 24),
		"small":        {Kind: isf.Struct, Size: 4},
		"pair":         {Kind: isf.Struct, Size: 16},
	}
	addModuleText(b)
	pointer := isf.Type{Kind: isf.Pointer, Subtype: &isf.Type{Kind: isf.Struct, Name: "file"}}
	long := isf.Type{Kind: isf.Base, Name: "long"}
	b.Funcs = map[string]isf.Func{
		"vfs_read": {Params: []isf.Param{{Name: "file", Type: pointer}, {Name: "count", Type: long}}},
		"many":     {Params: make([]isf.Param, 9)},
		"byvalue": {Params: []isf.Param{{Name: "small", Type: isf.Type{Kind: isf.Struct, Name: "small"}}, {Name: "pair", Type: isf.Type{Kind: isf.Struct, Name: "pair"}},
			{Name: "large", Type: isf.Type{Kind: isf.Struct, Name: "module"}}, {Name: "pair2", Type: isf.Type{Kind: isf.Union, Name: "pair"}}, {Name: "pair3", Type: isf.Type{Kind: isf.Struct, Name: "pair"}},
			{Name: "a", Type: long}, {Name: "b", Type: long}}},
		"__do_sys_vmsplice": {Params: []isf.Param{{Name: "fd", Type: long}, {Name: "uiov", Type: pointer}, {Type: long}, {Name: "flags", Type: long}}},
		"ksys_read":         {Params: []isf.Param{{Name: "fd", Type: long}}},
		"__do_sys_getpid":   {Params: []isf.Param{}},
	}
	if change != nil {
		change(b)
	}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

type guest struct {
	*sim.Guest
	space *sim.Space
	dom   xenevents.Domain
}

func newGuest(t testing.TB, text string) *guest {
	t.Helper()
	h := sim.NewHost()
	g := &guest{Guest: h.Add(sim.Config{ID: 1, Name: "guest", VCPUs: 3})}
	g.space = g.NewSpace()
	g.space.Page(entry&^0xfff+slide, 0x90)
	g.page(bannerAt, text)
	g.page(notesAt, "\x04\x00\x00\x00\x02\x00\x00\x00\x03\x00\x00\x00GNU\x00\xab\xcd\x00\x00")
	g.space.Map(rootAt+slide, xenevents.GPA(g.space.CR3()).GFN())
	// The first vCPU is not up yet.
	for v := 1; v < 3; v++ {
		g.VCPU(v).Set(func(r *xenevents.Registers) { r.CR3, r.LSTAR = g.space.CR3(), entry+slide })
	}
	var err error
	if g.dom, err = h.Open(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.dom.Close() })
	return g
}

// page puts text to an address of the profile, in a page of its own.
func (g *guest) page(at uint64, text string) {
	b := make([]byte, 4096)
	copy(b[at&0xfff:], text)
	g.space.Page(xenevents.GVA(at&^0xfff+slide), b...)
}

func (g *guest) find(t testing.TB, p *isf.Profile) *Kernel {
	t.Helper()
	k, err := FindKernel(g.dom, 3, p)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestFindKernel(t *testing.T) {
	g := newGuest(t, banner+"\n\x00")
	k := g.find(t, testProfile(t, func(b *isf.Builder) {
		b.Meta.BuildID = "abcd"
		b.Symbols = append(b.Symbols, isf.Symbol{Name: "__start_notes", Addr: notesAt}, isf.Symbol{Name: "__stop_notes", Addr: notesAt + 20})
	}))
	if k.Slide != slide || k.Space != g.space.AddressSpace() {
		t.Errorf("slide %#x in %v", k.Slide, k.Space)
	}
	if at, err := k.Address("do_exit"); err != nil || at != 0xffffffff81001000+slide {
		t.Errorf("%v, %v", at, err)
	}
	if s, ok := k.Symbolize(0xffffffff81001007 + slide); !ok || s != "do_exit+0x7" {
		t.Errorf("%q", s)
	}
	// A process's tables, of which the kernel's own are another copy.
	other := g.NewSpace()
	for _, at := range []xenevents.GVA{bannerAt&^0xfff + slide, rootAt + slide} {
		gpa := g.walk(t, at)
		other.Map(at, gpa.GFN())
	}
	for v := range 3 {
		g.VCPU(v).Set(func(r *xenevents.Registers) { r.CR3 = other.CR3() | 0xfff | 1<<63 }) // PCID and no-flush
	}
	if k := g.find(t, testProfile(t, nil)); k.Space != g.space.AddressSpace() {
		t.Errorf("the kernel's root is %v, not that of %v", k.Space, g.space.AddressSpace())
	}
}

func (g *guest) walk(t testing.TB, at xenevents.GVA) xenevents.GPA {
	t.Helper()
	k := &Kernel{Space: g.space.AddressSpace()}
	k.mem = guestmem.NewReader(g.dom)
	tr, err := k.mem.Translate(k.Space, at)
	if err != nil {
		t.Fatal(err)
	}
	return tr.GPA
}

func TestFindKernelFails(t *testing.T) {
	for name, c := range map[string]struct {
		banner  string
		change  func(*isf.Builder)
		regs    func(*xenevents.Registers)
		want    string
		profile bool // it is the wrong profile
	}{
		"another build":    {"Linux version 6.12.1-amd64 (a@b) #2 SMP\n", nil, nil, `runs "Linux version 6.12.1-amd64 (a@b) #2 SMP"`, true},
		"a hostile banner": {"Linux version \x1b[2J\n\x9b", nil, nil, `runs "Linux version ?[2J??"`, true},
		"no banner":        {"\x1b[2J", nil, nil, "of another kernel", true},
		"not booted":       {banner, nil, func(r *xenevents.Registers) { r.LSTAR = 0 }, "is it booted", false},
		"another entry":    {banner, nil, func(r *xenevents.Registers) { r.LSTAR += 16 }, "of another kernel", true},
		"5 levels":         {banner, nil, func(r *xenevents.Registers) { r.CR4 |= xenevents.CR4LA57 }, "no5lvl", false},
		"no entry symbol":  {banner, func(b *isf.Builder) { b.Symbols = b.Symbols[1:] }, nil, "of another kernel", true},
		"another build id": {banner, func(b *isf.Builder) {
			b.Meta.BuildID = "abce"
			b.Symbols = append(b.Symbols, isf.Symbol{Name: "__start_notes", Addr: notesAt}, isf.Symbol{Name: "__stop_notes", Addr: notesAt + 20})
		}, nil, `its build id is "abce", the guest's is "abcd"`, true},
		"no notes there": {banner, func(b *isf.Builder) {
			b.Meta.BuildID = "abcd"
			b.Symbols = append(b.Symbols, isf.Symbol{Name: "__start_notes", Addr: notesAt + 1<<20}, isf.Symbol{Name: "__stop_notes", Addr: notesAt + 1<<20 + 20})
		}, nil, "the build id of the guest's kernel", false},
		"no root symbol": {banner, func(b *isf.Builder) { b.Symbols = append(b.Symbols[:2:2], b.Symbols[3:]...) }, nil, "init_top_pgt", false},
	} {
		g := newGuest(t, c.banner)
		if c.regs != nil {
			for v := 1; v < 3; v++ {
				g.VCPU(v).Set(c.regs)
			}
		}
		_, err := FindKernel(g.dom, 3, testProfile(t, c.change))
		var wrong *WrongProfileError
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.As(err, &wrong) != c.profile {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCurrentTask(t *testing.T) {
	const gs, task, linked = 0xffff888100000000, 0xffff888200000f90, 0xffffffff82c00000
	for name, c := range map[string]struct {
		change func(*isf.Builder)
		at     uint64 // of the pointer
	}{
		"to 6.1":      {nil, gs + percpu},
		"6.2 to 6.14": {func(b *isf.Builder) { b.Symbols[4] = isf.Symbol{Name: "pcpu_hot", Addr: 0x30000} }, gs + 0x30000 + 24},
		"since 6.15":  {func(b *isf.Builder) { b.Symbols[4].Addr = linked }, gs + percpu},
	} {
		g := newGuest(t, banner+"\n\x00")
		k := g.find(t, testProfile(t, c.change))
		regs := xenevents.Registers{GSBase: gs, ShadowGS: 1, SS: 0x18}
		if name == "since 6.15" {
			regs.GSBase = c.at - k.Slide - linked // there it is the difference
		}
		g.space.Page(xenevents.GVA(c.at &^ 0xfff))
		g.poke64(t, xenevents.GVA(c.at), task)
		g.space.Page(task &^ 0xfff)
		g.space.Page(task&^0xfff + 0x1000)
		write := func(at xenevents.GVA, b ...byte) { // the task crosses a page
			for i, c := range b {
				g.Poke(g.walk(t, at+xenevents.GVA(i)), []byte{c})
			}
		}
		write(task+0x54, 9, 1, 0, 0, 7, 1, 0, 0)
		write(task+0x70, []byte("sixteen bytes!!!tail")...)
		read := func(p []byte, at xenevents.GVA) (int, error) { return k.mem.ReadGVA(k.Space, p, at) }
		want := Task{PID: 0x109, TGID: 0x107, Comm: "sixteen bytes!!!"}
		if got, err := k.CurrentTask(&regs, read); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		// In user mode the kernel's GS is the other one.
		user := regs
		user.SS, user.GSBase, user.ShadowGS = 0x2b, 1, regs.GSBase
		if got, err := k.CurrentTask(&user, read); err != nil || got != want {
			t.Errorf("%s, in user mode: %+v, %v", name, got, err)
		}
		write(task+0x70, []byte("a\x1b[2J\x00")...)
		if got, err := k.CurrentTask(&regs, read); err != nil || got.Comm != "a\x1b[2J" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		regs.GSBase = 0
		if got, err := k.CurrentTask(&regs, read); !errors.Is(err, xenevents.ErrNotMapped) || got != (Task{}) {
			t.Errorf("%s, without GS: %+v, %v", name, got, err)
		}
	}
	k := &Kernel{Profile: testProfile(t, func(b *isf.Builder) { b.Symbols = b.Symbols[:4] })}
	if _, err := k.CurrentTask(&xenevents.Registers{}, nil); !errors.Is(err, isf.ErrNotFound) {
		t.Errorf("%v", err)
	}
}

func TestArgs(t *testing.T) {
	p := testProfile(t, nil)
	text := func(all []Arg) (s string) {
		for _, a := range all {
			if a.Unread != nil {
				s += a.Name + ":? " + a.Type.String() + ", "
				continue
			}
			s += fmt.Sprintf("%s:%d", a.Name, a.Register)
			if a.InPtRegs {
				s += fmt.Sprintf("+%#x", a.Offset)
			}
			s += " " + a.Type.String() + ", "
		}
		return s
	}
	for function, want := range map[string]string{
		"vfs_read": "file:7 struct file *, count:6 long, ",
		"many":     ":7 void, :6 void, :2 void, :1 void, :8 void, :9 void, :? void, :? void, :? void, ", // on the stack
		// Those of 16 bytes take two registers; what finds no place leaves it to others.
		"byvalue":             "small:7 struct small, pair:6 struct pair, large:? struct module, pair2:1 union pair, pair3:? struct pair, a:9 long, b:? long, ",
		"__x64_sys_vmsplice":  "fd:7+0x70 long, uiov:7+0x68 struct file *, arg2:7+0x60 unsigned long, flags:7+0x38 long, ",
		"__x64_sys_read":      "fd:7+0x70 long, ",
		"__x64_sys_getpid":    "",
		"__x64_sys_elsewhere": "arg0:7+0x70 unsigned long, arg1:7+0x68 unsigned long, arg2:7+0x60 unsigned long, arg3:7+0x38 unsigned long, arg4:7+0x48 unsigned long, arg5:7+0x40 unsigned long, ",
	} {
		if got, err := Args(p, function); err != nil || text(got) != want {
			t.Errorf("%s: %v\n%q\nnot\n%q", function, err, text(got), want)
		}
	}
	if _, err := Args(p, "nosuch"); !errors.Is(err, ErrNoPrototype) {
		t.Errorf("%v", err)
	}
	if _, err := Args(testProfile(t, func(b *isf.Builder) { delete(b.Users, "pt_regs") }), "__x64_sys_read"); !errors.Is(err, isf.ErrNotFound) {
		t.Errorf("%v", err)
	}
	if got := text(UntypedArgs()); got != "arg0:7 , arg1:6 , arg2:2 , arg3:1 , arg4:8 , arg5:9 , " {
		t.Errorf("%q", got)
	}
	regs := xenevents.Registers{RDI: 0x1000, RSI: 2}
	mem := func(at xenevents.GVA) (uint64, error) { return uint64(at) + 1, nil }
	if v, err := (&Arg{Unread: errOnStack}).Read(&regs, mem); v != 0 || !errors.Is(err, errOnStack) {
		t.Errorf("%#x, %v", v, err)
	}
	if v, err := (&Arg{Register: 6}).Read(&regs, mem); v != 2 || err != nil {
		t.Errorf("%#x, %v", v, err)
	}
	if v, err := (&Arg{Register: 7, InPtRegs: true, Offset: 0x68}).Read(&regs, mem); v != 0x1069 || err != nil {
		t.Errorf("%#x, %v", v, err)
	}
}
