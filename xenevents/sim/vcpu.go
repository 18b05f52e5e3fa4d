package sim

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
)

// VCPU is a virtual CPU of a Guest: it runs what Run gives it. Its methods may be
// called from any goroutine.
type VCPU struct {
	guest *Guest
	id    xenevents.VCPU

	// All below is guarded by guest.mu.
	regs   xenevents.Registers
	view   xenevents.View
	script []Step
	phase  int    // of the first step: what it has behind it
	from   uint64 // Call: RIP before it, to which it returns
	stack  uint64 // Call: RSP before it
	ran    int    // instructions of this step
	held   bool
	traps  []xenevents.GVA
	err    error
	busy   bool          // with a script, to the reply of its last event
	done   chan struct{} // closed when it is not any more

	waiting   bool   // an event of it has had no reply yet
	taken     bool   // the monitor has that event
	cookie    uint64 // of that event
	kind      xenevents.Kind
	owesWrite bool // a held write, whose event has had its reply
	owed      *xenevents.Event
	answered  bool // the step's event has had its reply
	denied    bool // and that forbids the write
	moved     bool // RIP was moved: the present instruction is over
	inject    uint8
	setRegs   *xenevents.Registers // of a reply, until the vCPU runs
	emulate   *emulation           // the same
	stepping  bool
	fast      bool
	after     xenevents.View
	msrs      map[uint32]uint64
}

// emulation runs one instruction with memory as view 0 shows it. Without insn it
// takes the guest's own bytes.
type emulation struct{ insn []byte }

// stop is an error that says: not yet, the monitor must be asked first.
type stop struct {
	event xenevents.Event
	then  func() // what is done when the monitor was told; nil: nothing
}

// errPosted says that the event is in the ring already.
var errPosted = errors.New("the event is posted")

func (s *stop) Error() string { return fmt.Sprintf("%v event", s.event.Kind) }

// Kernel mode, 64 bit, paging on (Intel SDM vol. 3, 2.2 and 2.5).
const (
	resetRIP = 0xffff_ffff_8000_0000
	efer     = 1<<11 | xenevents.EFERLMA | 1<<8 | 1
	rflags   = 2
)

func newVCPU(g *Guest, id xenevents.VCPU) *VCPU {
	done := make(chan struct{})
	close(done)
	return &VCPU{guest: g, id: id, done: done, msrs: map[uint32]uint64{}, regs: xenevents.Registers{
		RIP: resetRIP, RFLAGS: rflags, CR0: xenevents.CR0PG | xenevents.CR0WP | 1, CR4: xenevents.CR4PAE, EFER: efer, CS: 0x10, SS: 0x18,
	}}
}

// Set changes registers while no script runs.
func (v *VCPU) Set(change func(*xenevents.Registers)) {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	change(&v.regs)
}

// Registers reads them.
func (v *VCPU) Registers() xenevents.Registers {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	return v.regs
}

// View is the view that the vCPU is in.
func (v *VCPU) View() xenevents.View {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	return v.view
}

// Waiting says whether the vCPU waits for the reply to an event.
func (v *VCPU) Waiting() bool {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	return v.waiting
}

// Traps are the addresses of the int3s that came to the guest itself.
func (v *VCPU) Traps() []xenevents.GVA {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	return slices.Clone(v.traps)
}

// Run gives the vCPU more to do, and lets the guest run: until each vCPU waits for
// a reply or has come to its end.
func (v *VCPU) Run(steps ...Step) {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	if v.guest.gone || len(steps) == 0 {
		return
	}
	if !v.busy {
		v.busy, v.err, v.done = true, nil, make(chan struct{})
	}
	v.script = append(v.script, steps...)
	v.guest.run()
}

// Hold keeps the vCPU from being scheduled until Release: replies reach it, but it
// does not carry them out.
func (v *VCPU) Hold() {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	v.held = true
}

// Release undoes Hold.
func (v *VCPU) Release() {
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	v.held = false
	v.guest.run()
}

// Wait waits for the end of the script. It fails with what ended it early: memory
// that is not mapped, an instruction that sim does not know, the guest's end.
func (v *VCPU) Wait(ctx context.Context) error {
	v.guest.mu.Lock()
	done := v.done
	v.guest.mu.Unlock()
	select {
	case <-done:
	case <-ctx.Done():
		return fmt.Errorf("vCPU %d is at %#x, waits for a reply: %v: %w", v.id, v.Registers().RIP, v.Waiting(), ctx.Err())
	}
	v.guest.mu.Lock()
	defer v.guest.mu.Unlock()
	return v.err
}

