package probe_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// late is more than anything here takes.
const late = 20 * time.Second

const (
	codeAt  xenevents.GVA = 0xffff_ffff_8100_0000 // two pages
	otherAt xenevents.GVA = 0xffff_ffff_8200_0000
	dataAt  xenevents.GVA = 0xffff_8880_0000_0000
	stackAt xenevents.GVA = 0xffff_c900_0000_0000 // a page for each vCPU
)

// The functions of the guest.
const (
	sum    = codeAt + 0x10  // endbr64; push rbp; mov rbp,rsp; lea rax,[rdi+rsi]; pop rbp; ret
	sumPop = sum + 12       // its pop rbp
	load   = codeAt + 0x40  // mov rax,[rdi]; ret
	store  = codeAt + 0x50  // mov [rdi],rsi; mov rax,rsi; ret
	own    = codeAt + 0x60  // int3; mov eax,1; ret
	ownToo = codeAt + 0x70  // es int3; mov eax,1; ret
	nops   = codeAt + 0x80  // es push rbp; pop rbp; ret: where the push is entered at its prefix
	free   = codeAt + 0x100 // room for a test's own
	last   = codeAt + xenevents.PageSize - 1
	diff   = otherAt // mov rax,rdi; sub rax,rsi; ret
)

var code = map[xenevents.GVA][]byte{
	sum:    {0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x04, 0x37, 0x5d, 0xc3},
	load:   {0x48, 0x8b, 0x07, 0xc3},
	store:  {0x48, 0x89, 0x37, 0x48, 0x89, 0xf0, 0xc3},
	own:    {0xcc, 0xb8, 1, 0, 0, 0, 0xc3},
	ownToo: {0x2e, 0xcc, 0xb8, 1, 0, 0, 0, 0xc3},
	nops:   {0x2e, 0x55, 0x5d, 0xc3},
	last:   {0x2e, 0x55, 0x5d, 0xc3}, // the same, with the prefix in the page before
	diff:   {0x48, 0x89, 0xf8, 0x48, 0x29, 0xf0, 0xc3},
}

// rig is a guest and an engine that serves it.
type rig struct {
	t      *testing.T
	guest  *sim.Guest
	space  *sim.Space
	dom    *spy
	engine *probe.Engine
	cancel context.CancelFunc
	ended  chan struct{} // closed when the engine has ended
	err    error         // with which
	log    *buffer
}

// spy is sim's domain, in which a test sees what happens when.
type spy struct {
	*sim.Domain
	interrupted chan struct{}     // one for each Interrupt: a command waits
	flushed     func()            // after each Flush that sent replies
	left        func(*sim.Events) // in each Next after SwitchView to view 0
	freed       chan struct{}     // one for each FreeGFN
	change      func(*xenevents.Event)
	answered    func() // after each Reply, before the guest sees it
	late        func() // after each Next that ended with its time
	steps       int    // single-step events
	remaps      int    // RemapGFN

	leaving bool
	replied bool // since the last Flush
}

func (d *spy) SwitchView(v xenevents.View) error {
	d.leaving = v == xenevents.HostView
	return d.Domain.SwitchView(v)
}

func (d *spy) RemapGFN(v xenevents.View, gfn, to xenevents.GFN) error {
	d.remaps++
	return d.Domain.RemapGFN(v, gfn, to)
}

func (d *spy) FreeGFN(gfn xenevents.GFN) error {
	err := d.Domain.FreeGFN(gfn)
	select {
	case d.freed <- struct{}{}:
	default:
	}
	return err
}

type spyEvents struct {
	*sim.Events
	dom *spy
}

func (d *spy) Attach(ctx context.Context) (xenevents.Events, error) {
	e, err := d.Domain.Attach(ctx)
	if err != nil {
		return nil, err
	}
	return &spyEvents{e.(*sim.Events), d}, nil
}

