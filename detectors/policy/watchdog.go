package policy

import (
	"cmp"
	"fmt"
	"time"

	"github.com/hprobe/hprobe/detectors"
)

// watchdog is one in a guest.
type watchdog struct {
	*Watchdog
	probe    *armed
	within   time.Duration
	severity detectors.Severity
	tags     []string

	begun  bool // its time runs
	last   detectors.Moment
	seen   uint64 // matches at the last tick
	silent bool   // it was reported
}

// tick looks whether the probe matched since the last one. A match is taken to be as late
// as the tick after it: a guest is never called silent too early.
func (w *watchdog) tick(now detectors.Moment) *detectors.Finding {
	matched := w.probe.matched != w.seen
	w.seen = w.probe.matched
	switch {
	case matched:
		since := w.since(now)
		w.begun, w.last = true, now
		if w.silent {
			w.silent = false
			return w.finding(detectors.Informational, fmt.Sprintf("%s: %s matches again, after %v", w.Name, w.Expect, since.Round(time.Millisecond)), since)
		}
	case !w.begun:
		if w.From != "first" {
			w.begun, w.last = true, now
		}
	case !w.silent && w.since(now) > w.within:
		w.silent = true
		text := cmp.Or(w.Finding.Message, fmt.Sprintf("%s: %s did not match for more than %v", w.Name, w.Expect, w.within))
		return w.finding(w.severity, text, w.since(now))
	}
	return nil
}

// since is the time since the last match, or since the watchdog's time runs.
func (w *watchdog) since(now detectors.Moment) time.Duration {
	if w.Clock == "host" {
		return now.Host.Sub(w.last.Host)
	}
	return now.Guest - w.last.Guest
}

func (w *watchdog) finding(s detectors.Severity, text string, since time.Duration) *detectors.Finding {
	return &detectors.Finding{Probe: w.probe.at, Severity: s, Message: text, Tags: w.tags, Facts: []detectors.Fact{{Name: "milliseconds", Value: uint64(max(since, 0).Milliseconds())}}}
}
