package probe_test

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

func TestHit(t *testing.T) {
	r := newRig(t, sim.Config{})
	r.poke(dataAt, 1, 2, 3, 4, 5, 6, 7, 8)
	type seen struct {
		probe.Hit
		regs          xenevents.Registers
		back          uint64
		data          uint64
		part          int
		notMapped, ok error
	}
	var hits []seen
	before := r.cpu(0).Registers()
	id := r.add(sum, func(h *probe.Hit) probe.Verdict {
		s := seen{Hit: *h, regs: *h.Regs}
		s.back, s.ok = h.ReadUint64(xenevents.GVA(h.Regs.RSP))
		s.data, _ = h.ReadUint64(dataAt)
		s.part, s.notMapped = h.Read(make([]byte, 100), dataAt+2*xenevents.PageSize-10)
		hits = append(hits, s)
		return probe.Verdict{}
	})
	for n := range uint64(3) {
		if got := r.call(sum, 40+n, 2); got != 42+n {
			t.Errorf("sum is %d", got)
		}
	}
	if len(hits) != 3 {
		t.Fatalf("%d hits", len(hits))
	}
	for n, h := range hits {
		if h.Probe != id || h.Seq != uint64(n+1) || h.VCPU != 0 || h.Space != r.space.AddressSpace() {
			t.Errorf("hit %d: %+v", n, h)
		}
		if h.regs.RIP != uint64(sum) || h.regs.RDI != uint64(40+n) || h.regs.RSI != 2 || h.regs.RSP != before.RSP-8 || h.regs.CR3 != before.CR3 {
			t.Errorf("hit %d: %+v", n, h.regs)
		}
		if h.back != before.RIP || h.ok != nil || h.data != 0x0807060504030201 || h.part != 10 || h.notMapped == nil {
			t.Errorf("hit %d read %#x, %v, %#x and %d bytes, %v", n, h.back, h.ok, h.data, h.part, h.notMapped)
		}
	}
	want := probe.Status{ID: id, Name: "name", At: sum, Step: probe.Emulate, Insn: "endbr64", Hits: 3}
	if s := r.status(id); s != want {
		t.Errorf("%+v, want %+v", s, want)
	}
	s := r.stats()
	if s.Events["int3"] != 3 || len(s.Events) != 1 || s.Shadows != 1 || s.Batches != 3 || s.Reinjected+s.Stale+s.Retried+s.Reads+s.Writes != 0 {
		t.Errorf("%+v", s)
	}
}

// TestHitsOfManyVCPUs: nine fill the ring.
func TestHitsOfManyVCPUs(t *testing.T) {
	const calls = 60
	for _, vcpus := range []int{2, 9} {
		for _, step := range []probe.StepOver{probe.Emulate, probe.FastStep, probe.SingleStep} {
			t.Run(fmt.Sprintf("%d vCPUs, %v", vcpus, step), func(t *testing.T) {
				r := newRig(t, sim.Config{VCPUs: vcpus})
				args := make([][]uint64, vcpus)
				id, err := r.try(sum, step, func(h *probe.Hit) probe.Verdict {
					args[h.VCPU] = append(args[h.VCPU], h.Regs.RDI)
					return probe.Verdict{}
				})
				r.must(err)
				var pops int
				r.add(sumPop, counted(&pops))
				want := make([][]uint64, vcpus)
				sums := make([][]uint64, vcpus)
				r.between(func() { // all begin before the first is served
					for i := range vcpus {
						for n := range uint64(calls) {
							arg := uint64(i)<<32 + n
							want[i] = append(want[i], arg)
							r.cpu(i).Run(sim.Call(sum, arg, 1), sim.See(func(regs xenevents.Registers) { sums[i] = append(sums[i], regs.RAX-1) }))
						}
					}
				})
				for i := range vcpus {
					r.done(i)
					if !slices.Equal(args[i], want[i]) || !slices.Equal(sums[i], want[i]) {
						t.Errorf("vCPU %d: arguments %v, sums less one %v", i, args[i], sums[i])
					}
				}
				if s := r.status(id); s.Hits != uint64(vcpus*calls) || s.Step != step || pops != vcpus*calls {
					t.Errorf("%+v, %d pops", s, pops)
				}
			})
		}
	}
}

