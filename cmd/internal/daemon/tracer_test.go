package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

const (
	entry    = 0xffffffff81800040
	function = 0xffffffff81800800
	bannerAt = 0xffffffff82000000
	rootAt   = 0xffffffff82a10000
	stateAt  = bannerAt + 0x800
	percpu   = 0xffff888000000000
	stack    = 0xffffc90000001000
	nameAt   = 0x7f0000001000
)

// profile is of a kernel with one function: vfs_stat(const char *name, int flags).
func profile(t testing.TB) *isf.Profile {
	t.Helper()
	b := isf.NewBuilder()
	b.Meta.Banner = "Linux version 6"
	b.Symbols = []isf.Symbol{{Name: "entry_SYSCALL_64", Addr: entry}, {Name: "vfs_stat", Addr: function}, {Name: "linux_banner", Addr: bannerAt}, {Name: "init_top_pgt", Addr: rootAt}, {Name: "current_task", Addr: 8}, {Name: "system_state", Addr: stateAt}}
	b.Enums["system_states"] = isf.EnumType{Base: "int", Size: 4, Constants: map[string]int64{"SYSTEM_BOOTING": 0, "SYSTEM_RUNNING": 3}}
	b.Base["char"] = isf.BaseType{Kind: "char", Size: 1, Signed: true}
	b.Base["int"] = isf.BaseType{Kind: "int", Size: 4, Signed: true}
	sint, char := isf.Type{Kind: isf.Base, Name: "int"}, isf.Type{Kind: isf.Base, Name: "char"}
	b.Funcs["vfs_stat"] = isf.Func{Params: []isf.Param{{Name: "name", Type: isf.Type{Kind: isf.Pointer, Subtype: &char}}, {Name: "flags", Type: sint}}}
	b.Users["task_struct"] = isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{"pid": {Offset: 0, Type: sint}, "tgid": {Offset: 4, Type: sint}, "comm": {Offset: 8, Type: sint}}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// simGuest starts a guest with that kernel.
func simGuest(h *sim.Host, id xenevents.DomainID, name string) (*sim.Guest, *sim.VCPU) {
	g := h.Add(sim.Config{ID: id, Name: name})
	s := g.NewSpace()
	code := make([]byte, 4096)
	copy(code[function&0xfff:], []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3}) // endbr64; push rbp; pop rbp; ret
	s.Page(entry&^0xfff, code...)
	s.Page(bannerAt, append([]byte("Linux version 6\n\x00"), append(make([]byte, 0x800-17), 3)...)...)
	s.Map(rootAt, xenevents.GPA(s.CR3()).GFN())
	s.Page(stack - 0x1000)
	s.Page(nameAt, []byte("/etc/shadow\x00/etc/passwd\x00")...)
	s.Page(percpu, append([]byte{8: 0x00, 9: 0x01, 10: 0, 11: 0, 12: 0x80, 13: 0x88, 14: 0xff, 15: 0xff, 0x100: 7, 0x104: 6, 0x108: 'e'}, "vil\x1b[2J"...)...)
	v := g.VCPU(0)
	v.Set(func(r *xenevents.Registers) { r.CR3, r.LSTAR, r.RSP, r.GSBase = s.CR3(), entry, stack-64, percpu })
	return g, v
}

