package probe_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// paused waits for the guest to be paused.
func (r *rig) paused() {
	r.t.Helper()
	for until := time.Now().Add(late); ; {
		var info xenevents.DomainInfo
		r.between(func() {
			var err error
			info, err = r.dom.Info(context.Background())
			r.must(err)
		})
		if info.Paused {
			return
		}
		if time.Now().After(until) {
			r.t.Fatal("the guest is not paused")
		}
	}
}

// TestPause: a hit pauses the guest before the instruction; when somebody has it go
// on, the verdict is carried out. The hit counts once.
func TestPause(t *testing.T) {
	r := newRig(t, sim.Config{})
	verdict := probe.Verdict{Pause: true}
	asked := 0
	id := r.add(store, func(h *probe.Hit) probe.Verdict {
		asked++
		if verdict.Action == probe.SetRegs {
			regs := *h.Regs
			regs.RSI = 9
			verdict.Regs = &regs
		}
		return verdict
	})
	for want, v := range map[byte]probe.Verdict{5: {Pause: true}, 0: {Pause: true, Action: probe.Deny, Return: 77}, 9: {Pause: true, Action: probe.SetRegs}} {
		r.poke(dataAt, 0)
		verdict, asked = v, 0
		hits := r.status(id).Hits
		r.cpu(0).Run(sim.Call(store, uint64(dataAt), 5))
		r.paused()
		if got := r.peek(dataAt, 1)[0]; got != 0 {
			t.Errorf("it stored %d while it was paused", got)
		}
		r.between(func() { r.must(r.dom.Unpause()) }) // as another tool would
		r.done(0)
		rax := r.cpu(0).Registers().RAX
		if got := r.peek(dataAt, 1)[0]; got != want || v.Action == probe.Deny && rax != 77 {
			t.Errorf("%v: it stored %d and returned %d", v.Action, got, rax)
		}
		if s := r.status(id); s.Hits != hits+1 || asked != 1 {
			t.Errorf("%v: %d hits, asked %d times", v.Action, s.Hits-hits, asked)
		}
	}
}

// TestPausedToTheEnd: the probe goes, and so does the engine, while its hit has the
// guest paused.
func TestPausedToTheEnd(t *testing.T) {
	r := newRig(t, sim.Config{})
	id := r.add(store, func(*probe.Hit) probe.Verdict {
		return probe.Verdict{Pause: true, Action: probe.Deny, Return: 77}
	})
	r.cpu(0).Run(sim.Call(store, uint64(dataAt), 5))
	r.paused()
	r.remove(id)
	r.remove(r.add(store, nil)) // one that comes later has no part in it
	r.cancel()
	r.wait(r.ended)
	r.must(r.dom.Domain.Unpause())
	r.done(0)
	if got := r.peek(dataAt, 1)[0]; got != 5 { // nobody is there any more who would deny
		t.Errorf("it stored %d", got)
	}
}

// TestPauseAtReturn: the end of a call pauses the guest, and what was decided there is
// carried out when it goes on, though no call is under way any more for which the int3
// would be there.
func TestPauseAtReturn(t *testing.T) {
	r := newCalls(t, sim.Config{})
	id := r.request(probe.Request{Name: "sum", At: sum, Return: true, Decide: func(h *probe.Hit) probe.Verdict {
		if !h.Return {
			return probe.Verdict{Pause: true}
		}
		regs := *h.Regs
		regs.RAX += 40
		return probe.Verdict{Pause: true, Action: probe.SetRegs, Regs: &regs}
	}})
	for n := 1; n <= 3; n++ {
		r.cpu(0).Run(sim.Call(caller, 1, 2))
		for range 2 { // at its entry, at its end
			r.paused()
			r.between(func() { r.must(r.dom.Unpause()) })
		}
		r.done(0)
		if got := r.cpu(0).Registers().RAX; got != 43 {
			t.Errorf("it returned %d", got)
		}
		if s := r.status(id); s.Hits != uint64(n) || s.Returns != uint64(n) || s.Lost != 0 {
			t.Errorf("%+v", s)
		}
	}
	// One that is removed meanwhile decides nothing.
	r.cpu(0).Run(sim.Call(caller, 1, 2))
	r.paused()
	r.between(func() { r.must(r.dom.Unpause()) })
	r.paused()
	if s := r.status(id); s.Returns != 4 {
		t.Errorf("%+v", s)
	}
	r.remove(id)
	r.between(func() { r.must(r.dom.Unpause()) })
	r.done(0)
	if got := r.cpu(0).Registers().RAX; got != 3 {
		t.Errorf("it returned %d without a probe", got)
	}
}

