package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/hprobe/hprobe/xenevents/probe"
)

// slow gives verdicts that come later, as another program would.
type slow struct {
	after time.Duration
	asked chan *probe.Later
	waits atomic.Bool // somebody waits
	done  chan struct{}
}

func newSlow(after time.Duration) *slow {
	s := &slow{after: after, asked: make(chan *probe.Later, 1), done: make(chan struct{})}
	go func() { // ends with stop
		defer close(s.done)
		for l := range s.asked {
			time.Sleep(s.after)
			s.waits.Store(false)
			_ = l.Decide(context.Background(), probe.Verdict{}) // too late: the report tells
		}
	}()
	return s
}

// ask is called at a hit. There is one vCPU whose hits wait, so one at a time.
func (s *slow) ask(l *probe.Later) *probe.Later {
	s.waits.Store(true)
	select {
	case s.asked <- l:
	default: // so far behind that it would be too late
	}
	return l
}

func (s *slow) stop() {
	close(s.asked)
	<-s.done
}
