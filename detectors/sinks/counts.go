package sinks

import (
	"maps"

	"github.com/hprobe/hprobe/detectors"
)

// Key is what findings are counted by.
type Key struct {
	Domain, Detector, Severity string
	Blocked                    bool
}

// Other is the domain and the detector of findings that are counted together, as there
// are more than mostKeys of others.
const Other = "other"

// mostKeys is how many figures there are: what asks for them keeps each for long.
const mostKeys = 1000

// counts are how many findings there were of each.
type counts map[Key]uint64

func (c counts) add(f *detectors.Finding) {
	k := Key{f.Domain, f.Detector, f.Severity.String(), f.Blocked}
	if _, known := c[k]; !known && len(c) >= mostKeys {
		k.Domain, k.Detector = Other, Other
	}
	c[k]++
}

// Counts returns how many findings there were since hprobed began, of each kind. It is the caller's.
func (h *Hub) Counts() map[Key]uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return maps.Clone(h.counts)
}
