package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/arch/x86/x86asm"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// MaxWatched is how much memory one Watch may be of, in bytes. Each of its pages
// costs at each access, whichever bytes it is to.
const MaxWatched = 1 << 20

// span is the part of a watched range that is in one frame.
type span struct {
	at xenevents.GPA
	n  int
}

func (s *span) meets(p *part) bool {
	return p.n > 0 && p.at < s.at+xenevents.GPA(s.n) && s.at < p.at+xenevents.GPA(p.n)
}

// pendingWrite is an instruction that is under way in view 0, whose accesses to watched
// memory count when it is done.
type pendingWrite struct {
	active   bool
	regs     xenevents.Registers // before it
	length   int
	repeats  bool
	branches bool
	all      [maxAccesses]access
	n        int
	old      [maxAccesses]uint64
}

// addMemory finds where the memory of a Watch is, and arms it.
func (e *Engine) addMemory(u *probe) error {
	s := &u.watch.Source
	switch {
	case !e.fast:
		return &xenevents.UnsupportedError{Feature: "watching memory", Need: "a CPU with the monitor trap flag"}
	case s.Len == 0 || s.Len > MaxWatched:
		return fmt.Errorf("%d bytes of memory: from 1 to %d can be watched", s.Len, MaxWatched)
	case s.Access == 0 || s.Access&^xenevents.AccessRWX != 0:
		return errors.New("an access is to read, to write, to execute, or several of these")
	case !s.Physical && !kernelHalf(s.At):
		return fmt.Errorf("%v is no address of the kernel: the memory of a process moves", s.At)
	}
	for done := uint64(0); done < s.Len; {
		at := s.Phys + xenevents.GPA(done)
		if !s.Physical {
			t, err := e.mem.Translate(u.Space, s.At+xenevents.GVA(done))
			if err != nil {
				return err
			}
			at = t.GPA
		}
		n := min(s.Len-done, xenevents.PageSize-at.Offset())
		u.watch.ranges = append(u.watch.ranges, span{at, int(n)})
		done += n
	}
	if err := e.armMemory(u); err != nil {
		return errors.Join(err, e.disarmMemory(u))
	}
	e.watches.memory = append(e.watches.memory, u)
	return nil
}

// armMemory has accesses to its frames fault.
func (e *Engine) armMemory(u *probe) error {
	w := &e.watches
	if w.frames == nil {
		w.frames = map[xenevents.GFN]int{}
	}
	for i := range u.watch.ranges {
		if i < u.watch.armed {
			continue
		}
		gfn := u.watch.ranges[i].at.GFN()
		if err := e.set.Watch(gfn, u.watch.Access); err != nil {
			return err
		}
		w.frames[gfn]++
		u.watch.armed++
	}
	return nil
}

// disarmMemory undoes armMemory, as far as that came.
func (e *Engine) disarmMemory(u *probe) error {
	var errs error
	for ; u.watch.armed > 0; u.watch.armed-- {
		gfn := u.watch.ranges[u.watch.armed-1].at.GFN()
		errs = errors.Join(errs, e.set.Unwatch(gfn, u.watch.Access))
		if e.watches.frames[gfn]--; e.watches.frames[gfn] == 0 {
			delete(e.watches.frames, gfn)
		}
	}
	if len(e.watches.frames) == 0 { // nobody asks how what is under way ends
		for i := range e.watches.pending {
			e.watches.pending[i].active = false
		}
	}
	return errs
}

// touches says whether an access is one that a probe watches.
func (w *watched) touches(a *access) bool {
	if a.kind&w.Access == 0 {
		return false
	}
	for i := range w.ranges {
		if s := &w.ranges[i]; s.meets(&a.parts[0]) || s.meets(&a.parts[1]) {
			return true
		}
	}
	return false
}

// in says whether a part of what is watched is in a frame.
func (w *watched) in(gfn xenevents.GFN) bool {
	return slices.ContainsFunc(w.ranges, func(s span) bool { return s.at.GFN() == gfn })
}

