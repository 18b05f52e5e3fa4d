package probe

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// MaxLater is how many vCPUs may wait for a verdict that comes later. Xen's ring
// has room for 8 events, and gives a place back for a reply only: were all taken, no
// other vCPU could tell of anything. The longest wait ends for one more.
const MaxLater = batchSize - 2

// ErrTooLate says that a verdict was not waited for any more: its time was over, its
// probe or the engine is gone, or it was given before.
var ErrTooLate = errors.New("the verdict comes too late")

// Later is a verdict that a Decide does not know yet: whoever asks another program,
// say. The vCPU of the hit waits for it, all others run on.
type Later struct {
	engine    *Engine
	due       time.Time
	otherwise Verdict
}

// Later makes the Verdict of a hit one that comes later: Decide returns
// Verdict{Later: …}. After limit (10 ms, if it is 0) otherwise counts. What is to be
// known of the hit must be read before Decide returns. Not for a hit with Return.
func (h *Hit) Later(limit time.Duration, otherwise Verdict) *Later {
	if limit <= 0 {
		limit = defaultLater
	}
	return &Later{engine: h.engine, due: time.Now().Add(limit), otherwise: otherwise}
}

const defaultLater = 10 * time.Millisecond

// Decide gives the verdict. It may be called from any goroutine but the engine's, and
// returns when the vCPU goes on, or with ErrTooLate. v.Regs may be changed then.
func (l *Later) Decide(ctx context.Context, v Verdict) error {
	if v.none(false) {
		return errors.New("the verdict is none")
	}
	err := l.engine.call(ctx, func() error { return l.engine.decided(l, v) })
	if errors.Is(err, xenevents.ErrClosed) {
		return ErrTooLate
	}
	return err
}

// waiter is a vCPU whose hit waits for a Later.
type waiter struct {
	event   xenevents.Event
	hit     Hit
	patch   *patch
	users   []*probe // whoever is to be asked: the first one is who said Later
	returns bool     // of those that were asked, one wants the end of the call
	later   *Later
	began   uint64 // in ticks
}

// await keeps a hit until its verdict is there. The batch that the event is in is
// used again meanwhile, and so is e.now.hit.
func (e *Engine) await(ev *xenevents.Event, p *patch, h *Hit, a *asked) error {
	w := &waiter{event: *ev, hit: *h, patch: p, users: slices.Clone(a.users), returns: a.returns, later: a.later, began: e.tick}
	w.hit.Regs = &w.event.Regs
	if h.verdict.Regs != nil {
		regs := *h.verdict.Regs
		w.hit.verdict.Regs = &regs
	}
	e.waiters = append(e.waiters, w)
	if len(e.waiters) <= MaxLater {
		return nil
	}
	e.stats.TooLate++
	return e.conclude(e.waiters[0], e.waiters[0].later.otherwise)
}

// decided has the vCPU go on that waits for l.
func (e *Engine) decided(l *Later, v Verdict) error {
	for _, w := range e.waiters {
		if w.later == l {
			return e.conclude(w, v)
		}
	}
	return ErrTooLate
}

// tendWaiters ends the waits whose time is over.
func (e *Engine) tendWaiters() (err error) {
	now := time.Now()
	for _, w := range slices.Clone(e.waiters) {
		if slices.Contains(e.waiters, w) && !now.Before(w.later.due) {
			e.stats.TooLate++
			err = either(err, e.conclude(w, w.later.otherwise))
		}
	}
	return err
}

// leaveWaiters has those go on that wait for a probe which goes.
func (e *Engine) leaveWaiters(user *probe) (err error) {
	for _, w := range slices.Clone(e.waiters) {
		if slices.Contains(e.waiters, w) && w.users[0].head() == user {
			err = either(err, e.conclude(w, Verdict{}))
		}
	}
	return err
}

// releaseWaiters has all of them go on in view 0, at the engine's end.
func (e *Engine) releaseWaiters() {
	for _, w := range e.waiters {
		if err := e.release(&w.event); err != nil {
			e.log.Error("release a vCPU", "vcpu", w.event.VCPU, "err", err)
		}
	}
	e.waiters = nil
}

// conclude takes a verdict, asks those who come behind, and has the vCPU go on, if
// none of them says Later, too. What is not there any more is not asked.
func (e *Engine) conclude(w *waiter, v Verdict) error {
	e.waiters = slices.DeleteFunc(e.waiters, func(o *waiter) bool { return o == w })
	spent := since(e.clock(), w.began)
	who := w.users[0].head()
	w.hit.waited = true
	w.hit.heed(who, v)
	e.now.hit = w.hit
	h := &e.now.hit
	a := asked{users: slices.DeleteFunc(w.users[1:], e.left), returns: w.returns}
	e.ask(h, &a)
	err := e.chargeWait(who, spent)
	if a.later != nil {
		return either(err, e.await(&w.event, w.patch, h, &a))
	}
	return either(err, e.settle(&w.event, w.patch, h, a.returns))
}

// left says whether a probe, or a member of one, was taken out.
func (e *Engine) left(u *probe) bool {
	head := u.head()
	return e.probes[head.id] != head || head != u && !slices.Contains(head.members, u)
}

// chargeWait puts what a vCPU waited for on the bill of who had it wait.
func (e *Engine) chargeWait(user *probe, spent uint64) error {
	now := e.clock()
	if e.probes[user.id] != user {
		return nil
	}
	if now >= user.meter.ends {
		user.meter.slide(now, e.part, &user.budget)
	}
	var err error
	if user.meter.wait(spent) && !user.suspended {
		err = e.suspend(user, now, user.meter.why(&user.budget))
	}
	if e.meter.wait(spent) {
		err = either(err, e.relieve(now))
	}
	return err
}

// inPlace says whether the instruction that a patch was made for is what the guest
// runs there now. It may have gone while a vCPU waited at it.
func (e *Engine) inPlace(ev *xenevents.Event, p *patch) bool {
	hidden, _ := e.set.Find(ev.GFN, ev.Regs.RIP&xenevents.PageMask)
	return hidden == p.hidden && !hidden.Displaced
}
