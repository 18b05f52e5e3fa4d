package native

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

// Events is the monitor ring of a domain: see xenevents.Events.
type Events struct {
	dom     *Domain
	ring    ring
	channel *sys.Evtchn
	subs    map[xenevents.Subscription]bool
	pending []pending // by vCPU: each waits for one reply at most

	ringGFN     xenevents.GFN
	hadRingPage bool

	interrupted atomic.Bool
	ctx         context.Context // the last one that Next saw, and what unhooks it
	unhook      func() bool
	poll        uint64        // TSC cycles
	bell        *sys.Doorbell // nil: the guest has a CPU of its own
	closed      bool
}

// aliveCheck is how often a Next that sees no event asks whether the domain is
// still there: Xen tells that to xenstored only.
const aliveCheck = 500 * time.Millisecond

// Attach opens the monitor ring, in the order that is known to work.
func (d *Domain) Attach(ctx context.Context) (xenevents.Events, error) {
	if d.closed {
		return nil, xenevents.ErrClosed
	}
	if d.events != nil && !d.events.closed {
		return nil, fmt.Errorf("domain %d: %w: this one", d.id, xenevents.ErrMonitored)
	}
	info, err := d.host.domainInfo(d.id)
	if err != nil {
		return nil, err
	}
	layout, _ := abi.RingLayout(d.host.ver.VMEvent) // known, or Open had failed
	e := &Events{
		dom: d, subs: map[xenevents.Subscription]bool{}, pending: make([]pending, info.MaxVCPU+1),
		ring: ring{layout: layout, version: d.host.ver.VMEvent}, poll: d.host.opts.poll(d.host.cpus),
	}
	err = xenevents.WithPaused(d, e.open)
	if err != nil {
		return nil, err
	}
	d.events = e
	return e, ctx.Err()
}

// maxPoll bounds polling: a domain that ended tells that to who asks only.
const maxPoll = 1 << 30

func (o *Options) poll(cpus uint32) uint64 {
	switch {
	case o.Poll > 0:
		return uint64(min(o.Poll, maxPoll))
	case o.Poll == 0 && cpus > 1:
		return 100_000
	}
	return 0
}

// open runs with the domain paused.
func (e *Events) open() error {
	d := e.dom
	gfn, err := d.param(abi.ParamMonitorRing)
	if err != nil {
		return fmt.Errorf("find the monitor ring of domain %d: %w", d.id, err)
	}
	e.ringGFN = xenevents.GFN(gfn)
	if err := e.mapRing(); err != nil {
		return err
	}
	e.ring.reset()
	port, err := d.enableRing()
	if err != nil {
		return errors.Join(err, sys.Unmap(e.ring.page))
	}
	e.channel, err = sys.Bind(uint16(d.id), port)
	if err != nil {
		return errors.Join(err, d.disableRing(), sys.Unmap(e.ring.page))
	}
	if e.bell, err = d.host.Doorbell(e.channel.Port()); err != nil {
		return errors.Join(err, e.channel.Close(), d.disableRing(), sys.Unmap(e.ring.page))
	}
	// The guest must not see or change the ring; the mapping stays.
	if err := d.reservation(abi.MemoryDecreaseReservation, e.ringGFN); err != nil {
		return errors.Join(fmt.Errorf("hide the monitor ring: %w", err), e.bell.Close(), e.channel.Close(), d.disableRing(), sys.Unmap(e.ring.page))
	}
	return nil
}

func (e *Events) mapRing() error {
	d := e.dom
	for _, populate := range []bool{false, true} {
		if populate {
			// The page is absent: an earlier monitor hid it, or one of today
			// has it. Nothing may change in a domain with another monitor.
			if _, err := d.enableRing(); errors.Is(err, xenevents.ErrMonitored) {
				return err
			}
			if err := d.reservation(abi.MemoryPopulatePhysmap, e.ringGFN); err != nil {
				return fmt.Errorf("give domain %d a page for the monitor ring: %w", d.id, err)
			}
		}
		var errs [1]int32
		page, err := d.host.xen.Map(uint16(d.id), []uint64{uint64(e.ringGFN)}, errs[:])
		if err != nil {
			return fmt.Errorf("map the monitor ring: %w", err)
		}
		if errs[0] == 0 {
			e.ring.page, e.hadRingPage = page, !populate
			return nil
		}
		if err := sys.Unmap(page); err != nil {
			return fmt.Errorf("map the monitor ring: %w", err)
		}
	}
	return fmt.Errorf("map the monitor ring, gfn %v: %w", e.ringGFN, xenevents.ErrAbsent)
}

