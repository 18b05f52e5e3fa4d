package shadow_test

import (
	"bytes"
	"context"
	"slices"
	"testing"
	"time"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/shadow"
	"github.com/hprobe/hprobe/xenevents/sim"
)

const (
	codeAt  xenevents.GVA = 0xffff_ffff_8100_0000
	stackAt xenevents.GVA = 0xffff_c900_0000_0000
)

// f is a function that returns 7, and where its instructions begin.
var f = []byte{
	pushAt: 0x55,             // push rbp
	1:      0x48, 0x89, 0xe5, // mov rbp,rsp
	movAt: 0xb8, valueAt: 7, 0, 0, 0, // mov eax,7
	9:  0x5d, // pop rbp
	10: 0xc3, // ret
}

const (
	pushAt  = 0
	movAt   = 4
	valueAt = 5
)

// rig is a guest with the function f in each of some pages that follow one
// another, a monitor that answers as the engine does, and a Set.
type rig struct {
	t      *testing.T
	guest  *sim.Guest
	cpu    *sim.VCPU
	space  *sim.Space
	dom    *domain
	events xenevents.Events
	set    *shadow.Set
	code   []xenevents.GFN // of the pages

	hits    []*shadow.Patch
	changed []*shadow.Patch
	reads   int
	writes  int
	refresh map[xenevents.VCPU]xenevents.GFN // what a step's end copies
}

// domain is sim's, in which calls can be made to fail and are seen.
type domain struct {
	*sim.Domain
	guest            *sim.Guest
	fail             map[string]error // by method
	readsWhileItRuns int
}

func (d *domain) EnableViews() error {
	if err := d.fail["EnableViews"]; err != nil {
		return err
	}
	return d.Domain.EnableViews()
}

func (d *domain) CreateView() (xenevents.View, error) {
	if err := d.fail["CreateView"]; err != nil {
		return 0, err
	}
	return d.Domain.CreateView()
}

func (d *domain) SwitchView(v xenevents.View) error {
	if err := d.fail["SwitchView"]; err != nil {
		return err
	}
	return d.Domain.SwitchView(v)
}

func (d *domain) AllocGFN() (xenevents.GFN, error) {
	if err := d.fail["AllocGFN"]; err != nil {
		return 0, err
	}
	return d.Domain.AllocGFN()
}

func (d *domain) RemapGFN(v xenevents.View, gfn, to xenevents.GFN) error {
	if err := d.fail["RemapGFN"]; err != nil {
		return err
	}
	return d.Domain.RemapGFN(v, gfn, to)
}

func (d *domain) SetAccess(v xenevents.View, gfn xenevents.GFN, a xenevents.Access) error {
	if err := d.fail["SetAccess"]; err != nil {
		return err
	}
	return d.Domain.SetAccess(v, gfn, a)
}

func (d *domain) MaxGFN() (xenevents.GFN, error) {
	if err := d.fail["MaxGFN"]; err != nil {
		return 0, err
	}
	return d.Domain.MaxGFN()
}

func (d *domain) WriteGPA(p []byte, at xenevents.GPA) (int, error) {
	if err := d.fail["WriteGPA"]; err != nil {
		return 0, err
	}
	return d.Domain.WriteGPA(p, at)
}

// ReadGPA counts the reads of whole pages while the guest runs: one that is
// copied then may be written to before it is protected.
func (d *domain) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	if info, err := d.Info(context.Background()); err == nil && !info.Paused && len(p) == xenevents.PageSize {
		d.readsWhileItRuns++
	}
	return d.Domain.ReadGPA(p, at)
}

// newGuest is a rig without a Set.
func newGuest(t *testing.T, pages int, c sim.Config) *rig {
	t.Helper()
	h := sim.NewHost()
	c.ID = 1
	r := &rig{t: t, guest: h.Add(c), refresh: map[xenevents.VCPU]xenevents.GFN{}}
	r.space = r.guest.NewSpace()
	for i := range pages {
		r.code = append(r.code, r.space.Page(r.page(i), f...))
	}
	r.space.Page(stackAt)
	r.cpu = r.guest.VCPU(0)
	r.cpu.Set(func(regs *xenevents.Registers) {
		regs.CR3, regs.RSP = r.space.CR3(), uint64(stackAt)+xenevents.PageSize
	})
	dom, err := h.Open(context.Background(), 1)
	r.must(err)
	r.dom = &domain{Domain: dom.(*sim.Domain), guest: r.guest, fail: map[string]error{}}
	r.events, err = r.dom.Attach(context.Background())
	r.must(err)
	for _, k := range []xenevents.Kind{xenevents.KindInt3, xenevents.KindSingleStep} {
		r.must(r.events.Subscribe(xenevents.Subscription{Kind: k, Sync: true}))
	}
	return r
}