// watchedFault is the guest at a frame that is watched, or at one that is shadowed or
// protected while others are watched: the instruction is run in view 0, and may access
// anything there. It says whether it has answered.
func (e *Engine) watchedFault(ev *xenevents.Event) (answered bool, err error) {
	holds, protected, watched := e.set.Holds(ev.GFN), e.set.Protected(ev.GFN), e.watches.frames[ev.GFN] > 0
	if !holds && !protected && !watched {
		return false, nil
	}
	if swap, ok := e.dom.(xenevents.Swapper); ok && protected && !holds && ev.Fault&xenevents.FaultInGPT != 0 && e.setAccessed(ev, swap) {
		e.stats.AccessedBits++
		return true, e.reply(ev, e.newReply())
	}
	code := &e.watches.code
	n, _ := e.mem.ReadGVA(xenevents.AddressSpaceOf(&ev.Regs), code[:], xenevents.GVA(ev.Regs.RIP))
	seen := false
	if fetches(ev) {
		if seen, err = e.executes(ev, code[:n]); err != nil {
			return true, err
		}
		// In view 0 an int3 there would not be hit.
		if t, err := e.mem.Translate(xenevents.AddressSpaceOf(&ev.Regs), xenevents.GVA(ev.Regs.RIP)); err == nil {
			if hidden, ours := e.set.Find(t.GPA.GFN(), t.GPA.Offset()); ours {
				if watched && !seen {
					err = e.pass(ev.GFN)
				}
				return true, either(err, e.hit(ev, hidden.Owner.(*patch)))
			}
		}
	}
	under, skip, err := e.observe(ev, code[:n], true)
	switch {
	case err != nil:
		return true, err
	case skip > 0:
		r := e.newReply()
		r.Regs = &e.now.regs
		*r.Regs = ev.Regs
		r.Regs.RIP += uint64(skip)
		return true, e.reply(ev, r)
	case watched && !seen && !under:
		if err := e.pass(ev.GFN); err != nil {
			return true, err
		}
	}
	switch {
	case under && protected && ev.Access&xenevents.AccessW != 0:
		e.stats.TableWrites++
		e.expect(ev, code[:n])
		return true, e.stepWrite(ev)
	case under:
		return true, e.stepWrite(ev)
	case !holds && !protected:
		return true, e.stepBeside(ev)
	}
	return false, nil
}

// fetches says whether a fault is of the fetch of an instruction, or of the page walk
// for it.
func fetches(ev *xenevents.Event) bool {
	return ev.Access&xenevents.AccessX != 0 || ev.Fault&xenevents.FaultInGPT != 0 && uint64(ev.GLA)-ev.Regs.RIP < shadow.MaxInsn
}

// pass counts an access to a watched frame that nobody watches, for those who are there.
func (e *Engine) pass(gfn xenevents.GFN) error {
	w := &e.watches
	w.hit = w.hit[:0]
	for _, u := range w.memory {
		if !u.suspended && u.watch.in(gfn) {
			u.passed++
			w.hit = append(w.hit, u)
		}
	}
	return e.chargeWatch(w.hit, true)
}

// stepBeside steps an instruction that accesses nothing that is watched. Where it
// writes to another frame that has a copy or is a table, that follows.
func (e *Engine) stepBeside(ev *xenevents.Event) error {
	p := e.pendingOf(ev.VCPU)
	for i := range p.all[:p.n] {
		a := &p.all[i]
		for _, part := range a.parts {
			if gfn := part.at.GFN(); part.n > 0 && a.kind&xenevents.AccessW != 0 && (e.set.Holds(gfn) || e.set.Protected(gfn)) {
				r := e.newReply()
				e.begin(ev, r, step{refresh: true, gfn: gfn, at: a.at, atValid: true})
				return e.reply(ev, r)
			}
		}
	}
	return e.stepWith(ev, FastStep, nil, nil)
}

func (e *Engine) pendingOf(v xenevents.VCPU) *pendingWrite {
	for int(v) >= len(e.watches.pending) {
		e.watches.pending = append(e.watches.pending, pendingWrite{})
	}
	return &e.watches.pending[v]
}

