package sinks

import (
	"fmt"
	"testing"

	"github.com/hprobe/hprobe/detectors"
)

func TestCounts(t *testing.T) {
	h := new(Hub)
	for i := range 3 * mostKeys {
		for range 2 {
			h.Emit(&detectors.Finding{Domain: fmt.Sprint(i), Detector: "d", Severity: detectors.High, Blocked: i%2 == 0})
		}
	}
	got := h.Counts()
	if got[Key{"7", "d", "high", false}] != 2 || got[Key{"8", "d", "high", true}] != 2 || len(got) != mostKeys+2 {
		t.Errorf("%d keys: %v", len(got), got)
	}
	if a, b := got[Key{Other, Other, "high", false}], got[Key{Other, Other, "high", true}]; a != 2*mostKeys || b != 2*mostKeys {
		t.Errorf("others: %d, %d", a, b)
	}
}