func newRig(t *testing.T, pages int) *rig {
	t.Helper()
	r := newGuest(t, pages, sim.Config{})
	var err error
	r.set, err = shadow.Open(r.dom)
	r.must(err)
	t.Cleanup(r.end)
	return r
}

// end takes everything away: the guest must be as it was.
func (r *rig) end() {
	r.t.Helper()
	err := r.set.Leave()
	if err == nil {
		err = xenevents.WithPaused(r.dom, func() error { return r.events.Close() })
	}
	if err == nil {
		err = r.set.Close()
	}
	if err != nil {
		r.t.Errorf("close: %v", err)
	}
	if l := append(r.guest.Leaks(), r.guest.Accidents()...); l != nil {
		r.t.Errorf("left behind: %q", l)
	}
}

func (r *rig) must(err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) page(i int) xenevents.GVA { return codeAt + xenevents.GVA(i)*xenevents.PageSize }

func (r *rig) gpa(page, offset int) xenevents.GPA {
	return r.code[page].GPA() + xenevents.GPA(offset)
}

// try puts a patch on an instruction of length bytes.
func (r *rig) try(page, offset, length int) (*shadow.Patch, error) {
	r.t.Helper()
	var original [shadow.MaxInsn]byte
	if _, err := r.dom.ReadGPA(original[:], r.gpa(page, offset)); err != nil {
		return nil, err
	}
	return r.set.Insert(r.gpa(page, offset), original, length)
}

func (r *rig) insert(page, offset, length int) *shadow.Patch {
	r.t.Helper()
	p, err := r.try(page, offset, length)
	r.must(err)
	return p
}

// run has the vCPU do something, and answers what comes of it.
func (r *rig) run(steps ...sim.Step) {
	r.t.Helper()
	r.cpu.Run(steps...)
	r.serve()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	r.must(r.cpu.Wait(ctx))
}

// serve answers until no vCPU waits: as probe.Engine does.
func (r *rig) serve() {
	r.t.Helper()
	for {
		var batch [8]xenevents.Event
		n, err := r.events.TryNext(batch[:])
		r.must(err)
		if n == 0 {
			return
		}
		for i := range n {
			reply := r.answer(&batch[i])
			r.must(r.events.Reply(&batch[i], &reply))
		}
		r.must(r.events.Flush())
	}
}

func (r *rig) answer(ev *xenevents.Event) xenevents.Reply {
	r.t.Helper()
	switch {
	case ev.Kind == xenevents.KindInt3:
		p, ours := r.set.Find(ev.GFN, ev.Regs.RIP&xenevents.PageMask)
		if !ours {
			r.t.Fatalf("an int3 at %#x that is not ours", ev.Regs.RIP)
		}
		r.hits = append(r.hits, p)
		return xenevents.Reply{Emulate: true, Insn: p.Original, InsnLen: uint8(p.Len)}
	case ev.Kind == xenevents.KindSingleStep:
		changed, err := r.set.Refresh(r.refresh[ev.VCPU])
		r.must(err)
		r.changed = append(r.changed, changed...)
		return xenevents.Reply{Switch: true, View: r.set.View(), Step: xenevents.StepToggle}
	case !r.set.Holds(ev.GFN) && !r.set.Protected(ev.GFN) && !r.set.Watched(ev.GFN):
		r.t.Fatalf("a violation at gfn %v, which has no copy", ev.GFN)
	case ev.Access&xenevents.AccessW != 0:
		r.writes++
		r.refresh[ev.VCPU] = ev.GFN
		return xenevents.Reply{Switch: true, View: xenevents.HostView, Step: xenevents.StepToggle}
	}
	r.reads++
	return xenevents.Reply{Switch: true, View: xenevents.HostView, Step: xenevents.StepFast, After: r.set.View()}
}

