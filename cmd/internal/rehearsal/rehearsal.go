// Package rehearsal tries policies without hprobed: in a guest that is recorded meanwhile,
// and on what was recorded. It compares what they find with what they should find.
package rehearsal

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// session is policies that are armed in a guest.
type session struct {
	engine    *probe.Engine
	detectors []*policy.Detector
	needless  []string // of policies that hprobed would not arm there, why
	ended     <-chan struct{}
}

// watch has an engine serve dom with policies while do runs, and take them out then.
// each makes of every policy's detector the one that is armed.
func watch(ctx context.Context, dom xenevents.Domain, profile *isf.Profile, all []*policy.Policy, sink detectors.Sink, o probe.Options, each func(*policy.Detector) detectors.Detector, do func(*session) error) error {
	info, err := dom.Info(ctx)
	if err != nil {
		return err
	}
	kernel, err := guestos.FindKernel(dom, int(info.MaxVCPU)+1, profile)
	if err != nil {
		return err
	}
	engine, err := probe.New(dom, o)
	if err != nil {
		return err
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx)) // what is armed is taken out before
	defer stop()
	ended := make(chan struct{})
	var runErr error
	go func() {
		defer close(ended)
		runErr = engine.Run(run)
	}()
	select {
	case <-engine.Ready():
	case <-ended:
		return runErr
	}
	s := &session{engine: engine, ended: ended}
	if err = s.arm(ctx, binder.New(engine, kernel, info, sink), kernel, all, each); err == nil {
		err = do(s)
	}
	stop()
	<-ended
	return errors.Join(err, runErr)
}

// arm compiles the policies and arms their probes.
func (s *session) arm(ctx context.Context, b *binder.Binder, kernel *guestos.Kernel, all []*policy.Policy, each func(*policy.Detector) detectors.Detector) error {
	target := policy.Target{Kernel: kernel, Do: func(f func() error) error {
		return s.engine.Do(ctx, func(xenevents.Domain) error { return f() })
	}}
	for _, p := range all {
		d, err := p.Compile(target)
		if needless := (*policy.NotNeededError)(nil); errors.As(err, &needless) {
			s.needless = append(s.needless, needless.Error())
			regardless := target
			regardless.Regardless = true
			d, err = p.Compile(regardless)
		}
		if err != nil {
			return err
		}
		if _, err := b.Bind(ctx, each(d)); err != nil {
			return fmt.Errorf("policy %s: %w", p.Name(), err)
		}
		s.detectors = append(s.detectors, d)
	}
	return nil
}

// atReturn marks the place of a probe that sees calls end, too.
const atReturn = " (with returns)"

// places are what the policies have probes at, in a form that can be compared.
func (s *session) places() (all []string, err error) {
	for _, d := range s.detectors {
		for _, spec := range d.Probes() {
			at := spec.At
			if spec.Source != nil {
				source, err := binder.ParseSource(spec.Source)
				if err != nil {
					return nil, err
				}
				at = source.Text
			}
			if spec.Return {
				at += atReturn
			}
			if !slices.Contains(all, at) {
				all = append(all, at)
			}
		}
	}
	return all, nil
}
