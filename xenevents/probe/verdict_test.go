package probe_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// errno is what a function of the kernel returns.
func errno(n int64) uint64 { return uint64(-n) }

func TestDeny(t *testing.T) {
	r := newRig(t, sim.Config{})
	const eperm = 1
	deny := true
	id := r.add(store, func(h *probe.Hit) probe.Verdict {
		if !deny {
			return probe.Verdict{}
		}
		return probe.Verdict{Action: probe.Deny, Return: errno(eperm)}
	})
	before := r.cpu(0).Registers()
	got := r.call(store, uint64(dataAt), 5)
	after := r.cpu(0).Registers()
	if got != errno(eperm) || r.peek(dataAt, 1)[0] != 0 {
		t.Errorf("it returned %#x, and stored %d", got, r.peek(dataAt, 1)[0])
	}
	before.RAX, before.RDI, before.RSI = errno(eperm), uint64(dataAt), 5
	if after != before {
		t.Errorf("%+v\nwant %+v", after, before)
	}
	deny = false
	if got := r.call(store, uint64(dataAt), 6); got != 6 || r.peek(dataAt, 1)[0] != 6 {
		t.Errorf("it returned %#x, and stored %d", got, r.peek(dataAt, 1)[0])
	}
	if s := r.status(id); s.Hits != 2 || s.Changed != 1 || s.State != probe.Armed {
		t.Errorf("%+v", s)
	}
}

// TestSkip: a call is left out; what is none runs, and whoever asks is told.
func TestSkip(t *testing.T) {
	r := newRig(t, sim.Config{})
	const at = free
	r.poke(at, 0xe8, 0x4b, 0xff, 0xff, 0xff, 0xc3) // call store; ret
	skip := true
	var can error
	id := r.add(at, func(h *probe.Hit) probe.Verdict {
		if can = h.CanSkip(); !skip {
			return probe.Verdict{}
		}
		return probe.Verdict{Action: probe.Skip, Return: errno(14)}
	})
	if got := r.call(at, uint64(dataAt), 5); got != errno(14) || r.peek(dataAt, 1)[0] != 0 || can != nil {
		t.Errorf("it returned %#x, and stored %d; %v", got, r.peek(dataAt, 1)[0], can)
	}
	skip = false
	if got := r.call(at, uint64(dataAt), 6); got != 6 || r.peek(dataAt, 1)[0] != 6 {
		t.Errorf("it returned %#x, and stored %d", got, r.peek(dataAt, 1)[0])
	}
	if s := r.status(id); s.Hits != 2 || s.Changed != 1 {
		t.Errorf("%+v", s)
	}
	r.add(store, func(h *probe.Hit) probe.Verdict {
		can = h.CanSkip()
		return probe.Verdict{Action: probe.Skip, Return: 1}
	})
	if got := r.call(store, uint64(dataAt), 7); got != 7 || can == nil || !r.log.has("left out") {
		t.Errorf("it returned %#x; %v", got, can)
	}
}

// TestDenyWithoutAStack: there is nowhere to return to, so it runs.
func TestDenyWithoutAStack(t *testing.T) {
	r := newRig(t, sim.Config{})
	r.add(diff, func(*probe.Hit) probe.Verdict { return probe.Verdict{Action: probe.Deny, Return: 99} })
	r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RSP, regs.RDI = 0x1000, 5 })
	r.run(0, sim.Exec(diff))
	if regs := r.cpu(0).Registers(); regs.RAX != 5 || regs.RIP != uint64(diff)+3 || regs.RSP != 0x1000 {
		t.Errorf("%+v", regs)
	}
	if !r.log.has("return address") {
		t.Error("the log does not tell")
	}
}

func TestSetRegisters(t *testing.T) {
	for _, step := range []probe.StepOver{probe.Emulate, probe.FastStep, probe.SingleStep} {
		r := newRig(t, sim.Config{})
		_, err := r.try(diff, step, func(h *probe.Hit) probe.Verdict {
			regs := *h.Regs
			regs.RDI = 100
			return probe.Verdict{Action: probe.SetRegs, Regs: &regs}
		})
		r.must(err)
		// The instruction, which moves RDI, runs with the new one.
		for n := range uint64(2) {
			if got := r.call(diff, 1, n); got != 100-n {
				t.Errorf("%v: it returned %d", step, got)
			}
		}
		if r.cpu(0).View() == xenevents.HostView {
			t.Error("the vCPU stays in view 0")
		}
	}
}

