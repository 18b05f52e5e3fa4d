// Command user is the tests' own monitor of user code, for dom0 of the lab. The
// guest's program test/guests/src/pages.c tells it by a system call what to watch,
// and asks it by others what it saw: it denies these calls, and so they return its
// answers. On SIGTERM it removes its probes, detaches and prints what it saw as one
// line of JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"sync"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// Report is what is printed at the end.
type Report struct {
	Probes []probe.Status
	Stats  probe.Stats
}

// What the guest's program asks for, and what it is told.
const (
	askWatch = 0x7061676501 + iota
	askHits
	askState

	again   = -11 // EAGAIN
	none    = -2  // ENOENT
	invalid = -22 // EINVAL
)

// question is one that takes the engine's goroutine: it is answered when it is
// asked again.
type question struct {
	what  uint64
	space xenevents.AddressSpace
	at    xenevents.GVA
}

type place struct {
	space xenevents.AddressSpace
	at    xenevents.GVA
}

type watched struct {
	id   probe.ID
	hits uint64
}

// watcher answers the guest's program. Decide runs on the engine's goroutine, the
// rest on main's.
type watcher struct {
	ctx       context.Context
	engine    *probe.Engine
	step      probe.StepOver
	questions chan question

	mu      sync.Mutex
	answers map[question]*int64 // nil: not yet
	watched map[place]*watched
}

func main() {
	profile := flag.String("profile", monitor.Profile, "profile of the guest's kernel")
	step := flag.String("step", "auto", "how to step over")
	flag.Parse()
	monitor.Main("user", func(ctx context.Context) error { return run(ctx, *profile, *step) })
}

func run(ctx context.Context, profile, step string) (err error) {
	how, err := probe.ParseStepOver(step)
	if err != nil {
		return err
	}
	host, err := monitor.Open(ctx, profile, drivers.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	var report Report
	o := probe.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	err = host.Watch(ctx, o, nil, func(s *monitor.Session) (err error) {
		m := &watcher{ctx: ctx, engine: s.Engine, step: how, questions: make(chan question, 64), answers: map[question]*int64{}, watched: map[place]*watched{}}
		report, err = m.serve(s.Kernel)
		return err
	})
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}

func (m *watcher) serve(kernel *guestos.Kernel) (r Report, err error) {
	at, err := kernel.Address("__x64_sys_getpriority")
	if err != nil {
		return r, err
	}
	asked, err := m.engine.Add(m.ctx, probe.Request{Name: "questions", At: at, Space: kernel.Space, Decide: m.asked})
	if err != nil {
		return r, err
	}
	fmt.Println("armed")
	for m.ctx.Err() == nil {
		select {
		case <-m.ctx.Done():
		case q := <-m.questions:
			m.answer(q)
		}
	}
	ctx := context.Background()
	if r.Probes, r.Stats, err = m.engine.Probes(ctx); err != nil {
		return r, err
	}
	errs := m.engine.Remove(ctx, asked)
	for _, w := range m.watched {
		errs = errors.Join(errs, m.engine.Remove(ctx, w.id))
	}
	return r, errs
}

// asked is one system call of the guest's program.
func (m *watcher) asked(h *probe.Hit) probe.Verdict {
	what, err := h.ReadUint64(xenevents.GVA(h.Regs.RDI + monitor.ArgDI))
	if err != nil || what < askWatch || what > askState {
		return probe.Verdict{}
	}
	at, err := h.ReadUint64(xenevents.GVA(h.Regs.RDI + monitor.ArgSI))
	if err != nil {
		return probe.Verdict{}
	}
	return probe.Verdict{Action: probe.Deny, Return: uint64(m.told(question{what, h.Space, xenevents.GVA(at)}))}
}

func (m *watcher) told(q question) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if q.what == askHits {
		if w := m.watched[place{q.space, q.at}]; w != nil {
			return int64(w.hits)
		}
		return none
	}
	answer, known := m.answers[q]
	if answer != nil {
		delete(m.answers, q)
		return *answer
	}
	if !known {
		select {
		case m.questions <- q:
			m.answers[q] = nil
		default:
		}
	}
	return again
}

// answer finds the answer to a question that takes the engine.
func (m *watcher) answer(q question) {
	answer := int64(invalid)
	switch q.what {
	case askWatch:
		w := &watched{}
		id, err := m.engine.Add(m.ctx, probe.Request{
			Name: "watched", At: q.at, Space: q.space, Step: m.step, Follow: true, Decide: func(*probe.Hit) probe.Verdict {
				m.mu.Lock()
				defer m.mu.Unlock()
				w.hits++
				return probe.Verdict{}
			},
		})
		if err != nil {
			fmt.Println("watch:", err)
			break
		}
		w.id, answer = id, 0
		m.mu.Lock()
		m.watched[place{q.space, q.at}] = w
		m.mu.Unlock()
	case askState:
		all, _, err := m.engine.Probes(m.ctx)
		m.mu.Lock()
		w := m.watched[place{q.space, q.at}]
		m.mu.Unlock()
		for _, s := range all {
			if err == nil && w != nil && s.ID == w.id {
				answer = int64(s.State) | int64(s.Moves)<<8 | int64(s.Passed)<<24
			}
		}
	}
	m.mu.Lock()
	m.answers[q] = &answer
	m.mu.Unlock()
}
