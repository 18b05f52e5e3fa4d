package sim

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

const (
	codeAt  xenevents.GVA = 0xffff_ffff_8100_0000
	stackAt xenevents.GVA = 0xffff_c900_0000_0000
	dataAt  xenevents.GVA = 0xffff_8880_0000_0000
)

// f: push rbp; mov rbp,rsp; mov eax,7; pop rbp; ret
var f = []byte{0x55, 0x48, 0x89, 0xe5, 0xb8, 7, 0, 0, 0, 0x5d, 0xc3}

type rig struct {
	t     *testing.T
	guest *Guest
	dom   *Domain
	cpu   *VCPU
	code  xenevents.GFN
	data  xenevents.GFN
}

func newRig(t *testing.T, c Config) *rig {
	t.Helper()
	h := NewHost()
	c.ID = 1
	g := h.Add(c)
	s := g.NewSpace()
	r := &rig{t: t, guest: g, code: s.Page(codeAt, f...), data: s.Page(dataAt, 1, 2, 3, 4)}
	s.Page(stackAt)
	for _, v := range g.vcpus {
		v.Set(func(r *xenevents.Registers) { r.CR3, r.RSP = s.CR3(), uint64(stackAt)+4096-uint64(v.id)*256 })
	}
	r.cpu = g.VCPU(0)
	dom, err := h.Open(context.Background(), 1)
	if err != nil {
		t.Fatal(err)
	}
	r.dom = dom.(*Domain)
	return r
}

func (r *rig) attach(kinds ...xenevents.Kind) *Events {
	r.t.Helper()
	e, err := r.dom.Attach(context.Background())
	r.must(err)
	for _, k := range kinds {
		r.must(e.Subscribe(xenevents.Subscription{Kind: k, Sync: true}))
	}
	return e.(*Events)
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

// next reads the one event that must be there.
func (r *rig) next(e *Events) *xenevents.Event {
	r.t.Helper()
	var batch [8]xenevents.Event
	n, err := e.TryNext(batch[:])
	if n != 1 || err != nil {
		r.t.Fatalf("%d events, %v", n, err)
	}
	return &batch[0]
}

func (r *rig) reply(e *Events, ev *xenevents.Event, reply xenevents.Reply) {
	r.t.Helper()
	r.must(e.Reply(ev, &reply))
	r.must(e.Flush())
}

func (r *rig) wait() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r.must(r.cpu.Wait(ctx))
}

// shadowed hides an int3 at the code's start, as xenevents/shadow does.
func (r *rig) shadowed() (xenevents.View, xenevents.GFN) {
	r.t.Helper()
	r.must(r.dom.EnableViews())
	view, err := r.dom.CreateView()
	r.must(err)
	spare, err := r.dom.AllocGFN()
	r.must(err)
	r.guest.Poke(spare.GPA(), append([]byte{int3}, f[1:]...))
	r.must(r.dom.RemapGFN(view, r.code, spare))
	r.must(r.dom.SetAccess(view, r.code, xenevents.AccessX))
	r.must(r.dom.SwitchView(view))
	return view, spare
}

func TestCall(t *testing.T) {
	r := newRig(t, Config{})
	before := r.cpu.Registers()
	r.cpu.Run(Call(codeAt, 1, 2))
	r.wait()
	after := r.cpu.Registers()
	if after.RAX != 7 || after.RDI != 1 || after.RSI != 2 || after.RSP != before.RSP || after.RIP != before.RIP {
		t.Errorf("%+v", after)
	}
	r.cpu.Run(Exec(0x1000))
	if err := r.cpu.Wait(context.Background()); !errors.Is(err, xenevents.ErrNotMapped) {
		t.Errorf("code that is not mapped: %v", err)
	}
}

func TestLargePage(t *testing.T) {
	r := newRig(t, Config{})
	s := &Space{guest: r.guest, root: xenevents.GPA(r.cpu.regs.CR3).GFN()}
	s.MapLarge(0x4000_0000, 0)
	r.cpu.Run(Write(0x4000_1ffe, 1, 2, 3, 4))
	r.wait()
	if got := r.guest.Peek(0x1ffe, 4); !bytes.Equal(got, []byte{1, 2, 3, 4}) {
		t.Errorf("% x", got)
	}
}