func (d *Domain) param(index uint32) (value uint64, err error) {
	_, err = d.host.xen.Hypercall(abi.HypercallHVMOp, func(mem []byte, addr uint64) [5]uint64 {
		le.PutUint16(mem, uint16(d.id))
		le.PutUint32(mem[4:], index)
		return [5]uint64{abi.HVMGetParam, addr}
	}, func(mem []byte) { value = le.Uint64(mem[8:]) })
	return value, err
}

func (d *Domain) enableRing() (port uint32, err error) {
	err = d.host.domctlOn(d.id, abi.DomctlVMEventOp, func(u []byte, _ uint64) {
		le.PutUint32(u, abi.VMEventEnable)
		le.PutUint32(u[4:], abi.VMEventMonitor)
	}, func(mem []byte) { port = le.Uint32(mem[abi.DomctlUnion+8:]) })
	switch {
	case errors.Is(err, sys.EBUSY):
		return 0, fmt.Errorf("domain %d: %w: another program watches it, or one that died left it so (then only a restart of the guest helps)", d.id, xenevents.ErrMonitored)
	case err != nil:
		return 0, fmt.Errorf("enable the monitor ring of domain %d: %w", d.id, err)
	}
	return port, nil
}

func (d *Domain) disableRing() error {
	err := d.host.domctlOn(d.id, abi.DomctlVMEventOp, func(u []byte, _ uint64) {
		le.PutUint32(u, abi.VMEventDisable)
		le.PutUint32(u[4:], abi.VMEventMonitor)
	}, nil)
	if err != nil {
		return fmt.Errorf("disable the monitor ring of domain %d: %w", d.id, err)
	}
	return nil
}

// Subscribe asks Xen for a class of events.
func (e *Events) Subscribe(s xenevents.Subscription) error {
	if e.subs[s] {
		return nil
	}
	if err := e.dom.monitor(s, abi.MonitorEnable); err != nil {
		return err
	}
	e.subs[s] = true
	return nil
}

// Unsubscribe undoes Subscribe.
func (e *Events) Unsubscribe(s xenevents.Subscription) error {
	if !e.subs[s] {
		return nil
	}
	delete(e.subs, s)
	return e.dom.monitor(s, abi.MonitorDisable)
}

func (d *Domain) monitor(s xenevents.Subscription, op uint32) error {
	event, ok := map[xenevents.Kind]uint32{
		xenevents.KindInt3: abi.MonitorInt3, xenevents.KindSingleStep: abi.MonitorSingleStep, xenevents.KindControlReg: abi.MonitorControlReg,
		xenevents.KindMSR: abi.MonitorMSR, xenevents.KindCPUID: abi.MonitorCPUID, xenevents.KindGuestRequest: abi.MonitorGuestRequest,
		xenevents.KindDebug: abi.MonitorDebug,
	}[s.Kind]
	if !ok {
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("a subscription to %v events", s.Kind)}
	}
	sync, onChange := bool01(s.Sync), bool01(s.OnChange)
	index := uint8(0)
	if s.Kind == xenevents.KindControlReg {
		if index, ok = map[uint32]uint8{0: 0, 3: 1, 4: 2}[s.Index]; !ok {
			return &xenevents.UnsupportedError{Feature: fmt.Sprintf("events of CR%d", s.Index)}
		}
	}
	err := d.host.domctlOn(d.id, abi.DomctlMonitorOp, func(u []byte, _ uint64) {
		le.PutUint32(u, op)
		le.PutUint32(u[4:], event)
		switch s.Kind {
		case xenevents.KindControlReg:
			u[8], u[9], u[10] = index, sync, onChange
		case xenevents.KindMSR:
			le.PutUint32(u[8:], s.Index)
			u[12] = onChange
		case xenevents.KindGuestRequest, xenevents.KindDebug:
			u[8] = sync
		}
	}, nil)
	switch {
	case errors.Is(err, sys.EOPNOTSUPP), errors.Is(err, sys.ENOSYS):
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("%v events", s.Kind), Need: "another CPU or Xen", Err: err}
	case s.Kind == xenevents.KindMSR && errors.Is(err, sys.EINVAL):
		return &xenevents.UnsupportedError{Feature: fmt.Sprintf("events of MSR %#x", s.Index), Need: "one of 0 to 0x1fff, 0x40000000 to 0x40001fff, 0xc0000000 to 0xc0001fff", Err: err}
	case err != nil:
		return fmt.Errorf("%v events of domain %d: %w", s.Kind, d.id, err)
	}
	return nil
}

