package binder

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/image"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// images has probes in user programs and libraries follow the processes that map
// them. Three probes in the guest's kernel, which are there while it has any, tell of
// those to come, each before the new code can run.
type images struct {
	b *Binder

	mu       sync.Mutex // of add and remove
	triggers []probe.ID

	// All below belongs to the engine's goroutine.
	dom xenevents.Domain
	all []*imageProbe
}

// The functions of the guest's kernel at whose entry a process has what it did not
// have before. They are there from 5.10 to 7.2, and called by nothing that is busy.
const (
	// mapsFile is called with each mapping of a file that was just made, by exec and by
	// mmap, before the process can run it: it is the kernel's own hook for the same use.
	mapsFile = "uprobe_mmap"
	// startsTask is called with each new thread and process, before it runs.
	startsTask = "wake_up_new_task"
	// endsMemory is called with a process's memory when nobody has it any more, before
	// it is taken apart: that goes at full speed if it is not watched.
	endsMemory = "exit_mmap"
)

// imageProbe is a probe in an image.
type imageProbe struct {
	id      probe.ID
	path    string // as the operator wrote it
	place   image.Place
	pid     uint32
	started uint64 // of pid
	comm    string
}

// wants says whether a process is one of the probe's.
func (p *imageProbe) wants(o *guestos.Owner) bool {
	return (p.pid == 0 || p.pid == o.PID && p.started == o.Started) && (p.comm == "" || p.comm == o.Comm)
}

// maxLook bounds how long the guest is paused to look at its mappings.
const maxLook = 2 * time.Second

// errLooked says that a guest has more mappings than could be looked at.
var errLooked = fmt.Errorf("the guest's mappings were looked at for %v, and there may be more processes that have it", maxLook)

// addImage puts a probe into a program or library.
func (b *Binder) addImage(ctx context.Context, d detectors.Detector, spec detectors.ProbeSpec) (_ Bound, err error) {
	loc, err := placeOf(spec)
	if err == nil && loc.Line > 0 && spec.Image == nil {
		err = fmt.Errorf("%s:%d is found in an operator's copy of %s alone (--image-file)", loc.File, loc.Line, loc.Image)
	}
	if err != nil {
		return Bound{}, err
	}
	t := b.images
	t.mu.Lock()
	defer t.mu.Unlock()
	r, err := b.request(d, spec, loc)
	if err != nil {
		return Bound{}, err
	}
	r.Many, r.Follow, r.Space = true, false, xenevents.AddressSpace{} // those are its members'
	p := &imageProbe{path: loc.Image, pid: spec.PID, comm: guestos.CommOf(spec.Comm)}
	if p.id, err = b.engine.Add(ctx, r); err != nil {
		return Bound{}, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.removeLocked(context.WithoutCancel(ctx), p.id))
		}
	}()
	if err = t.watch(ctx); err != nil {
		return Bound{}, err
	}
	err = b.engine.Do(ctx, func(dom xenevents.Domain) error {
		t.dom = dom
		if spec.PID != 0 {
			if _, err := b.process(spec.PID); err != nil {
				return err
			}
		}
		// With the guest paused what is there is there, and all that comes after is
		// told of.
		return xenevents.WithPaused(dom, func() error { return t.begin(p, loc, spec.Image) })
	})
	return Bound{Spec: spec, ID: p.id, Place: &p.place}, err
}

// watch puts the probes in the guest's kernel, with the first probe in an image.
func (t *images) watch(ctx context.Context) error {
	if len(t.triggers) > 0 {
		return nil
	}
	for _, one := range []struct {
		function string
		decide   func(*probe.Hit) probe.Verdict
		gap      func(probe.Gap) // nil: nothing is lost
	}{{mapsFile, t.mapped, t.gap}, {startsTask, t.started, t.gap}, {endsMemory, t.ended, nil}} {
		at, err := t.b.kernel.Address(one.function)
		if err != nil {
			return fmt.Errorf("processes that are to come can't be seen in this guest's kernel: %w", err)
		}
		id, err := t.b.engine.Add(ctx, probe.Request{Name: one.function, At: at, Space: t.b.kernel.Space, Decide: one.decide, Gap: one.gap})
		if err != nil {
			return err
		}
		t.triggers = append(t.triggers, id)
	}
	return nil
}

