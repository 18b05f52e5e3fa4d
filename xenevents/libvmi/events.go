//go:build libvmi

package libvmi

// #include "glue.h"
import "C"

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native"
)

// Events is the monitor ring of a domain, read by LibVMI: see xenevents.Events.
type Events struct {
	dom  *Domain
	m    *C.struct_hp_monitor
	lock sync.Mutex // of m's end: Interrupt may come from any goroutine
	subs map[xenevents.Subscription]*C.vmi_event_t
	// unwanted are those of subs that LibVMI still has: it must not be without a
	// handler for what is in the ring.
	unwanted []xenevents.Subscription

	// ahead: m.event was not given to anybody yet. open: it has no reply yet.
	ahead, open bool
	cookie      uint64 // of m.event
	held        []*held
	pending     []native.Unsettled // by vCPU
	holdsWrites bool
	ring        *native.RingPage

	interrupted atomic.Bool
	ctx         context.Context // the last one that Next saw, and what unhooks it
	unhook      func() bool
	poll        uint64           // TSC cycles
	bell        *native.Doorbell // nil: the guest has a CPU of its own
	closed      bool
}

// aliveCheck is how often a Next that sees no event asks whether the domain is still there.
const aliveCheck = 500 * time.Millisecond

// Attach has LibVMI open the monitor ring.
func (d *Domain) Attach(ctx context.Context) (xenevents.Events, error) {
	if d.closed {
		return nil, xenevents.ErrClosed
	}
	if d.events != nil && !d.events.closed {
		return nil, fmt.Errorf("domain %d: %w: this one", d.id, xenevents.ErrMonitored)
	}
	if err := d.native.Attachable(ctx); err != nil {
		return nil, err
	}
	info, err := d.native.Info(ctx)
	if err != nil {
		return nil, err
	}
	e := &Events{
		dom: d, subs: map[xenevents.Subscription]*C.vmi_event_t{}, pending: make([]native.Unsettled, info.MaxVCPU+1),
		poll: d.host.native.PollFor(),
	}
	if e.ring, err = d.native.OpenRingPage(); err != nil {
		return nil, err
	}
	err = d.keepLimit(ctx, func() error {
		var why *C.char
		if e.m = C.hp_attach(C.uint64_t(d.id), &why); e.m == nil {
			return fmt.Errorf("attach to domain %d: %s", d.id, C.GoString(why))
		}
		return nil
	})
	if e.m == nil {
		return nil, errors.Join(err, e.ring.Close())
	}
	d.events = e
	if err == nil {
		e.bell, err = d.host.native.Doorbell(uint32(e.m.port))
	}
	if err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, ctx.Err()
}

// step has LibVMI go on: with the reply to the last event, and to the next event.
func (e *Events) step() error {
	switch C.hp_next(e.m) {
	case C.HP_EVENT:
		e.ahead, e.open = true, e.m.event.paused != 0
		e.cookie++
		if v := int(e.m.event.vcpu); v >= maxVCPUs {
			return fmt.Errorf("the monitor ring of domain %d is broken: an event of vCPU %d", e.dom.id, v)
		} else if v >= len(e.pending) { // hot-plugged
			e.pending = append(e.pending, make([]native.Unsettled, v+1-len(e.pending))...)
		}
		return nil
	case C.HP_NOTHING:
		return e.clear()
	}
	return e.dom.failed(fmt.Sprintf("LibVMI's loop of events of domain %d", e.dom.id), nil)
}

// maxVCPUs is more than a domain of any Xen has.
const maxVCPUs = 8192

// take gives out one event, if there is one.
func (e *Events) take(batch []xenevents.Event) (int, error) {
	for len(batch) > 0 {
		if e.open && !e.ahead {
			// It has no reply yet, and holds LibVMI up.
			if e.ring.Waiting() == 0 {
				return 0, nil
			}
			if err := e.setAside(); err != nil {
				return 0, err
			}
		}
		if !e.ahead {
			if err := e.step(); err != nil || !e.ahead {
				return 0, err
			}
		}
		e.ahead = false
		ev := &batch[0]
		e.decode(ev)
		if ev.Paused {
			e.pending[ev.VCPU] = native.Unsettled{RIP: ev.Regs.RIP}
		}
		switch h := e.again(ev); {
		case h == nil:
			return 1, nil
		case h.answered:
			e.answer(ev, &h.reply)
			e.forget(h)
		default: // there is no reply yet: it waits here, while nobody else does
			return 0, nil
		}
	}
	return 0, nil
}

