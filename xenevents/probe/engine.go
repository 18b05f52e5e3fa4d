package probe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"time"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
	"github.com/hprobe/hprobe/xenevents/pagewatch"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// Domain is what the engine needs of a driver's Domain beside its common roles.
type Domain interface {
	xenevents.Domain
	xenevents.Views
	xenevents.PageAllocator
	xenevents.Injector
}

// Clock is a driver that can read the TSC cheaply. Where it is none, a tick is a
// nanosecond.
type Clock interface {
	Ticks() uint64
	// TicksPerSecond is 0 where that is not known.
	TicksPerSecond() uint64
}

// Options tune an Engine. The zero value of each is a default.
type Options struct {
	Log *slog.Logger // nil: silent

	// Window is what a Budget is for, in ticks; 0: a second, but 2^31 ticks at least.
	Window uint64
	// Budget is that of a probe whose Request has none, Domain that of all of
	// them together.
	Budget, Domain Budget
	// Calls is how many calls may be under way whose returns are waited for; of
	// more, the oldest is given up. Sites is to how many places they may return.
	Calls, Sites int
}

// Engine serves one domain. Run belongs to one goroutine; the other methods may
// be called from any, while Run runs.
type Engine struct {
	dom    Domain
	log    *slog.Logger
	mem    *guestmem.Reader
	clock  func() uint64
	events xenevents.Events
	set    *shadow.Set
	pages  *pagewatch.Set

	// All below belongs to Run's goroutine.
	probes  map[ID]*probe
	lastID  ID
	steps   []step // by vCPU: what its next single-step event ends
	stats   Stats
	hitNo   uint64            // counts int3s of ours
	kinds   [16]uint64        // events by kind: an array, as a map's entry would cost at each event
	fast    bool              // Xen has fast single-step
	paused  map[pausedAt]held // hits that run again
	held    bool              // a hit paused the domain
	waiters []*waiter         // the longest waiting first

	calls    callTable
	sites    []*site
	maxSites int

	window, part uint64 // of budgets, and by what it slides, in ticks
	each, budget Budget // of a probe, of the domain
	meter        meter
	began, tick  uint64 // when the batch was there, and when its last event had its answer
	suspended    int    // probes
	due          uint64 // when the first of them is armed again
	alarm        context.Context
	alarmIn      time.Duration
	cancelAlarm  context.CancelFunc

	unused struct { // copies that nobody needs: see reclaimable
		n              int
		since, changed time.Time
	}

	watches watches            // see watch.go
	loose   []loose            // what pages have left: see follow.go
	changes []pagewatch.Change // room for those of one write

	// What a hit needs, made once: what is passed to a driver or to Decide
	// would be allocated at each hit otherwise.
	now struct {
		hit   Hit
		reply xenevents.Reply
		regs  xenevents.Registers
		back  []call
	}

	commands chan command
	ready    chan struct{} // closed once attached
	done     chan struct{} // closed when Run ends
}

// patch is one int3 and those who asked for it, in order.
type patch struct {
	hidden *shadow.Patch
	insn   insn
	step   StepOver
	users  []*probe // those that stand for sites among them
	sites  int      // how many those are
}

type probe struct {
	Request
	id            ID
	spaces        spaces
	patch         *patch
	hits, changed uint64
	passed        uint64
	failed        string
	follow        *followed // nil: of a Request without Follow
	watch         *watched  // nil: of a Request
	unplaced      string    // why a probe with Placed is at no place
	site          *site     // that it stands for; nil: it is of a Request or a Member

	// Of a Request with Many, and of its members: see members.go.
	lead      *probe // of a member
	members   []*probe
	still     func() bool
	expected  []byte
	missed    uint64
	missedWhy string
	took, let uint64 // the last hits that were its, and that it let pass
	billed    uint64 // the last hit that it was charged with

	returns, lost uint64
	told          bool  // the log, that one can not be seen
	noSite        place // where a call came from that can't be probed

	budget    Budget
	meter     meter
	suspended bool
	why       string
	out, due  uint64 // from when to when
	rearmed   uint64 // the last time
	backOff   uint
	gaps      uint64
	gapTicks  uint64 // of gaps that are over
}

// step is what a vCPU that runs one instruction in view 0 does it for.
type step struct {
	active  bool
	trap    bool // the guest's own trap flag was on: see stepped
	extra   bool // it is one more step for that
	repeats bool // it is over when RIP is another than rip
	rip     uint64
	refresh bool // the page that it writes to must be copied to its shadow anew
	gfn     xenevents.GFN
	at      xenevents.GVA // where it writes, if that is known
	atValid bool
	walk    bool // it is the page walk to there that writes

	unreadAt uint64 // where the last int3 was that could not be read, and how often in a row
	unread   int
}

