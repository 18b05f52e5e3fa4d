package probe_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// What the tests add to the guest's code.
const (
	incr   = free        // add [rdi],rsi; ret
	fill   = free + 0x10 // rep stosb; ret
	store4 = free + 0x20 // mov [rdi],esi; ret
	both   = free + 0x30 // mov rax,[rdi]; mov [rsi],rax; ret
	set    = free + 0x40 // mov qword [rdi],0x55; ret
)

var memoryCode = map[xenevents.GVA][]byte{
	incr:   {0x48, 0x01, 0x37, 0xc3},
	fill:   {0xf3, 0xaa, 0xc3},
	store4: {0x89, 0x37, 0xc3},
	both:   {0x48, 0x8b, 0x07, 0x48, 0x89, 0x06, 0xc3},
	set:    {0x48, 0xc7, 0x07, 0x55, 0, 0, 0, 0xc3},
}

func memoryRig(t *testing.T, c sim.Config) *rig {
	r := newRig(t, c)
	for at, b := range memoryCode {
		r.poke(at, b...)
	}
	return r
}

func bytesAt(at xenevents.GVA, n uint64, a xenevents.Access) probe.Source {
	return probe.Source{Kind: xenevents.KindMemAccess, At: at, Len: n, Access: a}
}

func (n *sightings) access(h *probe.Hit) probe.Verdict {
	s := h.Seen
	*n = append(*n, fmt.Sprintf("%v+%d%v:%x>%x", uint64(s.At-dataAt), s.Size, s.Access, s.Old, s.New))
	return probe.Verdict{}
}

// TestMemory: each access to the range is a hit, with what was there and is there now;
// the others in its page are passed.
func TestMemory(t *testing.T) {
	r := memoryRig(t, sim.Config{})
	var w, rd, rw sightings
	at := dataAt + 0x100
	wid := r.watch(probe.Watch{Source: bytesAt(at, 8, xenevents.AccessW), Decide: w.access})
	r.poke(at, 1)
	r.call(store, uint64(at), 0x22)
	r.call(store, uint64(at+8), 9) // behind it
	r.call(store, uint64(at-8), 9)
	r.call(store, uint64(at-7), 0x33_00000000000000) // its last byte is the first of the range
	r.call(store4, uint64(at+4), 0x44)
	r.call(incr, uint64(at), 1)
	r.call(load, uint64(at))
	w.want(t, "256+8-w-:1>22 249+8-w-:2200000000000000>3300000000000000 260+4-w-:0>44 256+8rw-:4400000033>4400000034")
	if s := r.status(wid); s.Hits != 4 || s.Passed != 2 || s.State != probe.Armed {
		t.Errorf("%+v", s)
	}
	r.remove(wid)
	rid := r.watch(probe.Watch{Source: bytesAt(at, 1, xenevents.AccessR), Decide: rd.access})
	both2 := r.watch(probe.Watch{Source: bytesAt(at, 16, xenevents.AccessRW), Decide: rw.access})
	r.call(load, uint64(at))
	r.call(load, uint64(at+1))
	r.call(store, uint64(at), 5)
	r.call(incr, uint64(at), 1)
	rd.want(t, "256+8r--:4400000034>4400000034 256+8rw-:5>6")
	rw.want(t, "256+8r--:4400000034>4400000034 257+8r--:900000044000000>900000044000000 256+8-w-:4400000034>5 256+8rw-:5>6")
	if s := r.status(rid); s.Hits != 2 || s.Passed != 0 {
		t.Errorf("%+v", s)
	}
	r.remove(rid)
	r.remove(both2)
	r.call(store, uint64(at), 0x77)
	if w, rw := len(w), len(rw); w+rw != 0 || r.peek(at, 1)[0] != 0x77 {
		t.Errorf("%d %d", w, rw)
	}
}