func TestWaysOverAnInt3(t *testing.T) {
	for name, reply := range map[string]func(*xenevents.Event, xenevents.View) xenevents.Reply{
		"emulate": func(*xenevents.Event, xenevents.View) xenevents.Reply {
			return xenevents.Reply{Emulate: true, Insn: [16]byte{0x55}, InsnLen: 1}
		},
		"fast": func(_ *xenevents.Event, v xenevents.View) xenevents.Reply {
			return xenevents.Reply{Switch: true, Step: xenevents.StepFast, After: v}
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Config{})
			e := r.attach(xenevents.KindInt3, xenevents.KindSingleStep)
			view, _ := r.shadowed()
			r.cpu.Run(Call(codeAt), Call(codeAt))
			for range 2 {
				ev := r.next(e)
				if ev.Kind != xenevents.KindInt3 || ev.GFN != r.code || ev.Regs.RIP != uint64(codeAt) || ev.View != view || !ev.Paused {
					t.Errorf("%+v", ev)
				}
				r.reply(e, ev, reply(ev, view))
			}
			r.wait()
			if got := r.cpu.Registers().RAX; got != 7 || r.cpu.View() != view {
				t.Errorf("RAX %d, view %d", got, r.cpu.View())
			}
			r.must(r.dom.Close())
			if l := r.guest.Leaks(); l != nil {
				t.Error(l)
			}
		})
	}
}

func TestSingleStep(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach(xenevents.KindInt3, xenevents.KindSingleStep)
	view, _ := r.shadowed()
	r.cpu.Run(Call(codeAt))
	r.reply(e, r.next(e), xenevents.Reply{Switch: true, Step: xenevents.StepToggle})
	ev := r.next(e)
	if ev.Kind != xenevents.KindSingleStep || ev.Regs.RIP != uint64(codeAt)+1 || ev.GFN != r.code || ev.View != xenevents.HostView {
		t.Errorf("%+v", ev)
	}
	r.reply(e, ev, xenevents.Reply{Switch: true, View: view, Step: xenevents.StepToggle})
	r.wait()
}

func TestViolations(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach()
	view, _ := r.shadowed()
	r.must(r.dom.SetAccess(view, r.data, xenevents.AccessX))
	got := make([]byte, 2)
	r.cpu.Run(Read(dataAt+1, got), Write(dataAt+2, 9))
	over := xenevents.Reply{Switch: true, Step: xenevents.StepFast, After: view}
	for i, access := range []xenevents.Access{xenevents.AccessR, xenevents.AccessRW} {
		ev := r.next(e)
		at := dataAt + xenevents.GVA(i+1)
		if ev.Kind != xenevents.KindMemAccess || ev.GFN != r.data || ev.GLA != at || ev.Offset != uint32(at.Offset()) || ev.Access != access ||
			ev.Fault != xenevents.FaultGLAValid|xenevents.FaultWithGLA {
			t.Errorf("%+v", ev)
		}
		r.reply(e, ev, over)
	}
	r.wait()
	if !bytes.Equal(got, []byte{2, 3}) || !bytes.Equal(r.guest.Peek(r.data.GPA(), 4), []byte{1, 2, 9, 4}) {
		t.Errorf("read % x, memory is % x", got, r.guest.Peek(r.data.GPA(), 4))
	}
}

// TestPageWalk: the tables are read through the view, too.
func TestPageWalk(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach()
	view, _ := r.shadowed()
	root := xenevents.GPA(r.cpu.Registers().CR3)
	r.must(r.dom.SetAccess(view, root.GFN(), xenevents.AccessX))
	r.cpu.Run(Read(dataAt, make([]byte, 1)))
	ev := r.next(e)
	if ev.GFN != root.GFN() || ev.Access != xenevents.AccessR || ev.Fault != xenevents.FaultGLAValid|xenevents.FaultInGPT || ev.GLA != dataAt {
		t.Errorf("%+v", ev)
	}
	r.reply(e, ev, xenevents.Reply{Switch: true})
	r.wait()
}