// remove takes out a probe in an image.
func (t *images) remove(ctx context.Context, id probe.ID) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.removeLocked(ctx, id)
}

func (t *images) removeLocked(ctx context.Context, id probe.ID) error {
	left := 0
	err := t.b.engine.Do(ctx, func(xenevents.Domain) error {
		t.all = slices.DeleteFunc(t.all, func(p *imageProbe) bool { return p.id == id })
		left = len(t.all)
		return nil
	})
	err = errors.Join(err, t.b.engine.Remove(ctx, id))
	if left > 0 {
		return err
	}
	for _, trigger := range t.triggers {
		err = errors.Join(err, t.b.engine.Remove(ctx, trigger))
	}
	t.triggers = nil
	return err
}

// found is a mapping of an image that a process has.
type found struct {
	guestos.Mapping
	owner guestos.Owner
}

// begin finds a probe's place, and the processes that have it.
func (t *images) begin(p *imageProbe, loc Location, given *detectors.ImagePlace) error {
	k := t.b.kernel
	if p.pid != 0 {
		err := k.Owners(func(o *guestos.Owner) error {
			if o.PID == p.pid {
				p.started = o.Started
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	all, lookErr := t.look(p)
	if lookErr != nil && !errors.Is(lookErr, errLooked) {
		return lookErr
	}
	if err := t.place(p, loc, given, all); err != nil {
		return err
	}
	t.all = append(t.all, p)
	if lookErr != nil {
		t.b.engine.Members().Miss(p.id, lookErr)
	}
	t.joinAll(p, all)
	return nil
}

// joinAll has a probe be in the processes that have its image already, but for those
// that have another build of it.
func (t *images) joinAll(p *imageProbe, all []found) {
	for i := range all {
		m := &all[i].Mapping
		if at, ok := m.At(p.place.Offset); ok && m.Exec && t.sameBuild(p, m.Memory, at) {
			t.joinAt(p, m.Memory, at)
		}
	}
}

// sameBuild says whether the image that a process has at an address is of the build
// that a probe is for, as far as that can be known now.
func (t *images) sameBuild(p *imageProbe, mm guestos.Memory, at xenevents.GVA) bool {
	if p.place.BuildID == nil {
		return true
	}
	id := t.buildIn(p, mm, at)
	if id == nil || bytes.Equal(id, p.place.BuildID) {
		return true
	}
	t.b.engine.Members().Miss(p.id, fmt.Errorf("a process has another build of it, with build id %s", image.BuildIDText(id)))
	return false
}

// look finds the mappings of a probe's image, in the processes that it is for. The
// guest is paused.
func (t *images) look(p *imageProbe) (all []found, err error) {
	k := t.b.kernel
	began := time.Now()
	err = k.Owners(func(o *guestos.Owner) error {
		if !p.wants(o) {
			return nil
		}
		err := k.Mappings(o.Memory, func(m *guestos.Mapping) error {
			if time.Since(began) > maxLook {
				return errLooked
			}
			if m.File == 0 || !m.Exec && m.Offset != 0 {
				return nil
			}
			if named, err := k.FileNamed(m.File, p.path); named && err == nil {
				all = append(all, found{*m, *o})
			}
			return nil
		})
		if errors.Is(err, errLooked) || time.Since(began) > maxLook {
			return errLooked
		}
		if err != nil { // of one process: the others are no worse for it
			t.b.engine.Members().Miss(p.id, fmt.Errorf("process %d: %w", o.PID, err))
		}
		return nil
	})
	return all, err
}

// place finds where in its file a probe is to be: by the operator's copy, which has to
// be of the same build as what the guest runs, or by what the guest has in memory.
func (t *images) place(p *imageProbe, loc Location, given *detectors.ImagePlace, all []found) error {
	if given != nil {
		p.place = image.Place{Offset: given.Offset, Code: given.Code, BuildID: given.BuildID}
		for _, f := range all {
			m, err := t.inMemory(&f)
			if err != nil {
				continue // it is looked at again when its page is there
			}
			if id := m.BuildID(); id != nil && !bytes.Equal(id, given.BuildID) {
				return fmt.Errorf("the file is another build than what process %d (%q) runs as %s: its build id is %s, the guest's %s; copy the file out of the guest",
					f.owner.PID, f.owner.Comm, p.path, image.BuildIDText(given.BuildID), image.BuildIDText(id))
			}
		}
		return nil
	}
	var last error
	for _, f := range all {
		m, err := t.inMemory(&f)
		if err != nil {
			last = err
			continue
		}
		place, err := m.Place(loc.Symbol, loc.Offset)
		if err == nil && (p.place.Code == nil || place.Code != nil) {
			p.place = place
		}
		if err == nil && place.Code != nil {
			return nil
		}
		if last = err; err != nil && !errors.Is(err, image.ErrNotThere) {
			return fmt.Errorf("%s, in the memory of process %d: %w; give a copy of the file (--image-file), which has all its symbols", p.path, f.owner.PID, err)
		}
	}
	switch {
	case p.place.Offset != 0:
		return nil
	case loc.Symbol == "":
		p.place = image.Place{Offset: loc.Offset}
		return nil
	case len(all) == 0:
		return fmt.Errorf("no process has %s mapped, and so its symbols are not in the guest's memory: give a copy of the file (--image-file), or its path from the guest's root on", p.path)
	}
	return fmt.Errorf("the symbols of %s: %w; give a copy of the file (--image-file)", p.path, last)
}

// inMemory reads what a mapping at the beginning of a file has of it.
func (t *images) inMemory(f *found) (*image.Mapped, error) {
	if f.Offset != 0 {
		return nil, image.ErrNotThere
	}
	space, err := t.b.kernel.SpaceOf(f.Memory)
	if err != nil {
		return nil, err
	}
	return image.InMemory(uint64(f.Start), func(b []byte, at uint64) (int, error) {
		return t.b.kernel.ReadIn(space, b, xenevents.GVA(at))
	})
}

// joinAt has a probe be at an address of a process.
func (t *images) joinAt(p *imageProbe, mm guestos.Memory, at xenevents.GVA) {
	members := t.b.engine.Members()
	space, err := t.b.kernel.SpaceOf(mm)
	if err != nil {
		members.Miss(p.id, err)
		return
	}
	// Whoever could not join is counted, and ls shows it.
	_ = members.Join(p.id, probe.Member{At: at, Space: space, Code: p.place.Code, Still: func() bool { return t.still(p, mm, at) }})
}

// still says whether a process has a probe's place at an address: it may have unmapped
// the image meanwhile, and mapped another.
func (t *images) still(p *imageProbe, mm guestos.Memory, at xenevents.GVA) (still bool) {
	k := t.b.kernel
	err := xenevents.WithPaused(t.dom, func() error {
		m, ok, err := k.MappingAt(mm, at)
		if err != nil || !ok || !m.Exec || m.File == 0 {
			return err
		}
		if here, ok := m.At(p.place.Offset); !ok || here != at {
			return nil
		}
		named, err := k.FileNamed(m.File, p.path)
		still = named && err == nil && t.sameBuild(p, mm, at)
		return err
	})
	return still && err == nil
}

// buildIn is the build id of the image that a process has at an address; nil where
// that is not in memory.
func (t *images) buildIn(p *imageProbe, mm guestos.Memory, at xenevents.GVA) []byte {
	var first *guestos.Mapping
	err := t.b.kernel.Mappings(mm, func(m *guestos.Mapping) error {
		if m.File == 0 || m.Offset != 0 || m.Start > at {
			return nil
		}
		if named, err := t.b.kernel.FileNamed(m.File, p.path); named && err == nil {
			one := *m
			first = &one
		}
		return nil
	})
	if err != nil || first == nil {
		return nil
	}
	m, err := t.inMemory(&found{Mapping: *first})
	if err != nil {
		return nil
	}
	return m.BuildID()
}

// mapped is the guest's kernel at mapsFile: the mapping is its first argument.
func (t *images) mapped(h *probe.Hit) probe.Verdict {
	k := t.b.kernel
	m, err := k.Mapping(h.Regs.RDI)
	if err != nil || !m.Exec || m.File == 0 {
		return probe.Verdict{}
	}
	for _, p := range t.all {
		at, ok := m.At(p.place.Offset)
		if !ok {
			continue
		}
		if named, err := k.FileNamed(m.File, p.path); err != nil || !named {
			continue
		}
		o, err := k.RunningOwner(h.Regs)
		if err != nil {
			t.b.engine.Members().Miss(p.id, err)
			continue
		}
		if p.wants(&o) {
			t.joinAt(p, m.Memory, at)
		}
	}
	return probe.Verdict{}
}

// started is the guest's kernel at startsTask: the task is its first argument. What
// its parent has mapped it has, too.
func (t *images) started(h *probe.Hit) probe.Verdict {
	k := t.b.kernel
	child, err := k.OwnerOf(h.Regs.RDI)
	if err != nil || child.Memory == 0 {
		return probe.Verdict{}
	}
	parent, err := k.RunningOwner(h.Regs)
	if err != nil || parent.Memory == 0 || parent.Memory == child.Memory { // a thread
		return probe.Verdict{}
	}
	space, err := k.SpaceOf(parent.Memory)
	if err != nil {
		return probe.Verdict{}
	}
	for _, p := range t.all {
		if p.pid != 0 {
			continue
		}
		for _, one := range t.b.engine.Members().In(p.id, space) {
			t.joinAt(p, child.Memory, one.At)
		}
	}
	return probe.Verdict{}
}

// ended is the guest's kernel at endsMemory. A process that is not left here is left
// when its page tables are empty.
func (t *images) ended(h *probe.Hit) probe.Verdict {
	space, err := t.b.kernel.SpaceOf(guestos.Memory(h.Regs.RDI))
	if err != nil {
		return probe.Verdict{}
	}
	for _, p := range t.all {
		if err := t.b.engine.Members().Leave(p.id, space); err != nil {
			t.b.engine.Members().Miss(p.id, err)
		}
	}
	if err := t.b.engine.Members().Exits(space); err != nil {
		t.b.trouble(fmt.Errorf("a process ends: %w", err))
	}
	return probe.Verdict{}
}

// gap is a time in which the guest made mappings faster than a probe may be hit. What
// was mapped then is found at its end.
func (t *images) gap(g probe.Gap) {
	f := &detectors.Finding{Time: time.Now(), Domain: t.b.domain.Name, DomainID: t.b.domain.ID, Detector: "images", Probe: mapsFile}
	if !g.Over {
		f.Severity, f.Message = detectors.Medium, "what the guest's programs map is not seen for a while: probes in images miss the first calls of processes that start now: "+g.Why
		t.b.sink.Emit(f)
		return
	}
	if len(t.all) == 0 { // the first is being added
		return
	}
	err := xenevents.WithPaused(t.dom, func() error {
		for _, p := range t.all {
			all, err := t.look(p)
			if err != nil {
				t.b.engine.Members().Miss(p.id, err)
			}
			t.joinAll(p, all)
		}
		return nil
	})
	f.Message, f.Facts = "what the guest's programs map is seen again", []detectors.Fact{{Name: "ticks", Value: g.Ticks}}
	if err != nil {
		f.Message += ": " + err.Error()
	}
	t.b.sink.Emit(f)
}

// Ended says whether a process has ended.
func (b *Binder) Ended(ctx context.Context, pid uint32) bool {
	err := b.engine.Do(ctx, func(xenevents.Domain) error {
		_, err := b.kernel.Process(pid)
		return err
	})
	return errors.Is(err, isf.ErrNotFound)
}