// TestMemoryAcrossPages: a range in two pages, an access to both, and one by an alias.
func TestMemoryAcrossPages(t *testing.T) {
	r := memoryRig(t, sim.Config{})
	at := dataAt + xenevents.PageSize - 4
	var w sightings
	id := r.watch(probe.Watch{Source: bytesAt(at, 8, xenevents.AccessW), Decide: w.access})
	r.call(store, uint64(at), 0x1122334455667788)
	r.call(store, uint64(at-8), 1)
	r.call(store4, uint64(at+4), 2)
	w.want(t, "4092+8-w-:0>1122334455667788 4096+4-w-:11223344>2") // the second one ends before it
	const alias = xenevents.GVA(0xffff_9000_0000_0000)
	r.space.Map(alias, r.gpa(dataAt).GFN())
	r.call(store4, uint64(alias)+xenevents.PageSize-4, 3)
	if s := r.status(id); s.Hits != 3 || s.Passed != 1 || len(w) != 1 {
		t.Errorf("%+v", s)
	}
	phys := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindMemAccess, Physical: true, Phys: r.gpa(dataAt + 0x10), Len: 1, Access: xenevents.AccessW}})
	r.call(store4, uint64(alias)+0x10, 3)
	if s := r.status(phys); s.Hits != 1 {
		t.Errorf("%+v", s)
	}
}

// TestMemoryOfStringInstructions: each repetition is an access of its own.
func TestMemoryOfStringInstructions(t *testing.T) {
	r := memoryRig(t, sim.Config{})
	id := r.watch(probe.Watch{Source: bytesAt(dataAt+0x20, 4, xenevents.AccessW)})
	r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RAX = 0x61 })
	r.call(fill, uint64(dataAt+0x10), 0, 0, 0x20)
	if s := r.status(id); s.Hits != 4 || s.Passed != 28 || r.peek(dataAt+0x2f, 1)[0] != 0x61 {
		t.Errorf("%+v", s)
	}
	// The same under a breakpoint, which steps all repetitions.
	hits := 0
	r.add(fill, counted(&hits))
	r.call(fill, uint64(dataAt+0x10), 0, 0, 0x20)
	if s := r.status(id); s.Hits != 8 || hits != 1 {
		t.Errorf("%+v, %d hits", s, hits)
	}
}

// TestMemoryWithBreakpoints: data in a page of code with int3s; execution is watched
// there, too; and what the probed instruction itself accesses.
func TestMemoryWithBreakpoints(t *testing.T) {
	r := memoryRig(t, sim.Config{VCPUs: 2})
	var w, x sightings
	hits := 0
	bp := r.add(store, counted(&hits))
	at := codeAt + 0x300
	id := r.watch(probe.Watch{Source: bytesAt(at, 8, xenevents.AccessRW), Decide: func(h *probe.Hit) probe.Verdict {
		w = append(w, fmt.Sprintf("%v:%x>%x", h.Seen.Access, h.Seen.Old, h.Seen.New))
		return probe.Verdict{}
	}})
	for i := range 2 {
		r.cpu(i).Run(sim.Repeat(5, sim.Call(store, uint64(at), 7), sim.Call(load, uint64(at)), sim.Call(store, uint64(at+8), 1))...)
	}
	r.done(0)
	r.done(1)
	if s := r.status(id); s.Hits != 20 || hits != 20 {
		t.Errorf("%+v, %d hits", s, hits)
	}
	xid := r.watch(probe.Watch{Source: bytesAt(store, 1, xenevents.AccessX), Decide: func(h *probe.Hit) probe.Verdict {
		x = append(x, fmt.Sprintf("%v+%d", h.Seen.At, h.Seen.Size))
		return probe.Verdict{}
	}})
	for range 3 {
		if got := r.call(store, uint64(at), 8); got != 8 || r.call(sum, 3, 4) != 7 {
			t.Errorf("store returns %d", got)
		}
	}
	if s := r.status(xid); s.Hits != 3 || hits != 23 || r.status(id).Hits != 23 || x[0] != fmt.Sprintf("%v+3", store) {
		t.Errorf("%+v, %d hits, %+v", s, hits, r.status(id))
	}
	if s := r.status(bp); s.Hits != 23 {
		t.Errorf("%+v", s)
	}
	r.remove(bp)
	r.reclaimed(0)
	r.call(store, uint64(at), 9)
	if r.status(id).Hits != 24 || r.status(xid).Hits != 4 {
		t.Errorf("without the breakpoint: %+v %+v", r.status(id), r.status(xid))
	}
	r.remove(id)
	r.remove(xid)
	r.call(store, uint64(at), 10)
	r.end()
}