// TestRuleOnAGuest: from the wire to the guest's registers, and back to those who
// trace, on a guest of the simulator.
func TestRuleOnAGuest(t *testing.T) {
	h := sim.NewHost()
	_, v := simGuest(h, 5, "guest")
	dom, err := h.Open(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := guestos.FindKernel(dom, 1, profile(t))
	if err != nil {
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
	var hub sinks.Hub
	info := xenevents.DomainInfo{ID: 5, Name: "guest"}
	ses := &session{info: info, kernel: kernel, profile: &store.Found{}, engine: engine, binder: binder.New(engine, kernel, info, &hub)}
	var hits sinks.Fan[*controlapi.Hit]
	sub := hits.Subscribe()
	defer sub.Close()
	rule := &controlapi.Rule{When: `name == "/etc/shadow" && pid == 6 && flags < 0`, Capture: []string{"name", "n=flags", "comm", "u8(1)"}, Deny: "EACCES", Mode: "enforce"}
	at, err := binder.ParseLocation("vfs_stat")
	if err != nil {
		t.Fatal(err)
	}
	tr := &tracer{id: "p1", domain: "guest", name: "name", at: "vfs_stat", hits: &hits, rule: rule}
	if err := tr.compile(kernel.Profile, at); err != nil {
		t.Fatal(err)
	}
	b, err := ses.bind(t.Context(), "p1", tr, nil)
	if err != nil {
		t.Fatal(err)
	}
	call := func(args ...uint64) (rax uint64) {
		t.Helper()
		v.Set(func(r *xenevents.Registers) { r.RAX = 0x77 })
		v.Run(sim.Call(function, args...), sim.See(func(r xenevents.Registers) { rax = r.RAX }))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := v.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		return rax
	}
	for _, c := range []struct{ name, flags, rax uint64 }{{nameAt, 1, 0x77}, {nameAt + 12, 0xffffffff, 0x77}, {nameAt, 0x5_ffffffff, 13}, {0x1000, 0xffffffff, 0x77}} {
		if rax := call(c.name, c.flags); rax != c.rax && int64(rax) != -int64(c.rax) {
			t.Errorf("%+v returned %#x", c, rax)
		}
	}
	all, err := ses.probes(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	if p := all[0]; p.GetHits() != 4 || p.GetChanged() != 1 || p.GetRule() != rule || p.GetMatches().GetMatched() != 1 || p.GetMatches().GetErrors() != 1 || !strings.Contains(p.GetMatches().GetLastError(), "not mapped") {
		t.Errorf("%v", p)
	}
	if len(sub.C) != 1 {
		t.Fatalf("%d hits were shown", len(sub.C))
	}
	m := <-sub.C
	var shown []string
	for _, a := range m.GetArguments() {
		shown = append(shown, a.GetName()+"="+a.GetText())
	}
	if got, want := strings.Join(shown, " "), `name="/etc/shadow" n=-1 comm="evil\x1b[2J" u8(1)=`; got != want || m.GetArguments()[3].GetError() == "" || m.GetAction() != "denied with EACCES" || m.GetSeq() != 3 || m.GetProcess().GetPid() != 6 {
		t.Errorf("%s, %v", got, m)
	}
	found := hub.Recent(0)
	if len(found) != 2 || !found[0].Blocked || found[0].Severity != detectors.High || found[1].Blocked || !strings.Contains(found[1].Message, "could not be judged") {
		t.Errorf("%+v", found)
	}
}

func TestRulesOffTheWire(t *testing.T) {
	for mode, want := range map[string]bool{"": false, "observe": false, "enforce": true} {
		if r, err := ruleOf(&controlapi.Rule{Deny: "EPERM", Mode: mode}); err != nil || r.Enforce != want {
			t.Errorf("%q: %+v, %v", mode, r, err)
		}
	}
	if _, err := ruleOf(&controlapi.Rule{Mode: "kill\x1b"}); err == nil || !strings.Contains(err.Error(), "observe") || strings.Contains(err.Error(), "\x1b") {
		t.Errorf("%v", err)
	}
	if r, err := ruleOf(nil); err != nil || r.Acts() {
		t.Errorf("%+v, %v", r, err)
	}
	// Only a function's entry has arguments, and calls to refuse.
	for at, want := range map[string]string{"vfs_stat": "", "vfs_stat+4": "entry", "0xffffffff81800800": "entry"} {
		l, err := binder.ParseLocation(at)
		if err != nil {
			t.Fatal(err)
		}
		if err := (&tracer{rule: &controlapi.Rule{Deny: "EPERM"}}).compile(profile(t), l); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", at, err)
		}
		if err := (&tracer{}).compile(profile(t), l); err != nil {
			t.Errorf("%s: %v", at, err)
		}
	}
}

// half is a call's entry, or its end.
type half struct {
	detectors.Hit // what nobody should use panics
	over          bool
}

func (h *half) Seq() uint64                        { return 7 }
func (h *half) VCPU() xenevents.VCPU               { return 0 }
func (h *half) Process() (detectors.Process, bool) { return detectors.Process{}, false }
func (h *half) Arg(n int) (uint64, error)          { return uint64(n), nil }
func (h *half) Return() (detectors.Return, bool) {
	return detectors.Return{Value: 0xffffffea, Ticks: 9}, h.over
}

// TestTraceOfReturns: without a rule there is a line for the entry and one for the
// end; a rule judges the end alone.
func TestTraceOfReturns(t *testing.T) {
	at, err := binder.ParseLocation("vfs_stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		rule *controlapi.Rule
		want string
	}{
		{nil, "name flags; -> 4294967274"},
		{&controlapi.Rule{When: "ret == 0xffffffea"}, "-> 4294967274"}, // of no known type
		{&controlapi.Rule{Capture: []string{"ret"}}, "ret -> 4294967274"},
		{&controlapi.Rule{When: "ret == 0"}, ""},
	} {
		var hits sinks.Fan[*controlapi.Hit]
		sub := hits.Subscribe()
		tr := &tracer{at: "vfs_stat", returns: true, hits: &hits, rule: c.rule}
		if err := tr.compile(profile(t), at); err != nil {
			t.Fatal(err)
		}
		tr.hit(&half{})
		tr.hit(&half{over: true})
		sub.Close()
		var lines []string
		for m := range sub.C {
			var words []string
			for _, a := range m.GetArguments() {
				words = append(words, a.GetName())
			}
			if m.GetReturned() {
				words = append(words, "-> "+fmt.Sprint(m.GetValue()))
			}
			lines = append(lines, strings.Join(words, " "))
		}
		if got := strings.Join(lines, "; "); got != c.want {
			t.Errorf("%v: %q, not %q", c.rule, got, c.want)
		}
	}
}
