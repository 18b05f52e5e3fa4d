package main

import (
	"context"

	"github.com/hprobe/hprobe/test/xen/forms"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// forced is a Domain that makes emulations of the engine's replies: the engine
// emulates only what is known to be right, and the test finds out what is.
type forced struct {
	drivers.Domain
	cases map[uint64]*forms.Case // by address
	on    bool
	seen  map[uint64]int
}

func newForced(d drivers.Domain, cases []*forms.Case) *forced {
	f := &forced{Domain: d, cases: map[uint64]*forms.Case{}}
	for _, c := range cases {
		f.cases[c.At] = c
	}
	return f
}

// start begins a pass, on the engine's goroutine.
func (f *forced) start(on bool) { f.on, f.seen = on, map[uint64]int{} }

func (f *forced) Attach(ctx context.Context) (xenevents.Events, error) {
	events, err := f.Domain.Attach(ctx)
	if err != nil {
		return nil, err
	}
	return &forcedEvents{events.(drivers.Events), f}, nil
}

type forcedEvents struct {
	drivers.Events
	dom *forced
}

// Next hides the guest's trap flag from the engine, which would remember of a step
// that has two ends.
func (e *forcedEvents) Next(ctx context.Context, batch []xenevents.Event) (int, error) {
	n, err := e.Events.Next(ctx, batch)
	for i := range batch[:n] {
		if e.dom.on {
			batch[i].Regs.RFLAGS &^= 0x100
		}
	}
	return n, err
}

// tries is how often an emulation that does not get past the instruction is
// tried again before it is stepped.
const tries = 10

func (e *forcedEvents) Reply(ev *xenevents.Event, r *xenevents.Reply) error {
	c := e.dom.cases[ev.Regs.RIP]
	if !e.dom.on || ev.Kind != xenevents.KindInt3 || c == nil {
		return e.Events.Reply(ev, r)
	}
	if e.dom.seen[ev.Regs.RIP]++; e.dom.seen[ev.Regs.RIP] > forms.States*tries {
		return e.Events.Reply(ev, r)
	}
	return e.Events.Reply(ev, &xenevents.Reply{Emulate: true, Insn: c.Bytes(), InsnLen: uint8(len(c.Code))})
}
