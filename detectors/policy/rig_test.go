package policy

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// Where things are in the guest of the simulator.
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
var functions = map[string]uint64{"vfs_stat": 0x800, "loop_body": 0x840, "loop_enter": 0x880, "heartbeat": 0x8c0, "__x64_sys_stat": 0x900, "caller": 0x980}

const banner = "Linux version 6.1.0-13-amd64 (debian) #1 SMP Debian 6.1.55-1 (2023-09-29)"

// rig is a guest, its engine and a binder.
type rig struct {
	t      *testing.T
	guest  *sim.Guest
	vcpu   *sim.VCPU
	task   xenevents.GPA
	kernel *guestos.Kernel
	engine *probe.Engine
	binder *binder.Binder
	sink   sink
}

func testProfile(t testing.TB) *isf.Profile {
	t.Helper()
	b := isf.NewBuilder()
	b.Meta.Banner = banner
	b.Symbols = []isf.Symbol{{Name: "entry_SYSCALL_64", Addr: entryAt}, {Name: "linux_banner", Addr: bannerAt}, {Name: "init_top_pgt", Addr: rootAt}, {Name: "current_task", Addr: 8}}
	for name, at := range functions {
		b.Symbols = append(b.Symbols, isf.Symbol{Name: name, Addr: textAt + at})
	}
	b.Base["char"] = isf.BaseType{Kind: "char", Size: 1, Signed: true}
	b.Base["int"] = isf.BaseType{Kind: "int", Size: 4, Signed: true}
	b.Base["long unsigned int"] = isf.BaseType{Kind: "int", Size: 8}
	sint, char, long := isf.Type{Kind: isf.Base, Name: "int"}, isf.Type{Kind: isf.Base, Name: "char"}, isf.Type{Kind: isf.Base, Name: "long unsigned int"}
	b.Funcs["vfs_stat"] = isf.Func{Params: []isf.Param{{Name: "name", Type: isf.Type{Kind: isf.Pointer, Subtype: &char}}, {Name: "flags", Type: sint}}, Return: sint}
	b.Users["task_struct"] = isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{"pid": {Offset: 0, Type: sint}, "tgid": {Offset: 4, Type: sint}, "comm": {Offset: 8, Type: sint}, "flags": {Offset: 32, Type: sint}, "thread_info": {Offset: 40, Type: isf.Type{Kind: isf.Struct, Name: "thread_info"}}}}
	b.Users["thread_info"] = isf.UserType{Kind: isf.Struct, Size: 8, Fields: map[string]isf.Field{"status": {Offset: 0}}}
	b.Users["pt_regs"] = isf.UserType{Kind: isf.Struct, Size: 168, Fields: map[string]isf.Field{
		"di": {Offset: 112, Type: long}, "si": {Offset: 104, Type: long}, "dx": {Offset: 96, Type: long}, "r10": {Offset: 56, Type: long}, "r8": {Offset: 72, Type: long}, "r9": {Offset: 64, Type: long}, "orig_ax": {Offset: 120, Type: long}}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newRig(t *testing.T) *rig {
	t.Helper()
	h := sim.NewHost()
	g := h.Add(sim.Config{ID: 5, Name: "guest"})
	s := g.NewSpace()
	code := make([]byte, 4096)
	for _, at := range functions {
		copy(code[at:], []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3})
	}
	copy(code[functions["caller"]:], []byte{0xe8, 0x7b, 0xfe, 0xff, 0xff, 0xc3}) // call vfs_stat; ret
	s.Page(textAt, code...)
	s.Page(bannerAt, []byte(banner+"\n\x00")...)
	s.Map(rootAt, xenevents.GPA(s.CR3()).GFN())
	s.Page(stackAt - 0x1000)
	s.Page(nameAt, []byte("/etc/shadow\x00")...)
	task := s.Page(percpuAt, binary.LittleEndian.AppendUint64(make([]byte, 8), percpuAt+0x100)...).GPA() + 0x100
	v := g.VCPU(0)
	v.Set(func(r *xenevents.Registers) { r.CR3, r.LSTAR, r.RSP, r.GSBase = s.CR3(), entryAt, stackAt-64, percpuAt })
	dom, err := h.Open(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, guest: g, vcpu: v, task: task}
	r.thread(6, "sh")
	if r.kernel, err = guestos.FindKernel(dom, 1, testProfile(t)); err != nil {
		t.Fatal(err)
	}
	if r.engine, err = probe.New(dom, probe.Options{}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(r.engine.Run(ctx), dom.Close()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if leaks := g.Leaks(); len(leaks) > 0 {
			t.Error(leaks)
		}
	})
	<-r.engine.Ready()
	r.binder = binder.New(r.engine, r.kernel, xenevents.DomainInfo{ID: 5, Name: "guest"}, &r.sink)
	return r
}

// thread says who runs on the vCPU.
func (r *rig) thread(tid uint32, comm string) {
	b := binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, tid), tid)
	r.guest.Poke(r.task, append(b, append([]byte(comm), 0)...))
}

func (r *rig) target() Target {
	return Target{Kernel: r.kernel, Do: func(f func() error) error {
		return r.engine.Do(r.t.Context(), func(xenevents.Domain) error { return f() })
	}}
}

// policies reads a document that lacks its head.
func policies(t testing.TB, spec string) []*Policy {
	t.Helper()
	all, err := Parse("test.yaml", []byte(head+spec))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const head = "apiVersion: hprobe/v1\nkind: ProbePolicy\nmetadata: {name: test, tags: [of-policy]}\nspec:\n  domains: {names: ['*']}\n"

// arm compiles a policy and arms it in the guest.
func (r *rig) arm(spec string) *Detector {
	r.t.Helper()
	d, err := policies(r.t, spec)[0].Compile(r.target())
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.binder.Bind(r.t.Context(), d); err != nil {
		r.t.Fatal(err)
	}
	return d
}

// call calls a function of the guest's kernel, and returns what that returns: what was
// in RAX, if nobody refuses it.
func (r *rig) call(function string, args ...uint64) (rax uint64) {
	r.t.Helper()
	r.vcpu.Set(func(r *xenevents.Registers) { r.RAX = 0x77 })
	r.vcpu.Run(sim.Call(textAt+xenevents.GVA(functions[function]), args...), sim.See(func(r xenevents.Registers) { rax = r.RAX }))
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	if err := r.vcpu.Wait(ctx); err != nil {
		r.t.Fatal(err)
	}
	return rax
}

// sink keeps findings.
type sink struct {
	mu  sync.Mutex
	all []*detectors.Finding
}

func (s *sink) Emit(f *detectors.Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, f)
}

func (r *rig) findings() []*detectors.Finding {
	r.sink.mu.Lock()
	defer r.sink.mu.Unlock()
	return slices.Clone(r.sink.all)
}

// found are the messages of all findings so far.
func (r *rig) found() (all []string) {
	for _, f := range r.findings() {
		all = append(all, f.Severity.String()+": "+f.Message)
	}
	return all
}
