package detectors

import "time"

// Moment is now, by two clocks.
type Moment struct {
	Host time.Time
	// Guest is for how long the guest has run since something that does not change while
	// a detector watches: it stands still while the guest is paused.
	Guest time.Duration
}

// Ticker is a Detector to which it matters that time passes without a hit.
type Ticker interface {
	Detector
	// Every is how often it wants to be asked; 0: never.
	Every() time.Duration
	// Tick returns what it concludes of the time that passed. It is called on the
	// goroutine that serves the domain's hits, and must be as quick as a Handler. Of its
	// findings Probe, Severity, Message, Tags and Facts are set.
	Tick(now Moment) []*Finding
}