func (e *spyEvents) Next(ctx context.Context, batch []xenevents.Event) (int, error) {
	if e.dom.leaving && e.dom.left != nil {
		e.dom.left(e.Events)
	}
	if err := e.Flush(); err != nil {
		return 0, err
	}
	n, err := e.Events.Next(ctx, batch)
	if errors.Is(err, context.DeadlineExceeded) && e.dom.late != nil {
		e.dom.late()
	}
	for i := range n {
		if batch[i].Kind == xenevents.KindSingleStep {
			e.dom.steps++
		}
		if e.dom.change != nil {
			e.dom.change(&batch[i])
		}
	}
	return n, err
}

func (e *spyEvents) Reply(ev *xenevents.Event, r *xenevents.Reply) error {
	e.dom.replied = true
	err := e.Events.Reply(ev, r)
	if e.dom.answered != nil {
		e.dom.answered()
	}
	return err
}

func (e *spyEvents) Interrupt() {
	select {
	case e.dom.interrupted <- struct{}{}:
	default:
	}
	e.Events.Interrupt()
}

func (e *spyEvents) Flush() error {
	err := e.Events.Flush()
	sent := e.dom.replied
	e.dom.replied = false
	if sent && e.dom.flushed != nil {
		e.dom.flushed()
	}
	return err
}

// buffer is what a log goes to.
type buffer struct {
	mu sync.Mutex
	bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.Buffer.Write(p)
}

func (b *buffer) has(text string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Contains(b.Bytes(), []byte(text))
}

// newGuest is a rig whose engine does not run.
func newGuest(t *testing.T, c sim.Config) *rig {
	t.Helper()
	h := sim.NewHost()
	c.ID = 1
	r := &rig{t: t, guest: h.Add(c), ended: make(chan struct{}), log: &buffer{}}
	r.space = r.guest.NewSpace()
	for _, at := range []xenevents.GVA{codeAt, codeAt + xenevents.PageSize, otherAt, dataAt, dataAt + xenevents.PageSize} {
		r.space.Page(at)
	}
	for at, insns := range code {
		r.poke(at, insns...)
	}
	for i := range max(c.VCPUs, 1) {
		at := stackAt + xenevents.GVA(i)*xenevents.PageSize
		r.space.Page(at)
		r.cpu(i).Set(func(regs *xenevents.Registers) {
			regs.CR3, regs.RSP = r.space.CR3(), uint64(at)+xenevents.PageSize
		})
	}
	dom, err := h.Open(context.Background(), 1)
	r.must(err)
	r.dom = &spy{Domain: dom.(*sim.Domain), interrupted: make(chan struct{}, 100), freed: make(chan struct{}, 100)}
	r.engine, err = probe.New(r.dom, withLog(r, probe.Options{}))
	r.must(err)
	return r
}

func withLog(r *rig, o probe.Options) probe.Options {
	o.Log = slog.New(slog.NewTextHandler(r.log, nil))
	return o
}

// newRig is a rig whose engine runs, to the test's end.
func newRig(t *testing.T, c sim.Config) *rig {
	t.Helper()
	r := newGuest(t, c)
	r.start()
	return r
}

func (r *rig) start() {
	r.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	go func() {
		r.err = r.engine.Run(ctx)
		close(r.ended)
	}()
	r.t.Cleanup(func() {
		r.end()
		if r.err != nil {
			r.t.Errorf("the engine ended with %v", r.err)
		}
	})
	select {
	case <-r.engine.Ready():
	case <-r.ended:
		r.t.Fatalf("the engine ended with %v", r.err)
	}
}

// end has the engine detach. Nothing may be left in the guest: the test's Domain
// is not closed before.
func (r *rig) end() {
	r.t.Helper()
	r.cancel()
	r.wait(r.ended)
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

// wait waits for what must come.
func (r *rig) wait(c <-chan struct{}) {
	r.t.Helper()
	select {
	case <-c:
	case <-time.After(late):
		r.t.Fatal("it does not come")
	}
}

func (r *rig) cpu(i int) *sim.VCPU { return r.guest.VCPU(i) }

func (r *rig) finish(i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), late)
	defer cancel()
	return r.cpu(i).Wait(ctx)
}

func (r *rig) done(i int) {
	r.t.Helper()
	r.must(r.finish(i))
}

