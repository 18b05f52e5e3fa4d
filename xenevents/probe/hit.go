package probe

import (
	"errors"
	"fmt"
	"runtime/debug"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// answer gives an event its one reply. Whatever goes wrong inside, the vCPU
// runs on.
func (e *Engine) answer(ev *xenevents.Event) error {
	e.kinds[min(int(ev.Kind), len(e.kinds)-1)]++
	switch ev.Kind {
	case xenevents.KindInt3:
		return e.int3(ev)
	case xenevents.KindMemAccess:
		return e.violation(ev)
	case xenevents.KindSingleStep:
		return e.stepped(ev)
	case xenevents.KindControlReg, xenevents.KindMSR, xenevents.KindCPUID:
		return e.register(ev)
	}
	return e.reply(ev, e.newReply())
}

// int3 is ours, the guest's own, or stale: of a patch that was just removed.
func (e *Engine) int3(ev *xenevents.Event) error {
	hidden, ours := e.set.Find(ev.GFN, ev.Regs.RIP&xenevents.PageMask)
	if ours {
		return e.hit(ev, hidden.Owner.(*patch))
	}
	if e.prefixed(ev) {
		return e.stepWith(ev, FastStep, nil, nil)
	}
	if e.guestsOwn(ev) {
		return e.reinject(ev)
	}
	e.stats.Stale++
	return e.reply(ev, e.newReply())
}

// prefixed says whether the guest runs one of our int3s with a prefix before
// it: it jumped into the middle of what we probe, and the original has another
// instruction there.
func (e *Engine) prefixed(ev *xenevents.Event) bool {
	for i := uint64(1); i < uint64(ev.InsnLen); i++ {
		at, gfn := xenevents.GVA(ev.Regs.RIP+i), ev.GFN
		if at.Page() != xenevents.GVA(ev.Regs.RIP).Page() {
			t, err := e.mem.Translate(xenevents.AddressSpaceOf(&ev.Regs), at)
			if err != nil {
				return false
			}
			gfn = t.GPA.GFN()
		}
		if _, ours := e.set.Find(gfn, at.Offset()); ours {
			return true
		}
	}
	return false
}

// guestsOwn says whether the guest's own memory has an int3 where the event was.
func (e *Engine) guestsOwn(ev *xenevents.Event) bool {
	var b [shadow.MaxInsn]byte
	n, err := e.mem.ReadGVA(xenevents.AddressSpaceOf(&ev.Regs), b[:max(1, min(int(ev.InsnLen), len(b)))], xenevents.GVA(ev.Regs.RIP))
	if err != nil || n == 0 {
		return e.unread(ev) // it was run a moment ago
	}
	return b[n-1] == shadow.Int3 || n >= 2 && b[n-2] == 0xcd && b[n-1] == 3
}

func (e *Engine) reinject(ev *xenevents.Event) error {
	e.stats.Reinjected++
	err := e.dom.InjectInt3(ev.VCPU, max(ev.InsnLen, 1))
	return errors.Join(err, e.reply(ev, e.newReply()))
}

// hit asks the subscribers, in the order in which they came: the first verdict
// other than Continue counts, but each sees the hit. Those of calls that end here
// come first.
func (e *Engine) hit(ev *xenevents.Event, p *patch) (err error) {
	e.hitNo++
	h := &e.now.hit
	*h = Hit{VCPU: ev.VCPU, Space: xenevents.AddressSpaceOf(&ev.Regs), Regs: &ev.Regs, engine: e, patch: p}
	if e.resumes(h) {
		err = either(e.fit(p), e.carryOut(ev, p, h))
		return either(err, e.charge(p, nil))
	}
	var site *site
	if p.sites > 0 {
		if site = p.siteOf(h); site != nil {
			err = e.returned(h, site)
		}
	}
	e.count(h, p)
	a := asked{users: p.users, known: len(p.users) == 1 && h.taken}
	e.ask(h, &a)
	if a.later != nil {
		err = either(err, e.await(ev, p, h, &a))
	} else {
		err = either(err, e.settle(ev, p, h, a.returns))
	}
	return either(err, e.charge(p, site))
}

// siteOf is the site that a hit is at, if calls return there; else the int3 is there
// for others.
func (p *patch) siteOf(h *Hit) *site {
	for _, u := range p.users {
		if u.site != nil && u.site.calls > 0 && u.sees(h) {
			return u.site
		}
	}
	return nil
}

// count says whose a hit is, and that it passed the others.
func (e *Engine) count(h *Hit, p *patch) {
	passed := false
	for _, user := range p.users {
		if user.site != nil {
			if user.site.calls > 0 && !user.sees(h) {
				user.site.passed()
			}
			continue
		}
		if !user.sees(h) {
			passed = true
			continue
		}
		h.taken = true
		user.head().took = e.hitNo
	}
	if passed {
		e.passedBy(p)
	}
	if !h.taken {
		e.stats.Passed++
	}
}

// asked is how far the subscribers of a hit were asked.
type asked struct {
	users   []*probe // who was not, from whoever said later on
	known   bool     // it is the hit of the only one there is
	returns bool     // one of those who were wants the end of the call
	later   *Later
}

// ask asks them, until one says that its verdict comes later.
func (e *Engine) ask(h *Hit, a *asked) {
	for i, at := range a.users {
		if at.site != nil || !a.known && !at.sees(h) {
			continue
		}
		user := at.head()
		user.hits++
		a.returns = a.returns || user.Return
		if user.Decide == nil || user.failed != "" {
			continue
		}
		h.Probe, h.Seq = user.id, user.hits
		v := e.decide(user, h)
		if v.Later != nil {
			a.users, a.later = a.users[i:], v.Later
			return
		}
		h.heed(user, v)
	}
	a.users, a.later = nil, nil
}

// settle has the vCPU of a hit go on, by what was decided.
func (e *Engine) settle(ev *xenevents.Event, p *patch, h *Hit, returns bool) (err error) {
	if returns {
		err = e.enter(h, p)
	}
	if h.pause {
		return either(err, e.pause(ev, p, h))
	}
	return either(err, e.carryOut(ev, p, h))
}

// sees says whether a hit at its address is one of the probe's.
func (u *probe) sees(h *Hit) bool {
	return u.spaces.hold(h.Space) && !u.head().suspended && (u.follow == nil || u.takes(h))
}

// heed takes a verdict into account.
func (h *Hit) heed(user *probe, v Verdict) {
	h.pause = h.pause || v.Pause
	if v.Action == Continue {
		return
	}
	user.changed++
	if h.verdict.Action == Continue {
		h.verdict = v
	}
}

// decide calls a subscriber. One that panics is not asked again: the guest must
// not suffer from it.
func (e *Engine) decide(user *probe, h *Hit) (v Verdict) {
	defer func() {
		if r := recover(); r != nil {
			user.failed = fmt.Sprintf("panic: %v", r)
			e.log.Error("a probe's decision panicked: it is not asked again", "probe", user.Name, "panic", r, "stack", string(debug.Stack()))
			v = Verdict{}
		}
	}()
	v = user.Decide(h)
	if v.none(h.Return) || h.Seen != nil && (v.Action > Deny || v.Later != nil) {
		panic("its verdict is none") // and must not keep others' from counting
	}
	return v
}

// none says whether nobody could carry a verdict out.
func (v *Verdict) none(atReturn bool) bool {
	return v.Action > SetRegs || v.Action == SetRegs && v.Regs == nil || atReturn && (v.Action == Deny || v.Action == Skip || v.Later != nil) || v.Later != nil && v.Later.otherwise.none(false)
}

func (e *Engine) carryOut(ev *xenevents.Event, p *patch, h *Hit) error {
	r, v := e.newReply(), h.verdict
	switch v.Action {
	case Deny:
		to, err := h.returnAddress()
		if err != nil {
			e.log.Error("a call that was denied runs", "err", err)
			return e.stepOver(ev, p.step, p)
		}
		r.Regs = &e.now.regs
		*r.Regs = ev.Regs
		r.Regs.RIP, r.Regs.RAX = to, v.Return
		r.Regs.RSP += 8
		return e.reply(ev, r)
	case Skip:
		if !p.insn.call || h.waited && !e.inPlace(ev, p) {
			e.log.Error("a call that was to be left out is made")
			break
		}
		r.Regs = &e.now.regs
		*r.Regs = ev.Regs
		r.Regs.RIP, r.Regs.RAX = ev.Regs.RIP+uint64(p.insn.length), v.Return
		return e.reply(ev, r)
	case SetRegs:
		if v.Regs.RIP != ev.Regs.RIP {
			r.Regs = v.Regs
			return e.reply(ev, r)
		}
		// Emulation would take the bytes from where the registers go: step.
		how := FastStep
		if p.insn.repeats {
			how = SingleStep
		}
		return e.stepWith(ev, how, v.Regs, p)
	}
	if h.waited && !e.inPlace(ev, p) { // what is there now is not what was probed
		return e.reply(ev, r)
	}
	return e.stepOver(ev, p.step, p)
}

// stepOver lets the vCPU run the original instruction.
func (e *Engine) stepOver(ev *xenevents.Event, how StepOver, p *patch) error {
	if len(e.watches.frames) > 0 {
		under, _, err := e.observe(ev, p.hidden.Original[:p.insn.length], false)
		switch {
		case err != nil:
			return err
		case under:
			how = SingleStep // what it accesses there is known at its end
		}
	}
	if how == Emulate && ev.Kind != xenevents.KindInt3 {
		how = FastStep // Xen takes bytes to emulate at an int3 only
	}
	if how != Emulate {
		return e.stepWith(ev, how, nil, p)
	}
	r := e.newReply()
	r.Emulate, r.Insn, r.InsnLen = true, p.hidden.Original, uint8(p.insn.length)
	return e.reply(ev, r)
}

// stepWith lets it run one instruction in view 0: that of p, where p is not nil.
func (e *Engine) stepWith(ev *xenevents.Event, how StepOver, regs *xenevents.Registers, p *patch) error {
	r := e.newReply()
	r.Regs = regs
	if how == FastStep && e.fast && !e.stepOf(ev.VCPU).active && ev.Regs.RFLAGS&trapFlag == 0 {
		r.Switch, r.View = true, xenevents.HostView
		r.Step, r.After = xenevents.StepFast, e.set.View()
	} else {
		e.begin(ev, r, step{repeats: p != nil && p.insn.repeats, rip: ev.Regs.RIP})
	}
	return e.reply(ev, r)
}

// trapFlag is RFLAGS.TF.
const trapFlag = 1 << 8

// begin makes r the beginning of a step that ends with an event. The vCPU may be
// at the end of one already: see stepped.
func (e *Engine) begin(ev *xenevents.Event, r *xenevents.Reply, next step) {
	s := e.stepOf(ev.VCPU)
	if !s.active {
		r.Step = xenevents.StepToggle
	}
	next.active, next.trap = true, ev.Regs.RFLAGS&trapFlag != 0
	*s = next
	r.Switch, r.View = true, xenevents.HostView
}

// violation is the guest at a page that has a shadow. A read sees the original,
// in view 0. A write lands there, too; then the shadow must follow, so that one
// needs an event at its end.
func (e *Engine) violation(ev *xenevents.Event) error {
	e.touched(ev.GFN)
	if len(e.watches.frames) > 0 {
		if answered, err := e.watchedFault(ev); answered || err != nil {
			return err
		}
	}
	if !e.set.Holds(ev.GFN) {
		if e.set.Protected(ev.GFN) {
			return e.tableFault(ev)
		}
		// The page's last patch was just removed.
		e.stats.Stale++
		return e.reply(ev, e.newReply())
	}
	if ev.Access&xenevents.AccessW == 0 && ev.Fault&xenevents.FaultInGPT == 0 {
		e.stats.Reads++
		return e.stepWith(ev, FastStep, nil, nil)
	}
	e.stats.Writes++ // or a walk of a page table that is run as code: who knows what its instruction writes
	return e.stepWrite(ev)
}

// stepped ends a single-step: the vCPU goes back into the view.
func (e *Engine) stepped(ev *xenevents.Event) error {
	s := e.stepOf(ev.VCPU)
	was := *s
	var err error
	if len(e.watches.frames) > 0 {
		err = e.finish(ev)
	}
	r := e.newReply()
	if was.repeats && ev.Regs.RIP == was.rip {
		// One repetition was done: in the view the rest would be more hits.
		if len(e.watches.frames) > 0 {
			err = either(err, e.observeNext(ev))
		}
		return either(err, e.reply(ev, r))
	}
	*s = step{}
	r.Switch, r.View = true, e.set.View()
	switch {
	case was.trap, was.extra && ev.Regs.RFLAGS&trapFlag != 0:
		// The guest's own trap waits, and so may an interrupt of its, which
		// Xen holds back during a step: that would come first, and the trap
		// be lost. So the vCPU takes one more step, in the view, until it is
		// in the trap's handler: after MOV SS the trap comes later.
		s.active, s.extra = true, true
	case was.active:
		r.Step = xenevents.StepToggle
	}
	if was.refresh {
		err = either(err, e.follow(xenevents.AddressSpaceOf(&ev.Regs), &was))
	}
	return errors.Join(err, e.reply(ev, r))
}

// follow has copies and probes follow a write. It may have gone across the end of
// the page that it was stopped at, into another one; and where a page walk was
// what stopped the instruction, what that itself wrote to is another page still.
func (e *Engine) follow(space xenevents.AddressSpace, s *step) error {
	err := e.written(s.gfn)
	if !s.atValid {
		return err
	}
	for i, at := range [...]xenevents.GVA{s.at.Page() - 1, s.at.Page() + xenevents.PageSize, s.at.Page()} {
		if i == 2 && !s.walk {
			break
		}
		if t, e2 := e.mem.Translate(space, at); e2 == nil {
			err = errors.Join(err, e.written(t.GPA.GFN()))
		}
	}
	return err
}

func (e *Engine) refresh(gfn xenevents.GFN) error {
	changed, err := e.set.Refresh(gfn)
	for _, hidden := range changed {
		for _, user := range hidden.Owner.(*patch).users {
			e.log.Warn("the guest wrote over a probed instruction", "probe", user.Name, "at", user.At, "displaced", hidden.Displaced)
		}
	}
	e.learn(gfn)
	if errors.Is(err, xenevents.ErrAbsent) {
		e.log.Warn("the guest gave a probed page back", "gfn", gfn)
		return nil
	}
	return err
}
