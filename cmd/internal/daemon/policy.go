package daemon

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/xenevents"
)

// applied is a policy as it was applied once.
type applied struct {
	*policy.Policy
	text       []byte // its document
	configured bool   // by hprobed's configuration, and not by a command
}

// policies are those that hprobed keeps, by name. Its methods may be called from any
// goroutine.
type policies struct {
	mu  sync.Mutex
	all map[string]*applied
}

// list returns them by name.
func (p *policies) list() []*applied {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*applied
	for _, a := range p.all {
		all = append(all, a)
	}
	slices.SortFunc(all, func(a, b *applied) int { return cmp.Compare(a.Name(), b.Name()) })
	return all
}

func (p *policies) get(name string) *applied {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[name]
}

// take has policies, each in place of the one with its name.
func (p *policies) take(all []*applied) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range all {
		p.all[a.Name()] = a
	}
}

// appliedOf is what becomes of policies that were read.
func appliedOf(read []*policy.Policy, configured bool) (all []*applied, err error) {
	for _, p := range read {
		text, err := p.Source()
		if err != nil {
			return nil, err
		}
		all = append(all, &applied{Policy: p, text: text, configured: configured})
	}
	return all, nil
}

// configure takes the policies of the configuration in place of those that it had. One that
// is as it was stays armed.
func (p *policies) configure(all []*applied) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.all
	p.all = map[string]*applied{}
	for name, a := range old {
		if !a.configured {
			p.all[name] = a
		}
	}
	for _, n := range all {
		if a := old[n.Name()]; a != nil && a.configured && bytes.Equal(a.text, n.text) {
			p.all[n.Name()] = a
			continue
		}
		p.all[n.Name()] = n
	}
}

// The states of a policy in a guest.
const (
	stateArmed    = "armed"
	stateWaiting  = "waiting" // for the guest's kernel
	stateFailed   = "failed"  // it is tried again where that may help
	stateNeedless = "no need" // the guest has what the policy stands in for
	stateExpired  = "expired" // its last day is over
	stateHeld     = "held"    // an operator wants the guest left alone
	statePartly   = "partly"  // some of its probes see nothing now; of all, it has their state
	stateNew      = "new"     // the guest's worker did not come to it yet
)

// row is how a policy fares in a guest. It is guarded by guest.mu.
type row struct {
	of            *applied
	state, detail string
	bound         *binding // nil: it is not armed
}

// bootPause is how long the worker waits before it looks again whether a guest has a kernel.
const bootPause = 200 * time.Millisecond

// reconcile makes a guest have what policies ask for, and no more. It returns after what
// time that is to be tried again; 0 is not before something changes. In turn.
func (g *guest) reconcile(ctx context.Context) (again time.Duration) {
	g.drop()
	info := g.seen()
	_, ignore := g.d.ruled(&info)
	if info.Dying || info.Shutdown || ignore { // a suspended one may go on: then it has changed
		g.note(nil)
		if s := g.current(); s != nil && !ignore {
			s.over.Store(true)
		}
		if err := g.detach(); err != nil {
			g.d.Log.Error("detach", "domain", info.Name, "err", err)
		}
		return 0
	}
	rows, failed := map[string]*row{}, false
	for _, a := range g.wanted() {
		r, wait := g.keep(ctx, a)
		failed = failed || r.state == stateFailed
		if rows[a.Name()] = r; wait > 0 && (again == 0 || wait < again) {
			again = wait
		}
	}
	g.sweep(ctx, rows)
	g.note(rows)
	if failed {
		g.pause = min(2*g.pause, lastRetry)
	} else {
		g.pause = firstRetry
	}
	if err := g.release(); err != nil {
		g.d.Log.Error("detach", "domain", info.Name, "err", err)
	}
	return again
}

// note keeps how policies fare.
func (g *guest) note(rows map[string]*row) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.rows = rows
}

// wanted are the policies for a guest.
func (g *guest) wanted() (all []*applied) {
	for _, a := range g.d.policies.list() {
		if g.selects(a) {
			all = append(all, a)
		}
	}
	return all
}

// selects says whether a policy is for a guest. Of its system nothing is known before it
// is attached to: hprobed knows Linux only.
func (g *guest) selects(a *applied) bool {
	info := g.seen()
	labels, ignore := g.d.ruled(&info)
	return !ignore && a.Selects(policy.Guest{Name: info.Name, UUID: info.UUIDString(), OS: "linux", Labels: labels})
}

