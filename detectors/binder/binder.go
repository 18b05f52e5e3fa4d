// Package binder makes probes of what detectors ask for: it resolves symbolic
// locations through the guest's profile, hands decoded hits to the detectors'
// handlers, and passes on what they find.
package binder

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/image"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// Binder binds detectors to one domain. Its methods may be called from any
// goroutine while the engine runs.
type Binder struct {
	engine *probe.Engine
	kernel *guestos.Kernel
	domain xenevents.DomainInfo
	sink   detectors.Sink

	modules *modules
	images  *images
}

// New makes a binder for a domain that engine serves and kernel describes.
func New(engine *probe.Engine, kernel *guestos.Kernel, domain xenevents.DomainInfo, sink detectors.Sink) *Binder {
	kernel.Prepare()
	b := &Binder{engine: engine, kernel: kernel, domain: domain, sink: sink}
	b.modules = newModules(engine, kernel, b.trouble)
	b.images = &images{b: b}
	return b
}

// Binding is a detector's probes in the domain.
type Binding struct {
	Detector detectors.Detector
	Probes   []Bound
}

// Bound is one probe of a Binding.
type Bound struct {
	Spec detectors.ProbeSpec
	ID   probe.ID
	// At is where it is; 0 in a module and in an image: the engine's status says where
	// the first is now, Place where in its file the second is.
	At    xenevents.GVA
	Place *image.Place
}

// Bind arms all probes of a detector, or none: what it armed it takes back
// where one can't be.
func (b *Binder) Bind(ctx context.Context, d detectors.Detector) (*Binding, error) {
	bound := &Binding{Detector: d}
	for specs := d.Probes(); len(specs) > 0; {
		some := specs[:min(len(specs), atOnce)]
		specs = specs[len(some):]
		armed, err := b.add(ctx, d, some)
		bound.Probes = append(bound.Probes, armed...)
		if err != nil {
			return nil, errors.Join(err, b.Unbind(context.WithoutCancel(ctx), bound))
		}
	}
	return bound, nil
}

// atOnce is how many probes are armed by one command of the engine: each waits for its
// turn, but vCPUs must not wait for hundreds.
const atOnce = 32

// Unbind takes all probes of a binding out.
func (b *Binder) Unbind(ctx context.Context, bound *Binding) error {
	var errs []error
	var others []probe.ID
	for _, p := range bound.Probes {
		if p.Place != nil {
			errs = append(errs, b.images.remove(ctx, p.ID))
			continue
		}
		ok, err := b.modules.remove(ctx, p.ID)
		if !ok {
			others = append(others, p.ID)
		}
		errs = append(errs, err)
	}
	return errors.Join(append(errs, b.engine.Remove(ctx, others...))...)
}

