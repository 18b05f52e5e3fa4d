package sinks

import (
	"errors"
	"log/slog"
	"sync"
	"time"
)

// The reasons for which a finding is not where it should go.
const (
	DropSlow    = "slow"    // findings came faster than the sink took them
	DropFailed  = "failed"  // it could not be written
	DropQueue   = "queue"   // the queue on the disk was full, or not readable
	DropRefused = "refused" // the receiver does not take it, however often it is sent
	DropClosed  = "closed"  // hprobed ended before it was sent
)

// DropReasons are all of them.
var DropReasons = []string{DropSlow, DropFailed, DropQueue, DropRefused, DropClosed}

// Health says how a sink is.
type Health struct {
	Name, Kind string
	Delivered  uint64            // findings; to a webhook, those that it took
	Filtered   uint64            // that the sink's configuration leaves out
	Dropped    map[string]uint64 // by reason
	Waiting    int               // in memory and on the disk
	// LastSuccess and LastError are the zero Time where there was none. Error is what the
	// last one was: an attempt that failed, whether a finding was dropped or not.
	LastSuccess, LastError time.Time
	Error                  string
}

// quiet is how long a sink logs nothing after it logged something.
const quiet = 10 * time.Second

// stats are a sink's figures, and its log. Its methods may be called from any goroutine.
type stats struct {
	log     *slog.Logger
	waiting func() int // on the disk; nil: there is nothing

	mu       sync.Mutex
	health   Health
	err      error             // the last one
	unlogged map[string]uint64 // dropped, by reason
	failed   bool              // there was an error since it last logged
	logged   time.Time
}

func newStats(name, kind string, log *slog.Logger) *stats {
	return &stats{log: log.With("sink", name), health: Health{Name: name, Kind: kind, Dropped: map[string]uint64{}}, unlogged: map[string]uint64{}}
}

func (s *stats) delivered(n uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health.Delivered += n
	s.health.LastSuccess = time.Now()
}

func (s *stats) filtered() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health.Filtered++
}

// drop counts findings that are lost.
func (s *stats) drop(reason string, n uint64, err error) {
	if n == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.health.Dropped[reason] += n
	s.unlogged[reason] += n
	s.note(err)
}

// trouble notes an attempt that failed and is made again.
func (s *stats) trouble(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(err)
}

func (s *stats) note(err error) {
	s.err, s.failed = err, true
	s.health.LastError, s.health.Error = time.Now(), err.Error()
	if time.Since(s.logged) >= quiet {
		s.logNow()
	}
}

// logRest logs what was not logged yet, as there was too much of it at once.
func (s *stats) logRest() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logNow()
}

func (s *stats) logNow() {
	if !s.failed {
		return
	}
	s.failed, s.logged = false, time.Now()
	if len(s.unlogged) == 0 {
		s.log.Warn("findings can't be passed on, and wait", "err", s.err)
		return
	}
	for reason, n := range s.unlogged {
		s.log.Error("findings are lost to this sink", "lost", n, "reason", reason, "err", s.err)
	}
	clear(s.unlogged)
}

func (s *stats) snapshot() Health {
	s.mu.Lock()
	h := s.health
	h.Dropped = map[string]uint64{}
	for _, r := range DropReasons {
		h.Dropped[r] = s.health.Dropped[r]
	}
	s.mu.Unlock()
	if s.waiting != nil {
		h.Waiting = s.waiting()
	}
	return h
}

var (
	errSlow   = errors.New("findings came faster than the sink takes them")
	errEnding = errors.New("hprobed ended before they were passed on")
)