// end drops the script, or what is left of it.
func (v *VCPU) end(err error) {
	if !v.busy {
		return
	}
	v.busy, v.script, v.phase, v.ran, v.err = false, nil, 0, 0, err
	close(v.done)
}

// unsettled says whether a reply is not carried out yet.
func (v *VCPU) unsettled() bool { return v.setRegs != nil || v.emulate != nil || v.owesWrite }

// advance lets the vCPU do one thing, and says whether it did.
func (v *VCPU) advance() bool {
	if v.held || v.waiting {
		return false
	}
	if v.owed != nil {
		ok := v.guest.post(v, v.owed, true)
		if ok {
			v.owed = nil
		}
		return ok
	}
	v.carryOut()
	if len(v.script) == 0 {
		v.emulate, v.moved = nil, false
		v.end(nil)
		return false
	}
	step := &v.script[0]
	if v.moved {
		v.moved, v.emulate, v.answered, v.denied = false, nil, false, false
		v.next(step.over == nil || step.over(v))
		return true
	}
	over, err := step.run(v)
	var s *stop
	if errors.As(err, &s) {
		ok := v.guest.post(v, &s.event, true)
		if ok && s.then != nil {
			s.then()
		}
		return ok
	}
	if errors.Is(err, errFull) || errors.Is(err, errPosted) {
		return errors.Is(err, errPosted)
	}
	if v.ran++; err == nil && v.ran > longest {
		err = fmt.Errorf("no end after %d instructions", v.ran)
	}
	if err != nil {
		v.end(fmt.Errorf("vCPU %d at %#x in view %d: %w", v.id, v.regs.RIP, v.view, err))
		return true
	}
	v.emulate, v.answered, v.denied = nil, false, false
	v.next(over)
	v.stepped()
	return true
}

// longest is how many instructions a step may take: a guest that loops would keep
// its tests from ending.
const longest = 100_000

// carryOut does what a reply asked for, when the vCPU runs.
func (v *VCPU) carryOut() {
	if r := v.setRegs; r != nil {
		v.setRegs = nil
		v.moved = r.RIP != v.regs.RIP
		for n := range 16 {
			*v.regs.GPR(n) = *r.GPR(n)
		}
		v.regs.RIP, v.regs.RFLAGS = r.RIP, r.RFLAGS
	}
	if v.inject > 0 {
		v.trap(v.inject)
		v.inject, v.moved = 0, true
	}
}

// trap gives the guest its own int3: its handler comes back behind it.
func (v *VCPU) trap(length uint8) {
	v.traps = append(v.traps, xenevents.GVA(v.regs.RIP))
	v.regs.RIP += uint64(length)
}

// next goes on to the next step of the script, if this one is over.
func (v *VCPU) next(over bool) {
	if !over {
		return
	}
	v.phase, v.ran, v.script = 0, 0, v.script[1:]
}

// stepped ends what runs for one instruction only.
func (v *VCPU) stepped() {
	switch {
	case v.fast:
		v.fast = false
		v.switchTo(v.after)
	case v.stepping && v.guest.wants(xenevents.KindSingleStep, 0) != nil:
		ev := &xenevents.Event{Kind: xenevents.KindSingleStep}
		if at, err := v.walk(xenevents.GVA(v.regs.RIP), direct); err == nil {
			ev.GFN = at.GFN()
		}
		if !v.guest.post(v, ev, true) {
			v.owed = ev
		}
	}
}

// switchTo moves the vCPU to a view, if there is such a one: Xen ignores it else.
func (v *VCPU) switchTo(view xenevents.View) {
	if v.guest.views[view] != nil {
		v.view = view
	}
}

// apply gives the vCPU its reply.
func (v *VCPU) apply(r *xenevents.Reply) {
	v.waiting, v.taken, v.answered, v.denied = false, false, true, r.Deny
	v.owesWrite = v.guest.events != nil && v.guest.events.holds && isWrite(v.kind)
	if r.Emulate {
		v.emulate = &emulation{insn: slices.Clone(r.Insn[:r.InsnLen])}
	}
	steps := !slices.Contains(v.guest.config.Without, xenevents.KindSingleStep)
	switch {
	case r.Step == xenevents.StepToggle && steps:
		v.stepping = !v.stepping
	case r.Step == xenevents.StepFast && steps:
		v.fast, v.after = true, r.After
	}
	if r.Switch {
		v.switchTo(r.View)
	}
	if r.Regs != nil {
		v.setRegs = r.Regs
	}
}
