package sinks

import (
	"sync"
	"sync/atomic"
)

// queue is how many items may wait for a subscriber.
const queue = 1024

// Fan passes items to all subscribers. It never waits for one: what does not
// fit into a subscriber's queue is lost to it, and counted. Its methods may be
// called from any goroutine.
type Fan[T any] struct {
	mu     sync.Mutex
	subs   map[*Subscription[T]]bool
	active atomic.Int32
	lost   atomic.Uint64
}

// Subscription is a subscriber's end. C is closed by Close.
type Subscription[T any] struct {
	C    <-chan T
	c    chan T
	fan  *Fan[T]
	lost atomic.Uint64
}

// Emit passes an item on.
func (f *Fan[T]) Emit(item T) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for s := range f.subs {
		select {
		case s.c <- item:
		default:
			s.lost.Add(1)
			f.lost.Add(1)
		}
	}
}

// Active says whether somebody listens: an item for nobody need not be made.
func (f *Fan[T]) Active() bool { return f.active.Load() > 0 }

// Lost is how many times a subscriber missed an item.
func (f *Fan[T]) Lost() uint64 { return f.lost.Load() }

// Subscribe returns the items from now on.
func (f *Fan[T]) Subscribe() *Subscription[T] {
	s := &Subscription[T]{c: make(chan T, queue), fan: f}
	s.C = s.c
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.subs == nil {
		f.subs = map[*Subscription[T]]bool{}
	}
	f.subs[s] = true
	f.active.Add(1)
	return s
}

// TakeLost returns how many items this subscriber missed since it last asked.
func (s *Subscription[T]) TakeLost() uint64 { return s.lost.Swap(0) }

// Close ends a subscription. Twice is harmless.
func (s *Subscription[T]) Close() {
	s.fan.mu.Lock()
	defer s.fan.mu.Unlock()
	if s.fan.subs[s] {
		delete(s.fan.subs, s)
		s.fan.active.Add(-1)
		close(s.c)
	}
}
