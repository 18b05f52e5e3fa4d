package probe_test

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// TestReturnToAProbe: the place has a probe of its own, which comes after the
// return's, and may go while a call is under way.
func TestReturnToAProbe(t *testing.T) {
	r := newCalls(t, sim.Config{})
	var n notes
	there := r.request(probe.Request{At: caller + 5, Step: probe.SingleStep, Decide: n.decide("there")})
	id := r.returns(sum, "sum", &n)
	r.call(caller, 1, 2)
	n.are(t, "sum#1 sum#1=3 there#1")
	r.run(0, sim.Exec(caller+5))
	n.are(t, "there#2")
	r.enter(0, caller, 3, 4)
	r.remove(there)
	r.leave(0, caller+5)
	n.are(t, "sum#2 sum#2=7")
	r.over(id, 2, 2, 0)
	if s := r.status(id); s.Passed != 0 {
		t.Errorf("%+v", s)
	}
	// And the other way about: it comes where a return's was.
	there = r.request(probe.Request{At: caller + 5, Step: probe.FastStep, Decide: n.decide("there")})
	r.call(caller, 1, 2)
	n.are(t, "sum#3 sum#3=3 there#1")
	r.remove(id)
	r.call(caller, 1, 2)
	n.are(t, "there#2")
	if s := r.status(there); s.Step != probe.FastStep || r.stats().Shadows != 1 {
		t.Errorf("%+v", s)
	}
}

// TestReturnThatCannotBeSeen: the call runs on, and is counted.
func TestReturnThatCannotBeSeen(t *testing.T) {
	for name, to := range map[string]xenevents.GVA{
		"to nowhere":  0xffff_ffff_1000_0000,
		"no stack":    0,
		"to no call":  free + 32,
		"to user":     0x40_0005,
		"to an int3":  free + 5,
		"to the edge": codeAt,
	} {
		t.Run(name, func(t *testing.T) {
			r := newCalls(t, sim.Config{})
			var n notes
			r.poke(free, append(rel(0xe8, free, sum), 0xcc)...)
			r.space.Page(0x40_0000, append(rel(0xe8, 0, 0), 0x90)...)
			r.poke(stackAt+512, binary.LittleEndian.AppendUint64(nil, uint64(to))...)
			id := r.returns(sum, "sum", &n)
			for i := range uint64(3) {
				r.cpu(0).Set(func(regs *xenevents.Registers) {
					if regs.RSP = uint64(stackAt) + 512; to == 0 {
						regs.RSP = 0x1000
					}
				})
				r.run(0, sim.Exec(sum))
				r.over(id, i+1, 0, i+1)
			}
			if s := r.stats(); s.Sites != 0 || s.Shadows != 1 || !r.log.has("a return can't be seen") {
				t.Errorf("%+v", s)
			}
			// Others are.
			r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RSP = uint64(stackAt) + 512 })
			n.all = nil
			r.call(caller, 1, 2)
			n.are(t, "sum#4 sum#4=3")
		})
	}
}

// TestManyCalls: they are bounded, and so are the places that they return to. The
// oldest calls go, and places that no call needs.
func TestManyCalls(t *testing.T) {
	r := newGuest(t, sim.Config{})
	var err error
	r.engine, err = probe.New(r.dom, withLog(r, probe.Options{Calls: 3, Sites: 2}))
	r.must(err)
	r.start()
	r.pokeCalls()
	const third = free + 0x10
	r.poke(third, slices.Concat(rel(0xe8, third, sum), []byte{0x90, 0xc3})...)
	var n notes
	id := r.returns(sum, "sum", &n)
	before := r.cpu(0).Registers()
	for i := range uint64(4) { // each further down the stack
		r.enter(0, any, i, 0)
	}
	if s := r.stats(); s.Calls != 3 || s.Evicted != 1 || r.status(id).Lost != 1 {
		t.Errorf("%+v", s)
	}
	n.all = nil
	for i := range uint64(4) {
		r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RDI = 3 - i })
		r.leave(0, any+2)
	}
	n.are(t, "sum#4=3 sum#3=2 sum#2=1")
	r.over(id, 4, 3, 1)
	// Three places, of two that may be.
	r.cpu(0).Set(func(regs *xenevents.Registers) { *regs = before })
	for i := range uint64(3) {
		for _, from := range []xenevents.GVA{any, caller, third} {
			r.run(0, sim.Call(from, i, 1, uint64(sum)))
		}
	}
	r.over(id, 13, 12, 1)
	if s := r.stats(); s.Sites != 2 {
		t.Errorf("%+v", s)
	}
	// All are needed: the third is not seen, but will be when there is room.
	n.all = nil
	r.enter(0, any, 1, 1)
	r.enter(0, caller, 1, 1)
	r.enter(0, third, 1, 1)
	if s := r.stats(); s.Calls != 2 || !r.log.has("too many places") {
		t.Errorf("%+v", s)
	}
	r.leave(0, third+5)
	r.leave(0, caller+5)
	r.call(third, 1, 1)
	r.leave(0, any+2)
	n.are(t, "sum#14 sum#15 sum#16 sum#15=2 sum#17 sum#17=2 sum#14=2")
	r.over(id, 17, 15, 2)
	r.remove(id)
	r.reclaimed(0)
}

