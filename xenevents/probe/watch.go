package probe

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// Source is what a Watch is of: a register that is written, CPUID that is run, or
// memory that is accessed.
type Source struct {
	// Kind is one of KindControlReg, KindMSR, KindCPUID and KindMemAccess.
	Kind xenevents.Kind
	// Index is 0, 3 or 4 for CR0, CR3 and CR4, an MSR's number, or the leaf (EAX).
	Index uint32
	// Mask, of a control register: only writes that change one of these bits; 0: all
	// that change it. One that changes nothing is none.
	Mask uint64
	Any  bool // CPUID: of every leaf

	// At is where memory begins, or Phys where Physical is set, and Len how much it
	// is, in bytes. An address of the kernel is translated when the Watch is added,
	// in Watch.Space: what the guest maps there later is something else.
	At       xenevents.GVA
	Phys     xenevents.GPA
	Physical bool
	Len      uint64
	Access   xenevents.Access // which accesses: AccessR, AccessW, AccessX, or several
}

// Watch asks for a probe of something that is no instruction's address.
type Watch struct {
	Name   string
	Source Source
	Space  xenevents.AddressSpace // of Source.At
	// Async has nobody wait at a write of a control register: that costs less, but
	// Decide is called when the vCPU is elsewhere, who runs may be another, and no
	// verdict is carried out. Where another Watch of the register wants the vCPU to
	// wait, or one may deny, it waits. Only for control registers.
	Async bool
	// Deny: a verdict to deny is carried out. A register keeps its value, and the
	// guest is not told: its instruction is over as if it had written. Of memory only
	// what a plain store of a register or constant would write is denied.
	Deny   bool
	Budget Budget
	Gap    func(Gap)
	Decide func(*Hit) Verdict
}

// Seen is what a Watch saw. It is valid during Decide only.
type Seen struct {
	Kind  xenevents.Kind
	Index uint32 // as Source.Index; of CPUID the leaf that was asked for
	// Subleaf is ECX, of CPUID. Its results are in Hit.Regs.
	Subleaf uint32
	// Old and New are a register's value before and after, or the first 8 bytes of
	// the accessed memory, of which there may be less: Size. A read has them equal.
	// Of CR3 New has no bit 63.
	Old, New uint64
	// Of a write to memory that Decide may deny, New is known only if NewKnown.
	NewKnown bool

	// Of memory: which access, where it begins, and its length in bytes. It may begin
	// before the range, and be longer.
	Access xenevents.Access
	At     xenevents.GVA
	Size   uint32

	refuse error // why it can't be denied
}

// watched is what a probe has more that is of a Watch.
type watched struct {
	Source
	async, deny bool
	ranges      []span // memory
	armed       int    // memory: of so many ranges the frames are watched
}

// watches are those of one engine.
type watches struct {
	registers []*probe // and CPUID; by ID
	memory    []*probe
	subs      []xenevents.Subscription // that are made
	holds     bool                     // writes wait for replies: see xenevents.WriteHolder
	frames    map[xenevents.GFN]int    // how many ranges have a part there
	pending   []pendingWrite           // by vCPU
	seen      Seen
	word      [8]byte // read buffers: what is passed to a driver would be allocated
	code      [shadow.MaxInsn]byte
	decoded   decoder
	hit       []*probe // room for those of one event
}

// ErrNotDeniable says that a verdict to deny comes too late, or can't be carried out.
var ErrNotDeniable = errors.New("it can't be denied")

var (
	errNotAsked = fmt.Errorf("%w: the probe was not added for it", ErrNotDeniable)
	errDone     = fmt.Errorf("%w: it is done already", ErrNotDeniable)
	errNotStore = fmt.Errorf("%w: the instruction does more than to store a register or constant", ErrNotDeniable)
)

// Watch puts a probe on something other than an instruction. IDs, statuses, budgets
// and removal are those of Add's.
func (e *Engine) Watch(ctx context.Context, w Watch) (ID, error) {
	var id ID
	err := e.call(ctx, func() (err error) {
		if id, err = e.watch(w); err != nil {
			err = fmt.Errorf("probe %q: %w", w.Name, err)
		}
		return err
	})
	return id, err
}