// TryNext takes what is in the ring: one event.
func (e *Events) TryNext(batch []xenevents.Event) (int, error) {
	if e.closed {
		return 0, xenevents.ErrClosed
	}
	return e.take(batch)
}

// Next waits for an event: first it polls, then it sleeps on the event channel.
func (e *Events) Next(ctx context.Context, batch []xenevents.Event) (int, error) {
	if e.closed {
		return 0, xenevents.ErrClosed
	}
	if ctx != e.ctx {
		if e.unhook != nil {
			e.unhook()
		}
		e.ctx, e.unhook = ctx, context.AfterFunc(ctx, e.wake)
	}
	for {
		if n, err := e.take(batch); n > 0 || err != nil {
			return n, err
		}
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case e.interrupted.Swap(false):
			return 0, xenevents.ErrInterrupted
		}
		if e.open && e.ring.Waiting() != 0 { // two that have no reply: not at full speed
			if rc, errno := C.hp_wait(e.m, false, C.int(turn.Microseconds())); rc < 0 {
				return 0, fmt.Errorf("wait for events of domain %d: %w", e.dom.id, errno)
			}
			continue
		}
		if more, err := e.look(); err != nil {
			return 0, err
		} else if more {
			continue
		}
		why, errno := C.hp_wait(e.m, true, C.int(aliveCheck.Microseconds()))
		switch why {
		case -1:
			return 0, fmt.Errorf("wait for events of domain %d: %w", e.dom.id, errno)
		case 0:
			if err := e.alive(); err != nil {
				return 0, err
			}
		}
	}
}

// looks is how often Next looks at the ring between two looks at the time.
const looks = 256

// offers is how often the guest is offered the CPU that it shares with us: see the
// native driver's.
const offers = 2

// look looks for an event for a while, or lets the guest run until it has one, and says
// whether there is one. It keeps away from cgo: while Go's scheduler thinks that a
// thread is in C it wakes others, and on a CPU that they share with it that cost four
// hits in a hundred 400,000 cycles.
func (e *Events) look() (bool, error) {
	switch {
	case e.bell != nil && !e.open:
		for range offers {
			if err := e.bell.Yield(false); err != nil || e.ring.Waiting() != 0 {
				return true, err
			}
		}
	case e.poll != 0:
		for began := e.dom.Ticks(); e.dom.Ticks()-began < e.poll && !e.interrupted.Load() && e.ctx.Err() == nil; {
			if e.ring.Await(looks) {
				return true, nil
			}
		}
	}
	return false, nil
}

// alive says whether the domain still runs, and lets the mapped frames know how many
// pages it has.
func (e *Events) alive() error {
	info, err := e.dom.native.Info(context.Background())
	if errors.Is(err, xenevents.ErrNoDomain) || err == nil && (info.Dying || info.Shutdown) {
		return fmt.Errorf("domain %d: %w", e.dom.id, xenevents.ErrDomainGone)
	}
	if err != nil {
		return err
	}
	e.dom.CheckPages(info.Pages)
	return nil
}