// TestReturnsWhileProbesComeAndGo: on three vCPUs, through three places. No value
// is wrong, no call is forgotten.
func TestReturnsWhileProbesComeAndGo(t *testing.T) {
	const vcpus, rounds, calls = 3, 30, 5
	r := newCalls(t, sim.Config{VCPUs: vcpus})
	var wrong string
	var entries, returns [vcpus]int
	value := func(regs *xenevents.Registers) uint64 { return regs.RDI + regs.RSI } // of sum, whose arguments stay
	always := r.request(probe.Request{At: sum, Return: true, Decide: func(h *probe.Hit) probe.Verdict {
		if !h.Return {
			entries[h.VCPU]++
		} else if returns[h.VCPU]++; h.Regs.RAX != value(h.Regs) {
			wrong = fmt.Sprintf("sum%v is %d", []uint64{h.Regs.RDI, h.Regs.RSI}, h.Regs.RAX)
		}
		return probe.Verdict{}
	}})
	stop, ended := make(chan struct{}), make(chan struct{})
	var made int
	go func() {
		defer close(ended)
		for n := uint64(0); ; n++ {
			select {
			case <-stop:
				return
			default:
			}
			made += calls
			for i := range vcpus {
				from := []xenevents.GVA{caller, any, viaJump}[(n+uint64(i))%3]
				r.cpu(i).Run(sim.Repeat(calls, sim.Call(from, n, uint64(i), uint64(sum)))...)
			}
			for i := range vcpus {
				if err := r.finish(i); err != nil {
					t.Error(err)
					return
				}
				if got := r.cpu(i).Registers().RAX; got != n+uint64(i) {
					t.Errorf("vCPU %d returned %d", i, got)
				}
			}
		}
	}()
	for n := range rounds {
		hit := make(chan struct{}, 1)
		id := r.request(probe.Request{At: []xenevents.GVA{sum, caller, caller + 5, jumps}[n%4], Return: n%4 != 2, Decide: func(h *probe.Hit) probe.Verdict {
			select {
			case hit <- struct{}{}:
			default:
			}
			return probe.Verdict{}
		}})
		r.wait(hit)
		r.remove(id)
	}
	close(stop)
	r.wait(ended)
	for i := range vcpus {
		if entries[i] != made || returns[i] != made {
			t.Errorf("vCPU %d: %d entries and %d returns of %d calls", i, entries[i], returns[i], made)
		}
	}
	if wrong != "" {
		t.Error(wrong)
	}
	r.over(always, uint64(vcpus*made), uint64(vcpus*made), 0)
	if s := r.stats(); s.StaleCalls+s.Evicted != 0 {
		t.Errorf("%+v", s)
	}
}

// TestSweep: a call whose stack is gone is dropped, one that only takes long not.
func TestSweep(t *testing.T) {
	const window = 800
	r, clock := newClocked(t, sim.Config{VCPUs: 3}, probe.Options{Window: window})
	var n notes
	id := r.returns(sum, "sum", &n)
	r.enter(0, caller, 1, 2)
	r.enter(1, caller, 3, 4)
	stack := r.gpa(stackAt).GFN()
	r.space.Unmap(stackAt)
	n.all = nil
	under := func(want int) {
		t.Helper()
		r.run(2, sim.Call(caller, 1, 1))
		if s := r.stats(); s.Calls != want {
			t.Errorf("%d calls are under way, not %d", s.Calls, want)
		}
	}
	under(2)
	clock.Add(window - 1)
	under(2)
	clock.Add(window)
	under(1)
	for range 5 {
		clock.Add(window)
		under(1)
	}
	r.space.Map(stackAt, stack)
	n.all = nil
	r.leave(0, caller+5)
	r.leave(1, caller+5)
	n.are(t, "sum#2=7")
	if s := r.stats(); s.StaleCalls != 1 {
		t.Errorf("%+v", s)
	}
	r.over(id, 10, 9, 1)
}
