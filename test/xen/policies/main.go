// Command policies is the tests' own monitor with policies, for dom0 of the lab. It
// compiles and arms those that its arguments name, stock ones and files, prints "armed", then each finding as a
// line of JSON, and on SIGTERM takes them out and prints their status.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

func main() {
	enforce := flag.Bool("enforce", false, "in enforce mode")
	flag.Parse()
	monitor.Main("policies", func(ctx context.Context) (err error) {
		host, err := monitor.Open(ctx, monitor.Profile, drivers.Options{})
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, host.Close()) }()
		return host.Watch(ctx, monitor.Options(), nil, func(s *monitor.Session) error { return watch(ctx, s, host.Guest, flag.Args(), *enforce) })
	})
}

func watch(ctx context.Context, s *monitor.Session, guest xenevents.DomainInfo, names []string, enforce bool) error {
	var hub sinks.Hub
	sub := hub.Subscribe()
	written := make(chan struct{})
	go func() { // until sub is closed
		defer close(written)
		sinks.WriteJSON(sub, os.Stdout, slog.Default())
	}()
	b := binder.New(s.Engine, s.Kernel, guest, &hub)
	var all []*policy.Detector
	for _, name := range names {
		d, err := compile(ctx, s, name, enforce)
		if err != nil {
			return err
		}
		if _, err := b.Bind(ctx, d); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, d)
	}
	fmt.Println("armed")
	tick(ctx, s, all, &hub)
	sub.Close()
	<-written
	for _, d := range all {
		for _, p := range d.Status() {
			fmt.Printf("%s %s at %q: matched %d, acted %d, errors %d %q\n", d.Name(), p.Name, p.At, p.Matched, p.Acted, p.Errors, p.LastError)
		}
	}
	return nil
}

// compile compiles a policy for the guest, whether its kernel needs it or not.
func compile(ctx context.Context, s *monitor.Session, name string, enforce bool) (*policy.Detector, error) {
	text, err := textOf(name)
	if err != nil {
		return nil, err
	}
	if enforce {
		text = strings.Replace(text, "spec:\n", "spec:\n  mode: enforce\n", 1)
	}
	parsed, err := policy.Parse(name, []byte(text))
	if err != nil {
		return nil, err
	}
	do := func(f func() error) error { return s.Engine.Do(ctx, func(xenevents.Domain) error { return f() }) }
	return parsed[0].Compile(policy.Target{Kernel: s.Kernel, Do: do, Regardless: true})
}

func textOf(name string) (string, error) {
	if !strings.HasSuffix(name, ".yaml") {
		return policy.StockText(name)
	}
	text, err := os.ReadFile(name)
	return string(text), err
}

// tick has the policies look at the clock, until ctx ends.
func tick(ctx context.Context, s *monitor.Session, all []*policy.Detector, hub *sinks.Hub) {
	start := time.Now()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
		err := s.Engine.Do(ctx, func(xenevents.Domain) error {
			for _, d := range all {
				for _, f := range d.Tick(detectors.Moment{Host: time.Now(), Guest: time.Since(start)}) {
					f.Detector = d.Name()
					hub.Emit(f)
				}
			}
			return nil
		})
		if err != nil && ctx.Err() == nil {
			fmt.Println("tick:", err)
			return
		}
	}
}