// call runs f in a page, and says what it returned and which patches it hit.
func (r *rig) call(page int) (rax uint64, hits []*shadow.Patch) {
	r.t.Helper()
	r.hits = nil
	r.run(sim.Call(r.page(page)))
	return r.cpu.Registers().RAX, r.hits
}

func (r *rig) mustCall(page int, rax uint64, hits ...*shadow.Patch) {
	r.t.Helper()
	if got, hit := r.call(page); got != rax || !slices.Equal(hit, hits) {
		r.t.Errorf("page %d: it returned %d, want %d; %d hits %v, want %d", page, got, rax, len(hit), hit, len(hits))
	}
}

// frames is how many the guest has above its own.
func (r *rig) frames() int {
	r.t.Helper()
	info, err := r.dom.Info(context.Background())
	r.must(err)
	return int(info.Pages) - 1024
}

func TestPatchIsHidden(t *testing.T) {
	r := newRig(t, 1)
	p := r.insert(0, pushAt, 1)
	p.Owner = "me"
	if got := r.guest.Peek(r.gpa(0, 0), len(f)); !bytes.Equal(got, f) {
		t.Errorf("the guest's memory is % x", got)
	}
	got := make([]byte, len(f))
	r.run(sim.Read(codeAt, got))
	if !bytes.Equal(got, f) || r.reads != 1 {
		t.Errorf("the guest reads % x, with %d violations", got, r.reads)
	}
	if r.cpu.View() != r.set.View() {
		t.Error("the vCPU has left the view")
	}
	r.mustCall(0, 7, p)
	found, armed := r.set.Find(r.code[0], pushAt)
	if found != p || !armed || found.Owner != "me" || !r.set.Holds(r.code[0]) || r.set.Pages() != 1 {
		t.Errorf("found %+v, armed %v; %d pages", found, armed, r.set.Pages())
	}
	if p, armed := r.set.Find(r.code[0], 1); p != nil || armed {
		t.Errorf("%+v where there is no patch", p)
	}
	if r.dom.readsWhileItRuns > 0 {
		t.Error("the page was copied while the guest ran: a write to it may have been lost")
	}
}

func TestPatchesShareACopy(t *testing.T) {
	r := newRig(t, 2)
	a, b, c := r.insert(0, pushAt, 1), r.insert(0, movAt, 5), r.insert(1, movAt, 5)
	if r.set.Pages() != 2 || r.frames() != 2 {
		t.Errorf("%d copies, %d spare frames", r.set.Pages(), r.frames())
	}
	r.mustCall(0, 7, a, b)
	r.mustCall(1, 7, c)
	if _, err := r.try(0, movAt, 5); err == nil {
		t.Error("a second patch at one address was taken")
	}
	r.must(r.set.Remove(a))
	r.mustCall(0, 7, b)
	r.mustCall(1, 7, c)
}

func TestWriteIsFollowed(t *testing.T) {
	r := newRig(t, 1)
	p := r.insert(0, pushAt, 1)
	r.run(sim.Write(codeAt+valueAt, 9))
	if got := r.guest.Peek(r.gpa(0, valueAt), 1)[0]; got != 9 {
		t.Errorf("the guest's own memory has %d", got)
	}
	if len(r.changed) != 0 {
		t.Errorf("%d patches changed by a write beside them", len(r.changed))
	}
	r.mustCall(0, 9, p)
	if r.cpu.View() != r.set.View() {
		t.Error("the vCPU has left the view")
	}
}