func TestOneReplyEach(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach(xenevents.KindInt3)
	r.shadowed()
	r.cpu.Run(Call(codeAt))
	ev := r.next(e)
	r.must(e.Reply(ev, &xenevents.Reply{}))
	if err := e.Reply(ev, &xenevents.Reply{}); err == nil {
		t.Error("a second reply before Flush was taken")
	}
	if !r.cpu.Waiting() {
		t.Error("the vCPU did not wait for Flush")
	}
	r.must(e.Flush())
	if again := r.next(e); again.Cookie == ev.Cookie {
		t.Error("no new event after a retry")
	} else if err := e.Reply(ev, &xenevents.Reply{}); err == nil {
		t.Error("a reply to the event before was taken")
	}
}

// TestFullRing: nine vCPUs, eight slots.
func TestFullRing(t *testing.T) {
	r := newRig(t, Config{VCPUs: 9})
	e := r.attach(xenevents.KindInt3)
	r.shadowed()
	for i := range 9 {
		r.guest.VCPU(i).Run(Call(codeAt))
	}
	var batch [16]xenevents.Event
	n, err := e.TryNext(batch[:])
	if n != 8 || err != nil || r.guest.VCPU(8).Waiting() {
		t.Fatalf("%d events, %v", n, err)
	}
	over := xenevents.Reply{Emulate: true, Insn: [16]byte{0x55}, InsnLen: 1}
	r.reply(e, &batch[3], over)
	if ev := r.next(e); ev.VCPU != 8 {
		t.Errorf("vCPU %d has the free slot", ev.VCPU)
	}
	r.must(r.dom.Close())
	if l := r.guest.Leaks(); l != nil {
		t.Error(l)
	}
}

// TestOwnInt3: injected by the monitor, or not asked for at all.
func TestOwnInt3(t *testing.T) {
	r := newRig(t, Config{})
	r.guest.Poke(r.code.GPA(), []byte{int3, 0x66, int3, 0xc3})
	e := r.attach(xenevents.KindInt3)
	r.cpu.Run(Call(codeAt))
	for _, length := range []uint8{1, 2} {
		ev := r.next(e)
		if ev.InsnLen != length {
			t.Errorf("length %d", ev.InsnLen)
		}
		r.must(r.dom.InjectInt3(ev.VCPU, ev.InsnLen))
		r.reply(e, ev, xenevents.Reply{})
	}
	r.wait()
	r.must(e.Close())
	r.cpu.Run(Call(codeAt))
	r.wait()
	if got := r.cpu.Traps(); len(got) != 4 || got[1] != codeAt+1 || got[3] != codeAt+1 {
		t.Error(got)
	}
}

