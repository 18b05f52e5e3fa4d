package probe_test

import (
	"context"
	"errors"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// TestDetachWhileEventsCome: the probe's first hit ends the engine, and the same
// reply lets the vCPU run into the next event, which must be answered as well.
func TestDetachWhileEventsCome(t *testing.T) {
	read := make([]byte, 1)
	for _, c := range []struct {
		name string
		step probe.StepOver
		next []sim.Step
	}{
		{"nothing", probe.Emulate, nil},
		{"a hit", probe.Emulate, sim.Repeat(50, sim.Call(sum, 1, 2))},
		{"a hit after a fast step", probe.FastStep, sim.Repeat(50, sim.Call(sum, 1, 2))},
		{"the end of a step", probe.SingleStep, sim.Repeat(50, sim.Call(sum, 1, 2))},
		{"an int3 of the guest's", probe.Emulate, []sim.Step{sim.Call(own)}},
		{"the same with a prefix", probe.Emulate, []sim.Step{sim.Call(ownToo)}},
		{"a prefix before a probe", probe.Emulate, []sim.Step{sim.Call(nops)}},
		{"a read", probe.Emulate, []sim.Step{sim.Read(sum, read)}},
		{"a write", probe.Emulate, []sim.Step{sim.Write(free, 1)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, sim.Config{VCPUs: 2})
			var hits, others int
			_, err := r.try(sum, c.step, func(*probe.Hit) probe.Verdict {
				hits++
				r.cancel()
				return probe.Verdict{}
			})
			r.must(err)
			r.add(nops+1, counted(&others))
			r.cpu(0).Run(append([]sim.Step{sim.Call(sum, 1, 2)}, c.next...)...)
			r.wait(r.ended)
			if r.err != nil {
				t.Error(r.err)
			}
			if l := append(r.guest.Leaks(), r.guest.Accidents()...); l != nil {
				t.Errorf("left behind: %q", l)
			}
			r.done(0)
			r.run(1, sim.Call(sum, 5, 6), sim.Call(own))
			if hits != 1 || r.log.has("busy") {
				t.Errorf("%d hits", hits)
			}
			if want := map[bool]int{true: 1}[c.step == probe.SingleStep]; r.dom.steps != want {
				t.Errorf("%d steps", r.dom.steps)
			}
		})
	}
}

// TestDetachInAStorm: events without end keep no engine from ending.
func TestDetachInAStorm(t *testing.T) {
	const vcpus, enough = 9, 100
	r := newRig(t, sim.Config{VCPUs: vcpus})
	var hits int
	r.add(sum, func(*probe.Hit) probe.Verdict {
		if hits++; hits == enough {
			r.cancel()
		}
		return probe.Verdict{}
	})
	r.between(func() {
		for i := range vcpus {
			r.cpu(i).Run(sim.Repeat(enough, sim.Call(sum, uint64(i), 1))...)
		}
	})
	r.wait(r.ended)
	if hits >= enough+8 { // what a batch holds
		t.Errorf("%d hits", hits)
	}
	for i := range vcpus {
		r.done(i)
		if got := r.cpu(i).Registers().RAX; got != uint64(i)+1 {
			t.Errorf("vCPU %d returned %d", i, got)
		}
	}
}

// TestDetachWithAVerdict: what was decided last is carried out.
func TestDetachWithAVerdict(t *testing.T) {
	r := newRig(t, sim.Config{})
	r.add(store, func(*probe.Hit) probe.Verdict {
		r.cancel()
		return probe.Verdict{Action: probe.Deny, Return: 9}
	})
	r.cpu(0).Run(sim.Call(store, uint64(dataAt), 5))
	r.wait(r.ended)
	r.done(0)
	if got := r.cpu(0).Registers().RAX; got != 9 || r.peek(dataAt, 1)[0] != 0 {
		t.Errorf("it returned %d", got)
	}
}

