// Command hits is the tests' own monitor, for dom0 of the lab: the engine and
// the native driver with nothing around them. It puts one probe at an address,
// prints "armed", and on SIGTERM, or after -hits hits, removes it, detaches and
// prints what it saw as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native"
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
}

func main() {
	var o options
	var step string
	flag.StringVar(&o.symbol, "symbol", "__x64_sys_getpriority", "kernel function, or function+0x4, to probe")
	flag.StringVar(&o.profile, "profile", "/payload/profiles/guest.hprofile", "profile of the guest's kernel")
	flag.StringVar(&step, "step", "auto", "how to step over")
	flag.Int64Var(&o.poll, "poll", 0, "for how many cycles to poll before sleeping (see native.Options)")
	flag.Uint64Var(&o.hits, "hits", 0, "end after so many hits")
	flag.Uint64Var(&o.argOffset, "arg", 0x70, "offset in struct pt_regs, to which RDI points, of the argument to add up")
	flag.Uint64Var(&o.match, "match", ^uint64(0), "count the hits with this argument")
	flag.IntVar(&o.rounds, "rounds", 1, "attach, arm, remove and detach so often; the profile is read once")
	flag.BoolVar(&o.returns, "return", false, "probe the returns of the function as well")
	flag.Uint64Var(&o.budget, "budget", probe.Unlimited, "suspend the probe after so many hits in a window")
	flag.Uint64Var(&o.window, "window", 0, "the window of the budget, in ticks")
	flag.Parse()
	var err error
	if o.step, err = probe.ParseStepOver(step); err == nil {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
		defer stop()
		runtime.GOMAXPROCS(max(2, runtime.NumCPU()))
		err = run(ctx, o)
	}
	if err != nil {
		fmt.Println("hits:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	host, err := native.Open(ctx, native.Options{Poll: o.poll})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	domains, err := host.Domains(ctx)
	if err != nil || len(domains) != 1 {
		return fmt.Errorf("%d domains: %w", len(domains), err)
	}
	profile, err := isf.ReadFile(o.profile)
	if err != nil {
		return err
	}
	for range o.rounds {
		if err := once(ctx, host, domains[0], profile, o); err != nil {
			return err
		}
	}
	return nil
}

func once(ctx context.Context, host *native.Host, info xenevents.DomainInfo, profile *isf.Profile, o options) (err error) {
	dom, err := host.Open(ctx, info.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dom.Close()) }()
	kernel, err := guestos.FindKernel(dom, int(info.MaxVCPU)+1, profile)
	if err != nil {
		return err
	}
	engine, err := probe.New(dom, probe.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})), Window: o.window, Domain: unlimited})
	if err != nil {
		return err
	}
	runCtx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- engine.Run(runCtx) }()
	select {
	case <-engine.Ready():
	case err := <-ended:
		return err
	}
	report, probeErr := watch(ctx, engine, kernel, o)
	stop()
	if err := errors.Join(probeErr, <-ended); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}

var unlimited = probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}

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
		return probe.Verdict{}
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