type command struct {
	do   func() error
	done chan error
}

// New makes an engine for a domain, which stays the caller's to close, after
// Run ended. It fails with an *xenevents.UnsupportedError for a driver that
// lacks what hidden probes need.
func New(dom xenevents.Domain, o Options) (*Engine, error) {
	full, ok := dom.(Domain)
	if !ok {
		return nil, &xenevents.UnsupportedError{Feature: "hidden probes", Need: "a driver with altp2m views, spare frames and exception injection"}
	}
	e := &Engine{
		dom: full, log: o.Log, mem: guestmem.NewReader(dom),
		probes: map[ID]*probe{}, due: never, paused: map[pausedAt]held{},
		calls: callTable{max: max(cmp.Or(o.Calls, defaultCalls), 1)}, maxSites: max(cmp.Or(o.Sites, defaultSites), 1),
		commands: make(chan command, 64), ready: make(chan struct{}), done: make(chan struct{}),
	}
	began := time.Now()
	e.clock = func() uint64 { return uint64(time.Since(began)) }
	second := uint64(0)
	if c, ok := dom.(Clock); ok {
		e.clock, second = c.Ticks, c.TicksPerSecond()
	}
	e.window = max(cmp.Or(o.Window, max(second, defaultWindow)), parts)
	e.part = e.window / parts
	each, all := defaultBudgets(e.window)
	e.each, e.budget = o.Budget.or(each), o.Domain.or(all)
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	return e, nil
}

// batchSize is what the ring holds.
const batchSize = 8

// Run attaches to the domain, serves its events and, when ctx ends, detaches
// without a trace. It returns nil then. When the domain ended by itself the
// error matches xenevents.ErrDomainGone. It may be called once.
//
// It locks its OS thread: the reply to an event must not wait for a scheduler.
func (e *Engine) Run(ctx context.Context) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(e.done)
	if err := e.attach(ctx); err != nil {
		return err
	}
	close(e.ready)
	if err = e.serve(ctx); ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		err = nil
	}
	detachErr := e.detach(e.gone(err))
	all := errors.Join(err, detachErr)
	switch {
	case !e.gone(all):
		return all
	case errors.Is(err, xenevents.ErrDomainGone):
		// What could not be undone went with the domain.
		return err
	}
	return fmt.Errorf("%w: %w", xenevents.ErrDomainGone, cmp.Or(err, detachErr))
}

// gone says whether something failed because the domain ended. A call other than
// Next may be the first to fail then, each in its own way.
func (e *Engine) gone(err error) bool {
	if err == nil || errors.Is(err, xenevents.ErrDomainGone) {
		return err != nil
	}
	info, err := e.dom.Info(context.Background())
	return errors.Is(err, xenevents.ErrNoDomain) || err == nil && (info.Dying || info.Shutdown)
}

// Ready is closed once the engine is attached and takes probes.
func (e *Engine) Ready() <-chan struct{} { return e.ready }

func (e *Engine) attach(ctx context.Context) (err error) {
	if e.events, err = e.dom.Attach(ctx); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.events.Close())
		}
	}()
	if err := e.events.Subscribe(xenevents.Subscription{Kind: xenevents.KindInt3, Sync: true}); err != nil {
		return err
	}
	// Before Xen 4.19 fast single-step, too, needs this one.
	switch err := e.events.Subscribe(xenevents.Subscription{Kind: xenevents.KindSingleStep, Sync: true}); {
	case errors.Is(err, errors.ErrUnsupported):
		e.log.Warn("no single-step events here: only instructions that Xen can emulate can be probed", "err", err)
	case err != nil:
		return err
	default:
		e.fast = true
	}
	if e.set, err = shadow.Open(e.dom); err != nil {
		return err
	}
	e.pages = pagewatch.New(e.dom, e.set)
	return nil
}

func (e *Engine) serve(ctx context.Context) error {
	defer e.endAlarm()
	var batch [batchSize]xenevents.Event
	for {
		n, err := e.next(ctx, batch[:])
		if err != nil && !errors.Is(err, xenevents.ErrInterrupted) {
			return err
		}
		if n > 0 {
			if err := e.batch(batch[:n]); err != nil {
				return err
			}
		}
		if e.suspended > 0 {
			if err := e.rearm(); err != nil {
				return err
			}
		}
		if len(e.waiters) > 0 {
			if err := e.tendWaiters(); err != nil {
				return err
			}
		}
		if ctx.Err() != nil { // Next does not look while there are events
			return ctx.Err()
		}
		if len(e.commands) > 0 {
			if err := e.events.Flush(); err != nil { // a command may take a while
				return err
			}
			e.obey()
		}
		if e.restless() {
			e.tend()
		}
		if !e.set.Idle() {
			e.unused.n = 0
		} else if e.reclaimable(time.Now()) {
			if err := e.reclaim(); err != nil {
				return err
			}
		}
	}
}