// executes is a fetch in a frame that is watched: those see it whose range the
// instruction is in, before it runs.
func (e *Engine) executes(ev *xenevents.Event, code []byte) (seen bool, err error) {
	a := access{at: xenevents.GVA(ev.Regs.RIP), n: max(e.watches.decoded.decode(code, ev.Regs.RIP).Len, 1), kind: xenevents.AccessX}
	if bytes.HasPrefix(code, endbr64) {
		a.n = len(endbr64)
	}
	e.locate(xenevents.AddressSpaceOf(&ev.Regs), &a)
	return e.tellMemory(ev, &ev.Regs, &a, 0, 0)
}

// locate finds where an access is. What the guest does not map will fault first.
func (e *Engine) locate(space xenevents.AddressSpace, a *access) {
	a.parts = [2]part{}
	n := min(a.n, int(xenevents.PageSize-a.at.Offset()))
	if t, err := e.mem.Translate(space, a.at); err == nil {
		a.parts[0] = part{t.GPA, n}
	}
	if n < a.n {
		if t, err := e.mem.Translate(space, a.at+xenevents.GVA(n)); err == nil {
			a.parts[1] = part{t.GPA, min(a.n-n, xenevents.PageSize)}
		}
	}
}

// observe finds what the instruction at an event is about to access of what is watched.
// under says that some of it is, and counts when the instruction is done: see finish.
// skip is its length if it must not run: somebody denies it.
func (e *Engine) observe(ev *xenevents.Event, code []byte, mayDeny bool) (under bool, skip int, err error) {
	p := e.pendingOf(ev.VCPU)
	p.active, p.n = false, 0
	space := xenevents.AddressSpaceOf(&ev.Regs)
	x := e.watches.decoded.decode(code, ev.Regs.RIP)
	known := x.Op != 0
	all := p.all[:0]
	p.length, p.repeats, p.branches = 0, false, true
	if known {
		all = accessesOf(x, &ev.Regs, all)
		p.length, p.repeats, p.branches = x.Len, repeats(x), branches(x)
	}
	all = e.withFault(ev, all, known)
	p.n = len(all)
	for i := range all {
		a := &all[i]
		e.locate(space, a)
		under = under || slices.ContainsFunc(e.watches.memory, func(u *probe) bool { return !u.suspended && u.watch.touches(a) })
	}
	if !under {
		return false, 0, nil
	}
	p.active, p.regs = true, ev.Regs
	for i := range all {
		p.old[i] = e.value(space, &all[i])
		denied, err := e.askBefore(ev, x, &all[i], p.old[i], mayDeny && known)
		if err != nil {
			return true, 0, err
		}
		if denied {
			p.active = false
			return true, p.length, nil
		}
	}
	return true, 0, nil
}

// withFault adds the access that a fault tells of, where the instruction has none
// there that is known.
func (e *Engine) withFault(ev *xenevents.Event, all []access, known bool) []access {
	const direct = xenevents.FaultGLAValid | xenevents.FaultWithGLA
	if ev.Kind != xenevents.KindMemAccess || ev.Fault&direct != direct || ev.Access&xenevents.AccessX != 0 || len(all) == maxAccesses {
		return all
	}
	if slices.ContainsFunc(all, func(a access) bool { return ev.GLA >= a.at && ev.GLA < a.at+xenevents.GVA(a.n) }) {
		return all
	}
	a := access{at: ev.GLA, n: 8, kind: ev.Access}
	if !known {
		a.n = unknownSize
	}
	if a.kind&xenevents.AccessW != 0 {
		a.kind = xenevents.AccessW // a write is told as both
	}
	return append(all, a)
}

// value reads the first bytes of what is accessed.
func (e *Engine) value(space xenevents.AddressSpace, a *access) uint64 {
	b := &e.watches.word
	*b = [8]byte{}
	// What can't be read faults: then the access does not count.
	if n, err := e.mem.ReadGVA(space, b[:min(a.n, len(b))], a.at); err != nil {
		clear(b[n:])
	}
	return binary.LittleEndian.Uint64(b[:])
}