func TestWritesThatAreTold(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach(xenevents.KindMSR, xenevents.KindCPUID, xenevents.KindGuestRequest)
	r.must(e.Subscribe(xenevents.Subscription{Kind: xenevents.KindControlReg, Index: 3, OnChange: true}))
	cr3 := r.cpu.Registers().CR3
	r.cpu.Run(WriteCR3(cr3), WriteCR3(cr3|1), GuestRequest())
	var batch [8]xenevents.Event
	n, err := e.TryNext(batch[:])
	if n != 2 || err != nil || batch[0].Paused || batch[0].New != cr3|1 || batch[0].Old != cr3 || batch[1].Kind != xenevents.KindGuestRequest {
		t.Fatalf("%v %+v", err, batch[:n])
	}
	r.reply(e, &batch[1], xenevents.Reply{})
	r.wait()
	r.must(e.Subscribe(xenevents.Subscription{Kind: xenevents.KindMSR, Index: 0xc000_0082, Sync: true}))
	r.cpu.Run(WriteMSR(0xc000_0082, 4))
	ev := r.next(e)
	if got := r.cpu.Registers().LSTAR; got != 4 || ev.Regs.LSTAR == 4 {
		t.Errorf("LSTAR %d while the monitor is told, who sees %d", got, ev.Regs.LSTAR)
	}
	r.reply(e, ev, xenevents.Reply{Deny: true}) // too late
	r.wait()
	if err := e.HoldWrites(); err == nil || r.cpu.Registers().LSTAR != 4 {
		t.Errorf("LSTAR %d; writes are held of which nobody waits for one: %v", r.cpu.Registers().LSTAR, err)
	}
	r.must(e.Unsubscribe(xenevents.Subscription{Kind: xenevents.KindControlReg, Index: 3, OnChange: true}))
	r.must(e.HoldWrites())
	r.cpu.Run(WriteMSR(0xc000_0082, 5), WriteMSR(0xc000_0082, 6))
	ev = r.next(e)
	if got := r.cpu.Registers().LSTAR; got != 4 {
		t.Errorf("LSTAR %d before the reply to a write that is held", got)
	}
	r.reply(e, ev, xenevents.Reply{})
	r.reply(e, r.next(e), xenevents.Reply{Deny: true})
	r.wait()
	if got := r.cpu.Registers().LSTAR; got != 5 {
		t.Errorf("LSTAR %d after a write that was denied", got)
	}
	r.cpu.Run(CPUID(7, 1))
	ev = r.next(e)
	if ev.Leaf != 7 || ev.Subleaf != 1 || ev.Regs.RBX != 8 {
		t.Errorf("%+v", ev)
	}
	r.reply(e, ev, xenevents.Reply{}) // runs it again, of another leaf
	ev = r.next(e)
	if ev.Leaf != ^uint32(7) {
		t.Errorf("%+v", ev)
	}
	regs := ev.Regs
	regs.RIP += uint64(ev.InsnLen)
	r.reply(e, ev, xenevents.Reply{Regs: &regs})
	r.wait()
}

// TestFreedFrame: as in Xen, it empties the view that showed it elsewhere.
func TestFreedFrame(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach(xenevents.KindInt3)
	view, _ := r.shadowed()
	other, err := r.dom.AllocGFN()
	r.must(err)
	r.must(r.dom.RemapGFN(view, r.data, other))
	r.must(r.dom.FreeGFN(other))
	r.cpu.Run(Call(codeAt))
	r.wait()
	if n, _ := e.TryNext(make([]xenevents.Event, 8)); n != 0 {
		t.Errorf("%d events", n)
	}
}

// TestSuperpage: as in Xen, an entry that was reverted and comes back takes its
// neighbours along, unless the guest filled it meanwhile.
func TestSuperpage(t *testing.T) {
	for _, touched := range []bool{false, true} {
		r := newRig(t, Config{})
		e := r.attach(xenevents.KindInt3)
		view, _ := r.shadowed()
		r.must(r.dom.SetAccess(view, r.data, xenevents.AccessX))
		r.must(r.dom.RevertGFN(view, r.data))
		if touched {
			r.cpu.Run(Read(dataAt, make([]byte, 1)))
			r.wait()
		}
		r.must(r.dom.SetAccess(view, r.data, xenevents.AccessX))
		r.cpu.Run(Call(codeAt))
		if n, _ := e.TryNext(make([]xenevents.Event, 8)); (n == 1) != touched {
			t.Errorf("touched %v: %d events", touched, n)
		}
	}
}

// TestSplitSuperpage: one that lacks a frame is none.
func TestSplitSuperpage(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach(xenevents.KindInt3)
	view, _ := r.shadowed()
	r.must(r.dom.RevertGFN(view, r.data))
	gone := r.guest.Frame()
	r.guest.Balloon(gone)
	r.must(r.dom.SetAccess(view, r.data, xenevents.AccessX))
	if err := r.dom.SetAccess(view, gone, xenevents.AccessX); !errors.Is(err, xenevents.ErrAbsent) {
		t.Errorf("a frame that is gone: %v", err)
	}
	r.cpu.Run(Call(codeAt))
	if n, _ := e.TryNext(make([]xenevents.Event, 8)); n != 1 {
		t.Error("the neighbour is lost")
	}
}

