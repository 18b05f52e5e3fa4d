package rehearsal

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/replay"
)

// Recorder says how a guest is recorded.
type Recorder struct {
	Policies []*policy.Policy
	To       io.Writer
	Log      *slog.Logger
	// Armed is called once all probes are in the guest.
	Armed func()
}

// Recorded is what was recorded.
type Recorded struct {
	Events   uint64
	Findings uint64 // that the policies had meanwhile
	// Early, where not empty, is why it ended before ctx did.
	Early string
}

// early is how often it is looked whether the recording ended.
const early = 100 * time.Millisecond

// Record records a guest with the probes of policies, until ctx ends, and takes them out.
// The policies only observe, whatever their mode. kernel is the guest's, which somebody has
// found by another Domain or by dom; dom is closed.
func (r *Recorder) Record(ctx context.Context, dom xenevents.Domain, kernel *guestos.Kernel) (done Recorded, err error) {
	meta := kernel.Profile.Meta()
	about := replay.About{Banner: meta.Banner, BuildID: meta.BuildID, Slide: kernel.Slide}
	all := make([]*policy.Policy, len(r.Policies))
	for i, p := range r.Policies {
		about.Policies = append(about.Policies, p.Name())
		observing := *p
		observing.Spec.Mode = policy.Observe
		all[i] = &observing
	}
	if err := xenevents.Refuse(ctx, dom); err != nil {
		return done, errors.Join(err, dom.Close())
	}
	rec, err := replay.Record(ctx, dom, about, r.To)
	if err != nil {
		return done, errors.Join(err, dom.Close())
	}
	var found counter
	err = watch(ctx, rec, kernel.Profile, all, &found, probe.Options{Log: r.Log}, wider, func(s *session) error {
		places, err := s.places()
		if err != nil {
			return err
		}
		rec.Watches(places...)
		r.Armed()
		look := time.NewTicker(early)
		defer look.Stop()
		for ctx.Err() == nil && rec.Early() == "" {
			select {
			case <-ctx.Done():
			case <-look.C:
			case <-s.ended:
				return nil
			}
		}
		return nil
	})
	done = Recorded{rec.Events(), found.n.Load(), rec.Early()}
	if errors.Is(err, xenevents.ErrDomainGone) {
		done.Early, err = "the guest ended", nil
	}
	return done, errors.Join(err, rec.Close())
}

// counter is a Sink that counts.
type counter struct{ n atomic.Uint64 }

func (c *counter) Emit(*detectors.Finding) { c.n.Add(1) }

// wide is a policy that reads more at its hits than it needs, so that it can be changed
// later: who runs, where the call returns to, and what its arguments may point to.
type wide struct{ *policy.Detector }

func wider(d *policy.Detector) detectors.Detector { return wide{d} }

// Probes are the policy's.
func (w wide) Probes() []detectors.ProbeSpec {
	all := w.Detector.Probes()
	for i := range all {
		handle := all[i].Handle
		all[i].Handle = func(h detectors.Hit) detectors.Outcome {
			out := handle(h)
			lookAround(h)
			return out
		}
	}
	return all
}

// pointed is how much is read where an argument may point to, in bytes: of each page that
// it is in the recording has all.
const pointed = 256

// lookAround reads what the recording is to have. What is not there is no matter.
func lookAround(h detectors.Hit) {
	h.Process()
	_ = h.CanDeny()
	var room [pointed]byte
	r := h.Registers()
	for _, at := range [...]uint64{r.RDI, r.RSI, r.RDX, r.RCX, r.R8, r.R9} {
		if a := xenevents.GVA(at); at >= xenevents.PageSize && a.Canonical() {
			_, _ = h.Read(room[:], a)
		}
	}
}
