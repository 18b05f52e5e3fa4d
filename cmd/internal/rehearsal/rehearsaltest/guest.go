// Package rehearsaltest has a small guest of the simulator, with a kernel and its profile,
// for tests of what records and plays.
package rehearsaltest

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// Where things are in the guest.
const (
	entryAt  = 0xffffffff81800040
	textAt   = 0xffffffff81800000
	bannerAt = 0xffffffff82000000
	rootAt   = 0xffffffff82a10000
	percpuAt = 0xffff888000000000
	stackAt  = 0xffffc90000001000
	nameAt   = 0xffff888000010000
)

// functions of the guest's kernel, at textAt; each is endbr64; push rbp; pop rbp; ret.
var functions = map[string]uint64{"vfs_open": 0x800, "vfs_unlink": 0x840, "heartbeat": 0x880}

const banner = "Linux version 6.1.0-13-amd64 (debian) #1 SMP Debian 6.1.55-1 (2023-09-29)"

// Guest is a guest that opens and unlinks files. It has ID 5 and the name "guest".
type Guest struct {
	Host    *sim.Host
	Sim     *sim.Guest
	Profile *isf.Profile
	t       testing.TB
	name    xenevents.GPA
	task    xenevents.GPA
}

// New makes one.
func New(t testing.TB) *Guest {
	t.Helper()
	h := sim.NewHost()
	g := &Guest{Host: h, Sim: h.Add(sim.Config{ID: 5, Name: "guest"}), Profile: profile(t), t: t}
	s := g.Sim.NewSpace()
	code := make([]byte, xenevents.PageSize)
	for _, at := range functions {
		copy(code[at:], []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3})
	}
	s.Page(textAt, code...)
	s.Page(bannerAt, []byte(banner+"\n\x00")...)
	s.Map(rootAt, xenevents.GPA(s.CR3()).GFN())
	s.Page(stackAt - xenevents.PageSize)
	g.name = s.Page(nameAt).GPA()
	g.task = s.Page(percpuAt, binary.LittleEndian.AppendUint64(make([]byte, 8), percpuAt+0x100)...).GPA() + 0x100
	g.Sim.VCPU(0).Set(func(r *xenevents.Registers) { r.CR3, r.LSTAR, r.RSP, r.GSBase = s.CR3(), entryAt, stackAt-64, percpuAt })
	return g
}

func profile(t testing.TB) *isf.Profile {
	t.Helper()
	b := isf.NewBuilder()
	b.Meta.Banner = banner
	b.Symbols = []isf.Symbol{{Name: "entry_SYSCALL_64", Addr: entryAt}, {Name: "linux_banner", Addr: bannerAt}, {Name: "init_top_pgt", Addr: rootAt}, {Name: "current_task", Addr: 8}}
	b.Base["char"] = isf.BaseType{Kind: "char", Size: 1, Signed: true}
	b.Base["int"] = isf.BaseType{Kind: "int", Size: 4, Signed: true}
	sint, char := isf.Type{Kind: isf.Base, Name: "int"}, isf.Type{Kind: isf.Base, Name: "char"}
	for name, at := range functions {
		b.Symbols = append(b.Symbols, isf.Symbol{Name: name, Addr: textAt + at})
		b.Funcs[name] = isf.Func{Params: []isf.Param{{Name: "name", Type: isf.Type{Kind: isf.Pointer, Subtype: &char}}, {Name: "flags", Type: sint}}, Return: sint}
	}
	b.Users["task_struct"] = isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{"pid": {Offset: 0, Type: sint}, "tgid": {Offset: 4, Type: sint}, "comm": {Offset: 8, Type: sint}}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Open opens the guest's domain.
func (g *Guest) Open() xenevents.Domain {
	g.t.Helper()
	dom, err := g.Host.Open(g.t.Context(), 5)
	if err != nil {
		g.t.Fatal(err)
	}
	return dom
}

// Call has a process of the guest call a function with a file's name and flags, and returns
// what that returns: 0, if nobody refuses it.
func (g *Guest) Call(comm, function, name string, flags uint64) (result uint64) {
	g.t.Helper()
	g.Sim.Poke(g.task, append(binary.LittleEndian.AppendUint64(nil, 6|6<<32), append([]byte(comm), 0)...))
	g.Sim.Poke(g.name, append([]byte(name), 0))
	g.Sim.VCPU(0).Set(func(r *xenevents.Registers) { r.RAX = 0 })
	g.Sim.VCPU(0).Run(sim.Call(textAt+xenevents.GVA(functions[function]), nameAt, flags), sim.See(func(r xenevents.Registers) { result = r.RAX }))
	ctx, cancel := context.WithTimeout(g.t.Context(), 20*time.Second)
	defer cancel()
	if err := g.Sim.VCPU(0).Wait(ctx); err != nil {
		g.t.Fatal(err)
	}
	return result
}