func (e *Engine) watch(w Watch) (ID, error) {
	u := &probe{
		Request: Request{Name: w.Name, At: w.Source.At, Space: w.Space, Budget: w.Budget, Gap: w.Gap, Decide: w.Decide},
		budget:  w.Budget.or(e.each), watch: &watched{Source: w.Source, async: w.Async, deny: w.Deny},
	}
	s := &w.Source
	if w.Async && (s.Kind != xenevents.KindControlReg || w.Deny) {
		return 0, errors.New("only at writes of control registers nobody need wait, and then nothing can be denied")
	}
	switch s.Kind {
	case xenevents.KindControlReg, xenevents.KindMSR, xenevents.KindCPUID:
	case xenevents.KindMemAccess:
		if err := e.addMemory(u); err != nil {
			return 0, err
		}
		e.lastID++
		u.id = e.lastID
		e.probes[u.id] = u
		return u.id, nil
	default:
		return 0, &xenevents.UnsupportedError{Feature: fmt.Sprintf("a watch of %v", s.Kind)}
	}
	if w.Deny && s.Kind == xenevents.KindCPUID {
		return 0, fmt.Errorf("%w: CPUID is run before anybody knows of it", ErrNotDeniable)
	}
	if w.Deny && s.Kind == xenevents.KindControlReg && s.Index == 3 {
		return 0, fmt.Errorf("%w: without a write of CR3 the guest would go on in the wrong address space", ErrNotDeniable)
	}
	e.watches.registers = append(e.watches.registers, u)
	if err := e.subscribe(); err != nil {
		e.watches.registers = slices.DeleteFunc(e.watches.registers, func(x *probe) bool { return x == u })
		return 0, errors.Join(err, e.subscribe())
	}
	e.lastID++
	u.id = e.lastID
	e.probes[u.id] = u
	return u.id, nil
}

// unwatch takes one out.
func (e *Engine) unwatch(u *probe) error {
	if u.watch.Kind == xenevents.KindMemAccess {
		e.watches.memory = slices.DeleteFunc(e.watches.memory, func(x *probe) bool { return x == u })
		return e.disarmMemory(u)
	}
	e.watches.registers = slices.DeleteFunc(e.watches.registers, func(x *probe) bool { return x == u })
	return e.subscribe()
}

// fitWatch is fit for one that is suspended, or armed again.
func (e *Engine) fitWatch(u *probe) error {
	switch {
	case u.watch.Kind != xenevents.KindMemAccess:
		return e.subscribe()
	case u.suspended:
		return e.disarmMemory(u)
	}
	if err := e.armMemory(u); err != nil {
		// The guest has given the memory back, perhaps: no reason to let go of it all.
		u.failed = err.Error()
		e.log.Error("watch memory again", "probe", u.Name, "err", err)
		return e.disarmMemory(u)
	}
	return nil
}

// see tells a subscriber of what its Watch is of, and takes its verdict.
func (e *Engine) see(h *Hit, u *probe) {
	u.hits++
	if u.Decide == nil || u.failed != "" {
		return
	}
	h.Probe, h.Seq = u.id, u.hits
	late := h.Seen.refuse
	if late == nil && !u.watch.deny {
		h.Seen.refuse = errNotAsked
	}
	v := e.decide(u, h)
	if v.Action == Deny && h.Seen.refuse != nil {
		v.Action = Continue
	}
	h.heed(u, v)
	h.Seen.refuse = late
}

// chargeWatch puts an event on the bills of those who saw it, and of the domain. Of an
// event that nobody waited at it counts the number only.
func (e *Engine) chargeWatch(users []*probe, waited bool) error {
	now := e.clock()
	spent := since(now, e.tick)
	e.tick = now
	all := since(now, e.began)
	if !waited {
		spent, all = 0, 0
	}
	var err error
	for _, user := range users {
		err = either(err, e.bill(user, now, spent))
	}
	if now >= e.meter.ends {
		e.meter.slide(now, e.part, &e.budget)
		err = either(err, e.sweep(now))
	}
	if e.meter.add(all) {
		err = either(err, e.relieve(now))
	}
	return err
}
