package binder

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

const (
	entry    = 0xffffffff81800040 // of all the kernel's functions here
	function = 0xffffffff81800800
	caller   = function + 0x42 // calls it
	coming   = function + 0x60 // tell of modules
	going    = function + 0x70
	bannerAt = 0xffffffff82000000
	rootAt   = 0xffffffff82a10000
	percpu   = 0xffff888000000000
	stack    = 0xffffc90000001000
	slide    = 4 << 20
)

// gapWindow is of budgets: long enough for their hits on a slow machine.
const gapWindow = 100 * time.Millisecond

// bench is a guest of the simulator that an engine watches.
type bench struct {
	g      *sim.Guest
	space  *sim.Space
	head   xenevents.GPA // of the list of modules
	binder *Binder
	engine *probe.Engine
	found  []detectors.Finding
}

func (b *bench) Emit(f *detectors.Finding) { b.found = append(b.found, *f) }

func newBench(t *testing.T) *bench {
	t.Helper()
	return newBenchOf(t, func(*isf.Builder) {})
}

// newBenchOf has a kernel with a changed profile.
func newBenchOf(t *testing.T, change func(*isf.Builder)) *bench {
	t.Helper()
	p := isf.NewBuilder()
	p.Meta.Banner = "Linux version 6"
	p.Symbols = []isf.Symbol{{Name: "entry_SYSCALL_64", Addr: entry}, {Name: "vfs_read", Addr: function}, {Name: "untyped", Addr: function}, {Name: "linux_banner", Addr: bannerAt},
		{Name: "init_top_pgt", Addr: rootAt}, {Name: "current_task", Addr: 8}, {Name: "twice", Addr: 1}, {Name: "twice", Addr: 2}}
	long := isf.Type{Kind: isf.Base, Name: "long"}
	p.Funcs["mod!typed"] = isf.Func{Params: []isf.Param{{Name: "own", Type: long}}}
	p.Funcs["vfs_read"] = isf.Func{Params: []isf.Param{{Name: "file", Type: isf.Type{Kind: isf.Pointer}}, {Name: "count", Type: long}}}
	p.Users["task_struct"] = isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{"pid": {Offset: 0}, "tgid": {Offset: 4}, "comm": {Offset: 8}}}
	change(p)
	profile, err := p.Profile()
	if err != nil {
		t.Fatal(err)
	}
	h := sim.NewHost()
	b := &bench{g: h.Add(sim.Config{ID: 5, Name: "guest"})}
	s := b.g.NewSpace()
	b.space = s
	code := make([]byte, 4096)
	copy(code[function&0xfff:], []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3}) // endbr64; push rbp; pop rbp; ret
	copy(code[coming&0xfff:], []byte{0xf3, 0x0f, 0x1e, 0xfa, 0xc3})
	copy(code[going&0xfff:], []byte{0xf3, 0x0f, 0x1e, 0xfa, 0xc3})
	copy(code[caller&0xfff:], []byte{0xe8, 0xb9, 0xff, 0xff, 0xff, 0x90, 0xc3}) // call function; nop; ret: two bytes behind it
	s.Page(entry&^0xfff+slide, code...)
	s.Page(bannerAt+slide, []byte("Linux version 6\n\x00")...)
	s.Map(rootAt+slide, xenevents.GPA(s.CR3()).GFN())
	s.Page(stack - 0x1000)
	s.Page(percpu, append([]byte{8: 0x00, 9: 0x01, 10: 0, 11: 0, 12: 0x80, 13: 0x88, 14: 0xff, 15: 0xff, 0x100: 7, 0x104: 6, 0x108: 'e'}, "vil\x1b[2J"...)...) // the task is at percpu+0x100
	b.g.VCPU(0).Set(func(r *xenevents.Registers) {
		r.CR3, r.LSTAR, r.RSP, r.GSBase = s.CR3(), entry+slide, stack-64, percpu
	})
	dom, err := h.Open(t.Context(), 5)
	if err != nil {
		t.Fatal(err)
	}
	kernel, err := guestos.FindKernel(dom, 1, profile)
	if err != nil {
		t.Fatal(err)
	}
	if b.engine, err = probe.New(dom, probe.Options{Window: uint64(gapWindow), Budget: probe.Budget{Hits: 50, Stalled: probe.Unlimited}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- errors.Join(b.engine.Run(ctx), dom.Close()) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if l := append(b.g.Leaks(), b.g.Accidents()...); l != nil {
			t.Errorf("left behind: %q", l)
		}
	})
	<-b.engine.Ready()
	b.binder = New(b.engine, kernel, xenevents.DomainInfo{ID: 5, Name: "guest"}, b)
	return b
}