// TestMemoryDenied: a plain store that is denied does not happen, and the guest goes on
// behind it. What is more than that happens.
func TestMemoryDenied(t *testing.T) {
	r := memoryRig(t, sim.Config{})
	var can []bool
	id := r.watch(probe.Watch{Source: bytesAt(dataAt, 8, xenevents.AccessRW), Deny: true, Decide: func(h *probe.Hit) probe.Verdict {
		can = append(can, h.CanDeny() == nil)
		if h.Seen.Access == xenevents.AccessW && h.Seen.NewKnown && h.Seen.New == 0x55 {
			return probe.Verdict{Action: probe.Deny}
		}
		return probe.Verdict{}
	}})
	r.call(set, uint64(dataAt))
	if got := r.peek(dataAt, 1)[0]; got != 0 {
		t.Errorf("%#x was written", got)
	}
	if got := r.call(store, uint64(dataAt), 0x55); got != 0x55 || r.peek(dataAt, 1)[0] != 0 {
		t.Errorf("store returned %#x, and wrote %#x", got, r.peek(dataAt, 1)[0])
	}
	r.call(store, uint64(dataAt), 0x56)
	r.call(incr, uint64(dataAt), 1)
	r.call(load, uint64(dataAt))
	if s := r.status(id); s.Hits != 5 || s.Changed != 2 || fmt.Sprint(can) != "[true true true false false]" || r.peek(dataAt, 1)[0] != 0x57 {
		t.Errorf("%+v, %v, %#x", s, can, r.peek(dataAt, 1))
	}
}

func TestMemoryThatCantBeWatched(t *testing.T) {
	r := newRig(t, sim.Config{})
	for name, s := range map[string]probe.Source{
		"nothing": bytesAt(dataAt, 0, xenevents.AccessW), "too much": bytesAt(dataAt, probe.MaxWatched+1, xenevents.AccessW), "no access": bytesAt(dataAt, 1, 0),
		"more than accesses": bytesAt(dataAt, 1, 9), "a process's": bytesAt(0x1000, 1, xenevents.AccessW), "not mapped": bytesAt(dataAt+xenevents.PageSize, xenevents.PageSize+1, xenevents.AccessW),
		"not memory": {Kind: xenevents.KindMemAccess, Physical: true, Phys: 1 << 40, Len: 1, Access: xenevents.AccessR},
		"its end":    {Kind: xenevents.KindMemAccess, Physical: true, Phys: 1<<22 - 1, Len: 2, Access: xenevents.AccessR},
	} {
		if id, err := r.tryWatch(probe.Watch{Source: s}); err == nil {
			t.Errorf("%s: probe %d", name, id)
		}
	}
	if _, err := r.tryWatch(probe.Watch{Source: bytesAt(dataAt+2*xenevents.PageSize, 1, xenevents.AccessW)}); !errors.Is(err, xenevents.ErrNotMapped) {
		t.Error(err)
	}
	without := newRig(t, sim.Config{Without: []xenevents.Kind{xenevents.KindSingleStep}})
	if _, err := without.tryWatch(probe.Watch{Source: bytesAt(dataAt, 1, xenevents.AccessW)}); !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
}

// TestMemoryBudget: a page that is accessed too often is let go, passed accesses count.
func TestMemoryBudget(t *testing.T) {
	r := newGuest(t, sim.Config{})
	tick := uint64(0)
	var err error
	r.engine, err = probe.New(&ticking{r.dom, &tick}, withLog(r, probe.Options{Window: 800}))
	r.must(err)
	r.start()
	id := r.watch(probe.Watch{Source: bytesAt(dataAt, 8, xenevents.AccessR), Budget: probe.Budget{Hits: 10, Stalled: probe.Unlimited}})
	for range 20 {
		r.call(load, uint64(dataAt+0x80))
	}
	if s := r.status(id); s.Hits != 0 || s.Passed != 11 || s.State != probe.Suspended {
		t.Errorf("%+v", s)
	}
	r.between(func() { tick += 10_000 })
	r.waitFor(id, probe.Armed)
	r.call(load, uint64(dataAt))
	if s := r.status(id); s.Hits != 1 {
		t.Errorf("%+v", s)
	}
}