// decode reads the event at hand. Its registers are LibVMI's copy, but the values are the
// guest's.
func (e *Events) decode(ev *xenevents.Event) {
	from := &e.m.event
	*ev = xenevents.Event{
		Cookie: e.cookie,
		Paused: from.paused != 0, VCPU: xenevents.VCPU(from.vcpu), View: xenevents.View(from.view), GFN: xenevents.GFN(from.gfn),
		InsnLen: uint8(from.insn_len), IntType: uint8(from.int_type), Index: uint32(from.index), Leaf: uint32(from.leaf), Subleaf: uint32(from.subleaf),
		New: uint64(from.value), Old: uint64(from.previous),
	}
	decodeRegisters(from.regs, &ev.Regs)
	switch from._type {
	case C.VMI_EVENT_INTERRUPT:
		ev.Kind = xenevents.KindInt3
	case C.VMI_EVENT_MEMORY:
		ev.Kind = xenevents.KindMemAccess
		ev.Offset, ev.GLA = uint32(from.offset)&xenevents.PageMask, xenevents.GVA(from.gla)
		// LibVMI says that there is an address, and whether it was in a walk.
		if from.gla_valid != 0 {
			ev.Fault = xenevents.FaultGLAValid | xenevents.FaultWithGLA
			if from.in_walk != 0 {
				ev.Fault = xenevents.FaultGLAValid | xenevents.FaultInGPT
			}
		}
		for trap, a := range [...]xenevents.Access{1: xenevents.AccessR, 2: xenevents.AccessW, 3: xenevents.AccessX} {
			if from.access&(1<<trap) != 0 {
				ev.Access |= a
			}
		}
	case C.VMI_EVENT_SINGLESTEP:
		ev.Kind = xenevents.KindSingleStep
	case C.VMI_EVENT_REGISTER:
		if ev.Kind = xenevents.KindControlReg; from.msr != 0 {
			ev.Kind = xenevents.KindMSR
		}
	case C.VMI_EVENT_CPUID:
		ev.Kind = xenevents.KindCPUID
	case C.VMI_EVENT_DEBUG_EXCEPTION:
		ev.Kind = xenevents.KindDebug
	case C.VMI_EVENT_GUEST_REQUEST:
		ev.Kind = xenevents.KindGuestRequest
	default:
		ev.Kind = xenevents.KindOther
	}
}

// Reply answers an event. Xen sees it with the next Flush or Next.
func (e *Events) Reply(ev *xenevents.Event, r *xenevents.Reply) error {
	switch h := e.aside(ev); {
	case !ev.Paused:
		return nil
	case e.closed:
		return xenevents.ErrClosed
	case h != nil:
		e.decide(h, r)
		return nil
	case e.open && !e.ahead && ev.Cookie == e.cookie:
		e.answer(ev, r)
		return nil
	}
	return fmt.Errorf("vCPU %d of domain %d waits for no reply", ev.VCPU, e.dom.id)
}

// answer writes the reply that LibVMI's callback returns with.
func (e *Events) answer(ev *xenevents.Event, r *xenevents.Reply) {
	to := &e.m.reply
	if r.Switch {
		to.flags |= C.VMI_EVENT_RESPONSE_SLAT_ID
		to.view = C.uint16_t(r.View)
	}
	switch r.Step {
	case xenevents.StepToggle:
		to.flags |= C.VMI_EVENT_RESPONSE_TOGGLE_SINGLESTEP
	case xenevents.StepFast:
		to.flags |= C.VMI_EVENT_RESPONSE_NEXT_SLAT_ID
		to.after = C.uint16_t(r.After)
	}
	if r.Emulate {
		to.flags |= C.VMI_EVENT_RESPONSE_EMULATE
		if r.InsnLen > 0 {
			to.flags |= C.VMI_EVENT_RESPONSE_SET_EMUL_INSN
			to.insn = *(*[16]C.uint8_t)(unsafe.Pointer(&r.Insn))
		}
	}
	if r.Deny {
		to.flags |= C.VMI_EVENT_RESPONSE_DENY
	}
	if x := r.Regs; x != nil {
		to.flags |= C.VMI_EVENT_RESPONSE_SET_REGISTERS
		to.set_regs = 1
		for i, v := range [...]uint64{x.RAX, x.RCX, x.RDX, x.RBX, x.RSP, x.RBP, x.RSI, x.RDI, x.R8, x.R9, x.R10, x.R11, x.R12, x.R13, x.R14, x.R15, x.RFLAGS, x.RIP} {
			to.regs[i] = C.uint64_t(v)
		}
	}
	p := &e.pending[ev.VCPU]
	p.Due, p.Slack = r.Emulate || r.Regs != nil, 0
	if e.holdsWrites && (ev.Kind == xenevents.KindControlReg || ev.Kind == xenevents.KindMSR) {
		p.Due, p.Slack = true, native.LongestInsn
	}
	e.open = false
}

