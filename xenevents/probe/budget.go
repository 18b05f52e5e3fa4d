package probe

import (
	"cmp"
	"fmt"
	"slices"
)

// Budget bounds what a probe, or all of a domain, may cost the guest in each
// Options.Window. A field that is 0 takes the default.
type Budget struct {
	// Hits are those in which the vCPU waited for hprobe: returns and hits in
	// other address spaces among them.
	Hits uint64
	// Stalled is for how long vCPUs waited, in ticks: from when the engine had
	// the event to when it had answered it. What Xen does for a hit is not in it.
	Stalled uint64
}

// Unlimited is a Budget's field that bounds nothing. A probe with both fields so
// is not suspended for the domain's budget either: its absence must be worse than
// its cost.
const Unlimited = ^uint64(0)

// Window is how long a Budget is for, in ticks: about a second, if Options say nothing.
func (e *Engine) Window() uint64 { return e.window }

// defaultWindow is about a second, in ticks, where the driver does not know better, or
// says that the TSC counts as slowly as only an emulator's does: in the lab a tick is
// an instruction, and 10^8 of them a second. In that time a vCPU can have some
// 45,000 hits, if it does nothing else.
const defaultWindow = 1 << 31

func (b Budget) or(o Budget) Budget {
	return Budget{cmp.Or(b.Hits, o.Hits), cmp.Or(b.Stalled, o.Stalled)}
}

func defaultBudgets(window uint64) (probe, domain Budget) {
	return Budget{Hits: 25_000, Stalled: window / 4}, Budget{Hits: 100_000, Stalled: window}
}

// Gap is a time in which a probe was suspended. Its hits then were not seen.
type Gap struct {
	Probe ID
	Seq   uint64 // of this probe's gaps, from 1
	Why   string
	// Over: the probe is armed again, after Ticks. Else the gap begins.
	Over  bool
	Ticks uint64
}

// parts is how many parts a window slides by.
const parts = 8

// usage is what a Budget bounds.
type usage struct{ hits, stalled uint64 }

// meter compares usage over the last window with a Budget. A hit adds to the
// present part, and looks whether that exceeds what the parts before it have left.
type meter struct {
	now, left usage
	ends      uint64 // when the present part ends, in ticks
	parts     [parts]usage
	at        int // the present part
}

// add counts a hit, and says whether the budget is exceeded.
func (m *meter) add(stalled uint64) (over bool) {
	m.now.hits++
	m.now.stalled += stalled
	return m.now.hits > m.left.hits || m.now.stalled > m.left.stalled
}

// wait adds to what the last hit cost.
func (m *meter) wait(stalled uint64) (over bool) {
	m.now.stalled += stalled
	return m.now.stalled > m.left.stalled
}

// slide goes on to the present part; part is how long each is, in ticks.
func (m *meter) slide(now, part uint64, b *Budget) {
	if now-m.ends >= parts*part {
		*m = meter{ends: now + part, left: usage{b.Hits, b.Stalled}}
		return
	}
	for ; now >= m.ends; m.ends += part {
		m.parts[m.at] = m.now
		m.at = (m.at + 1) % parts
		m.now, m.parts[m.at] = usage{}, usage{}
	}
	m.left = usage{b.Hits, b.Stalled}
	for i := range m.parts {
		m.left.hits -= min(m.left.hits, m.parts[i].hits)
		m.left.stalled -= min(m.left.stalled, m.parts[i].stalled)
	}
	if b.Hits == Unlimited {
		m.left.hits = Unlimited
	}
	if b.Stalled == Unlimited {
		m.left.stalled = Unlimited
	}
}

// sum is the usage of the window.
func (m *meter) sum() (u usage) {
	u = m.now
	for i := range m.parts {
		u.hits += m.parts[i].hits
		u.stalled += m.parts[i].stalled
	}
	return u
}

// why says what of a budget is exceeded.
func (m *meter) why(b *Budget) string {
	if m.now.hits > m.left.hits {
		return fmt.Sprintf("more than %d hits in a window", b.Hits)
	}
	return fmt.Sprintf("vCPUs waited for more than %d ticks in a window", b.Stalled)
}

// since is how many ticks passed. The TSCs of two CPUs may differ a little.
func since(now, then uint64) uint64 {
	if now < then {
		return 0
	}
	return now - then
}

