package daemon

import (
	"context"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// lookEvery is how often the host is asked for its domains where nobody tells that they
// came or went, and as a second line where somebody does.
const lookEvery = 10 * time.Second

// watch keeps track of the domains that come and go, until ctx ends.
func (d *Daemon) watch(ctx context.Context) {
	changed := make(chan struct{}, 1)
	if w, ok := d.Host.(xenevents.Watcher); ok {
		d.work.Go(func() {
			for ctx.Err() == nil {
				err := w.Watch(ctx, func() {
					select {
					case changed <- struct{}{}:
					default:
					}
				})
				if ctx.Err() == nil {
					d.Log.Warn("nobody tells of domains that come and go: they are asked for now and then", "err", err, "every", lookEvery)
				}
				wait(ctx, lookEvery)
			}
		})
	}
	again := time.NewTicker(lookEvery)
	defer again.Stop()
	for {
		if err := d.look(ctx); err != nil && ctx.Err() == nil {
			d.Log.Error("the domains of this host", "err", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again.C:
		}
	}
}

func wait(ctx context.Context, t time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(t):
	}
}

// look asks for the domains that there are, and has the workers of those that changed look
// at them.
func (d *Daemon) look(ctx context.Context) error {
	infos, err := d.Host.Domains(ctx)
	if err != nil {
		return err
	}
	there := map[xenevents.DomainID]bool{}
	for _, info := range infos {
		there[info.ID] = true
		if !info.HVM { // it can't be watched
			continue
		}
		if _, err := d.meet(info); err != nil {
			return err
		}
	}
	for _, g := range d.known() {
		if !there[g.id] {
			d.forget(g)
		}
	}
	return nil
}