// TestCanDeny: whoever asks is told what becomes of a denial.
func TestCanDeny(t *testing.T) {
	r := newRig(t, sim.Config{})
	var verdict probe.Verdict
	var before, after error
	r.add(sum, func(h *probe.Hit) probe.Verdict {
		before = h.CanDeny()
		if verdict.Action == probe.SetRegs {
			verdict.Regs = h.Regs
		}
		return verdict
	})
	r.add(sum, func(h *probe.Hit) probe.Verdict {
		after = h.CanDeny()
		return probe.Verdict{Action: probe.Deny, Return: 8}
	})
	if got := r.call(sum, 1, 2); got != 8 || before != nil || after != nil {
		t.Errorf("it returned %d; %v, %v", got, before, after)
	}
	verdict = probe.Verdict{Action: probe.Deny, Return: 9}
	if got := r.call(sum, 1, 2); got != 9 || before != nil || !errors.Is(after, probe.ErrDenied) {
		t.Errorf("it returned %d; %v, %v", got, before, after)
	}
	verdict = probe.Verdict{Action: probe.SetRegs}
	if got := r.call(sum, 1, 2); got != 3 || before != nil || after == nil || errors.Is(after, probe.ErrDenied) {
		t.Errorf("it returned %d; %v, %v", got, before, after)
	}
	r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RSP = 0x1000 })
	r.run(0, sim.Exec(sum))
	if before == nil || after == nil || errors.Is(after, probe.ErrDenied) {
		t.Errorf("without a stack: %v, %v", before, after)
	}
}

// TestReturnAddressIsReadOnce: what was promised is kept, whatever another vCPU
// does to the stack meanwhile.
func TestReturnAddressIsReadOnce(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 2})
	r.add(sum, func(h *probe.Hit) probe.Verdict {
		if err := h.CanDeny(); err != nil {
			panic(err)
		}
		r.cpu(1).Run(sim.Write(xenevents.GVA(h.Regs.RSP), 1, 2, 3, 4, 5, 6, 7, 8))
		return probe.Verdict{Action: probe.Deny, Return: 9}
	})
	if got := r.call(sum, 1, 2); got != 9 {
		t.Errorf("it returned %d", got)
	}
}

// TestSetRIP: the vCPU goes on there.
func TestSetRIP(t *testing.T) {
	r := newRig(t, sim.Config{})
	var there int
	r.add(diff, counted(&there))
	id := r.add(sum, func(h *probe.Hit) probe.Verdict {
		regs := *h.Regs
		regs.RIP = uint64(diff)
		return probe.Verdict{Action: probe.SetRegs, Regs: &regs}
	})
	if got := r.call(sum, 7, 2); got != 5 || there != 1 || r.status(id).Changed != 1 {
		t.Errorf("sum became %d, %d hits there; %+v", got, there, r.status(id))
	}
}

// TestBadVerdict: a detector's mistake is no harm to the guest, nor to the engine.
func TestBadVerdict(t *testing.T) {
	for name, decide := range map[string]func(*probe.Hit) probe.Verdict{
		"panic":        func(*probe.Hit) probe.Verdict { panic("the detector is broken") },
		"no action":    func(*probe.Hit) probe.Verdict { return probe.Verdict{Action: 77} },
		"no registers": func(*probe.Hit) probe.Verdict { return probe.Verdict{Action: probe.SetRegs} },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, sim.Config{})
			asked, others := 0, 0
			bad := r.add(sum, func(h *probe.Hit) probe.Verdict {
				asked++
				return decide(h)
			})
			good := r.add(sum, counted(&others))
			for range 3 {
				if got := r.call(sum, 1, 2); got != 3 {
					t.Errorf("it returned %d", got)
				}
			}
			s := r.status(bad)
			if asked != 1 || others != 3 || s.State != probe.Failed || s.Detail == "" || s.Hits != 3 {
				t.Errorf("asked %d times, another %d; %+v", asked, others, s)
			}
			if s := r.status(good); s.State != probe.Armed || s.Detail != "" {
				t.Errorf("%+v", s)
			}
			if !r.log.has("panicked") || name == "panic" && !r.log.has("verdict_test.go") {
				t.Error("the log does not tell where")
			}
			r.remove(bad)
		})
	}
}

// TestSlowDecide holds up its own vCPU, and others only where they have events.
func TestSlowDecide(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 3})
	inside, goOn := make(chan struct{}), make(chan struct{})
	id := r.add(sum, func(h *probe.Hit) probe.Verdict {
		if h.VCPU == 0 {
			close(inside)
			<-goOn
		}
		return probe.Verdict{}
	})
	r.cpu(0).Run(sim.Call(sum, 1, 2))
	r.wait(inside)
	r.run(1, sim.Call(diff, 5, 1))
	if got := r.cpu(1).Registers().RAX; got != 4 {
		t.Errorf("vCPU 1 returned %d", got)
	}
	r.cpu(2).Run(sim.Call(sum, 3, 4))
	if !r.cpu(0).Waiting() || !r.cpu(2).Waiting() {
		t.Error("a vCPU did not wait")
	}
	close(goOn)
	r.done(0)
	r.done(2)
	if a, b := r.cpu(0).Registers().RAX, r.cpu(2).Registers().RAX; a != 3 || b != 7 || r.status(id).Hits != 2 {
		t.Errorf("%d, %d; %+v", a, b, r.status(id))
	}
}

// TestHitSeesMemory: as the guest has it, without patches.
func TestHitSeesMemory(t *testing.T) {
	r := newRig(t, sim.Config{})
	got := make([]byte, len(code[sum]))
	r.add(sumPop, nil)
	r.add(sum, func(h *probe.Hit) probe.Verdict {
		if _, err := h.Read(got, sum); err != nil {
			panic(err)
		}
		return probe.Verdict{}
	})
	r.call(sum, 1, 2)
	if !bytes.Equal(got, code[sum]) {
		t.Errorf("% x", got)
	}
}