// keep has one policy armed, if it is not.
func (g *guest) keep(ctx context.Context, a *applied) (*row, time.Duration) {
	g.mu.Lock()
	old, held := g.rows[a.Name()], g.held
	g.mu.Unlock()
	now := time.Now()
	switch {
	case held:
		return &row{of: a, state: stateHeld, detail: "until hprobe domain resume"}, 0
	case a.Expired(now):
		return &row{of: a, state: stateExpired, detail: "since " + a.Spec.Expires.Format(time.DateOnly)}, 0
	case old != nil && old.of == a && old.bound != nil && g.has(old.bound), old != nil && old.of == a && old.state == stateNeedless:
		return old, a.untilExpiry(now)
	}
	b, err := g.arm(ctx, a)
	var needless *policy.NotNeededError
	switch {
	case err == nil:
		g.d.Log.Info("armed", "policy", a.Name(), "mode", cmp.Or(a.Spec.Mode, policy.Observe), "domain", g.name())
		return &row{of: a, state: stateArmed, bound: b}, a.untilExpiry(now)
	case errors.Is(err, errNoKernel):
		return &row{of: a, state: stateWaiting, detail: err.Error()}, bootPause
	case errors.As(err, &needless):
		g.d.Log.Info("no need", "policy", a.Name(), "domain", g.name(), "why", needless.Why)
		return &row{of: a, state: stateNeedless, detail: needless.Why}, 0
	}
	if old == nil || old.of != a || old.detail != err.Error() { // once for each reason
		g.d.Log.Error("a policy is not armed", "policy", a.Name(), "domain", g.name(), "err", err)
	}
	return &row{of: a, state: stateFailed, detail: err.Error()}, g.pause
}

// untilExpiry is when the policy has to be looked at again.
func (a *applied) untilExpiry(now time.Time) time.Duration {
	if a.Spec.Expires.IsZero() {
		return 0
	}
	return max(time.Second, a.Spec.Expires.AddDate(0, 0, 1).Sub(now))
}

// has says whether a detector is armed in the session that lives.
func (g *guest) has(b *binding) bool {
	s := g.current()
	return s != nil && slices.Contains(s.list(), b)
}

// arm attaches to the guest, compiles a policy for it, and arms it.
func (g *guest) arm(ctx context.Context, a *applied) (*binding, error) {
	if g.current() == nil {
		if err := g.d.booted(ctx, g.id); err != nil {
			return nil, err
		}
	}
	s, err := g.attach(ctx)
	if err != nil {
		return nil, err
	}
	det, err := a.Compile(policy.Target{Kernel: s.kernel, Do: func(f func() error) error {
		return s.engine.Do(ctx, func(xenevents.Domain) error { return f() })
	}})
	if err != nil {
		return nil, err
	}
	det.Seen = func(m *policy.Match) { g.d.showMatch(a, s.info.Name, m) }
	return s.bind(ctx, a.Name(), det, a)
}

// showMatch tells those who trace of a policy's match.
func (d *Daemon) showMatch(a *applied, domain string, m *policy.Match) {
	if !d.hits.Active() {
		return
	}
	t := tracer{id: a.Name() + "." + m.Probe, domain: domain, at: m.At, hits: &d.hits}
	if m.Return {
		t.ended = m.Program
	}
	t.emit(m.Hit, m.Result, m.Program.Captured())
}

// sweep takes out what policies asked for, and do no longer.
func (g *guest) sweep(ctx context.Context, rows map[string]*row) {
	s := g.current()
	if s == nil {
		return
	}
	for _, b := range s.list() {
		if b.policy == nil || rows[b.policy.Name()] != nil && rows[b.policy.Name()].bound == b {
			continue
		}
		if err := s.unbind(ctx, b); err != nil && !s.ended() {
			g.d.Log.Error("a policy's probes", "policy", b.policy.Name(), "domain", g.name(), "err", err)
		}
		g.d.Log.Info("removed", "policy", b.policy.Name(), "domain", g.name())
	}
}

// errNoKernel is that a guest has not come so far yet.
var errNoKernel = errors.New("the guest has no running kernel yet")

// booted fails with errNoKernel until the guest's kernel takes system calls: before, it
// may move itself, and its page tables are not what they will be.
func (d *Daemon) booted(ctx context.Context, id xenevents.DomainID) (err error) {
	dom, err := d.Host.Open(ctx, id)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dom.Close()) }()
	regs, err := dom.Registers(0)
	switch {
	case errors.Is(err, xenevents.ErrVCPUDown):
		return errNoKernel
	case err != nil:
		return err
	case int64(regs.LSTAR) >= 0: // the kernel sets it late (cpu_init), and to an address of its own
		return errNoKernel
	}
	return nil
}

// apply takes policies from a command, or none where one can't be kept.
func (d *Daemon) apply(all []*applied) error {
	for _, a := range all {
		if old := d.policies.get(a.Name()); old != nil && old.configured {
			return errConfigured(old)
		}
	}
	for _, a := range all {
		if err := d.keepPolicy(a); err != nil {
			return err
		}
	}
	d.policies.take(all)
	d.pokeAll()
	return nil
}

func (d *Daemon) pokeAll() {
	for _, g := range d.known() {
		g.poke()
	}
}

// settle has every guest look at the policies now, and waits for it.
func (d *Daemon) settle(ctx context.Context) error {
	var wg sync.WaitGroup
	all := d.known()
	errs := make([]error, len(all))
	for i, g := range all {
		wg.Go(func() {
			if errs[i] = g.begin(ctx); errs[i] == nil {
				g.reconcile(ctx)
				g.end()
				g.poke() // its worker knows when to look again
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
