// Command cycles attaches to the one guest of the lab and detaches, again and again: with
// every kind of event, a view, a spare frame and rights on a page. It prints a line of
// JSON after a tenth of the cycles and another at the end: what there is must not grow.
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
)

// State is what there is after some cycles.
type State struct {
	monitor.Usage
	Cycles int
	Domain xenevents.DomainInfo
}

func main() {
	n := flag.Int("n", 100, "how many cycles")
	flag.Parse()
	monitor.Main("cycles", func(ctx context.Context) error { return run(ctx, *n) })
}

func run(ctx context.Context, n int) (err error) {
	host, err := monitor.Open(ctx, "", drivers.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	for i := 1; i <= n && ctx.Err() == nil; i++ {
		if err := cycle(ctx, host); err != nil {
			return fmt.Errorf("cycle %d: %w", i, err)
		}
		if i != max(n/10, 1) && i != n {
			continue
		}
		s := State{Cycles: i}
		if s.Usage, err = monitor.Used(); err != nil {
			return err
		}
		all, err := host.Domains(ctx)
		if err != nil || len(all) != 1 {
			return fmt.Errorf("%d domains: %w", len(all), err)
		}
		s.Domain = all[0]
		if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
			return err
		}
	}
	return ctx.Err()
}

func cycle(ctx context.Context, host *monitor.Host) (err error) {
	opened, err := host.Open(ctx, host.Guest.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	dom := opened.(drivers.Domain)
	events, err := dom.Attach(ctx)
	if err != nil {
		return err
	}
	for _, s := range []xenevents.Subscription{
		{Kind: xenevents.KindInt3, Sync: true}, {Kind: xenevents.KindSingleStep, Sync: true},
		{Kind: xenevents.KindControlReg, Index: 3}, {Kind: xenevents.KindMSR, Index: 0xc000_0082, Sync: true},
	} {
		if err := events.Subscribe(s); err != nil {
			return err
		}
	}
	if err := dom.EnableViews(); err != nil {
		return err
	}
	view, err := dom.CreateView()
	if err != nil {
		return err
	}
	spare, err := dom.AllocGFN()
	if err != nil {
		return err
	}
	regs, err := dom.Registers(0)
	if err != nil {
		return err
	}
	gfn := xenevents.AddressSpaceOf(&regs).Root.GFN()
	var batch [8]xenevents.Event
	if err := errors.Join(dom.RemapGFN(view, gfn, spare), dom.SetAccess(view, gfn, xenevents.AccessR)); err != nil {
		return err
	}
	// What came meanwhile is left for Close.
	_, err = events.TryNext(batch[:])
	return err
}