// TestDetachWaitsForTheVCPU: one that is scheduled only later, in the middle of
// what a reply asks for.
func TestDetachWaitsForTheVCPU(t *testing.T) {
	for _, step := range []probe.StepOver{probe.Emulate, probe.FastStep, probe.SingleStep} {
		for _, deny := range []bool{false, true} {
			r := newRig(t, sim.Config{})
			var v probe.Verdict
			if deny {
				v = probe.Verdict{Action: probe.Deny, Return: 3}
			}
			_, err := r.try(sum, step, func(*probe.Hit) probe.Verdict {
				r.cpu(0).Hold()
				r.cancel()
				return v
			})
			r.must(err)
			patience := 3
			if step == probe.FastStep && !deny { // which may be left to run in view 0
				patience = 1
			}
			r.between(func() {
				r.dom.left = func(e *sim.Events) {
					switch patience--; {
					case patience == 0:
						r.cpu(0).Release()
					case patience == 1:
						e.Interrupt() // as a command that comes too late does
					}
				}
			})
			r.cpu(0).Run(sim.Repeat(20, sim.Call(sum, 1, 2))...)
			r.wait(r.ended)
			if l := append(r.guest.Leaks(), r.guest.Accidents()...); l != nil || r.log.has("busy") {
				t.Errorf("%v, deny %v: left behind: %q", step, deny, l)
			}
			r.done(0)
			if got := r.cpu(0).Registers().RAX; got != 3 {
				t.Errorf("%v, deny %v: it returned %d", step, deny, got)
			}
		}
	}
}

// TestAttachAgain: the domain can be watched by the next engine.
func TestAttachAgain(t *testing.T) {
	r := newRig(t, sim.Config{})
	for n := range 3 {
		var hits int
		r.add(sum, counted(&hits))
		if got := r.call(sum, 1, uint64(n)); got != uint64(n)+1 || hits != 1 {
			t.Errorf("it returned %d, %d hits", got, hits)
		}
		r.end()
		r.must(r.err)
		var err error
		r.engine, err = probe.New(r.dom, probe.Options{})
		r.must(err)
		r.ended = make(chan struct{})
		r.start()
	}
}

func TestCommandsWithoutAnEngine(t *testing.T) {
	r := newGuest(t, sim.Config{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	commands := func(want error) {
		t.Helper()
		if _, err := r.engine.Add(ctx, probe.Request{}); !errors.Is(err, want) {
			t.Errorf("Add: %v", err)
		}
		if err := r.engine.Remove(ctx, 1); !errors.Is(err, want) {
			t.Errorf("Remove: %v", err)
		}
		if _, _, err := r.engine.Probes(ctx); !errors.Is(err, want) {
			t.Errorf("Probes: %v", err)
		}
		if err := r.engine.Do(ctx, nil); !errors.Is(err, want) {
			t.Errorf("Do: %v", err)
		}
	}
	commands(context.Canceled) // it never ran
	r.start()
	r.end()
	ctx = context.Background()
	commands(xenevents.ErrClosed)
}

// TestAttachFails: nothing is left then either, and commands do not wait.
func TestAttachFails(t *testing.T) {
	for _, c := range []struct {
		name   string
		config sim.Config
		want   error
	}{
		{"no views", sim.Config{NoViews: true}, errors.ErrUnsupported},
		{"no int3 events", sim.Config{Without: []xenevents.Kind{xenevents.KindInt3}}, errors.ErrUnsupported},
	} {
		r := newGuest(t, c.config)
		if err := r.engine.Run(context.Background()); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if l := r.guest.Leaks(); l != nil {
			t.Errorf("%s: left behind: %q", c.name, l)
		}
		if _, err := r.try(sum, probe.Auto, nil); !errors.Is(err, xenevents.ErrClosed) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	r := newGuest(t, sim.Config{})
	ring, err := r.dom.Domain.Attach(context.Background())
	r.must(err)
	if err := r.engine.Run(context.Background()); !errors.Is(err, xenevents.ErrMonitored) {
		t.Errorf("monitored: %v", err)
	}
	r.must(ring.Close())
	r = newGuest(t, sim.Config{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.engine.Run(ctx); !errors.Is(err, context.Canceled) || r.guest.Leaks() != nil {
		t.Errorf("too late: %v, %q", err, r.guest.Leaks())
	}
}

// TestDriverWithoutViews: a driver that can only look.
func TestDriverWithoutViews(t *testing.T) {
	r := newGuest(t, sim.Config{})
	if _, err := probe.New(struct{ xenevents.Domain }{r.dom}, probe.Options{}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}