// askBefore asks those who may deny a write.
func (e *Engine) askBefore(ev *xenevents.Event, x *x86asm.Inst, a *access, old uint64, mayDeny bool) (denied bool, err error) {
	if a.kind&xenevents.AccessW == 0 || !slices.ContainsFunc(e.watches.memory, func(u *probe) bool { return u.watch.deny }) {
		return false, nil
	}
	value, plain := plainStore(x, &ev.Regs)
	seen := Seen{Kind: xenevents.KindMemAccess, Old: old, New: value, NewKnown: plain, Access: xenevents.AccessW, At: a.at, Size: uint32(a.n)}
	if !plain || !mayDeny {
		seen.refuse = errNotStore
	}
	h, err := e.tellThose(ev, &ev.Regs, a, seen, func(u *probe) bool { return u.watch.deny })
	return h != nil && h.verdict.Action == Deny, err
}

// directionFlag is RFLAGS.DF: string instructions go down.
const directionFlag = 1 << 10

// finish counts what an instruction accessed that is done. One that faulted instead is
// not done: the guest will run it again.
func (e *Engine) finish(ev *xenevents.Event) (err error) {
	p := e.pendingOf(ev.VCPU)
	if !p.active {
		return nil
	}
	p.active = false
	switch next := ev.Regs.RIP; {
	case next == p.regs.RIP+uint64(p.length), p.branches && next != p.regs.RIP:
	case p.repeats && next == p.regs.RIP && ev.Regs.RCX != p.regs.RCX:
	default:
		return nil
	}
	space := xenevents.AddressSpaceOf(&p.regs)
	done := p.regs.RCX - ev.Regs.RCX
	for i := range p.all[:p.n] {
		a := &p.all[i]
		if p.repeats && done > 1 && done <= xenevents.PageSize && p.regs.RFLAGS&directionFlag == 0 && uint64(a.n)*done <= xenevents.PageSize {
			a.n *= int(done) // a processor may do several repetitions at once
			e.locate(space, a)
		}
		now := p.old[i]
		if a.kind&xenevents.AccessW != 0 {
			now = e.value(space, a)
		}
		_, e2 := e.tellMemory(ev, &p.regs, a, p.old[i], now)
		err = either(err, e2)
	}
	return err
}

// tellMemory tells of an access that can't be denied.
func (e *Engine) tellMemory(ev *xenevents.Event, regs *xenevents.Registers, a *access, old, now uint64) (seen bool, err error) {
	s := Seen{Kind: xenevents.KindMemAccess, Old: old, New: now, NewKnown: true, Access: a.kind, At: a.at, Size: uint32(a.n), refuse: errDone}
	h, err := e.tellThose(ev, regs, a, s, func(u *probe) bool { return !u.watch.deny || a.kind&xenevents.AccessW == 0 })
	return h != nil, err
}

// tellThose tells some of those who watch an access; h is nil where nobody does.
func (e *Engine) tellThose(ev *xenevents.Event, regs *xenevents.Registers, a *access, s Seen, which func(*probe) bool) (h *Hit, err error) {
	w := &e.watches
	w.seen, w.hit = s, w.hit[:0]
	e.now.hit = Hit{VCPU: ev.VCPU, Space: xenevents.AddressSpaceOf(regs), Regs: regs, Seen: &w.seen, engine: e}
	for _, u := range w.memory {
		if u.suspended || !which(u) || !u.watch.touches(a) {
			continue
		}
		h = &e.now.hit
		e.see(h, u)
		w.hit = append(w.hit, u)
	}
	if h == nil {
		return nil, nil
	}
	if h.pause {
		err = e.hold(ev)
	}
	return h, either(err, e.chargeWatch(w.hit, true))
}

// observeNext is observe for the next repetition of an instruction that is stepped.
func (e *Engine) observeNext(ev *xenevents.Event) error {
	code := &e.watches.code
	n, err := e.mem.ReadGVA(xenevents.AddressSpaceOf(&ev.Regs), code[:], xenevents.GVA(ev.Regs.RIP))
	if err != nil && n == 0 {
		return nil // it will fault
	}
	_, _, err = e.observe(ev, code[:n], false)
	return err
}