// TestMemoryPause: the guest is paused when a write is done.
func TestMemoryPause(t *testing.T) {
	r := memoryRig(t, sim.Config{})
	id := r.watch(probe.Watch{Source: bytesAt(dataAt, 8, xenevents.AccessW), Decide: func(*probe.Hit) probe.Verdict { return probe.Verdict{Pause: true} }})
	r.cpu(0).Run(sim.Call(store, uint64(dataAt), 5))
	for r.status(id).Hits == 0 {
	}
	if info, err := r.dom.Info(context.Background()); err != nil || !info.Paused || r.peek(dataAt, 1)[0] != 5 {
		t.Errorf("%+v, %v", info, err)
	}
	r.must(r.dom.Unpause())
	r.done(0)
}

// TestMemoryThatWent: a page that the guest gives back while its watch is suspended ends
// the watch, not the engine.
func TestMemoryThatWent(t *testing.T) {
	r := newGuest(t, sim.Config{})
	tick := uint64(0)
	var err error
	r.engine, err = probe.New(&ticking{r.dom, &tick}, withLog(r, probe.Options{Window: 800}))
	r.must(err)
	r.start()
	id := r.watch(probe.Watch{Source: bytesAt(dataAt, 8, xenevents.AccessR), Budget: probe.Budget{Hits: 1, Stalled: probe.Unlimited}})
	r.call(load, uint64(dataAt))
	r.call(load, uint64(dataAt))
	r.waitFor(id, probe.Suspended)
	r.guest.Balloon(r.gpa(dataAt).GFN())
	r.between(func() { tick += 10_000 })
	r.waitFor(id, probe.Failed)
	r.remove(id)
}

// TestMemoryThatIsATable: a page table that a followed probe hangs on is watched as
// well. Both see each write, and what the processor's own walks do is passed.
func TestMemoryThatIsATable(t *testing.T) {
	r := newRig(t, sim.Config{})
	p := r.newProcess(true)
	for at := range code {
		p.space.Map(at.Page(), r.gpa(at).GFN())
	}
	id := p.mustFollow()
	var w sightings
	table := p.space.Tables(userAt)[3]
	entry := table.GPA() + xenevents.GPA(p.entry(1).Offset())
	wid := r.watch(probe.Watch{Source: probe.Source{Kind: xenevents.KindMemAccess, Physical: true, Phys: entry, Len: 8, Access: xenevents.AccessRW}, Decide: func(h *probe.Hit) probe.Verdict {
		w = append(w, fmt.Sprintf("%v %x>%x", h.Seen.Access, h.Seen.Old|0x64, h.Seen.New))
		return probe.Verdict{}
	}})
	p.calls(2)
	moved := p.copied()
	p.in(sim.Call(store, uint64(p.entry(1)), pte(moved)))
	p.in(sim.Call(store, uint64(p.entry(1)+8), 0))
	p.calls(3)
	w.want(t, fmt.Sprintf("-w- %x>%x", pte(p.code)|0x60, pte(moved)))
	if s := r.status(wid); s.Hits != 1 || s.Passed == 0 || s.State != probe.Armed {
		t.Errorf("%+v", s)
	}
	if s := r.status(id); s.Hits != 5 || s.State != probe.Armed || s.Moves != 2 {
		t.Errorf("%+v", s)
	}
	r.remove(wid)
	p.in(sim.Call(store, uint64(p.entry(1)), pte(p.code)))
	p.calls(1)
	if s := r.status(id); s.Hits != 6 {
		t.Errorf("%+v", s)
	}
	r.remove(id)
}