// run has a vCPU do something to its end.
func (r *rig) run(i int, steps ...sim.Step) {
	r.t.Helper()
	r.cpu(i).Run(steps...)
	r.done(i)
}

// call returns what a function returned.
func (r *rig) call(at xenevents.GVA, args ...uint64) uint64 {
	r.t.Helper()
	r.run(0, sim.Call(at, args...))
	return r.cpu(0).Registers().RAX
}

// gpa is where an address of the guest is.
func (r *rig) gpa(at xenevents.GVA) xenevents.GPA { return r.gpaIn(r.space, at) }

func (r *rig) gpaIn(space *sim.Space, at xenevents.GVA) xenevents.GPA {
	table := space.AddressSpace().Root
	for level := 4; level >= 1; level-- {
		entry := r.guest.Peek(table+xenevents.GPA(uint64(at)>>(12+9*(level-1))&511*8), 8)
		table = xenevents.GPA(binary.LittleEndian.Uint64(entry) &^ xenevents.PageMask)
	}
	return table + xenevents.GPA(at.Offset())
}

func (r *rig) poke(at xenevents.GVA, p ...byte) {
	for i, b := range p {
		r.guest.Poke(r.gpa(at+xenevents.GVA(i)), []byte{b})
	}
}

func (r *rig) peek(at xenevents.GVA, n int) []byte { return r.guest.Peek(r.gpa(at), n) }

// try asks for a probe.
func (r *rig) try(at xenevents.GVA, step probe.StepOver, decide func(*probe.Hit) probe.Verdict) (probe.ID, error) {
	return r.engine.Add(context.Background(), probe.Request{Name: "name", At: at, Space: r.space.AddressSpace(), Step: step, Decide: decide})
}

func (r *rig) add(at xenevents.GVA, decide func(*probe.Hit) probe.Verdict) probe.ID {
	r.t.Helper()
	id, err := r.try(at, probe.Auto, decide)
	r.must(err)
	return id
}

func (r *rig) remove(id probe.ID) {
	r.t.Helper()
	r.must(r.engine.Remove(context.Background(), id))
}

// status is of the one probe with that ID.
func (r *rig) status(id probe.ID) probe.Status {
	r.t.Helper()
	all, _, err := r.engine.Probes(context.Background())
	r.must(err)
	for _, s := range all {
		if s.ID == id {
			return s
		}
	}
	r.t.Fatalf("there is no probe %d among %+v", id, all)
	return probe.Status{}
}

func (r *rig) stats() probe.Stats {
	r.t.Helper()
	_, stats, err := r.engine.Probes(context.Background())
	r.must(err)
	return stats
}

// between runs f on the engine's goroutine: no event is served meanwhile.
func (r *rig) between(f func()) {
	r.t.Helper()
	err := r.engine.Do(context.Background(), func(xenevents.Domain) error {
		f()
		return nil
	})
	if err != nil {
		r.t.Error(err)
	}
}

// queued has the engine remove a probe straight after f, with no event served in
// between.
func (r *rig) queued(f func(), id probe.ID) error {
	r.t.Helper()
	for len(r.dom.interrupted) > 0 {
		<-r.dom.interrupted
	}
	begin, removed := make(chan struct{}), make(chan error, 1)
	var first sync.WaitGroup
	first.Go(func() {
		r.between(func() {
			<-begin
			f()
		})
	})
	r.wait(r.dom.interrupted)
	go func() { removed <- r.engine.Remove(context.Background(), id) }()
	r.wait(r.dom.interrupted)
	close(begin)
	first.Wait()
	return <-removed
}

// reclaimed waits for the copies without probes to go: to n of them.
func (r *rig) reclaimed(n int) {
	r.t.Helper()
	for until := time.Now().Add(late); r.stats().Shadows != n; {
		if time.Now().After(until) {
			r.t.Fatalf("%d copies are left", r.stats().Shadows)
		}
	}
}

func counted(to *int) func(*probe.Hit) probe.Verdict {
	return func(*probe.Hit) probe.Verdict {
		*to++
		return probe.Verdict{}
	}
}