// inject has LibVMI give the guest the int3 that it waits at, with the reply.
func (e *Events) inject(v xenevents.VCPU) bool {
	if e.m.suspended == 0 || e.ahead || e.m.event._type != C.VMI_EVENT_INTERRUPT || xenevents.VCPU(e.m.event.vcpu) != v {
		return false
	}
	e.m.reply.reinject = 1
	return true
}

// Flush sends all replies. The next event may be fetched by that.
func (e *Events) Flush() error {
	if e.closed {
		return nil
	}
	if e.m.suspended != 0 && !e.open && !e.ahead {
		if err := e.step(); err != nil {
			return err
		}
	}
	if e.m.unsent != 0 {
		if rc, errno := C.hp_notify(e.m); rc != 0 {
			return e.dom.failed(fmt.Sprintf("tell Xen of the replies for domain %d", e.dom.id), errno)
		}
	}
	return nil
}

// Settled says whether all replies were carried out, as the native driver's.
func (e *Events) Settled() (bool, error) {
	if err := e.Flush(); err != nil {
		return false, err
	}
	if e.owed() {
		return false, nil
	}
	for v := range e.pending {
		if ok, err := e.pending[v].Settled(e.dom, xenevents.VCPU(v)); !ok {
			return false, err
		}
	}
	return true, nil
}

// Interrupt makes Next return.
func (e *Events) Interrupt() {
	e.interrupted.Store(true)
	e.wake()
}

func (e *Events) wake() {
	e.lock.Lock()
	defer e.lock.Unlock()
	if e.m != nil {
		C.hp_wake(e.m)
	}
}

// Close ends the subscription with the domain paused.
func (e *Events) Close() error {
	if e.closed {
		return nil
	}
	e.closed = true
	if e.unhook != nil {
		e.unhook()
	}
	err := xenevents.WithPaused(e.dom, e.detach)
	if errors.Is(err, xenevents.ErrNoDomain) {
		err = nil // it took its ring along
	}
	end := func() error {
		e.lock.Lock()
		defer e.lock.Unlock()
		C.hp_detach(e.m)
		e.m = nil
		return nil
	}
	limit := e.dom.keepLimit(context.Background(), end)
	if e.m != nil { // the domain is gone, and nothing to keep
		return errors.Join(err, end(), e.ring.Close(), e.bell.Close())
	}
	return errors.Join(err, limit, e.ring.Close(), e.bell.Close())
}

// detach runs with the domain paused.
func (e *Events) detach() error {
	errs := []error{e.answerAll()}
	for s, ev := range e.subs {
		if status, errno := C.hp_clear(e.m, ev); status != C.VMI_SUCCESS {
			errs = append(errs, e.dom.failed(fmt.Sprintf("end %v events of domain %d", s.Kind, e.dom.id), errno))
		}
	}
	clear(e.subs)
	e.held = nil
	C.hp_forget_memory(e.m)
	return errors.Join(errs...)
}

// answerAll lets every vCPU that waits for a reply run on. CPUID was done, and must not
// be done again.
func (e *Events) answerAll() error {
	var ev xenevents.Event
	for {
		if e.ahead || e.open {
			e.decode(&ev)
			if ev.Paused && (e.ahead || e.open) {
				var r xenevents.Reply
				if ev.Kind == xenevents.KindCPUID {
					regs := ev.Regs
					regs.RIP += uint64(ev.InsnLen)
					r.Regs = &regs
				}
				e.answer(&ev, &r)
			}
			e.ahead, e.open = false, false
		}
		if e.m.suspended == 0 && e.ring.Waiting() == 0 {
			return nil
		}
		e.unwanted = nil // all go, below
		if err := e.step(); err != nil {
			return err
		}
	}
}
