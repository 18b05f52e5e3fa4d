package probe_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// slow is a probe whose verdicts come from elsewhere.
type slow struct {
	limit     time.Duration
	otherwise probe.Verdict
	asked     chan *probe.Later // one for each hit
}

func (s *slow) decide(h *probe.Hit) probe.Verdict {
	l := h.Later(s.limit, s.otherwise)
	s.asked <- l
	return probe.Verdict{Later: l}
}

func newSlow(limit time.Duration) *slow {
	return &slow{limit: limit, asked: make(chan *probe.Later, 1000)}
}

func (s *slow) next(r *rig) *probe.Later {
	r.t.Helper()
	select {
	case l := <-s.asked:
		return l
	case <-time.After(late):
		r.t.Fatal("no hit")
		return nil
	}
}

// TestLater: a vCPU waits for its verdict while another one has hits of the same
// probe and of others, and theirs are answered first.
func TestLater(t *testing.T) {
	for _, c := range []struct {
		name    string
		verdict func(r *rig) probe.Verdict
		stored  byte
		rax     uint64
	}{
		{"continue", func(*rig) probe.Verdict { return probe.Verdict{} }, 5, 5},
		{"deny", func(*rig) probe.Verdict { return probe.Verdict{Action: probe.Deny, Return: 77} }, 0, 77},
		{"set", func(r *rig) probe.Verdict {
			regs := r.cpu(0).Registers()
			regs.RSI = 9
			return probe.Verdict{Action: probe.SetRegs, Regs: &regs}
		}, 9, 9},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, sim.Config{VCPUs: 2})
			s := newSlow(time.Hour)
			id := r.add(store, s.decide)
			other := r.add(sum, nil)
			r.cpu(0).Run(sim.Call(store, uint64(dataAt), 5))
			first := s.next(r)
			r.run(1, sim.Repeat(20, sim.Call(sum, 1, 2))...)
			r.cpu(1).Run(sim.Call(store, uint64(dataAt)+8, 6))
			r.must(s.next(r).Decide(t.Context(), probe.Verdict{}))
			r.done(1)
			if st := r.stats(); st.Waiting != 1 || !r.cpu(0).Waiting() || r.peek(dataAt, 1)[0] != 0 {
				t.Errorf("it does not wait: %+v", st)
			}
			r.must(first.Decide(t.Context(), c.verdict(r)))
			r.done(0)
			if got, rax := r.peek(dataAt, 1)[0], r.cpu(0).Registers().RAX; got != c.stored || rax != c.rax {
				t.Errorf("it stored %d and returned %d", got, rax)
			}
			if err := first.Decide(t.Context(), probe.Verdict{}); !errors.Is(err, probe.ErrTooLate) {
				t.Errorf("a second verdict: %v", err)
			}
			if st := r.stats(); st.Waiting != 0 || st.TooLate != 0 || r.status(id).Hits != 2 || r.status(other).Hits != 20 {
				t.Errorf("%+v, %+v", st, r.status(id))
			}
		})
	}
}

// TestTooLate: without a verdict in time the other one counts.
func TestTooLate(t *testing.T) {
	r := newRig(t, sim.Config{})
	s := newSlow(time.Millisecond)
	s.otherwise = probe.Verdict{Action: probe.Deny, Return: 55}
	id := r.add(store, s.decide)
	if got := r.call(store, uint64(dataAt), 5); got != 55 || r.peek(dataAt, 1)[0] != 0 {
		t.Errorf("it returned %d", got)
	}
	if err := s.next(r).Decide(t.Context(), probe.Verdict{}); !errors.Is(err, probe.ErrTooLate) {
		t.Error(err)
	}
	if st := r.stats(); st.TooLate != 1 || r.status(id).Changed != 1 {
		t.Errorf("%+v, %+v", st, r.status(id))
	}
}

// TestLaterInOrder: those who asked for the probe later are asked when the verdict is
// there, and may take their time as well; the first verdict counts.
func TestLaterInOrder(t *testing.T) {
	r := newRig(t, sim.Config{})
	first, second := newSlow(time.Hour), newSlow(time.Hour)
	var third int
	var can error
	r.add(store, first.decide)
	r.add(store, second.decide)
	r.add(store, func(h *probe.Hit) probe.Verdict {
		third++
		can = h.CanDeny()
		return probe.Verdict{Action: probe.Deny, Return: 3}
	})
	r.cpu(0).Run(sim.Call(store, uint64(dataAt), 5))
	l := first.next(r)
	if len(second.asked) != 0 {
		t.Error("the second was asked at once")
	}
	r.must(l.Decide(t.Context(), probe.Verdict{}))
	l = second.next(r)
	if third != 0 {
		t.Error("the third was asked at once")
	}
	r.must(l.Decide(t.Context(), probe.Verdict{Action: probe.Deny, Return: 2}))
	r.done(0)
	if got := r.cpu(0).Registers().RAX; got != 2 || third != 1 || !errors.Is(can, probe.ErrDenied) {
		t.Errorf("it returned %d; the third was asked %d times: %v", got, third, can)
	}
}