// HoldWrites is xenevents.WriteHolder's.
func (e *Events) HoldWrites() error {
	for s := range e.subs {
		if s.Kind == xenevents.KindControlReg && !s.Sync {
			return fmt.Errorf("hold the writes of registers: nobody waits at those of CR%d", s.Index)
		}
	}
	if err := e.dom.HoldWrites(); err != nil {
		return err
	}
	e.ring.holds = true
	return nil
}

func bool01(b bool) uint8 {
	if b {
		return 1
	}
	return 0
}

// maxVCPUs is more than a domain of any Xen has (xen.h, HVM_MAX_VCPUS is 128):
// an event of one beyond it shows that the ring is not what it should be.
const maxVCPUs = 8192

// TryNext takes what is in the ring.
func (e *Events) TryNext(batch []xenevents.Event) (int, error) {
	if e.closed { // the ring is not mapped any more
		return 0, xenevents.ErrClosed
	}
	return e.take(batch)
}

func (e *Events) take(batch []xenevents.Event) (int, error) {
	n := e.ring.waiting()
	if n == 0 {
		return 0, nil
	}
	if n > abi.RingSlots {
		return 0, fmt.Errorf("the monitor ring of domain %d is broken: %d requests in %d slots", e.dom.id, n, abi.RingSlots)
	}
	n = min(n, uint32(len(batch)))
	for i := range n {
		b := e.ring.request()
		ev := &batch[i]
		e.ring.decode(b, ev)
		if ev.VCPU >= maxVCPUs {
			return int(i), fmt.Errorf("the monitor ring of domain %d is broken: an event of vCPU %d", e.dom.id, ev.VCPU)
		}
		if ev.Paused {
			if int(ev.VCPU) >= len(e.pending) { // hot-plugged
				e.pending = append(e.pending, make([]pending, int(ev.VCPU)+1-len(e.pending))...)
			}
			p := &e.pending[ev.VCPU]
			p.open, p.reason, p.RIP, p.Due = true, uint32(ev.Cookie), ev.Regs.RIP, false
			p.u = [abi.EntryUSize]byte(b[abi.EntryU:])
		}
		e.ring.consume()
		if !ev.Paused {
			// Nobody waits, but Xen gives a slot back for a response only.
			e.ring.acknowledge(ev)
		}
	}
	return int(n), nil
}

// Next waits for events: first it polls, then it sleeps on the event channel.
func (e *Events) Next(ctx context.Context, batch []xenevents.Event) (int, error) {
	if e.closed {
		return 0, xenevents.ErrClosed
	}
	if ctx != e.ctx {
		e.hook(ctx)
	}
	if err := e.send(); err != nil {
		return 0, err
	}
	for {
		if e.ring.waiting() != 0 || e.pollRing() {
			return e.take(batch)
		}
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case e.interrupted.Swap(false):
			return 0, xenevents.ErrInterrupted
		}
		why, err := e.channel.Wait(aliveCheck)
		if err != nil {
			return 0, err
		}
		if why == sys.Timeout {
			if err := e.alive(); err != nil {
				return 0, err
			}
		}
	}
}

// hook has ctx's end wake Next. It is done once for each new ctx: that costs,
// and the engine calls Next with the same one again and again.
func (e *Events) hook(ctx context.Context) {
	if e.unhook != nil {
		e.unhook()
	}
	e.ctx, e.unhook = ctx, context.AfterFunc(ctx, e.channel.Wake)
}

// pollRing looks at the ring for a while.
func (e *Events) pollRing() bool {
	if e.poll == 0 {
		return false
	}
	const looks = 256
	for began := sys.TSC(); ; {
		if e.ring.await(looks) {
			return true
		}
		if sys.TSC()-began > e.poll || e.interrupted.Load() || e.ctx.Err() != nil {
			return false
		}
	}
}

// send sends the replies, before Next waits.
func (e *Events) send() error {
	if e.bell != nil {
		return e.offer()
	}
	return e.Flush()
}

// offers is how often the guest is offered the CPU that it shares with us. Twice
// in vain, and there is time to sleep.
const offers = 2

// offer sends the replies and lets the guest run until it has an event, or Xen
// finds that it is our turn. No interrupt of dom0's is needed to come back.
func (e *Events) offer() error {
	for range offers {
		if e.ring.waiting() != 0 || e.interrupted.Load() || e.ctx.Err() != nil {
			break
		}
		unsent := e.ring.unsent
		e.ring.unsent = false
		if err := e.bell.Yield(unsent); err != nil {
			return err
		}
	}
	return e.Flush()
}