// call runs the function, and returns what RAX was after it.
func (b *bench) call(t *testing.T, args ...uint64) (rax uint64) {
	t.Helper()
	return b.callAt(t, function, args...)
}

// callAt does so with any function.
func (b *bench) callAt(t *testing.T, at xenevents.GVA, args ...uint64) (rax uint64) {
	t.Helper()
	v := b.g.VCPU(0)
	v.Set(func(r *xenevents.Registers) { r.RAX = 0x77 })
	v.Run(sim.Call(at+slide, args...), sim.See(func(r xenevents.Registers) { rax = r.RAX }))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := v.Wait(ctx); err != nil {
		t.Fatal(err)
	}
	return rax
}

// watcher is a detector of one or more places.
type watcher struct {
	at     []string
	handle detectors.Handler
}

func (w *watcher) Name() string { return "watcher" }

func (w *watcher) Probes() (all []detectors.ProbeSpec) {
	for _, at := range w.at {
		all = append(all, detectors.ProbeSpec{Name: "watch " + at, At: at, Handle: w.handle})
	}
	return all
}

func TestBindDecodesAndDecides(t *testing.T) {
	b := newBench(t)
	var args [][]detectors.Arg
	var seqs []uint64
	var bad error
	w := &watcher{at: []string{"vfs_read"}, handle: func(h detectors.Hit) detectors.Outcome {
		args, seqs = append(args, h.Args()), append(seqs, h.Seq())
		_, bad = h.Arg(2)
		if n, _ := h.Arg(1); n < 100 {
			return detectors.Outcome{}
		}
		return detectors.Outcome{Verdict: detectors.Verdict{Deny: true, Return: -14}, Finding: &detectors.Finding{Severity: detectors.High, Message: "m"}}
	}}
	bound, err := b.binder.Bind(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	if len(bound.Probes) != 1 || bound.Probes[0].At != function+slide || bound.Probes[0].Spec.At != "vfs_read" {
		t.Errorf("%+v", bound.Probes)
	}
	if rax := b.call(t, 0x1234, 99); rax != 0x77 {
		t.Errorf("an honest call returned %#x", rax)
	}
	if rax := b.call(t, 0x1234, 100); int64(rax) != -14 {
		t.Errorf("a denied call returned %#x", rax)
	}
	if err := b.binder.Unbind(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
	if rax := b.call(t, 0x1234, 100); rax != 0x77 || len(args) != 2 {
		t.Errorf("after Unbind %#x, %d hits", rax, len(args))
	}
	if want := (detectors.Arg{Name: "count", Type: "long", Value: 100}); len(args[1]) != 2 || args[1][1] != want || args[1][0].Type != "void *" || args[1][0].Value != 0x1234 {
		t.Errorf("%+v", args[1])
	}
	if seqs[0] != 1 || seqs[1] != 2 || bad == nil {
		t.Errorf("%v, %v", seqs, bad)
	}
	if len(b.found) != 1 {
		t.Fatalf("%d findings", len(b.found))
	}
	f := b.found[0]
	if f.Domain != "guest" || f.DomainID != 5 || f.Detector != "watcher" || f.Probe != "vfs_read" || f.Message != "m" || !f.Blocked || f.Severity != detectors.High ||
		time.Since(f.Time) > time.Minute || f.Process == nil || *f.Process != (detectors.Process{PID: 6, TID: 7, Comm: "evil\x1b[2J"}) {
		t.Errorf("%+v, %+v", f, f.Process)
	}
}

func TestBlockedIsWhatHappened(t *testing.T) {
	b := newBench(t)
	var can []error
	deny := func(value int64, claim bool) detectors.Handler {
		return func(h detectors.Hit) detectors.Outcome {
			can = append(can, h.CanDeny())
			return detectors.Outcome{Verdict: detectors.Verdict{Deny: value != 0, Return: value}, Finding: &detectors.Finding{Blocked: claim}}
		}
	}
	// In the order in which they come: the first one's value counts.
	for _, handle := range []detectors.Handler{deny(0, true), deny(-14, false), deny(-22, false)} {
		if _, err := b.binder.Bind(t.Context(), &watcher{at: []string{"vfs_read"}, handle: handle}); err != nil {
			t.Fatal(err)
		}
	}
	blocked := func() (all []bool) {
		for _, f := range b.found {
			all = append(all, f.Blocked)
		}
		return all
	}
	if rax := b.call(t, 1, 2); int64(rax) != -14 || !slices.Equal(blocked(), []bool{false, true, true}) || !slices.Equal(can, []error{nil, nil, detectors.ErrDenied}) {
		t.Errorf("it returned %d; blocked: %v; %v", int64(rax), blocked(), can)
	}
	// Without a stack there is nowhere to return to: the function runs.
	can, b.found = nil, nil
	v := b.g.VCPU(0)
	var after xenevents.Registers
	v.Set(func(r *xenevents.Registers) { r.RAX, r.RSP = 0x77, stack+0x100000 })
	v.Run(sim.Exec(function+slide), sim.See(func(r xenevents.Registers) { after = r }))
	if err := v.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after.RIP != function+slide+4 || after.RAX != 0x77 {
		t.Errorf("it did not run: %+v", after)
	}
	if !slices.Equal(blocked(), []bool{false, false, false}) {
		t.Errorf("it ran, and the findings say %v", blocked())
	}
	for _, err := range can {
		if !errors.Is(err, xenevents.ErrNotMapped) || !strings.Contains(err.Error(), "return address") {
			t.Errorf("CanDeny: %v", err)
		}
	}
}

func TestNotBlockedWhereAnotherVerdictCounts(t *testing.T) {
	b := newBench(t)
	regs := func(h *probe.Hit) probe.Verdict {
		r := *h.Regs
		r.RAX = 0x55
		return probe.Verdict{Action: probe.SetRegs, Regs: &r}
	}
	if _, err := b.engine.Add(t.Context(), probe.Request{At: function + slide, Space: b.binder.kernel.Space, Decide: regs}); err != nil {
		t.Fatal(err)
	}
	var can error
	deny := func(h detectors.Hit) detectors.Outcome {
		can = h.CanDeny()
		return detectors.Outcome{Verdict: detectors.Verdict{Deny: true, Return: -14}, Finding: &detectors.Finding{}}
	}
	if _, err := b.binder.Bind(t.Context(), &watcher{at: []string{"vfs_read"}, handle: deny}); err != nil {
		t.Fatal(err)
	}
	if rax := b.call(t, 1, 2); rax != 0x55 || can == nil || len(b.found) != 1 || b.found[0].Blocked {
		t.Errorf("it returned %#x; %v, %+v", rax, can, b.found)
	}
}

func TestArgumentsWhereThereAreNone(t *testing.T) {
	b := newBench(t)
	var got []detectors.Arg
	handle := func(h detectors.Hit) detectors.Outcome {
		got = h.Args()
		return detectors.Outcome{}
	}
	for at, want := range map[string]int{"untyped": 6, "vfs_read+4": 0, "0xffffffff81c00800": 0} {
		bound, err := b.binder.Bind(t.Context(), &watcher{at: []string{at}, handle: handle})
		if err != nil {
			t.Fatalf("%s: %v", at, err)
		}
		got = make([]detectors.Arg, 99)
		b.call(t, 1, 2, 3, 4, 5, 6)
		if len(got) != want || want > 0 && (got[3].Value != 4 || got[3].Name != "arg3" || got[3].Type != "") {
			t.Errorf("%s: %+v", at, got)
		}
		if err := b.binder.Unbind(t.Context(), bound); err != nil {
			t.Error(err)
		}
	}
}

func TestBindIsAllOrNothing(t *testing.T) {
	b := newBench(t)
	for bad, want := range map[string]string{"nosuch": `symbol "nosuch"`, "twice": "2 functions", "a b": "no place", "mod!f": `"modules"`, "0xffff900000000000": ""} {
		bound, err := b.binder.Bind(t.Context(), &watcher{at: []string{"vfs_read", bad}})
		if err == nil || !strings.Contains(err.Error(), want) || bound != nil {
			t.Errorf("%s: %+v, %v", bad, bound, err)
		}
		if all, _, err := b.engine.Probes(t.Context()); err != nil || len(all) != 0 {
			t.Errorf("%s: it left %+v, %v", bad, all, err)
		}
	}
	// Without a Handle it counts.
	if _, err := b.binder.Bind(t.Context(), &watcher{at: []string{"vfs_read"}}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		b.call(t, 1, 2)
	}
	if all, _, err := b.engine.Probes(t.Context()); err != nil || len(all) != 1 || all[0].Hits != 3 || all[0].Name != "watch vfs_read" {
		t.Errorf("%+v, %v", all, err)
	}
}

// returner asks for returns.
type returner struct {
	watcher
	vital bool
}

func (w *returner) Probes() []detectors.ProbeSpec {
	all := w.watcher.Probes()
	for i := range all {
		all[i].Return, all[i].Vital = true, w.vital
	}
	return all
}

func TestReturn(t *testing.T) {
	b := newBench(t)
	type seen struct {
		seq   uint64
		value uint64
		over  bool
		args  int
		arg   error
		deny  error
		pid   uint32
	}
	var all []seen
	w := &returner{watcher: watcher{at: []string{"vfs_read"}, handle: func(h detectors.Hit) detectors.Outcome {
		r, over := h.Return()
		p, _ := h.Process()
		s := seen{seq: h.Seq(), value: r.Value, over: over, args: len(h.Args()), deny: h.CanDeny(), pid: p.PID}
		_, s.arg = h.Arg(0)
		all = append(all, s)
		return detectors.Outcome{Verdict: detectors.Verdict{Deny: over}} // in vain
	}}}
	bound, err := b.binder.Bind(t.Context(), w)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if got := b.callAt(t, caller, 1, 2); got != 0x77 {
			t.Errorf("it returned %#x", got)
		}
	}
	if len(all) != 4 {
		t.Fatalf("%+v", all)
	}
	for i, s := range all {
		over := i%2 == 1
		if s.seq != uint64(i/2+1) || s.over != over || s.over && (s.value != 0x77 || s.args != 0) || !s.over && s.args != 2 || (s.arg != nil) != over || (s.deny != nil) != over || s.pid != 6 {
			t.Errorf("%d: %+v", i, s)
		}
	}
	states, stats, err := b.engine.Probes(t.Context())
	if err != nil || states[0].Returns != 2 || states[0].Lost != 0 || stats.Calls != 0 {
		t.Errorf("%v, %+v, %+v", err, states, stats)
	}
	if err := b.binder.Unbind(t.Context(), bound); err != nil {
		t.Error(err)
	}
	for at, says := range map[string]string{"vfs_read+4": "first instruction", "image:/bin/sh!main+4": "first instruction", "do_exit": "does not return"} {
		if _, err := b.binder.Bind(t.Context(), &returner{watcher: watcher{at: []string{at}}}); err == nil {
			t.Errorf("%s: no error", at)
		} else if at != "do_exit" && !strings.Contains(err.Error(), says) { // which this profile has not
			t.Errorf("%s: %v", at, err)
		}
		if l, err := ParseLocation(at); err != nil || l.MayReturn() == nil || !strings.Contains(l.MayReturn().Error(), says) {
			t.Errorf("%s: %v, %v", at, err, l.MayReturn())
		}
	}
	for _, at := range []string{"vfs_read", "0xffffffff81000000", "m!do_exit", "image:/bin/sh!do_exit", "image:/bin/sh+0x1000"} {
		if l, err := ParseLocation(at); err != nil || l.MayReturn() != nil {
			t.Errorf("%s: %v, %v", at, err, l.MayReturn())
		}
	}
}

// TestGap: a probe that is over its budget is a finding, and so is its end; a
// vital one goes on.
func TestGap(t *testing.T) {
	for _, vital := range []bool{false, true} {
		b := newBench(t)
		if _, err := b.binder.Bind(t.Context(), &returner{watcher{at: []string{"vfs_read"}}, vital}); err != nil {
			t.Fatal(err)
		}
		v := b.g.VCPU(0)
		began := time.Now()
		v.Run(sim.Repeat(2000, sim.Call(function+slide, 1))...)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := v.Wait(ctx); err != nil {
			t.Fatal(err)
		}
		took := time.Since(began)
		var found []detectors.Finding
		for len(found) < 2 && ctx.Err() == nil && !vital {
			if err := b.engine.Do(ctx, func(xenevents.Domain) error {
				found = append([]detectors.Finding(nil), b.found...)
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		states, _, err := b.engine.Probes(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if vital {
			if states[0].Hits != 2000 || states[0].Gaps != 0 || len(b.found) != 0 {
				t.Errorf("%+v, %+v", states, b.found)
			}
			continue
		}
		if len(found) < 2 || states[0].Gaps == 0 {
			t.Fatalf("%+v, %+v, in %v", states, found, took)
		}
		first, second := found[0], found[1]
		if first.Severity != detectors.Medium || first.Detector != "watcher" || first.Probe != "vfs_read" || first.Domain != "guest" || !strings.Contains(first.Message, "suspended") || !strings.Contains(first.Message, "50 hits") {
			t.Errorf("%+v", first)
		}
		if second.Severity != detectors.Informational || !strings.Contains(second.Message, "armed again") || len(second.Facts) != 1 || second.Facts[0].Value < uint64(gapWindow) {
			t.Errorf("%+v", second)
		}
	}
}