// TestLaterGoes: what a vCPU waits for goes: its probe, the engine, or the instruction
// under it. It runs on, and runs what is there now.
func TestLaterGoes(t *testing.T) {
	t.Run("probe", func(t *testing.T) {
		r := newRig(t, sim.Config{})
		s := newSlow(time.Hour)
		id := r.add(store, s.decide)
		r.cpu(0).Run(sim.Call(store, uint64(dataAt), 5))
		l := s.next(r)
		r.remove(id)
		r.done(0)
		if got := r.peek(dataAt, 1)[0]; got != 5 {
			t.Errorf("it stored %d", got)
		}
		if err := l.Decide(t.Context(), probe.Verdict{}); !errors.Is(err, probe.ErrTooLate) {
			t.Error(err)
		}
	})
	t.Run("engine", func(t *testing.T) {
		r := newRig(t, sim.Config{})
		s := newSlow(time.Hour)
		r.add(store, s.decide)
		r.cpu(0).Run(sim.Call(store, uint64(dataAt), 5))
		l := s.next(r)
		r.end()
		r.done(0)
		if got := r.peek(dataAt, 1)[0]; got != 5 {
			t.Errorf("it stored %d", got)
		}
		if err := l.Decide(context.Background(), probe.Verdict{}); !errors.Is(err, probe.ErrTooLate) {
			t.Error(err)
		}
	})
	t.Run("instruction", func(t *testing.T) {
		r := newRig(t, sim.Config{VCPUs: 2})
		s := newSlow(time.Hour)
		r.add(sum, s.decide) // whose endbr64 is emulated
		r.cpu(0).Run(sim.Call(sum, uint64(dataAt), 5))
		l := s.next(r)
		r.run(1, sim.Write(sum, 0x48, 0x89, 0x37, 0x90)) // mov [rdi],rsi; nop
		r.must(l.Decide(t.Context(), probe.Verdict{}))
		r.done(0)
		if got := r.peek(dataAt, 1)[0]; got != 5 {
			t.Errorf("it ran what was there before: %d", got)
		}
	})
}

// TestManyLater: more vCPUs wait than Xen's ring has room for: the longest wait ends.
func TestManyLater(t *testing.T) {
	const vcpus = 12
	r := newRig(t, sim.Config{VCPUs: vcpus})
	s := newSlow(time.Hour)
	s.otherwise = probe.Verdict{Action: probe.Deny, Return: 55}
	r.add(store, s.decide)
	var asked []*probe.Later
	for i := range vcpus {
		r.cpu(i).Run(sim.Call(store, uint64(dataAt)+uint64(i), 5))
		asked = append(asked, s.next(r))
	}
	for i, l := range asked {
		err := l.Decide(t.Context(), probe.Verdict{})
		if early := i < vcpus-probe.MaxLater; early != errors.Is(err, probe.ErrTooLate) {
			t.Errorf("vCPU %d: %v", i, err)
		}
		r.done(i)
		if rax := r.cpu(i).Registers().RAX; rax != 55 && i < vcpus-probe.MaxLater || rax != 5 && i >= vcpus-probe.MaxLater {
			t.Errorf("vCPU %d: it returned %d", i, rax)
		}
	}
	if st := r.stats(); st.TooLate != vcpus-probe.MaxLater || st.Waiting != 0 {
		t.Errorf("%+v", st)
	}
}

// TestLaterReturns: the end of a call whose entry waited is seen.
func TestLaterReturns(t *testing.T) {
	r := newCalls(t, sim.Config{})
	s := newSlow(time.Hour)
	over := 0
	id := r.request(probe.Request{Name: "sum", At: sum, Return: true, Decide: func(h *probe.Hit) probe.Verdict {
		if h.Return {
			over++
			return probe.Verdict{}
		}
		return s.decide(h)
	}})
	r.cpu(0).Run(sim.Call(caller, 1, 2))
	r.must(s.next(r).Decide(t.Context(), probe.Verdict{}))
	r.done(0)
	if st := r.status(id); over != 1 || st.Hits != 1 || st.Returns != 1 || st.Lost != 0 {
		t.Errorf("%d, %+v", over, st)
	}
}
