// Package binder makes probes of what detectors ask for: it resolves symbolic
// locations through the guest's profile, hands decoded hits to the detectors'
// handlers, and passes on what they find.
package binder

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
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
}

// New makes a binder for a domain that engine serves and kernel describes.
func New(engine *probe.Engine, kernel *guestos.Kernel, domain xenevents.DomainInfo, sink detectors.Sink) *Binder {
	return &Binder{engine: engine, kernel: kernel, domain: domain, sink: sink}
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
	At   xenevents.GVA
}

// Bind arms all probes of a detector, or none: what it armed it takes back
// where one can't be.
func (b *Binder) Bind(ctx context.Context, d detectors.Detector) (*Binding, error) {
	bound := &Binding{Detector: d}
	for _, spec := range d.Probes() {
		one, err := b.add(ctx, d, spec)
		if err != nil {
			return nil, errors.Join(err, b.Unbind(context.WithoutCancel(ctx), bound))
		}
		bound.Probes = append(bound.Probes, one)
	}
	return bound, nil
}

// Unbind takes all probes of a binding out.
func (b *Binder) Unbind(ctx context.Context, bound *Binding) error {
	var errs []error
	for _, p := range bound.Probes {
		errs = append(errs, b.engine.Remove(ctx, p.ID))
	}
	return errors.Join(errs...)
}

func (b *Binder) add(ctx context.Context, d detectors.Detector, spec detectors.ProbeSpec) (Bound, error) {
	loc, err := ParseLocation(spec.At)
	if err != nil {
		return Bound{}, err
	}
	if spec.PID != 0 && loc.Symbol != "" {
		return Bound{}, fmt.Errorf("a probe in a process is at an address like 0x401000: %q is the kernel's", spec.At)
	}
	r := probe.Request{Name: spec.Name, Space: b.kernel.Space, Follow: spec.PID != 0}
	// Guest memory belongs to the engine's goroutine.
	err = b.engine.Do(ctx, func(xenevents.Domain) error {
		if spec.PID != 0 {
			if r.Space, err = b.process(spec.PID); err != nil {
				return err
			}
		}
		r.At, err = loc.resolve(b.kernel)
		return err
	})
	if err != nil {
		return Bound{}, err
	}
	h := &hit{kernel: b.kernel}
	if loc.Offset == 0 {
		h.args = argsOf(b.kernel, loc.Symbol)
	}
	r.Decide = b.decide(d, spec, h)
	id, err := b.engine.Add(ctx, r)
	return Bound{Spec: spec, ID: id, At: r.At}, err
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

// decide turns the engine's hit into the detector's, and its outcome into a
// verdict. h is used again for each hit: all come on one goroutine.
func (b *Binder) decide(d detectors.Detector, spec detectors.ProbeSpec, h *hit) func(*probe.Hit) probe.Verdict {
	if spec.Handle == nil {
		return nil
	}
	return func(raw *probe.Hit) probe.Verdict {
		h.Hit = raw
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
		if out.Verdict.Deny && denied == nil {
			return probe.Verdict{Action: probe.Deny, Return: uint64(out.Verdict.Return)}
		}
		return probe.Verdict{}
	}
}

// argsOf returns what is known of a function's arguments. Of one whose
// prototype is not in the profile the first six registers are taken, untyped.
func argsOf(k *guestos.Kernel, function string) []guestos.Arg {
	args, err := guestos.Args(k.Profile, function)
	if errors.Is(err, guestos.ErrNoPrototype) {
		return guestos.UntypedArgs()
	}
	if err != nil {
		return nil
	}
	return args
}

// hit is a detectors.Hit.
type hit struct {
	*probe.Hit
	kernel *guestos.Kernel
	args   []guestos.Arg
}

func (h *hit) Seq() uint64                     { return h.Hit.Seq }
func (h *hit) VCPU() xenevents.VCPU            { return h.Hit.VCPU }
func (h *hit) Registers() *xenevents.Registers { return h.Regs }

func (h *hit) Arg(n int) (uint64, error) {
	if n < 0 || n >= len(h.args) {
		return 0, fmt.Errorf("there is no argument %d here", n)
	}
	return h.args[n].Read(h.Regs, h.ReadUint64)
}

func (h *hit) Args() []detectors.Arg {
	all := make([]detectors.Arg, len(h.args))
	for i := range h.args {
		a := &h.args[i]
		all[i] = detectors.Arg{Name: a.Name, Type: a.Type.String()}
		all[i].Value, all[i].Err = h.Arg(i)
	}
	return all
}

func (h *hit) CanDeny() error {
	err := h.Hit.CanDeny()
	if errors.Is(err, probe.ErrDenied) {
		return detectors.ErrDenied
	}
	return err
}

func (h *hit) Process() (detectors.Process, bool) {
	read := h.Read
	if h.Regs.CPL() != 0 { // with KPTI user code does not map the kernel
		read = h.kernel.Read
	}
	t, err := h.kernel.CurrentTask(h.Regs, read)
	if err != nil {
		return detectors.Process{}, false
	}
	return detectors.Process{PID: t.TGID, TID: t.PID, Comm: t.Comm}, true
}