func TestProbesAtOneAddress(t *testing.T) {
	r := newRig(t, sim.Config{})
	var order []probe.ID
	say := func(v probe.Verdict) func(*probe.Hit) probe.Verdict {
		return func(h *probe.Hit) probe.Verdict {
			order = append(order, h.Probe)
			return v
		}
	}
	a := r.add(sum, say(probe.Verdict{}))
	b := r.add(sum, say(probe.Verdict{Action: probe.Deny, Return: 5}))
	c := r.add(sum, nil)
	d := r.add(sum, say(probe.Verdict{Action: probe.Deny, Return: 6}))
	if got := r.call(sum, 1, 2); got != 5 || !slices.Equal(order, []probe.ID{a, b, d}) {
		t.Errorf("it returned %d; asked: %v", got, order)
	}
	for id, changed := range map[probe.ID]uint64{a: 0, b: 1, c: 0, d: 1} {
		if s := r.status(id); s.Hits != 1 || s.Changed != changed {
			t.Errorf("%+v", s)
		}
	}
	if _, err := r.try(sum, probe.SingleStep, nil); err == nil {
		t.Error("two ways to step over one instruction")
	}
	e, err := r.try(sum, probe.Emulate, nil) // as Auto chose
	r.must(err)
	order = nil
	r.remove(b)
	r.remove(a)
	if got := r.call(sum, 1, 2); got != 6 || !slices.Equal(order, []probe.ID{d}) {
		t.Errorf("it returned %d; asked: %v", got, order)
	}
	r.remove(d)
	r.remove(c)
	if got := r.call(sum, 1, 2); got != 3 || r.status(e).Hits != 2 {
		t.Errorf("it returned %d; %+v", got, r.status(e))
	}
	r.remove(e)
	if err := r.engine.Remove(context.Background(), e); err == nil {
		t.Error("a probe was removed twice")
	}
	r.call(sum, 1, 2)
	if all, s, err := r.engine.Probes(context.Background()); err != nil || len(all) != 0 || s.Events["int3"] != 3 {
		t.Errorf("%v, %+v, %+v", err, all, s)
	}
	if f := r.add(sum, nil); f == a || f <= e {
		t.Errorf("the ID %d comes again", f)
	}
}

// TestProbesListed: in the order in which they came.
func TestProbesListed(t *testing.T) {
	r := newRig(t, sim.Config{})
	var want []probe.ID
	for range 20 {
		want = append(want, r.add(sum, nil), r.add(diff, nil))
	}
	all, stats, err := r.engine.Probes(context.Background())
	r.must(err)
	var got []probe.ID
	for _, s := range all {
		got = append(got, s.ID)
	}
	if !slices.Equal(got, want) || stats.Shadows != 2 {
		t.Errorf("%v, %d copies", got, stats.Shadows)
	}
}

// TestAddAndRemoveWhileTheGuestRuns: another probe sees to it that the vCPUs
// run step by step, through what comes and goes.
func TestAddAndRemoveWhileTheGuestRuns(t *testing.T) {
	const vcpus, rounds = 3, 40
	r := newRig(t, sim.Config{VCPUs: vcpus})
	always := r.add(diff, nil)
	stop := make(chan struct{})
	calls := make([]int, vcpus)
	wrong := make([]string, vcpus)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for stopped := false; !stopped; {
			for i := range vcpus {
				x := uint64(i)<<40 + uint64(calls[i])
				check := func(what string, want uint64) sim.Step {
					return sim.See(func(regs xenevents.Registers) {
						if regs.RAX != want {
							wrong[i] = fmt.Sprintf("%s of %#x is %#x", what, x, regs.RAX)
						}
					})
				}
				calls[i]++
				r.cpu(i).Run(sim.Call(sum, x, 7), check("sum", x+7), sim.Call(diff, x+7, 7), check("diff", x), sim.Call(sum, x, 1), check("sum", x+1))
			}
			for i := range vcpus {
				if err := r.finish(i); err != nil {
					t.Error(err)
					return
				}
			}
			select {
			case <-stop:
				stopped = true
			default:
			}
		}
	}()
	for n := range rounds {
		hit := make(chan struct{}, 1)
		at := []xenevents.GVA{sum, sumPop, diff}[n%3]
		id := r.add(at, func(*probe.Hit) probe.Verdict {
			select {
			case hit <- struct{}{}:
			default:
			}
			return probe.Verdict{}
		})
		r.wait(hit)
		r.remove(id)
	}
	close(stop)
	r.wait(ended)
	for i := range vcpus {
		if wrong[i] != "" {
			t.Error(wrong[i])
		}
	}
	all := uint64(calls[0] + calls[1] + calls[2])
	if s := r.status(always); s.Hits != all || s.State != probe.Armed {
		t.Errorf("%+v, want %d hits", s, all)
	}
	r.reclaimed(1)
}