func TestPatchIsOverwritten(t *testing.T) {
	for _, c := range []struct {
		name string
		at   int // where the guest writes
		b    byte
		rax  uint64
	}{
		{"its first byte", movAt, 0xbd, 0}, // mov ebp,7
		{"behind the int3", valueAt, 9, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, 1)
			other, p := r.insert(0, pushAt, 1), r.insert(0, movAt, 5)
			r.cpu.Set(func(regs *xenevents.Registers) { regs.RAX = 0 })
			r.run(sim.Write(codeAt+xenevents.GVA(c.at), c.b))
			found, armed := r.set.Find(r.code[0], movAt)
			if found != p || armed || !p.Displaced || !slices.Equal(r.changed, []*shadow.Patch{p}) {
				t.Errorf("armed %v, displaced %v, %d changed", armed, p.Displaced, len(r.changed))
			}
			r.mustCall(0, c.rax, other)
			r.changed = nil
			r.run(sim.Write(codeAt+xenevents.GVA(c.at), f[c.at]))
			if p.Displaced || !slices.Equal(r.changed, []*shadow.Patch{p}) {
				t.Errorf("displaced %v, %d changed, when all is as it was", p.Displaced, len(r.changed))
			}
			r.mustCall(0, 7, other, p)
		})
	}
}

// TestOverwrittenBeforeInsert: the guest may write between the caller's look and
// the copy.
func TestOverwrittenBeforeInsert(t *testing.T) {
	r := newRig(t, 1)
	p, err := r.set.Insert(r.gpa(0, movAt), [shadow.MaxInsn]byte{0xb9, 1, 2, 3, 4}, 5)
	r.must(err)
	if _, armed := r.set.Find(r.code[0], movAt); armed || !p.Displaced {
		t.Error("a patch over an instruction that is not there is armed")
	}
	r.mustCall(0, 7)
}

// TestAcrossPages: a patch whose instruction goes on in the next page.
func TestAcrossPages(t *testing.T) {
	r := newRig(t, 2)
	const at = xenevents.PageSize - 2
	r.guest.Poke(r.gpa(0, at), []byte{0xb8, 5})              // mov eax,5 …
	r.guest.Poke(r.gpa(1, 0), []byte{0, 0, 0, 0xc3})         // … ret
	original := [shadow.MaxInsn]byte{0xb8, 5, 0, 0, 0, 0xc3} // the frames do not follow one another
	p, err := r.set.Insert(r.gpa(0, at), original, 5)
	r.must(err)
	if p.Displaced || r.set.Pages() != 1 {
		t.Errorf("displaced %v, %d pages", p.Displaced, r.set.Pages())
	}
	r.run(sim.Call(codeAt + at))
	if rax := r.cpu.Registers().RAX; rax != 5 || !slices.Equal(r.hits, []*shadow.Patch{p}) {
		t.Errorf("it returned %d, %d hits", rax, len(r.hits))
	}
	r.run(sim.Write(codeAt+at+1, 6))
	if !p.Displaced {
		t.Error("overwritten, but not displaced")
	}
}

func TestRemove(t *testing.T) {
	r := newRig(t, 1)
	p := r.insert(0, movAt, 5)
	r.must(r.set.Remove(p))
	if found, _ := r.set.Find(r.code[0], movAt); found != nil || !r.set.Holds(r.code[0]) {
		t.Errorf("found %v; the copy is there: %v", found, r.set.Holds(r.code[0]))
	}
	r.mustCall(0, 7)
	if err := r.set.Remove(p); err == nil {
		t.Error("a patch was removed twice")
	}
	// Of the same copy, which still follows.
	r.run(sim.Write(codeAt+valueAt, 8))
	again := r.insert(0, movAt, 5)
	if r.frames() != 1 || r.set.Idle() {
		t.Errorf("%d spare frames, idle %v", r.frames(), r.set.Idle())
	}
	r.mustCall(0, 8, again)
	if err := r.set.Remove(p); err == nil {
		t.Error("another patch at the same address was removed")
	}
}

// TestRemoveDisplaced: what the guest wrote stays.
func TestRemoveDisplaced(t *testing.T) {
	r := newRig(t, 1)
	p := r.insert(0, movAt, 5)
	r.cpu.Set(func(regs *xenevents.Registers) { regs.RAX = 1 })
	r.run(sim.Write(codeAt+movAt, 0xbd)) // mov ebp,7
	r.must(r.set.Remove(p))
	r.mustCall(0, 1)
}

// TestRefreshOfNothing: the page was taken away while a vCPU stepped.
func TestRefreshOfNothing(t *testing.T) {
	r := newRig(t, 1)
	if changed, err := r.set.Refresh(r.code[0]); changed != nil || err != nil {
		t.Errorf("%v, %v", changed, err)
	}
}
