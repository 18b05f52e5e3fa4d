package probe

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/shadow"
)

// Add puts a probe into the running guest. The error says why it can't be
// there: ErrNotMapped where the address space has nothing at that address.
func (e *Engine) Add(ctx context.Context, r Request) (ID, error) {
	var id ID
	err := e.call(ctx, func() (err error) {
		id, err = e.add(r)
		return err
	})
	return id, err
}

func (e *Engine) add(r Request) (ID, error) {
	t, err := e.mem.Translate(r.Space, r.At)
	if err != nil {
		return 0, fmt.Errorf("probe %q: %w", r.Name, err)
	}
	p, err := e.patchAt(r, t.GPA)
	if err != nil {
		return 0, fmt.Errorf("probe %q: %w", r.Name, err)
	}
	e.lastID++
	user := &probe{Request: r, id: e.lastID, patch: p}
	p.users = append(p.users, user)
	e.probes[user.id] = user
	return user.id, nil
}

// patchAt finds the patch at an address or makes one.
func (e *Engine) patchAt(r Request, at xenevents.GPA) (*patch, error) {
	if hidden, _ := e.set.Find(at.GFN(), at.Offset()); hidden != nil {
		p := hidden.Owner.(*patch)
		if r.Step != Auto && r.Step != p.step {
			return nil, fmt.Errorf("another probe is at %v and steps over it by %v", r.At, p.step)
		}
		return p, nil
	}
	var original [shadow.MaxInsn]byte
	n, err := e.mem.ReadGVA(r.Space, original[:], r.At)
	if n == 0 {
		return nil, err
	}
	in, err := decode(original[:n])
	if err != nil {
		return nil, fmt.Errorf("at %v: %w", r.At, err)
	}
	if original[0] == shadow.Int3 {
		return nil, fmt.Errorf("at %v: the guest has an int3 of its own there (kprobes, ftrace or a debugger)", r.At)
	}
	if at.Offset()+uint64(in.length) > xenevents.PageSize {
		in.emulate = false // what is in the next page may change, and nobody would see
	}
	step, err := e.chooseStep(r.Step, in)
	if err != nil {
		return nil, fmt.Errorf("at %v: %w", r.At, err)
	}
	hidden, err := e.set.Insert(at, original, in.length)
	if err != nil {
		return nil, err
	}
	p := &patch{hidden: hidden, insn: in, step: step}
	hidden.Owner = p
	return p, nil
}

func (e *Engine) chooseStep(asked StepOver, in insn) (StepOver, error) {
	switch {
	case asked == Auto && in.emulate:
		return Emulate, nil
	case in.repeats && e.fast && asked == Auto:
		return SingleStep, nil
	case in.repeats && e.fast && asked == FastStep:
		return 0, fmt.Errorf("%q would be one hit for each repetition: ask for %v", in.text, SingleStep)
	case asked == Auto && e.fast:
		return FastStep, nil
	case asked == Auto, asked != Emulate && !e.fast:
		return 0, &xenevents.UnsupportedError{Feature: fmt.Sprintf("stepping over %q", in.text), Need: "a CPU with the monitor trap flag"}
	case asked == Emulate && !in.emulate:
		return 0, fmt.Errorf("%q is not on the list of instructions that may be emulated", in.text)
	}
	return asked, nil
}

// Remove takes a probe out: when it returns the guest does not hit it any more.
// The copy of its page goes a moment later, when no vCPU is in the middle of an
// answer (Stats.Shadows tells).
func (e *Engine) Remove(ctx context.Context, id ID) error {
	return e.call(ctx, func() error {
		user := e.probes[id]
		if user == nil {
			return fmt.Errorf("there is no probe %d", id)
		}
		delete(e.probes, id)
		p := user.patch
		p.users = slices.DeleteFunc(p.users, func(u *probe) bool { return u == user })
		if len(p.users) > 0 {
			return nil
		}
		return e.set.Remove(p.hidden)
	})
}

// Probes returns the status of all probes, by rising ID, and the counters.
func (e *Engine) Probes(ctx context.Context) ([]Status, Stats, error) {
	var all []Status
	var stats Stats
	err := e.call(ctx, func() error {
		for _, user := range e.probes {
			all = append(all, user.status())
		}
		slices.SortFunc(all, func(a, b Status) int { return cmp.Compare(a.ID, b.ID) })
		stats = e.stats
		stats.Shadows = e.set.Pages()
		stats.Events = map[string]uint64{}
		for kind, n := range e.kinds {
			if n > 0 {
				stats.Events[xenevents.Kind(kind).String()] = n
			}
		}
		return nil
	})
	return all, stats, err
}

func (u *probe) status() Status {
	s := Status{ID: u.id, Name: u.Name, At: u.At, Step: u.patch.step, Insn: u.patch.insn.text, Hits: u.hits, Changed: u.changed}
	switch {
	case u.failed != "":
		s.State, s.Detail = Failed, u.failed
	case u.patch.hidden.Displaced:
		s.State, s.Detail = Displaced, "the guest wrote other bytes there"
	}
	return s
}
