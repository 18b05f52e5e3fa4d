package probe_test

import (
	"context"
	"errors"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// newMortal is a rig whose guest does not live to the test's end.
func newMortal(t *testing.T, vcpus int) *rig {
	t.Helper()
	r := newGuest(t, sim.Config{VCPUs: vcpus})
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	t.Cleanup(cancel)
	go func() {
		r.err = r.engine.Run(ctx)
		close(r.ended)
	}()
	select {
	case <-r.engine.Ready():
	case <-r.ended:
		t.Fatal(r.err)
	}
	return r
}

// destroyed: the engine ends, and says why.
func (r *rig) destroyed() {
	r.t.Helper()
	r.wait(r.ended)
	if !errors.Is(r.err, xenevents.ErrDomainGone) {
		r.t.Errorf("the engine ended with %v", r.err)
	}
	if r.log.has("busy") {
		r.t.Error("it waited for a vCPU that is gone")
	}
	if _, err := r.try(sum, probe.Auto, nil); !errors.Is(err, xenevents.ErrClosed) {
		r.t.Errorf("Add: %v", err)
	}
	r.must(r.dom.Close())
}

func TestDestroyed(t *testing.T) {
	r := newMortal(t, 1)
	r.add(sum, nil)
	r.call(sum, 1, 2)
	r.guest.Destroy()
	r.destroyed()
}

// TestDestroyedInAHit: the domain goes while a probe decides about it.
func TestDestroyedInAHit(t *testing.T) {
	for name, verdict := range map[string]probe.Verdict{"continue": {}, "deny": {Action: probe.Deny}} {
		for _, step := range []probe.StepOver{probe.Emulate, probe.FastStep, probe.SingleStep} {
			t.Run(name+", "+step.String(), func(t *testing.T) {
				r := newMortal(t, 1)
				_, err := r.try(sum, step, func(*probe.Hit) probe.Verdict {
					r.guest.Destroy()
					return verdict
				})
				r.must(err)
				r.cpu(0).Run(sim.Call(sum, 1, 2))
				r.destroyed()
				if err := r.finish(0); !errors.Is(err, xenevents.ErrDomainGone) {
					t.Error(err)
				}
			})
		}
	}
}

// TestDestroyedBeforeAnAnswer: what the answer to the next event needs fails in
// other ways than Next does.
func TestDestroyedBeforeAnAnswer(t *testing.T) {
	r := newMortal(t, 2)
	r.add(sum, func(*probe.Hit) probe.Verdict {
		r.guest.Destroy()
		return probe.Verdict{}
	})
	r.between(func() {
		r.cpu(0).Run(sim.Call(sum, 1, 2))
		r.cpu(1).Run(sim.Call(own))
	})
	r.destroyed()
}

// TestDestroyedInAStep: nobody waits for its end.
func TestDestroyedInAStep(t *testing.T) {
	r := newMortal(t, 1)
	_, err := r.try(sum, probe.SingleStep, nil)
	r.must(err)
	r.between(func() {
		r.cpu(0).Run(sim.Call(sum, 1, 2))
		r.cpu(0).Hold() // the step begins and does not end
		r.dom.flushed = r.guest.Destroy
	})
	r.destroyed()
}

// TestDestroyedBeforeReclaim: the pause fails.
func TestDestroyedBeforeReclaim(t *testing.T) {
	r := newMortal(t, 1)
	if err := r.queued(r.guest.Destroy, r.add(sum, nil)); !errors.Is(err, xenevents.ErrNoDomain) && !errors.Is(err, xenevents.ErrClosed) {
		t.Errorf("Remove: %v", err)
	}
	r.destroyed()
}

// TestDestroyedInDetach: the engine was told to end, and the domain is gone before
// it has.
func TestDestroyedInDetach(t *testing.T) {
	for _, step := range []probe.StepOver{probe.Emulate, probe.SingleStep} {
		r := newMortal(t, 1)
		_, err := r.try(sum, step, func(*probe.Hit) probe.Verdict {
			r.cpu(0).Hold()
			r.cancel()
			return probe.Verdict{}
		})
		r.must(err)
		r.between(func() { r.dom.flushed = r.guest.Destroy })
		r.cpu(0).Run(sim.Call(sum, 1, 2))
		r.destroyed()
	}
}
