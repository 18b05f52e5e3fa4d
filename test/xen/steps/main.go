// Command steps is a test's monitor, for dom0 of the lab: while the guest's
// program steps runs all instruction forms, it has a probe on each, and steps
// over by one way after the other. It prints a line of JSON for each way.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"

	"github.com/hprobe/hprobe/test/xen/forms"
	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// Report is what one way gave. Cases are by their index.
type Report struct {
	Way      string
	Refused  map[int]string // no probe, and why
	Hits     map[int]uint64 // of the others, where it is not one for each run
	Emulated []int          // those that the engine answers with an emulation
	Stats    probe.Stats
}

// force has Xen emulate every case, whatever the engine thinks of it.
const force = "force-emulate"

func main() {
	profile := flag.String("profile", monitor.Profile, "profile of the guest's kernel")
	ways := flag.String("ways", "auto", "ways to step over, with commas; "+force+" is one, too")
	flag.Parse()
	monitor.Main("steps", func(ctx context.Context) error { return run(ctx, *profile, strings.Split(*ways, ",")) })
}

func run(ctx context.Context, profile string, ways []string) (err error) {
	cases, err := forms.Cases()
	if err != nil {
		return err
	}
	host, err := monitor.Open(ctx, profile, drivers.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	var dom *forced
	wrap := func(d drivers.Domain) xenevents.Domain {
		dom = newForced(d, cases)
		return dom
	}
	o := probe.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	return host.Watch(ctx, o, wrap, func(s *monitor.Session) error { return serve(ctx, s, dom, cases, ways) })
}

// meeting is where the guest's program and the monitor meet: a system call that
// the program makes before each pass, and that returns what the monitor says.
type meeting struct {
	asked chan xenevents.AddressSpace
	ready atomic.Uint64 // the pass that may run
	end   atomic.Bool
}

// The program's side: see steps.c.
const (
	which  = 0x57e9
	eAgain = 11
)

func (m *meeting) decide(h *probe.Hit) probe.Verdict {
	w, err := h.ReadUint64(xenevents.GVA(h.Regs.RDI + monitor.ArgDI))
	pass, err2 := h.ReadUint64(xenevents.GVA(h.Regs.RDI + monitor.ArgSI))
	switch {
	case err != nil, err2 != nil, w != which:
		return probe.Verdict{}
	case m.end.Load():
		return probe.Verdict{Action: probe.Deny, Return: 1}
	case pass <= m.ready.Load():
		return probe.Verdict{Action: probe.Deny}
	}
	select {
	case m.asked <- h.Space:
	default:
	}
	return probe.Verdict{Action: probe.Deny, Return: ^uint64(eAgain - 1)}
}

func serve(ctx context.Context, s *monitor.Session, dom *forced, cases []*forms.Case, ways []string) error {
	engine := s.Engine
	at, err := s.Kernel.Address("__x64_sys_getpriority")
	if err != nil {
		return err
	}
	m := &meeting{asked: make(chan xenevents.AddressSpace)}
	if _, err := engine.Add(ctx, probe.Request{Name: "meeting", At: at, Space: s.Kernel.Space, Decide: m.decide}); err != nil {
		return err
	}
	fmt.Println("armed")
	wait := func() (space xenevents.AddressSpace, err error) {
		select {
		case space = <-m.asked:
		case <-ctx.Done():
			err = ctx.Err()
		}
		return space, err
	}
	space, err := wait()
	for i := 0; i < len(ways) && err == nil; i++ {
		var ids []probe.ID
		r := Report{Way: ways[i], Refused: map[int]string{}, Hits: map[int]uint64{}}
		if ids, err = add(ctx, engine, space, cases, &r); err != nil {
			return err
		}
		err = engine.Do(ctx, func(xenevents.Domain) error {
			dom.start(r.Way == force)
			return nil
		})
		if err != nil {
			return err
		}
		m.ready.Store(uint64(i + 1))
		if space, err = wait(); err != nil {
			return err
		}
		if err = take(ctx, engine, ids, &r); err == nil {
			err = json.NewEncoder(os.Stdout).Encode(&r)
		}
	}
	m.end.Store(true)
	if err == nil {
		<-ctx.Done() // the program is still to be told
	}
	return err
}

// add puts a probe on each case.
func add(ctx context.Context, engine *probe.Engine, space xenevents.AddressSpace, cases []*forms.Case, r *Report) ([]probe.ID, error) {
	how := probe.FastStep
	if r.Way != force {
		var err error
		if how, err = probe.ParseStepOver(r.Way); err != nil {
			return nil, err
		}
	}
	ids := make([]probe.ID, len(cases))
	for i, c := range cases {
		id, err := engine.Add(ctx, probe.Request{Name: fmt.Sprint(i), At: xenevents.GVA(c.At), Space: space, Step: how})
		if err != nil {
			r.Refused[i] = err.Error()
			continue
		}
		ids[i] = id
	}
	return ids, nil
}

// take removes the probes and says what they saw.
func take(ctx context.Context, engine *probe.Engine, ids []probe.ID, r *Report) error {
	all, stats, err := engine.Probes(ctx)
	if err != nil {
		return err
	}
	r.Stats = stats
	status := map[probe.ID]probe.Status{}
	for _, s := range all {
		status[s.ID] = s
	}
	for i, id := range ids {
		if id == 0 {
			continue
		}
		s := status[id]
		if s.Hits != forms.States || s.State != probe.Armed {
			r.Hits[i] = s.Hits
		}
		if s.Step == probe.Emulate {
			r.Emulated = append(r.Emulated, i)
		}
		if err := engine.Remove(ctx, id); err != nil {
			return err
		}
	}
	return nil
}
