package daemon

import (
	"context"
	"errors"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

// ticks tells a detector that time passes, until ctx ends or the engine does.
func (s *session) ticks(ctx context.Context, t detectors.Ticker) {
	every := time.NewTicker(t.Every())
	defer every.Stop()
	clock := guestClock{}
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.done:
			return
		case <-every.C:
		}
		var found []*detectors.Finding
		err := s.engine.Do(ctx, func(dom xenevents.Domain) error {
			info, err := dom.Info(ctx)
			if err != nil {
				return err
			}
			found = t.Tick(clock.at(time.Now(), info.Paused))
			return nil
		})
		if err != nil {
			if ctx.Err() == nil && !s.ended() && !errors.Is(err, xenevents.ErrNoDomain) {
				s.d.Log.Error("time for a detector", "detector", t.Name(), "domain", s.info.Name, "err", err)
			}
			continue
		}
		for _, f := range found {
			f.Time, f.Domain, f.DomainID, f.Detector = time.Now(), s.info.Name, s.info.ID, t.Name()
			s.d.Findings.Emit(f)
		}
	}
}

// guestClock is for how long a guest has run, as far as one that looks now and then can
// tell: between two looks of which one finds it paused it stood still.
type guestClock struct {
	last   time.Time // of the look before; zero: there was none
	paused bool
	ran    time.Duration
}

func (c *guestClock) at(now time.Time, paused bool) detectors.Moment {
	if !c.last.IsZero() && !paused && !c.paused {
		c.ran += now.Sub(c.last)
	}
	c.last, c.paused = now, paused
	return detectors.Moment{Host: now, Guest: c.ran}
}
