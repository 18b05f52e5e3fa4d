package sinks

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

// Options are what all sinks share.
type Options struct {
	Log     *slog.Logger
	Version string // hprobe's, for OCSF
	// Folder is hprobed's own: queues on the disk are below it, in "queue".
	Folder string
}

// Set passes a Hub's findings on to sinks, each with a queue and a goroutine of its own: one
// that is slow or broken holds up no other. Its methods may be called from any goroutine.
type Set struct {
	hub *Hub
	o   Options

	change sync.Mutex // held while sinks are replaced or closed, which takes time
	closed bool

	mu    sync.Mutex
	sinks []*sink

	end  chan struct{}
	logs sync.WaitGroup
}

// record is a finding on its way.
type record struct {
	finding *detectors.Finding
	id      string
	body    []byte // a line, with its end
}

// output is where a sink's findings go. One goroutine uses it.
type output interface {
	// write passes a finding on, or keeps it on the disk. It returns early when ctx ends.
	write(ctx context.Context, r *record) error
	// flush is called after some writes.
	flush() error
	// close waits until all is passed on, at most until ctx ends.
	close(ctx context.Context) error
}

// sink is one of a Set.
type sink struct {
	*stats
	sub    *Subscription[detectors.Finding]
	keep   func(*detectors.Finding) bool
	encode func(*detectors.Finding, string) ([]byte, error)
	out    output
	queued bool // the output says itself what was delivered

	ctx    context.Context // ends when there is no more time
	cancel context.CancelFunc
	done   chan struct{} // the goroutine ended
}

// Start opens the sinks of a configuration and passes on to them what the hub gets from
// now on. If one can't be opened none is.
func Start(hub *Hub, configs []Config, o Options) (*Set, error) {
	if err := Check(configs); err != nil {
		return nil, err
	}
	s := &Set{hub: hub, o: o, end: make(chan struct{})}
	all, err := s.open(configs)
	if err != nil {
		return nil, errors.Join(err, closeAll(context.Background(), all))
	}
	s.run(all, hub.fan.replace(nil, len(all)))
	s.logs.Go(s.logRest)
	return s, nil
}

// open opens what can be opened.
func (s *Set) open(configs []Config) ([]*sink, error) {
	var all []*sink
	var errs []error
	for i := range configs {
		c := &configs[i]
		one := &sink{stats: newStats(c.name(), c.kind(), s.o.Log), keep: c.filter(), encode: encoders[cmp.Or(c.Format, "json")], done: make(chan struct{})}
		one.ctx, one.cancel = context.WithCancel(context.Background())
		var err error
		switch c.kind() {
		case "file":
			one.out, err = newFile(c.File, one.log)
		case "syslog":
			one.out, err = newSyslog(c.Syslog, one.trouble)
		case "journal":
			one.out = newJournal(c.Journal, one.trouble)
		case "webhook":
			one.queued = true
			one.out, err = newWebhook(c.Webhook, filepath.Join(s.o.Folder, "queue", c.name()), one.stats)
		}
		if err != nil {
			one.cancel()
			errs = append(errs, fmt.Errorf("findings: sink %q: %w", c.name(), err))
			continue
		}
		all = append(all, one)
	}
	return all, errors.Join(errs...)
}

