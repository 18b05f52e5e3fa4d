package daemon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

func TestSyscallsExclude(t *testing.T) {
	for want, r := range map[string]*controlapi.AddProbeRequest{
		"--at": {At: "do_exit"}, "--pid": {Pid: 1}, "--return": {Returns: true}, "--set": {Rule: &controlapi.Rule{Set: []string{"arg0=1"}}}, "": {Rule: &controlapi.Rule{Deny: "EPERM"}},
	} {
		if err := checkSyscalls(r); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// The tests' system calls: two native ones, and where 32-bit ones come by.
const (
	nativeAt, getpidAt = function, function + 0x20
	dispatchAt         = function + 0x40
	regsAt             = stack - 0x800 // struct pt_regs
	taskAt             = percpu + 0x100
)

func callsProfile(t *testing.T) *isf.Profile {
	t.Helper()
	b := isf.NewBuilder()
	b.Meta.Banner = "Linux version 6"
	for name, at := range map[string]uint64{"entry_SYSCALL_64": entry, "linux_banner": bannerAt, "init_top_pgt": rootAt, "current_task": 8,
		"__x64_sys_openat": nativeAt, "__x64_sys_getpid": getpidAt, "__ia32_sys_getpid": getpidAt, "ia32_sys_call": dispatchAt} {
		b.Symbols = append(b.Symbols, isf.Symbol{Name: name, Addr: at})
	}
	sint := isf.Type{Kind: isf.Base, Name: "int"}
	b.Base["int"] = isf.BaseType{Kind: "int", Size: 4, Signed: true}
	b.Funcs["__do_sys_openat"] = isf.Func{Params: []isf.Param{{Name: "dfd", Type: sint}, {Name: "flags", Type: sint}}}
	fields := map[string]isf.Field{}
	for i, name := range []string{"di", "si", "dx", "r10", "r8", "r9", "bx", "cx", "bp", "orig_ax"} {
		fields[name] = isf.Field{Offset: uint64(8 * i), Type: isf.Type{Kind: isf.Base, Name: "int"}}
	}
	b.Users["pt_regs"] = isf.UserType{Kind: isf.Struct, Size: 168, Fields: fields}
	b.Users["thread_info"] = isf.UserType{Kind: isf.Struct, Size: 24, Fields: map[string]isf.Field{"status": {Offset: 0}}}
	b.Users["task_struct"] = isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{"pid": {Offset: 0, Type: sint}, "tgid": {Offset: 4, Type: sint}, "comm": {Offset: 8, Type: sint},
		"thread_info": {Offset: 24, Type: isf.Type{Kind: isf.Struct, Name: "thread_info"}}}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// callsRig is a guest of the simulator whose system calls can be made.
type callsRig struct {
	t    *testing.T
	v    *sim.VCPU
	regs xenevents.GPA
	task xenevents.GPA
	g    *sim.Guest
	ses  *session
	d    *Daemon
	k    *guestos.Kernel
}

func newCallsRig(t *testing.T) *callsRig {
	t.Helper()
	h := sim.NewHost()
	r := &callsRig{t: t, g: h.Add(sim.Config{ID: 5, Name: "guest"}), d: &Daemon{}}
	s := r.g.NewSpace()
	code := make([]byte, 4096)
	for _, at := range []uint64{nativeAt, getpidAt, dispatchAt} {
		copy(code[at&0xfff:], []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3}) // endbr64; push rbp; pop rbp; ret
	}
	s.Page(entry&^0xfff, code...)
	s.Page(bannerAt, []byte("Linux version 6\n\x00")...)
	s.Map(rootAt, xenevents.GPA(s.CR3()).GFN())
	r.regs = s.Page(stack-0x1000).GPA() + regsAt&0xfff
	r.task = s.Page(percpu, append(make([]byte, 8), binary.LittleEndian.AppendUint64(nil, taskAt)...)...).GPA() + 0x100
	r.v = r.g.VCPU(0)
	r.v.Set(func(r *xenevents.Registers) { r.CR3, r.LSTAR, r.RSP, r.GSBase = s.CR3(), entry, stack-64, percpu })
	dom, err := h.Open(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	if r.k, err = guestos.FindKernel(dom, 1, callsProfile(t)); err != nil {
		t.Fatal(err)
	}
	engine, err := probe.New(dom, probe.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(engine.Run(ctx), dom.Close()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	<-engine.Ready()
	info := xenevents.DomainInfo{ID: 5, Name: "guest"}
	r.ses = &session{info: info, kernel: r.k, profile: &store.Found{}, engine: engine, binder: binder.New(engine, r.k, info, &sinks.Hub{})}
	return r
}

// bind adds a probe for system calls.
func (r *callsRig) bind(req *controlapi.AddProbeRequest) *binding {
	r.t.Helper()
	want, err := guestos.ParseSelection(req.GetSyscalls())
	if err != nil {
		r.t.Fatal(err)
	}
	set, err := want.Find(r.k)
	if err != nil {
		r.t.Fatal(err)
	}
	program, err := compileCalls(r.k, set, req.GetRule())
	if err != nil {
		r.t.Fatal(err)
	}
	at := "system calls " + strings.Join(req.GetSyscalls(), ",")
	t := tracer{id: "p1", domain: "guest", name: at, at: at, hits: &r.d.hits, rule: req.GetRule(), program: program}
	b, err := r.ses.bind(r.t.Context(), "p1", newCallTracer(t, r.k.Profile, req.GetSyscalls(), set), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// call makes a call as the kernel's entry would, and returns what it returned.
func (r *callsRig) call(at xenevents.GVA, nr uint64, compat bool, arg uint64) (rax uint64) {
	r.t.Helper()
	regs := make([]byte, 80)
	for i := range 9 {
		binary.LittleEndian.PutUint64(regs[8*i:], arg+uint64(i)) // di, si …, bx: arg+6
	}
	binary.LittleEndian.PutUint64(regs[72:], nr)
	r.g.Poke(r.regs, regs)
	status := []byte{0}
	if compat {
		status[0] = 2
	}
	r.g.Poke(r.task+24, status)
	r.v.Set(func(r *xenevents.Registers) { r.RAX = 0x77 })
	r.v.Run(sim.Call(at, regsAt, nr), sim.See(func(r xenevents.Registers) { rax = r.RAX }))
	ctx, cancel := context.WithTimeout(r.t.Context(), 20*time.Second)
	defer cancel()
	if err := r.v.Wait(ctx); err != nil {
		r.t.Fatal(err)
	}
	return rax
}

// TestSyscallsOnAGuest: one line for all places, each call counted once by what it is,
// with its own arguments; and a rule that means some of them.
func TestSyscallsOnAGuest(t *testing.T) {
	r := newCallsRig(t)
	sub := r.d.hits.Subscribe()
	b := r.bind(&controlapi.AddProbeRequest{Syscalls: []string{"openat", "getpid"}})
	r.call(nativeAt, 257, false, 1)
	r.call(nativeAt, 257, false, 100)
	r.call(getpidAt, 39, false, 1)
	r.call(dispatchAt, 295, true, 1) // openat
	r.call(dispatchAt, 20, true, 1)  // getpid
	r.call(getpidAt, 20, true, 1)    // goes on there
	r.call(dispatchAt, 5, true, 1)   // open
	all, err := r.ses.probes(t.Context(), b)
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	want := map[string]uint64{"openat": 2, "getpid": 1, "32-bit openat": 1, "32-bit getpid": 1}
	if p := all[0]; p.GetHits() != 5 || p.GetPassed() != 2 || !maps.Equal(p.GetCalls(), want) || p.GetPlaces() != 3 || p.GetSyscallCount() != 2 || p.GetState() != "armed" || p.GetDetail() != "" || p.GetAt() != "system calls openat,getpid" {
		t.Errorf("%v", p)
	}
	if st, err := r.ses.status(t.Context()); err != nil || st.GetProbes() != 1 {
		t.Errorf("%v, %v", st, err)
	}
	sub.Close()
	var shown []string
	for m := range sub.C {
		var args []string
		for _, a := range m.GetArguments() {
			args = append(args, a.GetName()+"="+a.GetText()+a.GetError())
		}
		shown = append(shown, fmt.Sprintf("%d %s(%s) %d", m.GetSeq(), m.GetAt(), strings.Join(args, ", "), m.GetSyscall().GetNr()))
	}
	if got, want := strings.Join(shown, "; "), "1 openat(dfd=1, flags=2) 257; 2 openat(dfd=100, flags=101) 257; 3 getpid("; !strings.HasPrefix(got, want) || !strings.Contains(got, "4 32-bit openat(dfd=7, flags=8) 295; 5 32-bit getpid(") {
		t.Errorf("%s", got)
	}
	if err := r.ses.binder.Unbind(t.Context(), b.Binding); err != nil {
		t.Error(err)
	}
	b = r.bind(&controlapi.AddProbeRequest{Syscalls: []string{"all"}, Rule: &controlapi.Rule{When: `syscall.compat && syscall.name == "openat" || !syscall.compat && syscall.nr == 39 && arg0 == 3`, Deny: "EPERM", Mode: "enforce"}})
	for _, c := range []struct {
		at     xenevents.GVA
		nr     uint64
		compat bool
		arg    uint64
		denied bool
	}{{nativeAt, 257, false, 1, false}, {dispatchAt, 295, true, 1, true}, {dispatchAt, 20, true, 1, false}, {getpidAt, 39, false, 3, true}, {getpidAt, 39, false, 2, false}} {
		if rax := r.call(c.at, c.nr, c.compat, c.arg); (int64(rax) == -1) != c.denied {
			t.Errorf("%+v returned %#x", c, rax)
		}
	}
	all, err = r.ses.probes(t.Context(), b)
	if p := all[0]; err != nil || p.GetHits() != 5 || p.GetChanged() != 2 || p.GetMatches().GetMatched() != 2 || p.GetMatches().GetErrors() != 0 {
		t.Errorf("%v, %v", p, err)
	}
	if err := r.ses.binder.Unbind(t.Context(), b.Binding); err != nil {
		t.Error(err)
	}
	// What can't be looked at is counted, and said.
	b = r.bind(&controlapi.AddProbeRequest{Syscalls: []string{"openat"}})
	r.v.Run(sim.Call(nativeAt, 0x1000))
	if err := r.v.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if all, err = r.ses.probes(t.Context(), b); err != nil || all[0].GetHits() != 0 || !strings.Contains(all[0].GetDetail(), "could not be looked at: 1, the last: the number of a system call") {
		t.Errorf("%v, %v", all, err)
	}
}

func TestWrongSyscalls(t *testing.T) {
	r := newCallsRig(t)
	for words, want := range map[string]string{"opnat": `no system call "opnat" (near it: "openat"`, "all,!raed": `"raed"`, "openat,!openat": "no system call is left", "execve": ""} {
		s, err := guestos.ParseSelection(strings.Split(words, ","))
		if err != nil {
			t.Fatal(err)
		}
		if _, err = s.Find(r.k); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) { // execve is there for 32-bit programs
			t.Errorf("%s: %v", words, err)
		}
	}
	find := func(words ...string) (*guestos.SyscallSet, error) {
		s, err := guestos.ParseSelection(words)
		if err != nil {
			return nil, err
		}
		return s.Find(r.k)
	}
	set, err := find("all")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := compileCalls(r.k, set, &controlapi.Rule{When: "dfd == 1"}); err == nil || !strings.Contains(err.Error(), "syscall.name") {
		t.Errorf("%v", err)
	}
	one, err := find("openat")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := compileCalls(r.k, one, &controlapi.Rule{When: "dfd == 1"}); err != nil {
		t.Error(err)
	}
}
