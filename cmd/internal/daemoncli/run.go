package daemoncli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/audit"
	"github.com/hprobe/hprobe/cmd/internal/config"
	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/daemon"
	"github.com/hprobe/hprobe/cmd/internal/sdnotify"
	"github.com/hprobe/hprobe/cmd/internal/version"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// closeLimit is how long sinks have to pass on what they have when hprobed ends, and when
// others take their place.
const closeLimit = 10 * time.Second

// program is one run of hprobed.
type program struct {
	o              *options
	cmd            *cobra.Command
	stdout, stderr io.Writer

	level  slog.LevelVar
	log    *slog.Logger
	daemon *daemon.Daemon
	sinks  *sinks.Set
	audit  *audit.Log // nil: commands are not written down
	host   drivers.Host
	finder *finder
	aside  sync.WaitGroup // what runs beside Serve
}

// run serves until ctx ends, and leaves the guests as they were.
func (p *program) run(ctx context.Context, c *config.Config) (err error) {
	// From the first moment: SIGHUP would end hprobed without a chance to clean up.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	p.setLevel(c)
	p.log = slog.New(slog.NewTextHandler(p.stderr, &slog.HandlerOptions{Level: &p.level}))
	listener, err := control.Listen(c.Socket, c.Group)
	if err != nil {
		return err
	}
	defer listener.Close()
	var why string
	if p.host, why, err = drivers.Open(ctx, c.Driver, drivers.Options{Poll: c.Poll}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.host.Close()) }()
	p.finder = newFinder(profileOptions{folders: c.Profiles, capture: *c.Capture})
	o := daemon.Options{Host: p.host, FindProfile: p.finder.find, Log: p.log, PolicyFolder: keptPolicies(c)}
	if c.Audit != nil {
		if p.audit, err = audit.Open(*c.Audit, p.log); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, p.audit.Close()) }()
		o.Record = p.record
	}
	p.daemon = daemon.New(o)
	if p.sinks, err = sinks.Start(&p.daemon.Findings, c.Findings, sinks.Options{Log: p.log, Version: version.String(), Folder: c.State}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.closeSinks()) }()
	stopOut, err := p.findingsTo(p.o.findings)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stopOut()) }()
	// A policy that was applied once and can't be read any more must not keep the others,
	// nor hprobed, from their work.
	if err := p.daemon.LoadKept(); err != nil {
		p.log.Error("policies that were applied", "err", err)
	}
	if err := p.daemon.Configure(rulesOf(c), c.Read); err != nil {
		return err
	}
	// Before the driver and the sinks are closed, and also where Serve fails.
	aside, end := context.WithCancel(ctx)
	defer p.aside.Wait()
	defer end()
	if err := p.serveMetrics(aside, c.Metrics); err != nil {
		return err
	}
	p.aside.Go(func() { p.reloadOn(aside, hangup) })
	p.aside.Go(func() { p.tellSystemd(aside) })
	p.log.Info("ready", "version", version.String(), "xen", p.host.Version(), "driver", p.host.Name(), "because", why, "socket", c.Socket, "profiles", strings.Join(c.Profiles, ", "), "policies", len(c.Read))
	p.told(sdnotify.Ready(p.summary(c)))
	return p.daemon.Serve(ctx, listener, control.Credentials{Group: c.Group != ""})
}

func (p *program) setLevel(c *config.Config) {
	p.level.Set(slog.LevelInfo)
	if c.Verbose {
		p.level.Set(slog.LevelDebug)
	}
}

func (p *program) closeSinks() error {
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	return p.sinks.Close(ctx)
}

// findingsTo writes findings to the file of a flag until stop is called.
func (p *program) findingsTo(file string) (stop func() error, err error) {
	if file == "" {
		return func() error { return nil }, nil
	}
	out, end := p.stdout, func() error { return nil }
	if file != "-" {
		f, err := os.OpenFile(file, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
		if err != nil {
			return nil, fmt.Errorf("findings: %w", err)
		}
		out, end = f, f.Close
	}
	sub := p.daemon.Findings.Subscribe()
	var wg sync.WaitGroup
	wg.Go(func() { sinks.WriteJSON(sub, out, p.log) })
	return func() error {
		sub.Close()
		wg.Wait()
		return end()
	}, nil
}

func rulesOf(c *config.Config) (rules []daemon.DomainRule) {
	for _, d := range c.Domains {
		rules = append(rules, daemon.DomainRule{Names: d.Names, Labels: d.Labels, Ignore: d.Ignore})
	}
	return rules
}

// reloadOn reads the configuration anew at each signal, until ctx ends.
func (p *program) reloadOn(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		if err := p.reload(ctx); err != nil {
			p.log.Error("the configuration is as it was", "err", err)
		}
	}
}

// reload reads the configuration anew. Where it is wrong all stays as it is.
func (p *program) reload(ctx context.Context) error {
	p.told(sdnotify.Reloading())
	c, err := p.o.load(p.cmd)
	if err != nil {
		p.told(sdnotify.Ready("the configuration is wrong, and as it was: see the log"))
		return err
	}
	if err := p.daemon.Configure(rulesOf(c), c.Read); err != nil {
		return err
	}
	p.setLevel(c)
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	if err := p.sinks.Replace(ctx, c.Findings); err != nil { // one that can't be opened: the others are
		p.log.Error("where findings go", "err", err)
	}
	if p.audit != nil {
		if err := p.audit.Reopen(); err != nil {
			p.log.Error("the audit log", "err", err)
		}
	}
	p.told(sdnotify.Ready(p.summary(c)))
	p.log.Info("the configuration was read anew", "policies", len(c.Read), "sinks", len(c.Findings))
	return nil
}

// summary is what hprobed does, for systemctl status.
func (p *program) summary(c *config.Config) string {
	return fmt.Sprintf("driver %s, %d policies configured", p.host.Name(), len(c.Read))
}

// told logs that systemd could not be told something: hprobed does its work nevertheless.
func (p *program) told(err error) {
	if err != nil {
		p.log.Warn("systemd", "err", err)
	}
}

// tellSystemd tells it that hprobed lives until ctx ends, and then that it is stopping.
func (p *program) tellSystemd(ctx context.Context) {
	p.told(sdnotify.Watch(ctx, p.daemon.Alive, p.log))
	<-ctx.Done()
	p.told(sdnotify.Stopping())
}