// run has sinks run, each with a subscription.
func (s *Set) run(all []*sink, subs []*Subscription[detectors.Finding]) {
	for i, one := range all {
		one.sub = subs[i]
		go one.run(s.o.Version) // ends with its subscription
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sinks = all
}

// all are the sinks that there are now.
func (s *Set) all() []*sink {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sinks
}

// Replace goes on with the sinks of another configuration. A finding goes to the old ones
// or to the new ones, whatever comes meanwhile; the old ones have until ctx ends. One that
// can't be opened is left out, and the error says so; a configuration that Check refuses
// changes nothing.
func (s *Set) Replace(ctx context.Context, configs []Config) error {
	if err := Check(configs); err != nil {
		return err
	}
	s.change.Lock()
	defer s.change.Unlock()
	if s.closed {
		return errEnding
	}
	old := s.all()
	var olds []*Subscription[detectors.Finding]
	for _, one := range old {
		olds = append(olds, one.sub)
	}
	// The new ones may have the files and folders of the old ones: these come to their end
	// before. What the hub gets meanwhile waits.
	subs := s.hub.fan.replace(olds, len(configs))
	err := closeAll(ctx, old)
	all, e := s.open(configs)
	for _, spare := range subs[len(all):] {
		spare.Close()
	}
	s.run(all, subs)
	return errors.Join(err, e)
}

// run passes findings on until the subscription is closed and empty.
func (s *sink) run(version string) {
	defer close(s.done)
	unflushed := 0
	for f := range s.sub.C {
		unflushed++
		s.pass(&f, version)
		if len(s.sub.C) == 0 || unflushed == queued {
			unflushed = 0
			if err := s.out.flush(); err != nil {
				s.trouble(err)
			}
		}
	}
	s.takeLost()
}

func (s *sink) takeLost() { s.drop(DropSlow, s.sub.TakeLost(), errSlow) }

func (s *sink) pass(f *detectors.Finding, version string) {
	s.takeLost()
	if !s.keep(f) {
		s.filtered()
		return
	}
	if s.ctx.Err() != nil {
		s.drop(DropClosed, 1, errEnding)
		return
	}
	r := record{finding: f}
	var err error
	if r.id, err = ID(f); err == nil {
		r.body, err = s.encode(f, version)
	}
	if err == nil {
		err = s.out.write(s.ctx, &r)
	}
	switch {
	case err == nil && !s.queued:
		s.delivered(1)
	case err != nil && s.ctx.Err() != nil:
		s.drop(DropClosed, 1, err)
	case err != nil:
		s.drop(DropFailed, 1, err)
	}
}

// logRest logs what came too fast to be logged at once.
func (s *Set) logRest() {
	t := time.NewTicker(quiet)
	defer t.Stop()
	for {
		select {
		case <-s.end:
			return
		case <-t.C:
			for _, one := range s.all() {
				one.takeLost()
				one.stats.logRest()
			}
		}
	}
}

// Health says how each sink is.
func (s *Set) Health() []Health {
	var all []Health
	for _, one := range s.all() {
		one.takeLost()
		h := one.snapshot()
		h.Waiting += len(one.sub.C)
		all = append(all, h)
	}
	return all
}

// Reopen opens files anew: for those that another program has moved away.
func (s *Set) Reopen() error {
	s.change.Lock()
	defer s.change.Unlock()
	var errs []error
	for _, one := range s.all() {
		if f, ok := one.out.(*fileOutput); ok {
			errs = append(errs, f.Reopen())
		}
	}
	return errors.Join(errs...)
}

// Close passes on what the sinks have got, at most until ctx ends. What is not passed on by then
// is counted, logged, and in the error; what is in a queue on the disk stays there. Twice is harmless.
func (s *Set) Close(ctx context.Context) error {
	s.change.Lock()
	defer s.change.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	close(s.end)
	err := closeAll(ctx, s.all())
	s.logs.Wait()
	return err
}

func closeAll(ctx context.Context, all []*sink) error {
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, one := range all {
		wg.Go(func() { errs[i] = one.close(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// hung is how long a sink that has no more time has to notice that.
const hung = time.Second

func (s *sink) close(ctx context.Context) error {
	defer s.cancel()
	if s.sub != nil {
		s.sub.Close()
		select {
		case <-s.done:
		case <-ctx.Done():
			s.cancel()
			select {
			case <-s.done:
			case <-time.After(hung):
				err := fmt.Errorf("sink %s hangs, with %d findings that are lost to it", s.health.Name, len(s.sub.C)+1)
				s.log.Error("end", "err", err)
				return err
			}
		}
	}
	err := s.out.close(ctx)
	s.stats.logRest()
	if n := s.snapshot().Dropped[DropClosed]; n > 0 {
		err = errors.Join(err, fmt.Errorf("%d findings are lost to it: %w", n, errEnding))
	}
	if err != nil {
		return fmt.Errorf("sink %s: %w", s.health.Name, err)
	}
	return nil
}

// fileOutput is the output of a sink that is a file.
type fileOutput struct{ *rotate.File }

func newFile(c *rotate.Config, log *slog.Logger) (*fileOutput, error) {
	f, err := rotate.Open(*c, log)
	return &fileOutput{f}, err
}

func (f *fileOutput) write(_ context.Context, r *record) error { return f.WriteLine(r.body) }

func (f *fileOutput) flush() error { return f.Flush() }

func (f *fileOutput) close(context.Context) error { return f.Close() }
