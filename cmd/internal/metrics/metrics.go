// Package metrics tells Prometheus how hprobed and its probes are.
package metrics

import (
	"context"
	"time"

	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// Source is what the figures come from. Snapshot is called for each scrape, from any goroutine; it
// should not take longer than its context lives, and what it returns is the caller's.
type Source interface {
	Snapshot(ctx context.Context) (*Snapshot, error)
}

// Snapshot is how hprobed is at one moment. What is the zero value is not there, or 0.
type Snapshot struct {
	Version, Driver, Hypervisor string
	Domains                     []Domain
	// Findings are Hub.Counts, FindingsLost the second of Hub.Totals.
	Findings     map[sinks.Key]uint64
	FindingsLost uint64
	Sinks        []sinks.Health
	// Profiles counts the searches for a profile, by what came of them: "found", "captured", "failed".
	Profiles    map[string]uint64
	ProfileTime time.Duration // that they took in all
	Audit       Audit
	Plugins     []Plugin
	// Rescues counts the domains that were put right after a monitor died, by what came of it: "done", "failed".
	Rescues map[string]uint64
}

// Domain is a guest that hprobed is attached to.
type Domain struct {
	Name   string
	Stats  probe.Stats
	Probes []Probe
}

// Probe is one of a domain's. ID is what hprobe calls it, as in "p1" or "d2.1", At its place.
type Probe struct {
	ID, At string
	Status probe.Status
}

// Audit is how the audit log is.
type Audit struct {
	Written, Failed uint64
	Head            uint64 // the number of the last entry
}

// Plugin is a detector that is a process of its own.
type Plugin struct {
	Name            string
	Up              bool
	Restarts        uint64
	MissedDeadlines uint64 // verdicts that came too late, so that the default was taken
}
