package probe_test

import (
	"bytes"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// TestGuestReadsAProbedPage: an integrity check finds nothing.
func TestGuestReadsAProbedPage(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 2})
	var hits int
	r.add(sum, counted(&hits))
	r.add(sumPop, nil)
	want := r.peek(codeAt, 256)
	for i := range 2 {
		got := make([]byte, 256)
		r.run(i, sim.Read(codeAt, got), sim.Call(sum, 1, 2), sim.Read(codeAt, got[:1]), sim.Call(sum, 1, 2))
		if !bytes.Equal(got, want) {
			t.Errorf("the guest reads % x", got)
		}
	}
	if s := r.stats(); s.Reads != 4 || s.Writes != 0 || hits != 4 {
		t.Errorf("%+v, %d hits", s, hits)
	}
}

func TestGuestWritesAProbedPage(t *testing.T) {
	r := newRig(t, sim.Config{VCPUs: 2})
	var hits int
	id := r.add(sum, counted(&hits))
	// Beside the probe: sum becomes rdi + 2 rsi, for all vCPUs.
	r.run(0, sim.Write(sum+11, 0x77))
	for i := range 2 {
		r.run(i, sim.Call(sum, 1, 2))
		if got := r.cpu(i).Registers().RAX; got != 5 {
			t.Errorf("vCPU %d: %d", i, got)
		}
	}
	if hits != 2 || r.status(id).State != probe.Armed || r.peek(sum+11, 1)[0] != 0x77 {
		t.Errorf("%d hits, %+v", hits, r.status(id))
	}
	// Over it.
	r.run(0, sim.Write(sum, 0x48, 0x89, 0xf8, 0xc3)) // mov rax,rdi; ret
	if got := r.call(sum, 1, 2); got != 1 || hits != 2 {
		t.Errorf("it returned %d, %d hits", got, hits)
	}
	if s := r.status(id); s.State != probe.Displaced || s.Detail == "" || !r.log.has("wrote over") {
		t.Errorf("%+v", s)
	}
	// As it was.
	r.run(1, sim.Write(sum, code[sum][:4]...))
	if got := r.call(sum, 1, 2); got != 5 || hits != 3 || r.status(id).State != probe.Armed {
		t.Errorf("it returned %d, %d hits, %+v", got, hits, r.status(id))
	}
	if s := r.stats(); s.Writes != 3 || s.Reads != 0 || s.Events["singlestep"] != 3 {
		t.Errorf("%+v", s)
	}
}

// TestGuestWritesAcrossPages: of two probed pages one write changes both. It stops
// at either.
func TestGuestWritesAcrossPages(t *testing.T) {
	for n, first := range []bool{false, true, true} { // whether the first page is probed
		r := newRig(t, sim.Config{})
		if n == 2 {
			r.between(func() {
				r.dom.change = func(ev *xenevents.Event) {
					if ev.Kind == xenevents.KindMemAccess {
						ev.GFN, ev.GLA, ev.Offset = r.gpa(last+1).GFN(), last+1, 0
					}
				}
			})
		}
		r.poke(last-3, 0xb8, 1, 2, 3, 4, 0xc3) // mov eax,0x04030201; ret: its last byte is in the next page
		var hits int
		r.poke(last+0x11, 0x90, 0xc3)
		r.add(last+0x11, nil)
		if first {
			r.add(last-3, counted(&hits))
		}
		r.run(0, sim.Write(last-2, 5, 6, 7, 8))
		r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RAX = 0 })
		if got := r.call(last - 3); got != 0x08070605 || hits != 0 {
			t.Errorf("%d, first %v: it returned %#x, %d hits", n, first, got, hits)
		}
		r.run(0, sim.Write(last-2, 1, 2, 3, 4))
		if got := r.call(last - 3); got != 0x04030201 || first && hits != 1 {
			t.Errorf("%d, first %v: it returned %#x, %d hits", n, first, got, hits)
		}
	}
}

// TestGuestGivesAProbedPageBack: while its copy follows a write.
func TestGuestGivesAProbedPageBack(t *testing.T) {
	r := newRig(t, sim.Config{})
	var hits int
	r.add(sum, nil)
	other := r.add(diff, counted(&hits))
	frame := r.gpa(sum).GFN()
	r.between(func() {
		r.dom.flushed = func() {
			r.dom.flushed = nil
			r.guest.Balloon(frame)
		}
	})
	r.run(0, sim.Write(sum+11, 0x77))
	if got := r.call(diff, 5, 2); got != 3 || hits != 1 || r.status(other).State != probe.Armed {
		t.Errorf("it returned %d, %d hits", got, hits)
	}
	if !r.log.has("gave") {
		t.Error("the log does not tell")
	}
}

// TestGuestWritesWhileItIsRemoved: the page is given up while a vCPU steps.
func TestGuestWritesWhileItIsRemoved(t *testing.T) {
	r := newRig(t, sim.Config{})
	id := r.add(sum, nil)
	r.cpu(0).Hold()
	r.cpu(0).Run(sim.Write(sum+11, 0x77), sim.Call(sum, 1, 2))
	r.must(r.queued(func() { r.cpu(0).Release() }, id))
	r.done(0)
	if got := r.cpu(0).Registers().RAX; got != 5 {
		t.Errorf("it returned %d", got)
	}
	r.reclaimed(0)
}