// alive says whether the domain still runs, and lets the frame cache know how
// many pages it has.
func (e *Events) alive() error {
	info, err := e.dom.host.domainInfo(e.dom.id)
	if errors.Is(err, xenevents.ErrNoDomain) || err == nil && (info.Dying || info.Shutdown) {
		return fmt.Errorf("domain %d: %w", e.dom.id, xenevents.ErrDomainGone)
	}
	if err != nil {
		return err
	}
	e.dom.CheckPages(info.Pages)
	return nil
}

// Reply answers an event. Xen sees it with the next Flush or Next.
func (e *Events) Reply(ev *xenevents.Event, r *xenevents.Reply) error {
	if !ev.Paused {
		return nil
	}
	if int(ev.VCPU) >= len(e.pending) || !e.pending[ev.VCPU].open {
		return fmt.Errorf("vCPU %d of domain %d waits for no reply", ev.VCPU, e.dom.id)
	}
	p := &e.pending[ev.VCPU]
	p.open = false
	e.ring.respond(ev.VCPU, p, r)
	return nil
}

// Settled says whether all replies were carried out: a vCPU that was told to
// emulate, or got registers, has had another event since, or is at another instruction.
func (e *Events) Settled() (bool, error) {
	if err := e.Flush(); err != nil {
		return false, err
	}
	for v := range e.pending {
		if ok, err := e.pending[v].Settled(e.dom, xenevents.VCPU(v)); !ok {
			return false, err
		}
	}
	return true, nil
}

// Flush tells Xen of all responses that it was not told of.
func (e *Events) Flush() error {
	if !e.ring.unsent {
		return nil
	}
	e.ring.unsent = false
	return e.channel.Notify()
}

// Interrupt makes Next return.
func (e *Events) Interrupt() {
	e.interrupted.Store(true)
	e.channel.Wake()
}

// Close ends the subscription with the domain paused: an event that came into
// the ring between the last look and DISABLE would leave its vCPU paused for
// ever.
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
	return errors.Join(err, e.bell.Close(), e.channel.Close(), sys.Unmap(e.ring.page))
}

func (e *Events) detach() error {
	var errs []error
	errs = append(errs, e.answerAll())
	for s := range e.subs {
		errs = append(errs, e.Unsubscribe(s))
	}
	errs = append(errs, e.answerAll())
	// A vCPU left in single-step would step for ever.
	for v := range e.pending {
		if err := e.dom.stepOff(xenevents.VCPU(v)); err != nil {
			errs = append(errs, err)
		}
	}
	errs = append(errs, e.dom.disableRing())
	if e.hadRingPage {
		errs = append(errs, e.dom.reservation(abi.MemoryPopulatePhysmap, e.ringGFN))
	}
	return errors.Join(errs...)
}

func (d *Domain) stepOff(v xenevents.VCPU) error {
	err := d.host.domctlOn(d.id, abi.DomctlDebugOp, func(u []byte, _ uint64) {
		le.PutUint32(u, abi.DebugOpStepOff)
		le.PutUint32(u[4:], uint32(v))
	}, nil)
	switch {
	case errors.Is(err, sys.EINVAL), errors.Is(err, sys.EOPNOTSUPP): // no such vCPU (any more); no monitor trap flag
		return nil
	case err != nil:
		return fmt.Errorf("end single-step of vCPU %d: %w", v, err)
	}
	return nil
}

// answerAll lets every vCPU that waits for a reply run on.
func (e *Events) answerAll() error {
	var batch [abi.RingSlots]xenevents.Event
	n, err := e.take(batch[:])
	if err != nil {
		return err
	}
	for v := range e.pending {
		if p := &e.pending[v]; p.open {
			p.open = false
			e.ring.respond(xenevents.VCPU(v), p, last(batch[:n], xenevents.VCPU(v)))
			if err := e.Flush(); err != nil { // one by one: the ring may be full of them
				return err
			}
		}
	}
	return e.Flush()
}

// last is the reply of a monitor that goes: the vCPU runs on. CPUID was done, and its
// leaf is lost: it must not be done again.
func last(events []xenevents.Event, v xenevents.VCPU) *xenevents.Reply {
	r := &xenevents.Reply{}
	for i := range events {
		if ev := &events[i]; ev.VCPU == v && ev.Kind == xenevents.KindCPUID && ev.Paused {
			regs := ev.Regs
			regs.RIP += uint64(ev.InsnLen)
			r.Regs = &regs
		}
	}
	return r
}