// next waits for events; not for long while there is something to do afterwards, or
// a probe to be armed again.
func (e *Engine) next(ctx context.Context, batch []xenevents.Event) (int, error) {
	wait := time.Duration(0)
	switch soon := e.set.Idle() || e.restless(); {
	case !soon && e.suspended == 0 && len(e.waiters) == 0:
		return e.events.Next(ctx, batch)
	case soon:
		wait = reclaimRetry
	default:
		wait = look
	}
	// One context for many calls: a driver hooks into each that is new to it.
	if e.alarm == nil || e.alarm.Err() != nil || wait < e.alarmIn {
		e.endAlarm()
		e.alarm, e.cancelAlarm = context.WithTimeout(ctx, wait)
		e.alarmIn = wait
	}
	n, err := e.events.Next(e.alarm, batch)
	if err != nil && errors.Is(err, e.alarm.Err()) {
		return 0, ctx.Err() // which may have ended since, in another way
	}
	return n, err
}

func (e *Engine) endAlarm() {
	if e.alarm != nil {
		e.cancelAlarm()
		e.alarm = nil
	}
}

// batch answers what the ring held. Next sends the replies: on one CPU by the
// hypercall that lets the guest run.
func (e *Engine) batch(events []xenevents.Event) error {
	start := e.clock()
	e.began, e.tick = start, start
	var errs error
	for i := range events {
		if err := e.answer(&events[i]); err != nil {
			errs = errors.Join(errs, err)
		}
		if events[i].Kind != xenevents.KindInt3 { // that reads the clock itself
			e.tick = e.clock()
		}
	}
	took := since(e.tick, start)
	e.stats.Batches++
	e.stats.Ticks += took
	e.stats.MaxTicks = max(e.stats.MaxTicks, took)
	return errs
}

// obey runs the commands that wait. They come between events, never inside one.
func (e *Engine) obey() {
	for {
		select {
		case c := <-e.commands:
			c.done <- c.do()
		default:
			return
		}
	}
}

// call has Run's goroutine run do.
func (e *Engine) call(ctx context.Context, do func() error) error {
	c := command{do: do, done: make(chan error, 1)}
	select {
	case <-e.ready:
	case <-e.done:
		return xenevents.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case e.commands <- c:
	case <-e.done:
		return xenevents.ErrClosed
	case <-ctx.Done():
		return ctx.Err()
	}
	e.events.Interrupt()
	select {
	case err := <-c.done:
		return err
	case <-e.done:
		return xenevents.ErrClosed
	}
	// Not ctx: a command that was taken is carried out, and whoever asked for
	// it must know how it ended.
}

// Do runs f with the domain on the engine's goroutine, between two events. The
// guest's vCPUs run on, but those with an event wait: f must be quick.
func (e *Engine) Do(ctx context.Context, f func(xenevents.Domain) error) error {
	return e.call(ctx, func() error { return f(e.dom) })
}

// How detach waits for events that are on their way, and for vCPUs in the
// middle of a step: until none came for drainQuiet, but not for ever, as a vCPU
// may be held by somebody else.
const (
	drainQuiet = 5 * time.Millisecond
	drainLimit = 2 * time.Second
)

// look is how often the engine looks whether a probe's suspension is over (ticks are
// no time that one could sleep for), or a wait for a verdict.
const look = 5 * time.Millisecond

// reclaimRetry is how long the guest runs between two tries to reclaim.
const reclaimRetry = time.Millisecond

// While there are more than cheapPages copies, those that nobody needs go once no other
// one became such for a while: for each that stays it costs Xen some work to take others
// away (shadow.Set.Reclaim), with the domain paused. They are not waited for for ever.
const (
	cheapPages   = 32
	reclaimQuiet = 20 * time.Millisecond
	reclaimLimit = time.Second
)

// reclaimable says whether the time for that has come. It is asked while there are some.
func (e *Engine) reclaimable(now time.Time) bool {
	if n := e.set.Unused(); n != e.unused.n {
		if n < e.unused.n || e.unused.n == 0 {
			e.unused.since = now
		}
		e.unused.n, e.unused.changed = n, now
	}
	return e.set.Pages() <= cheapPages || now.Sub(e.unused.changed) > reclaimQuiet || now.Sub(e.unused.since) > reclaimLimit
}

