package binder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// modules has probes in the guest's modules follow these as they come and go: by two
// probes of its own, at the kernel's functions that tell of it. It has them while
// there is one to follow.
type modules struct {
	engine *probe.Engine
	kernel *guestos.Kernel
	// trouble is told what nobody else can be.
	trouble func(error)

	mu       sync.Mutex // over add and remove as a whole
	triggers []probe.ID
	ids      map[probe.ID]bool // that add returned

	members []*member // the engine's goroutine's; in the order in which they came
}

// member is a probe in a module.
type member struct {
	id probe.ID
	at Location
	in *guestos.Module // that it is armed in; nil: it waits
	// where is where it is armed.
	where xenevents.GVA
	// missed is told why it is not armed in a module that has come.
	missed func(error)
}

func newModules(engine *probe.Engine, kernel *guestos.Kernel, trouble func(error)) *modules {
	return &modules{engine: engine, kernel: kernel, trouble: trouble, ids: map[probe.ID]bool{}}
}

// add puts a probe at a place in a module, or has it wait for the module. A module
// that is there and has no such function is an error.
func (m *modules) add(ctx context.Context, r probe.Request, at Location, missed func(error)) (id probe.ID, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.watch(ctx); err != nil {
		return 0, err
	}
	r.Placed = true
	if id, err = m.engine.Add(ctx, r); err != nil {
		return 0, errors.Join(err, m.unwatch(ctx))
	}
	m.ids[id] = true
	u := &member{id: id, at: at, missed: missed}
	err = m.engine.Do(ctx, func(xenevents.Domain) error {
		if err := m.settle(u); err != nil {
			return err
		}
		m.members = append(m.members, u)
		return nil
	})
	if err != nil {
		return 0, errors.Join(err, m.drop(context.WithoutCancel(ctx), id))
	}
	return id, nil
}

// remove takes a probe out that add returned; with the last one it sees no modules any
// more. ok is false for others.
func (m *modules) remove(ctx context.Context, id probe.ID) (ok bool, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.ids[id] {
		return false, nil
	}
	return true, m.drop(ctx, id)
}

// drop is remove with mu held.
func (m *modules) drop(ctx context.Context, id probe.ID) error {
	delete(m.ids, id)
	err := m.engine.Do(ctx, func(xenevents.Domain) error {
		m.members = slices.DeleteFunc(m.members, func(u *member) bool { return u.id == id })
		return nil
	})
	return errors.Join(err, m.engine.Remove(ctx, id), m.unwatch(ctx))
}

// watch puts the probes in place that tell of modules.
func (m *modules) watch(ctx context.Context) error {
	if m.triggers != nil {
		return nil
	}
	var coming, going xenevents.GVA
	err := m.engine.Do(ctx, func(xenevents.Domain) (err error) {
		coming, going, err = m.kernel.ModuleEvents()
		return err
	})
	if errors.Is(err, isf.ErrNotFound) {
		return &xenevents.UnsupportedError{Feature: "a probe in a module", Need: "a profile that has what tells of modules: " + err.Error()}
	}
	if err != nil {
		return err
	}
	for _, t := range []struct {
		name   string
		at     xenevents.GVA
		decide func(*probe.Hit) probe.Verdict
	}{{"modules that go", going, m.going}, {"modules that come", coming, m.coming}} {
		// Without limit: a gap would leave an int3 in memory that has another use.
		id, err := m.engine.Add(ctx, probe.Request{Name: t.name, At: t.at, Space: m.kernel.Space, Decide: t.decide, Budget: probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}})
		if err != nil {
			return errors.Join(err, m.unwatch(ctx))
		}
		m.triggers = append(m.triggers, id)
	}
	return nil
}

// unwatch takes them out if no probe is in a module any more.
func (m *modules) unwatch(ctx context.Context) (err error) {
	if len(m.ids) > 0 {
		return nil
	}
	for _, id := range m.triggers {
		err = errors.Join(err, m.engine.Remove(context.WithoutCancel(ctx), id))
	}
	m.triggers = nil
	return err
}

