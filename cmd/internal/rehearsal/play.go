package rehearsal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/replay"
)

// Played is what policies did with a recording.
type Played struct {
	Findings []*detectors.Finding // with the time of the recording
	Probes   []Probe
	Stats    replay.Stats
	Needless []string // why hprobed would not arm some of the policies there
	// Unrecorded are places of probes at which the recording was made without one: what
	// happened there is not in it.
	Unrecorded []string
}

// Probe is how a probe of a policy did.
type Probe struct {
	Policy string
	policy.ProbeStatus
}

// maxFindings bounds what a recording may make policies find.
const maxFindings = 100_000

// Play plays a recording to policies. profile is of its guest's kernel.
func Play(ctx context.Context, r *replay.Recording, profile *isf.Profile, all []*policy.Policy) (*Played, error) {
	s := &stage{began: r.Header.Began}
	player := r.Play(replay.Options{Passed: s.passed})
	played := &Played{}
	err := watch(ctx, player, profile, all, s, probe.Options{}, asIs, func(in *session) error {
		played.Needless = in.needless
		places, err := in.places()
		if err != nil {
			return err
		}
		for _, p := range places {
			if !slices.Contains(r.Places, p) && !slices.Contains(r.Places, p+atReturn) {
				played.Unrecorded = append(played.Unrecorded, p)
			}
		}
		for _, d := range in.detectors {
			if every := d.Every(); every > 0 {
				s.tickers = append(s.tickers, &ticker{Detector: d, every: every})
			}
		}
		player.Start()
		select {
		case <-player.Done():
		case <-in.ended:
			return errors.New("the recording was not played to its end")
		case <-ctx.Done():
			return ctx.Err()
		}
		return in.engine.Do(ctx, func(xenevents.Domain) error {
			played.Stats = player.Stats()
			for _, d := range in.detectors {
				for _, p := range d.Status() {
					played.Probes = append(played.Probes, Probe{d.Policy.Name(), p})
				}
			}
			return nil
		})
	})
	played.Findings = s.found
	if err == nil && s.lost > 0 {
		err = fmt.Errorf("the policies have more than %d findings", maxFindings)
	}
	return played, errors.Join(err, player.Close())
}

func asIs(d *policy.Detector) detectors.Detector { return d }

// stage is a Sink that keeps findings, and the clock.
type stage struct {
	began   time.Time
	tickers []*ticker // before the player starts

	mu    sync.Mutex // for what follows
	now   time.Duration
	found []*detectors.Finding
	lost  uint64
}

// ticker is a policy that wants to know that time passes.
type ticker struct {
	*policy.Detector
	every, last time.Duration
}

// maxTicks bounds how often one is told, where nothing else happened meanwhile.
const maxTicks = 10_000

// passed tells the policies of the time, up to an event's.
func (s *stage) passed(since time.Duration) {
	for _, t := range s.tickers {
		t.last = max(t.last, since-maxTicks*t.every)
		for ; t.last+t.every <= since; t.last += t.every {
			at := t.last + t.every
			s.at(at)
			for _, f := range t.Tick(detectors.Moment{Host: s.began.Add(at), Guest: at}) {
				f.Detector = t.Name()
				s.Emit(f)
			}
		}
	}
	s.at(since)
}

func (s *stage) at(since time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = since
}

// Emit implements detectors.Sink.
func (s *stage) Emit(f *detectors.Finding) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.found) == maxFindings {
		s.lost++
		return
	}
	f.Time = s.began.Add(s.now)
	s.found = append(s.found, f)
}
