package daemon

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/condition"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// callTracer is the detector behind `hprobe probe add --syscall`: a tracer of a set of
// system calls, which has a probe at each place where some of them come by.
type callTracer struct {
	tracer
	words   []string // as they were asked for
	profile *isf.Profile
	set     *guestos.SyscallSet
	// shown are what shows the arguments of a call, made when it is first seen.
	shown map[string]*condition.Program
	now   binder.CallHit

	mu     sync.Mutex
	counts map[string]uint64 // by call
	total  uint64
	unread uint64 // hits whose call could not be found out
	last   error
}

// Probes asks for one at each place.
func (t *callTracer) Probes() (all []detectors.ProbeSpec) {
	for i := range t.set.Places {
		all = append(all, detectors.ProbeSpec{
			Name: t.name, At: t.set.Places[i].At, Vital: t.program.Rule().Enforce, Budget: t.budget,
			Handle: func(h detectors.Hit) detectors.Outcome { return t.came(i, h) },
		})
	}
	return all
}

// came is a hit at a place. What is no call of the set is let pass.
func (t *callTracer) came(place int, h detectors.Hit) detectors.Outcome {
	call, ok, err := t.set.CallAt(place, h.Registers(), h.ReadUint64)
	if !ok {
		t.miss(err)
		return detectors.Outcome{}
	}
	seq := t.count(call)
	if t.rule == nil && !t.hits.Active() {
		return detectors.Outcome{}
	}
	args, err := t.set.Args(call)
	if err != nil {
		t.miss(err) // it has none to show then
	}
	t.now = binder.CallHit{Hit: h, Number: seq, Call: call, Params: args}
	r := t.program.Judge(&t.now)
	if r.Matched && t.hits.Active() {
		t.emit(&t.now, &r, t.captured(&t.now))
	}
	return r.Outcome
}

// captured is what is shown of a call: what the rule says, else its own arguments.
func (t *callTracer) captured(h *binder.CallHit) []condition.Value {
	if len(t.program.Rule().Capture) > 0 {
		return t.program.Captured()
	}
	name := h.Call.String()
	p := t.shown[name]
	if p == nil {
		var err error
		if p, err = condition.Compile(t.profile, condition.Place{Entry: true, Args: h.Params, Syscall: true}, condition.Rule{}); err != nil {
			t.miss(err)
			return nil
		}
		t.shown[name] = p
	}
	p.Judge(h)
	return p.Captured()
}

func (t *callTracer) count(call guestos.Syscall) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total++
	t.counts[call.String()]++
	return t.total
}

// miss notes why a hit could not be looked at; nil is a call that is none of the set.
func (t *callTracer) miss(err error) {
	if err == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unread++
	t.last = err
}

// report is the one line that a list has for all places.
func (t *callTracer) report(b *binding, domain string, byID map[probe.ID]*probe.Status) (*controlapi.Probe, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	one := &controlapi.Probe{
		Id: b.id, Domain: domain, Name: t.name, At: t.at, State: probe.Armed.String(), Step: probe.Auto.String(), Hits: t.total,
		Syscalls: t.words, SyscallCount: uint32(len(t.set.Names)), Places: uint32(len(b.Probes)), Calls: maps.Clone(t.counts),
	}
	var out []string
	var all uint64
	for _, p := range b.Probes {
		st := byID[p.ID]
		if st == nil {
			return nil, fmt.Errorf("the engine has no probe %d", p.ID)
		}
		all += st.Hits
		one.Changed, one.Passed, one.Gaps, one.GapTicks = one.Changed+st.Changed, one.Passed+st.Passed, one.Gaps+st.Gaps, one.GapTicks+st.GapTicks
		if st.State != probe.Armed {
			one.State, out = st.State.String(), append(out, p.Spec.At+": "+st.State.String())
		}
	}
	one.Passed += all - min(all, t.total)
	if out != nil {
		one.Detail = fmt.Sprintf("%d of %d places are not armed: %s", len(out), len(b.Probes), strings.Join(out[:min(len(out), 3)], ", "))
	}
	if t.last != nil {
		one.Detail = strings.TrimPrefix(one.Detail+fmt.Sprintf("; hits that could not be looked at: %d, the last: %s", t.unread, control.Text(t.last.Error())), "; ")
	}
	if t.rule != nil {
		one.Rule, one.Matches = t.rule, matches(t.program)
	}
	return one, nil
}

// checkSyscalls says what else a request for system calls can't ask for.
func checkSyscalls(r *controlapi.AddProbeRequest) error {
	switch {
	case r.GetAt() != "":
		return errors.New("--at and --syscall exclude each other: a probe is at one place, or at a set of system calls")
	case ofImage(r):
		return errOnlyInImages
	case r.GetPid() != 0:
		return errors.New("--pid is of a place in a process; of a process's system calls say --when 'pid == …'")
	case r.GetReturns():
		return errors.New("--syscall sees calls, not their ends: say --at __x64_sys_… --return for those of one")
	case len(r.GetRule().GetSet()) > 0:
		return errors.New("--set is not for a set of system calls, whose arguments are at different places: say --at")
	}
	return nil
}

// addSyscalls is AddProbe for a set of system calls.
func (s *server) addSyscalls(ctx context.Context, r *controlapi.AddProbeRequest) (*controlapi.AddProbeResponse, error) {
	want, err := guestos.ParseSelection(r.GetSyscalls())
	if err == nil {
		err = checkSyscalls(r)
	}
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return s.arm(ctx, r, "system calls "+strings.Join(r.GetSyscalls(), ","), func(session *session, t tracer) (traced, error) {
		var set *guestos.SyscallSet
		err := session.engine.Do(ctx, func(xenevents.Domain) (err error) {
			set, err = want.Find(session.kernel)
			return err
		})
		if err != nil {
			return nil, err
		}
		t.program, err = compileCalls(session.kernel, set, r.GetRule())
		return newCallTracer(t, session.kernel.Profile, r.GetSyscalls(), set), invalid(err)
	})
}

func newCallTracer(t tracer, p *isf.Profile, words []string, set *guestos.SyscallSet) *callTracer {
	return &callTracer{tracer: t, words: words, profile: p, set: set, shown: map[string]*condition.Program{}, counts: map[string]uint64{}}
}

// compileCalls compiles a rule for system calls: for one, with its arguments by name
// and type; for several, with arg0 to arg5.
func compileCalls(k *guestos.Kernel, set *guestos.SyscallSet, r *controlapi.Rule) (*condition.Program, error) {
	rule, err := ruleOf(r)
	if err != nil {
		return nil, err
	}
	place, err := binder.PlaceOfCalls(k, set)
	if err != nil {
		return nil, err
	}
	return condition.Compile(k.Profile, place, rule)
}