func TestUnsettled(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach(xenevents.KindInt3)
	view, _ := r.shadowed()
	r.cpu.Run(Call(codeAt))
	ev := r.next(e)
	r.cpu.Hold()
	r.reply(e, ev, xenevents.Reply{Emulate: true, Insn: [16]byte{0x55}, InsnLen: 1})
	if settled, err := e.Settled(); settled || err != nil {
		t.Errorf("settled %v, %v", settled, err)
	}
	r.must(r.dom.RevertGFN(view, r.code))
	if len(r.guest.Accidents()) != 1 {
		t.Error(r.guest.Accidents())
	}
	r.cpu.Release()
	r.wait()
	if settled, err := e.Settled(); !settled || err != nil {
		t.Errorf("settled %v, %v", settled, err)
	}
}

func TestDestroy(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach(xenevents.KindInt3)
	r.shadowed()
	r.cpu.Run(Call(codeAt))
	r.next(e)
	go r.guest.Destroy()
	if _, err := e.Next(context.Background(), make([]xenevents.Event, 8)); !errors.Is(err, xenevents.ErrDomainGone) {
		t.Error(err)
	}
	if err := r.cpu.Wait(context.Background()); !errors.Is(err, xenevents.ErrDomainGone) {
		t.Error(err)
	}
	if _, err := r.dom.Info(context.Background()); !errors.Is(err, xenevents.ErrNoDomain) {
		t.Error(err)
	}
	r.must(r.dom.Close())
}

// TestNobodyListens: rights that are left behind without a monitor fall.
func TestNobodyListens(t *testing.T) {
	r := newRig(t, Config{})
	view, _ := r.shadowed()
	r.must(r.dom.SetAccess(view, r.data, xenevents.AccessX))
	r.cpu.Run(Write(dataAt, 9))
	r.wait()
	if got := r.guest.Peek(r.data.GPA(), 1)[0]; got != 9 {
		t.Error(got)
	}
}

func TestLeaksSeesAll(t *testing.T) {
	r := newRig(t, Config{})
	e := r.attach(xenevents.KindInt3)
	r.shadowed()
	r.cpu.Run(Call(codeAt))
	r.next(e)
	r.must(r.dom.Pause())
	if l := r.guest.Leaks(); len(l) != 8 {
		t.Errorf("%d leaks: %q", len(l), l)
	}
	r.must(r.dom.Close())
	if l := r.guest.Leaks(); l != nil {
		t.Error(l)
	}
}

// TestAttachTooLate: what fails leaves no ring behind.
func TestAttachTooLate(t *testing.T) {
	r := newRig(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if e, err := r.dom.Attach(ctx); e != nil || !errors.Is(err, context.Canceled) {
		t.Errorf("%v, %v", e, err)
	}
	if l := r.guest.Leaks(); l != nil {
		t.Error(l)
	}
}

// TestAcrossPages: an instruction that goes on in another page, with and without
// prefixes.
func TestAcrossPages(t *testing.T) {
	const end = codeAt + xenevents.PageSize
	r := newRig(t, Config{})
	s := &Space{guest: r.guest, root: xenevents.GPA(r.cpu.regs.CR3).GFN()}
	s.Page(end, 0x89, 3, 4, 5, 0xc3)
	for name, c := range map[string]struct {
		code []byte // before the page's end
		rax  uint64
	}{
		"mov eax,0x05040389": {[]byte{0xb8}, 0x05040389},
		"mov rax,0x05040389": {[]byte{0x48, 0xc7, 0xc0}, 0x05040389},
	} {
		r.guest.Poke(r.code.GPA()+xenevents.GPA(xenevents.PageSize-len(c.code)), c.code)
		r.cpu.Run(Call(end - xenevents.GVA(len(c.code))))
		r.wait()
		if got := r.cpu.Registers().RAX; got != c.rax {
			t.Errorf("%s: %#x", name, got)
		}
	}
	s.Unmap(end)
	r.cpu.Run(Exec(end - 3))
	if err := r.cpu.Wait(context.Background()); !errors.Is(err, xenevents.ErrNotMapped) {
		t.Errorf("the rest is not mapped: %v", err)
	}
}