// add arms some probes. Where it fails it returns those that are armed nevertheless.
func (b *Binder) add(ctx context.Context, d detectors.Detector, specs []detectors.ProbeSpec) (armed []Bound, err error) {
	if slices.ContainsFunc(specs, elsewhere) {
		for _, spec := range specs {
			one, err := b.addOne(ctx, d, spec)
			if err != nil {
				return armed, err
			}
			armed = append(armed, one...)
		}
		return armed, nil
	}
	requests := make([]probe.Request, len(specs))
	places := make([]Location, len(specs))
	for i, spec := range specs {
		if places[i], err = placeOf(spec); err != nil {
			return nil, err
		}
		if requests[i], err = b.request(d, spec, places[i]); err != nil {
			return nil, err
		}
	}
	// Guest memory belongs to the engine's goroutine.
	err = b.engine.Do(ctx, func(xenevents.Domain) error {
		for i, spec := range specs {
			if err := b.resolve(&requests[i], spec, places[i]); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(specs) > 1 && !slices.ContainsFunc(places, func(l Location) bool { return l.Module != "" }) {
		ids, err := b.engine.AddAll(ctx, requests)
		for i, id := range ids {
			armed = append(armed, Bound{Spec: specs[i], ID: id, At: requests[i].At})
		}
		return armed, err
	}
	for i, spec := range specs {
		var id probe.ID
		if places[i].Module != "" {
			id, err = b.modules.add(ctx, requests[i], places[i], func(why error) { b.sink.Emit(b.unarmed(d, spec, why)) })
		} else {
			id, err = b.engine.Add(ctx, requests[i])
		}
		if err != nil {
			return armed, err
		}
		armed = append(armed, Bound{Spec: spec, ID: id, At: requests[i].At})
	}
	return armed, nil
}

// elsewhere says whether a probe is not on an instruction of the kernel or a process.
func elsewhere(spec detectors.ProbeSpec) bool {
	loc, err := ParseLocation(spec.At)
	return spec.Source != nil || err == nil && loc.Image != ""
}

func (b *Binder) addOne(ctx context.Context, d detectors.Detector, spec detectors.ProbeSpec) ([]Bound, error) {
	if !elsewhere(spec) {
		return b.add(ctx, d, []detectors.ProbeSpec{spec})
	}
	add := b.addImage
	if spec.Source != nil {
		add = b.watch
	}
	one, err := add(ctx, d, spec)
	if err != nil {
		return nil, err
	}
	return []Bound{one}, nil
}

// placeOf is where a probe is to be, if one can be there.
func placeOf(spec detectors.ProbeSpec) (Location, error) {
	loc, err := ParseLocation(spec.At)
	if err == nil && spec.PID != 0 {
		err = loc.InProcess()
	}
	if err == nil && spec.Return {
		err = loc.MayReturn()
	}
	return loc, err
}

// request is a probe's, but for its address.
func (b *Binder) request(d detectors.Detector, spec detectors.ProbeSpec, loc Location) (probe.Request, error) {
	r := probe.Request{Name: spec.Name, Space: b.kernel.Space, Follow: spec.PID != 0}
	h := &hit{kernel: b.kernel}
	var err error
	if h.fields, err = fieldsOf(b.kernel.Profile, spec.Fields); err != nil {
		return r, err
	}
	h.read = h.readKernel
	sig, err := SignatureAt(b.kernel.Profile, loc, spec.Image)
	if err != nil {
		return r, err
	}
	h.args = sig.Args
	h.call = loc.Callee != ""
	h.entry = spec.Return || loc.Entry()
	r.Decide = b.decide(d, spec, h)
	r.Gap = func(g probe.Gap) { b.sink.Emit(b.gap(d, spec, &g)) }
	if spec.Return {
		r.Return, r.Thread = true, b.thread
	}
	r.Budget = b.budget(&spec)
	return r, nil
}

// resolve finds the address; in a module it comes later.
func (b *Binder) resolve(r *probe.Request, spec detectors.ProbeSpec, loc Location) (err error) {
	if spec.PID != 0 {
		if r.Space, err = b.process(spec.PID); err != nil {
			return err
		}
	}
	if loc.Module == "" {
		r.At, err = loc.resolve(b.kernel)
	}
	return err
}

// unarmed is the finding that a module has come, and a probe is not in it.
func (b *Binder) unarmed(d detectors.Detector, spec detectors.ProbeSpec, why error) *detectors.Finding {
	return &detectors.Finding{
		Time: time.Now(), Domain: b.domain.Name, DomainID: b.domain.ID, Detector: d.Name(), Probe: spec.At,
		Severity: detectors.Medium, Message: fmt.Sprintf("the module is loaded, and the probe is not armed in it: %v", why),
	}
}

// trouble is a finding of no detector.
func (b *Binder) trouble(err error) {
	b.sink.Emit(&detectors.Finding{Time: time.Now(), Domain: b.domain.Name, DomainID: b.domain.ID, Detector: "hprobe", Severity: detectors.Medium, Message: err.Error()})
}

// process finds the address space of a process.
func (b *Binder) process(pid uint32) (xenevents.AddressSpace, error) {
	p, err := b.kernel.Process(pid)
	if err != nil {
		return xenevents.AddressSpace{}, err
	}
	if p.Space.Mode == xenevents.PagingNone {
		return xenevents.AddressSpace{}, fmt.Errorf("process %d (%q) is a thread of the kernel: it has no memory of its own", pid, p.Comm)
	}
	return p.Space, nil
}

// thread says who runs.
func (b *Binder) thread(h *probe.Hit) (uint64, bool) {
	id, err := b.kernel.CurrentThread(h.Regs, h.ReadUint64)
	return uint64(id), err == nil
}

// gap is the finding that a probe sees nothing for a while, or does again.
func (b *Binder) gap(d detectors.Detector, spec detectors.ProbeSpec, g *probe.Gap) *detectors.Finding {
	f := &detectors.Finding{Time: time.Now(), Domain: b.domain.Name, DomainID: b.domain.ID, Detector: d.Name(), Probe: spec.At}
	if g.Over {
		f.Message = "the probe is armed again: what happened meanwhile was not seen"
		f.Facts = []detectors.Fact{{Name: "ticks", Value: g.Ticks}}
		return f
	}
	f.Severity, f.Message = detectors.Medium, "the probe is suspended, and sees nothing for a while: "+g.Why
	return f
}

// decide turns the engine's hit into the detector's, and its outcome into a
// verdict. h is used again for each hit: all come on one goroutine.
func (b *Binder) decide(d detectors.Detector, spec detectors.ProbeSpec, h *hit) func(*probe.Hit) probe.Verdict {
	if spec.Handle == nil {
		return nil
	}
	return func(raw *probe.Hit) probe.Verdict {
		h.Hit = raw
		h.running = h.kernel.Running(raw.Regs, h.read)
		out := spec.Handle(h)
		var denied error
		if out.Verdict.Deny {
			denied = h.CanDeny()
		}
		if f := out.Finding; f != nil {
			f.Blocked = out.Verdict.Deny && (denied == nil || errors.Is(denied, detectors.ErrDenied))
			f.Time, f.Domain, f.DomainID = time.Now(), b.domain.Name, b.domain.ID
			f.Detector, f.Probe, f.VCPU = d.Name(), spec.At, raw.VCPU
			if p, ok := h.Process(); ok {
				f.Process = &p
			}
			b.sink.Emit(f)
		}
		v := probe.Verdict{Pause: out.Verdict.Pause}
		switch {
		case out.Verdict.Deny && denied == nil:
			v.Action, v.Return = probe.Deny, uint64(out.Verdict.Return)
			if h.call {
				v.Action = probe.Skip
			}
		case out.Verdict.Registers != nil:
			v.Action, v.Regs = probe.SetRegs, out.Verdict.Registers
		}
		return v
	}
}

// hit is a detectors.Hit.
type hit struct {
	*probe.Hit
	kernel  *guestos.Kernel
	args    []guestos.Arg
	entry   bool // it is at a function's first instruction
	call    bool // it is at a call of a function
	fields  []uint64
	running guestos.Running
	read    guestos.Reader // readKernel, made once
}

// readKernel reads the kernel's memory. With KPTI user code does not map it.
func (h *hit) readKernel(p []byte, at xenevents.GVA) (int, error) {
	if h.Regs.CPL() != 0 || h.Hit.Seen != nil { // which may be in the kernel's entry, or of CR3 itself
		return h.kernel.Read(p, at)
	}
	return h.Hit.Read(p, at)
}

func (h *hit) Seq() uint64                     { return h.Hit.Seq }
func (h *hit) VCPU() xenevents.VCPU            { return h.Hit.VCPU }
func (h *hit) Registers() *xenevents.Registers { return h.Regs }

func (h *hit) Return() (detectors.Return, bool) {
	if !h.Hit.Return {
		return detectors.Return{}, false
	}
	return detectors.Return{Value: h.Regs.RAX, Ticks: h.Took}, true
}

func (h *hit) Arg(n int) (uint64, error) {
	if h.Hit.Return {
		return 0, errors.New("the call is over: its arguments were seen at its entry")
	}
	if n < 0 || n >= len(h.args) {
		return 0, fmt.Errorf("there is no argument %d here", n)
	}
	return h.args[n].Read(h.Regs, h.ReadUint64)
}

func (h *hit) Field(n int) uint64 { return h.fields[n] }

func (h *hit) Args() []detectors.Arg {
	if h.Hit.Return {
		return nil
	}
	all := make([]detectors.Arg, len(h.args))
	for i := range h.args {
		a := &h.args[i]
		all[i] = detectors.Arg{Name: a.Name, Type: a.Type.String()}
		all[i].Value, all[i].Err = h.Arg(i)
	}
	return all
}

func (h *hit) CanDeny() error {
	can := h.Hit.CanDeny
	if h.call {
		can = h.Hit.CanSkip
	}
	err := can()
	if errors.Is(err, probe.ErrDenied) {
		return detectors.ErrDenied
	}
	return err
}

func (h *hit) Process() (detectors.Process, bool) {
	t, err := h.kernel.CurrentTask(h.Regs, h.read)
	if err != nil {
		return detectors.Process{}, false
	}
	p := detectors.Process{PID: t.TGID, TID: t.PID, Comm: t.Comm}
	r := h.kernel.Running(h.Regs, h.read)
	if uid, err := r.UID(); err == nil {
		p.UID = &uid
	}
	if at, err := r.StartTime(); err == nil {
		p.Started = &at
	}
	return p, true
}

func (h *hit) Stack(kernel, user bool) (s detectors.Stack) {
	k, r := h.kernel, h.Regs
	from := guestos.UserFrame{IP: xenevents.GVA(r.RIP), SP: xenevents.GVA(r.RSP), BP: xenevents.GVA(r.RBP), BPKnown: true}
	inUser := r.CPL() != 0
	if !inUser {
		stack := k.UnwindKernel(r)
		s.Err = stack.Err
		for _, f := range stack.Frames {
			if kernel {
				s.Kernel = append(s.Kernel, detectors.Frame{At: f.At, Text: k.FrameText(f)})
			}
		}
		if stack.User == nil {
			return s
		}
		from = *stack.User
	}
	if !user {
		return s
	}
	o, err := k.RunningOwner(r)
	if err != nil {
		s.Err = errors.Join(s.Err, err)
		return s
	}
	for _, f := range k.UnwindUser(h.Space, o.Memory, from, inUser && h.entry && !h.Hit.Return) {
		s.User = append(s.User, detectors.Frame{At: f.At, Text: k.UserFrameText(o.Memory, f)})
	}
	return s
}

func (h *hit) Running() detectors.Running { return &h.running }

func (h *hit) Write(p []byte, at xenevents.GVA) error {
	if len(p) > detectors.MaxWrite {
		return fmt.Errorf("%d bytes: more than the %d that a hit may write", len(p), detectors.MaxWrite)
	}
	return h.Hit.Write(p, at)
}