// reclaim takes away the copies of pages without patches, if the vCPUs have
// carried out all replies: see xenevents.Settler. If not, it is tried again soon.
func (e *Engine) reclaim() error {
	if settled, err := e.settled(); !settled || err != nil {
		return err
	}
	return xenevents.WithPaused(e.dom, func() error {
		var batch [batchSize]xenevents.Event
		n, err := e.events.TryNext(batch[:])
		if err != nil {
			return err
		}
		var errs error
		for i := range n {
			ev := &batch[i]
			if ev.Kind == xenevents.KindInt3 {
				// Run it again afterwards: a reply to it may not be plain.
				e.stats.Retried++
				errs = errors.Join(errs, e.reply(ev, e.newReply()))
				continue
			}
			errs = errors.Join(errs, e.answer(ev))
		}
		settled, err := e.settled()
		if settled {
			err = errors.Join(err, e.set.Reclaim())
			e.unused.n = e.set.Unused()
		}
		return errors.Join(errs, err)
	})
}

func (e *Engine) settled() (bool, error) {
	if s, ok := e.events.(xenevents.Settler); ok {
		return s.Settled()
	}
	return true, nil
}

// detach takes everything away, in the order that leaves no vCPU behind. The
// guest leaves the view first: from then on no int3 of ours is hit, and what was
// hit before gets its answer while the guest runs. The rest is done with the
// domain paused as a whole: a vCPU that ran between the end of the ring and that
// of the view could hit an int3 which nobody answers.
func (e *Engine) detach(gone bool) error {
	err := e.set.Leave()
	if !gone { // its vCPUs run no more
		err = errors.Join(err, e.unsubscribeAll())
		e.drain()
	}
	clear(e.probes)
	e.loose = nil
	return errors.Join(err, xenevents.WithPaused(e.dom, func() error {
		return errors.Join(e.events.Close(), e.set.Close())
	}))
}

// drain answers events until none came for a while. An int3 of ours is tried
// again in view 0, where it is not; a step ends.
func (e *Engine) drain() {
	ctx, cancel := context.WithTimeout(context.Background(), drainLimit)
	defer cancel()
	e.releaseWaiters()
	for ctx.Err() == nil {
		quiet, stop := context.WithTimeout(ctx, drainQuiet)
		n, err := e.drainOnce(quiet)
		stop()
		switch {
		case errors.Is(err, xenevents.ErrInterrupted): // by a command that comes too late
			continue
		case err != nil && !errors.Is(err, context.DeadlineExceeded): // the domain is gone
			return
		}
		if n > 0 || slices.ContainsFunc(e.steps, func(s step) bool { return s.active }) {
			continue
		}
		// A verdict that was given is carried out.
		if settled, err := e.settled(); settled || err != nil {
			return
		}
	}
	e.log.Warn("a vCPU is still busy with an event at detach: it goes on without it")
}

func (e *Engine) drainOnce(ctx context.Context) (int, error) {
	var batch [batchSize]xenevents.Event
	n, err := e.events.Next(ctx, batch[:])
	for i := range n {
		if err := e.release(&batch[i]); err != nil {
			e.log.Error("release a vCPU", "vcpu", batch[i].VCPU, "err", err)
		}
	}
	return n, err
}

// release lets a vCPU run on in view 0, without probes.
func (e *Engine) release(ev *xenevents.Event) error {
	r := e.newReply()
	r.Switch, r.View = true, xenevents.HostView
	switch ev.Kind {
	case xenevents.KindSingleStep:
		if s := e.stepOf(ev.VCPU); s.active {
			r.Step = xenevents.StepToggle
			s.active = false
		}
	case xenevents.KindInt3:
		if _, ours := e.set.Find(ev.GFN, ev.Regs.RIP&xenevents.PageMask); !ours && e.guestsOwn(ev) {
			return e.reinject(ev)
		}
	case xenevents.KindCPUID:
		e.afterCPUID(ev, r)
	}
	return e.events.Reply(ev, r)
}

// stepOf returns the state of a vCPU.
func (e *Engine) stepOf(v xenevents.VCPU) *step {
	for int(v) >= len(e.steps) {
		e.steps = append(e.steps, step{})
	}
	return &e.steps[v]
}

// newReply returns the one Reply, empty: it is of use until the next one.
func (e *Engine) newReply() *xenevents.Reply {
	e.now.reply = xenevents.Reply{}
	return &e.now.reply
}

func (e *Engine) reply(ev *xenevents.Event, r *xenevents.Reply) error {
	if err := e.events.Reply(ev, r); err != nil {
		return fmt.Errorf("reply to %v of vCPU %d: %w", ev.Kind, ev.VCPU, err)
	}
	return nil
}