// TestPauseOverBudget: the hit that pauses the guest is one too many. What was decided
// there is carried out all the same.
func TestPauseOverBudget(t *testing.T) {
	r, _ := newClocked(t, sim.Config{}, probe.Options{})
	id := r.request(probe.Request{Name: "store", At: store, Budget: probe.Budget{Hits: 1}, Decide: func(h *probe.Hit) probe.Verdict {
		return probe.Verdict{Pause: h.Seq == 2, Action: probe.Deny, Return: 77}
	}})
	r.call(store, uint64(dataAt), 5)
	r.cpu(0).Run(sim.Call(store, uint64(dataAt), 5))
	r.paused()
	if s := r.status(id); s.State != probe.Suspended {
		t.Errorf("%+v", s)
	}
	r.between(func() { r.must(r.dom.Unpause()) })
	r.done(0)
	if got := r.cpu(0).Registers().RAX; got != 77 {
		t.Errorf("it returned %d", got)
	}
	if got := r.call(store, uint64(dataAt), 5); got != 5 { // suspended
		t.Errorf("it returned %d", got)
	}
}

func TestWrite(t *testing.T) {
	r := newRig(t, sim.Config{})
	at, data := dataAt+xenevents.PageSize-2, []byte("data")
	var errs []error
	r.add(sum, func(h *probe.Hit) probe.Verdict {
		errs = nil
		for _, to := range []xenevents.GVA{at, dataAt + 2*xenevents.PageSize - 2, codeAt + 0x900, ^xenevents.GVA(0) - 1} {
			errs = append(errs, h.Write(data, to))
		}
		return probe.Verdict{}
	})
	if got := r.call(sum, 1, 2); got != 3 || errs[0] != nil || !errors.Is(errs[1], xenevents.ErrNotMapped) || errs[2] == nil || !errors.Is(errs[3], xenevents.ErrNotMapped) {
		t.Errorf("%d, %v", got, errs)
	}
	if got := append(r.peek(at, 2), r.peek(at+2, 2)...); !bytes.Equal(got, data) { // across two pages
		t.Errorf("it wrote %q", got)
	}
	if got := r.peek(dataAt+2*xenevents.PageSize-2, 2); !bytes.Equal(got, []byte{0, 0}) { // all or nothing
		t.Errorf("it wrote %q before a page that is not there", got)
	}
	// A page that the guest may not write itself.
	entry := r.entry(dataAt + xenevents.PageSize)
	old := binary.LittleEndian.Uint64(r.guest.Peek(entry, 8))
	r.guest.Poke(entry, binary.LittleEndian.AppendUint64(nil, old&^2))
	r.poke(at, 0, 0)
	if r.call(sum, 1, 2); !errors.Is(errs[0], probe.ErrReadOnly) || !bytes.Equal(r.peek(at, 2), []byte{0, 0}) {
		t.Errorf("%v, %q", errs, r.peek(at, 2))
	}
}

// entry is where the last table entry of an address is.
func (r *rig) entry(at xenevents.GVA) xenevents.GPA {
	table := r.space.AddressSpace().Root
	for level := 4; level >= 2; level-- {
		e := r.guest.Peek(table+xenevents.GPA(uint64(at)>>(12+9*(level-1))&511*8), 8)
		table = xenevents.GPA(binary.LittleEndian.Uint64(e) &^ xenevents.PageMask)
	}
	return table + xenevents.GPA(uint64(at)>>12&511*8)
}
