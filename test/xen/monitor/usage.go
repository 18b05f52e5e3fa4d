package monitor

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strings"
)

// Usage is what this process uses: what is in use, not what Go keeps for later.
type Usage struct {
	RSS     int // KiB
	Maps    int // mappings
	Files   int // that are open
	Threads int // of Go's: goroutines
}

// Used finds out.
func Used() (u Usage, err error) {
	runtime.GC()
	debug.FreeOSMemory()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return u, err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return u, err
	}
	files, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return u, err
	}
	u = Usage{Maps: bytes.Count(maps, []byte("\n")), Files: len(files), Threads: runtime.NumGoroutine()}
	_, rss, _ := strings.Cut(string(status), "VmRSS:")
	if _, err := fmt.Sscan(rss, &u.RSS); err != nil {
		return u, fmt.Errorf("/proc/self/status: %w", err)
	}
	return u, nil
}
