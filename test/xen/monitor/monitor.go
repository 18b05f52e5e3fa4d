// Package monitor is what the tests' own monitors have in common. They run in dom0
// of the lab, with the engine and a driver and nothing around them.
package monitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"syscall"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// Profile is where a copy has the profile of the guest's kernel.
const Profile = "/payload/profiles/guest.hprofile"

// Offsets in struct pt_regs, to which RDI points at a system call's function, of
// the call's first two arguments.
const (
	ArgDI = 0x70
	ArgSI = 0x68
)

// Main runs a monitor until it ends, or SIGTERM ends its context. An error is the
// last that it prints.
func Main(name string, run func(context.Context) error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	runtime.GOMAXPROCS(max(2, runtime.NumCPU()))
	if err := run(ctx); err != nil {
		fmt.Println(name+":", err)
		os.Exit(1)
	}
}

// Host is the lab's Xen, with its one guest.
type Host struct {
	drivers.Host
	Guest   xenevents.DomainInfo
	profile *isf.Profile
}

// Driver opens the driver that HPROBE_DRIVER names, or the native one.
func Driver(ctx context.Context, o drivers.Options) (drivers.Host, error) {
	host, _, err := drivers.Open(ctx, cmp.Or(os.Getenv("HPROBE_DRIVER"), drivers.Native), o)
	return host, err
}

// Open connects to it. profile may be "", if Watch is not needed.
func Open(ctx context.Context, profile string, o drivers.Options) (*Host, error) {
	host, err := Driver(ctx, o)
	if err != nil {
		return nil, err
	}
	h := &Host{Host: host}
	all, err := host.Domains(ctx)
	switch {
	case err == nil && len(all) != 1:
		err = fmt.Errorf("%d guests, not one", len(all))
	case err == nil:
		h.Guest = all[0]
		if profile != "" {
			h.profile, err = isf.ReadFile(profile)
		}
	}
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	return h, nil
}

// Options are those of an engine that suspends no probe, and says errors alone.
func Options() probe.Options {
	unlimited := probe.Budget{Hits: probe.Unlimited, Stalled: probe.Unlimited}
	return probe.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})), Budget: unlimited, Domain: unlimited}
}

// Session is an engine that is attached to the guest.
type Session struct {
	Kernel *guestos.Kernel
	Engine *probe.Engine
}

// Watch has an engine serve the guest while do runs, and detach then. dom, if not
// nil, is what the engine gets in place of the driver's Domain.
func (h *Host) Watch(ctx context.Context, o probe.Options, dom func(drivers.Domain) xenevents.Domain, do func(*Session) error) (err error) {
	opened, err := h.Host.Open(ctx, h.Guest.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, opened.Close()) }()
	if dom != nil {
		opened = dom(opened.(drivers.Domain))
	}
	s := &Session{}
	if s.Kernel, err = guestos.FindKernel(opened, int(h.Guest.MaxVCPU)+1, h.profile); err != nil {
		return err
	}
	if s.Engine, err = probe.New(opened, o); err != nil {
		return err
	}
	runCtx, stop := context.WithCancel(context.Background())
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- s.Engine.Run(runCtx) }()
	select {
	case <-s.Engine.Ready():
	case err := <-ended:
		return err
	}
	err = do(s)
	stop()
	return errors.Join(err, <-ended)
}