// settle arms a new probe if its module is there, else it waits.
func (m *modules) settle(u *member) error {
	mod, err := m.kernel.Module(u.at.Module)
	switch {
	case errors.Is(err, isf.ErrNotFound):
		return m.engine.Lift(u.id, fmt.Sprintf("armed when module %q loads, before it runs: %v; a name that is wrong can't be told from a module that is not there", u.at.Module, err))
	case err != nil:
		return err
	case !mod.Formed:
		return m.engine.Lift(u.id, waits(u))
	}
	syms, err := m.kernel.Symbols(mod)
	if err != nil {
		return err
	}
	err = m.arm(u, mod, syms)
	var none *guestos.NoFunctionError
	switch {
	case errors.As(err, &none) && mod.Live && u.at.Symbol == initAlias:
		return m.engine.Lift(u.id, ran(u))
	case errors.As(err, &none) && mod.Live:
		return fmt.Errorf("%w; what ran only when it was loaded is gone: its init function is called %s, too", err, initAlias)
	}
	return err
}

// initAlias is what the init function of each module is called as well (Linux's
// module_init makes the alias).
const initAlias = "init_module"

func waits(u *member) string {
	return fmt.Sprintf("armed when module %q loads, before it runs", u.at.Module)
}

func ran(u *member) string {
	return fmt.Sprintf("its code ran when module %q was loaded, and is gone: armed when it loads again", u.at.Module)
}

// arm puts a probe into a module that is there.
func (m *modules) arm(u *member, mod *guestos.Module, syms *guestos.ModuleSymbols) error {
	at, err := syms.Function(u.at.Symbol, u.at.Offset)
	if err == nil {
		err = m.engine.Place(u.id, at)
	}
	if err == nil {
		u.in, u.where = mod, at
	}
	return err
}

// coming is the entry of the kernel's function that tells of a module which has run
// nothing yet: its vCPU waits until all its probes are in place.
func (m *modules) coming(h *probe.Hit) (v probe.Verdict) {
	mod, err := m.kernel.ComingModule(h.Regs)
	if err != nil {
		m.trouble(fmt.Errorf("a module that loads could not be looked at: %w", err))
	}
	if mod == nil {
		return v
	}
	called := func(u *member) bool { return mod.Called(u.at.Module) }
	if !slices.ContainsFunc(m.members, called) {
		return v
	}
	syms, err := m.kernel.Symbols(mod)
	if err != nil {
		m.fail(called, err)
		return v
	}
	for _, u := range m.members {
		if !called(u) {
			continue
		}
		var lifted error
		if u.in != nil { // it went unseen, and its memory may be another's
			u.in = nil
			lifted = m.engine.Lift(u.id, waits(u))
		}
		if err := errors.Join(lifted, m.arm(u, mod, syms)); err != nil {
			m.fail(func(x *member) bool { return x == u }, err)
		}
	}
	return v
}

// fail has probes wait that a module could not be armed for, and says why.
func (m *modules) fail(which func(*member) bool, why error) {
	for _, u := range m.members {
		if !which(u) || u.in != nil {
			continue
		}
		err := m.engine.Lift(u.id, fmt.Sprintf("not armed: %v", why))
		u.missed(errors.Join(why, err))
	}
}

// going is the entry of the kernel's function that tells of memory of a module which
// is about to be freed.
func (m *modules) going(h *probe.Hit) (v probe.Verdict) {
	mod, err := m.kernel.GoingModule(h.Regs)
	if err != nil {
		i := slices.IndexFunc(m.members, func(u *member) bool { return u.in.GoesAt(h.Regs) })
		if i < 0 {
			return v // it is no module, or none of ours
		}
		all := *m.members[i].in // the guest says nonsense of it: take it that all goes
		all.Live, mod, err = false, &all, nil
	}
	areas := []guestos.TextRange{mod.Init}
	if !mod.Live {
		areas = append(areas, mod.Text)
	}
	for _, u := range m.members {
		if !mod.Is(u.in) || mod.Live && u.in.Text.Holds(u.where) {
			continue
		}
		why := waits(u)
		if mod.Live {
			why = ran(u)
		}
		err = errors.Join(err, m.engine.Lift(u.id, why))
		u.in = nil
	}
	for _, a := range areas {
		err = errors.Join(err, m.engine.Vacate(a.Start, a.End))
	}
	if err != nil {
		m.trouble(fmt.Errorf("probes could not be taken out of module %q, which goes: %w", mod.Name, err))
	}
	return v
}

// Blind says why modules that come and go are not seen, and with them all probes in
// modules: "" where they are. all are the engine's probes, by ID.
func (b *Binder) Blind(all map[probe.ID]*probe.Status) string {
	m := b.modules
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range m.triggers {
		if s := all[id]; s != nil && s.State != probe.Armed {
			return fmt.Sprintf("hprobe's own probe for %s is %v (%s)", s.Name, s.State, s.Detail)
		}
	}
	return ""
}
