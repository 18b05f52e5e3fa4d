// Command load is the tests' own monitor of a busy guest, for dom0 of the lab. It has
// probes where the guest's program test/guests/src/load.c makes the kernel work, and
// compares what they saw with what the guest's kernel counted itself. On SIGTERM it
// removes its probes, detaches and prints what it saw as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"

	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// Mark is what was counted when the program said "now".
type Mark struct {
	// Schedules are hits of __schedule, Scheduled what the kernel counted of them.
	Schedules, Scheduled uint64
	// Faults are the returns of handle_mm_fault, but of those that are tried again;
	// Faulted what the kernel counted.
	Faults, Faulted uint64
}

// Report is what is printed at the end.
type Report struct {
	Marks  []Mark
	Opens  uint64 // of files, by the program and its children
	Calls  uint64 // of the program's function
	Probes []probe.Status
	Stats  probe.Stats
	Error  string
}

// What the guest's program says.
const (
	sayBegin = 0x6c6f616401 + iota
	sayMark

	again   = -11 // EAGAIN
	invalid = -22 // EINVAL

	faultRetry = 0x400 // VM_FAULT_RETRY (include/linux/mm_types.h)
)

func main() {
	profile := flag.String("profile", monitor.Profile, "profile of the guest's kernel")
	flag.Parse()
	monitor.Main("load", func(ctx context.Context) error { return run(ctx, *profile) })
}

func run(ctx context.Context, profile string) (err error) {
	host, err := monitor.Open(ctx, profile, drivers.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	var report *Report
	err = host.Watch(ctx, monitor.Options(), nil, func(s *monitor.Session) (err error) {
		w := &watch{ctx: ctx, Session: s, begin: make(chan begin, 1)}
		report = &w.Report
		err = s.Engine.Do(ctx, func(xenevents.Domain) (err error) {
			w.counters, err = newCounters(s.Kernel, int(host.Guest.MaxVCPU)+1)
			return err
		})
		if err != nil {
			return err
		}
		return w.serve()
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}

type begin struct {
	space xenevents.AddressSpace
	at    xenevents.GVA
}

// watch is the state of all probes. Decide runs on the engine's goroutine.
type watch struct {
	ctx context.Context
	*monitor.Session
	Report
	counters *counters
	now      Mark
	begin    chan begin
	asked    bool
	answer   *int64 // of begin, once it is there: written by Engine.Do
}

func (w *watch) serve() error {
	for _, p := range []struct {
		at      string
		returns bool
		decide  func(*probe.Hit) probe.Verdict
	}{
		{"__x64_sys_getpriority", false, w.said},
		{"do_sys_openat2", false, w.opened},
		{"__schedule", false, func(*probe.Hit) probe.Verdict { w.now.Schedules++; return probe.Verdict{} }},
		{"handle_mm_fault", true, w.faulted},
	} {
		at, err := w.Kernel.Address(p.at)
		if err != nil {
			return err
		}
		r := probe.Request{Name: p.at, At: at, Space: w.Kernel.Space, Return: p.returns, Decide: p.decide}
		r.Thread = func(h *probe.Hit) (uint64, bool) {
			id, err := w.Kernel.CurrentThread(h.Regs, h.ReadUint64)
			return uint64(id), err == nil
		}
		if _, err := w.Engine.Add(w.ctx, r); err != nil {
			return err
		}
	}
	fmt.Println("armed")
	for w.ctx.Err() == nil {
		select {
		case <-w.ctx.Done():
		case b := <-w.begin:
			answer := int64(0)
			if _, err := w.Engine.Add(w.ctx, probe.Request{Name: "user", At: b.at, Space: b.space, Follow: true, Decide: func(*probe.Hit) probe.Verdict {
				w.Calls++
				return probe.Verdict{}
			}}); err != nil {
				answer = invalid
				w.Error = err.Error()
			}
			if err := w.Engine.Do(w.ctx, func(xenevents.Domain) error { w.answer = &answer; return nil }); err != nil {
				return err
			}
		}
	}
	var err error
	w.Probes, w.Stats, err = w.Engine.Probes(context.Background())
	for _, p := range w.Probes {
		err = errors.Join(err, w.Engine.Remove(context.Background(), p.ID))
	}
	return err
}

// said is one system call of the guest's program.
func (w *watch) said(h *probe.Hit) probe.Verdict {
	what, err := h.ReadUint64(xenevents.GVA(h.Regs.RDI + monitor.ArgDI))
	if err != nil || what != sayBegin && what != sayMark {
		return probe.Verdict{}
	}
	answer := int64(0)
	switch what {
	case sayMark:
		if w.now.Scheduled, w.now.Faulted, err = w.counters.read(h); err != nil {
			w.Error, answer = err.Error(), invalid
		}
		w.Marks = append(w.Marks, w.now)
	case sayBegin:
		at, err := h.ReadUint64(xenevents.GVA(h.Regs.RDI + monitor.ArgSI))
		switch {
		case err != nil:
			answer = invalid
		case w.answer != nil:
			answer = *w.answer
		default:
			answer = again
			if !w.asked {
				w.asked = true
				w.begin <- begin{h.Space, xenevents.GVA(at)}
			}
		}
	}
	return probe.Verdict{Action: probe.Deny, Return: uint64(answer)}
}

// opened counts the files that the program and its children open.
func (w *watch) opened(h *probe.Hit) probe.Verdict {
	r := w.Kernel.Running(h.Regs, h.Read)
	comm, err := r.Comm()
	if err != nil {
		w.Error = err.Error()
	}
	if comm == "load" || comm == "exe" { // a child that runs /proc/self/exe is called so
		w.Opens++
	}
	return probe.Verdict{}
}

func (w *watch) faulted(h *probe.Hit) probe.Verdict {
	if h.Return && h.Regs.RAX&faultRetry == 0 {
		w.now.Faults++
	}
	return probe.Verdict{}
}