// charge puts a hit on the bills of all for whom the int3 is there, and of the
// domain: whoever waits for a return that was at the address pays for those who pass. It
// is done at each hit: of what is rare it does nothing itself.
func (e *Engine) charge(p *patch, site *site) (err error) {
	now := e.clock()
	spent := since(now, e.tick)
	e.tick = now
	var last *probe
	for _, at := range p.users {
		if s := at.site; s != nil {
			if s.calls > 0 || s == site { // whose last call may have ended just now
				for _, user := range s.users {
					err = either(err, e.billOnce(user, now, spent))
				}
			}
			continue
		}
		if at.lead != nil && at.lead == last {
			continue
		}
		last = at.head()
		err = either(err, e.billOnce(last, now, spent))
	}
	if now >= e.meter.ends {
		e.meter.slide(now, e.part, &e.budget)
		err = either(err, e.sweep(now))
	}
	if e.meter.add(since(now, e.began)) {
		err = either(err, e.relieve(now))
	}
	return err
}

// billOnce puts this hit on a probe's bill, if it is not there yet: it may be at the
// patch for several reasons.
func (e *Engine) billOnce(user *probe, now, spent uint64) error {
	if user.billed == e.hitNo {
		return nil
	}
	user.billed = e.hitNo
	return e.bill(user, now, spent)
}

// bill puts an event on a probe's bill.
func (e *Engine) bill(user *probe, now, spent uint64) error {
	if now >= user.meter.ends {
		user.meter.slide(now, e.part, &user.budget)
	}
	if user.meter.add(spent) && !user.suspended {
		return e.suspend(user, now, user.meter.why(&user.budget))
	}
	return nil
}

// relieve suspends the probe that costs the domain most.
func (e *Engine) relieve(now uint64) error {
	why := e.meter.why(&e.budget)
	e.meter = meter{} // the next one gets a window of its own
	var most *probe
	var worst uint64
	for _, user := range e.probes {
		if user.suspended || user.budget == (Budget{Unlimited, Unlimited}) {
			continue
		}
		if u := user.meter.sum(); most == nil || u.stalled > worst {
			most, worst = user, u.stalled
		}
	}
	if most == nil {
		e.log.Warn("the domain's budget is exceeded, and no probe may be suspended for it", "why", why)
		return nil
	}
	return e.suspend(most, now, "of all probes of the domain: "+why)
}

// maxBackOff is how often a suspension doubles.
const maxBackOff = 6

// suspend takes a probe's int3 out, for a window; for twice as long if it was
// armed again not long ago, and so on.
func (e *Engine) suspend(user *probe, now uint64, why string) error {
	if user.gaps > 0 && since(now, user.rearmed) < parts*e.window {
		user.backOff = min(user.backOff+1, maxBackOff)
	} else {
		user.backOff = 0
	}
	out := e.window << user.backOff
	user.suspended, user.why, user.out, user.due = true, why, now, now+out
	user.gaps++
	e.suspended++
	e.due = min(e.due, user.due)
	e.log.Warn("a probe is suspended: it is over its budget", "probe", user.Name, "why", why, "ticks", out)
	err := e.forget(user)
	err = either(err, e.fitAll(user))
	e.tell(user, Gap{Probe: user.id, Seq: user.gaps, Why: why})
	return err
}

// rearm puts those back whose time has come.
func (e *Engine) rearm() (err error) {
	now := e.clock()
	if now < e.due {
		return nil
	}
	e.due = never
	var back []*probe
	for _, user := range e.probes {
		switch {
		case !user.suspended:
		case now < user.due:
			e.due = min(e.due, user.due)
		default:
			back = append(back, user)
		}
	}
	slices.SortFunc(back, func(a, b *probe) int { return cmp.Compare(a.id, b.id) })
	for _, user := range back {
		gap := e.resume(user, now)
		err = either(err, e.fitAll(user))
		e.log.Info("a probe is armed again", "probe", user.Name, "gap", gap)
		e.tell(user, Gap{Probe: user.id, Seq: user.gaps, Why: user.why, Over: true, Ticks: gap})
	}
	return err
}

// never is when nothing is due.
const never = ^uint64(0)

// resume ends a probe's suspension, but for its int3.
func (e *Engine) resume(user *probe, now uint64) (gap uint64) {
	gap = since(now, user.out)
	user.gapTicks += gap
	user.suspended, user.rearmed, user.meter = false, now, meter{}
	e.suspended--
	return gap
}

// tell tells a subscriber of a gap.
func (e *Engine) tell(user *probe, g Gap) {
	if user.Gap == nil {
		return
	}
	defer func() {
		if r := recover(); r != nil {
			e.log.Error("what a probe does about a gap panicked", "probe", user.Name, "panic", r)
		}
	}()
	user.Gap(g)
}
