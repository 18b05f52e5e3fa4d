// Command hits is the tests' own monitor, for dom0 of the lab: the engine and
// a driver with nothing around them. It puts one probe at an address,
// prints "armed", and on SIGTERM, or after -hits hits, removes it, detaches and
// prints what it saw as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// Report is what is printed at the end.
type Report struct {
	Probe probe.Status
	Stats probe.Stats
	// Sum adds up the argument that -arg names, over all hits: nothing was lost or torn.
	Sum uint64
	// Matched counts the hits whose argument was -match.
	Matched uint64
	// Values counts what calls returned, by value. Unpaired are returns without an
	// entry, a second time, or on another stack than it.
	Values   map[int64]uint64
	Unpaired uint64
	Gaps     []probe.Gap
	// Late counts the hits whose verdict came by -later, Overtook the hits of other
	// vCPUs while one of those waited.
	Late, Overtook uint64
}

type options struct {
	symbol    string
	profile   string
	step      probe.StepOver
	poll      int64
	hits      uint64
	argOffset uint64
	match     uint64
	rounds    int
	returns   bool
	budget    uint64
	window    uint64
	later     time.Duration
	limit     time.Duration
}

func main() {
	var o options
	var step string
	flag.StringVar(&o.symbol, "symbol", "__x64_sys_getpriority", "kernel function, or function+0x4, to probe")
	flag.StringVar(&o.profile, "profile", monitor.Profile, "profile of the guest's kernel")
	flag.StringVar(&step, "step", "auto", "how to step over")
	flag.Int64Var(&o.poll, "poll", 0, "for how many cycles to poll before sleeping (see drivers.Options)")
	flag.Uint64Var(&o.hits, "hits", 0, "end after so many hits")
	flag.Uint64Var(&o.argOffset, "arg", monitor.ArgDI, "offset in struct pt_regs, to which RDI points, of the argument to add up")
	flag.Uint64Var(&o.match, "match", ^uint64(0), "count the hits with this argument")
	flag.IntVar(&o.rounds, "rounds", 1, "attach, arm, remove and detach so often; the profile is read once")
	flag.BoolVar(&o.returns, "return", false, "probe the returns of the function as well")
	flag.Uint64Var(&o.budget, "budget", probe.Unlimited, "suspend the probe after so many hits in a window")
	flag.Uint64Var(&o.window, "window", 0, "the window of the budget, in ticks")
	flag.DurationVar(&o.later, "later", 0, "have the hits of vCPU 0 wait so long for their verdict")
	flag.DurationVar(&o.limit, "limit", time.Minute, "with -later: how long a hit may wait")
	flag.Parse()
	monitor.Main("hits", func(ctx context.Context) (err error) {
		if o.step, err = probe.ParseStepOver(step); err != nil {
			return err
		}
		return run(ctx, o)
	})
}

func run(ctx context.Context, o options) (err error) {
	host, err := monitor.Open(ctx, o.profile, drivers.Options{Poll: o.poll})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	engine := monitor.Options()
	engine.Window = o.window
	for range o.rounds {
		var report Report
		err := host.Watch(ctx, engine, nil, func(s *monitor.Session) (err error) {
			report, err = watch(ctx, s.Engine, s.Kernel, o)
			return err
		})
		if err != nil {
			return err
		}
		if err := json.NewEncoder(os.Stdout).Encode(report); err != nil {
			return err
		}
	}
	return nil
}

// pairs keeps the stack pointers of entries, and looks at returns.
type pairs map[uint64]uint64

func (p pairs) add(h *probe.Hit, r *Report) {
	if !h.Return {
		p[h.Seq] = h.Regs.RSP
		return
	}
	if rsp, ok := p[h.Seq]; !ok || h.Regs.RSP != rsp+8 {
		r.Unpaired++
	}
	delete(p, h.Seq)
	r.Values[int64(h.Regs.RAX)]++
}

func watch(ctx context.Context, engine *probe.Engine, kernel *guestos.Kernel, o options) (r Report, err error) {
	symbol, offset, _ := strings.Cut(o.symbol, "+")
	at, err := kernel.Address(symbol)
	if err != nil {
		return r, err
	}
	if offset != "" {
		n, err := strconv.ParseUint(offset, 0, 16)
		if err != nil {
			return r, err
		}
		at += xenevents.GVA(n)
	}
	enough := make(chan struct{}, 1)
	r.Values = map[int64]uint64{}
	request := probe.Request{Name: "hits", At: at, Space: kernel.Space, Step: o.step, Return: o.returns, Budget: probe.Budget{Hits: o.budget, Stalled: probe.Unlimited}}
	request.Thread = func(h *probe.Hit) (uint64, bool) {
		id, err := kernel.CurrentThread(h.Regs, h.ReadUint64)
		return uint64(id), err == nil
	}
	request.Gap = func(g probe.Gap) { r.Gaps = append(r.Gaps, g) }
	known := pairs{}
	slow := newSlow(o.later)
	defer slow.stop()
	request.Decide = func(h *probe.Hit) probe.Verdict {
		if o.returns {
			known.add(h, &r)
		}
		if h.Return {
			return probe.Verdict{}
		}
		arg, err := h.ReadUint64(xenevents.GVA(h.Regs.RDI + o.argOffset))
		if err == nil {
			r.Sum += arg
			if arg == o.match {
				r.Matched++
			}
		}
		if h.Seq == o.hits {
			enough <- struct{}{}
		}
		if o.later == 0 {
			return probe.Verdict{}
		}
		if h.VCPU != 0 {
			if slow.waits.Load() {
				r.Overtook++
			}
			return probe.Verdict{}
		}
		r.Late++
		return probe.Verdict{Later: slow.ask(h.Later(o.limit, probe.Verdict{}))}
	}
	id, err := engine.Add(ctx, request)
	if err != nil {
		return r, err
	}
	fmt.Println("armed")
	select {
	case <-ctx.Done():
	case <-enough:
	}
	all, stats, err := engine.Probes(context.Background())
	if err != nil || len(all) != 1 {
		return r, fmt.Errorf("%d probes: %w", len(all), err)
	}
	r.Probe, r.Stats = all[0], stats
	return r, engine.Remove(context.Background(), id)
}
