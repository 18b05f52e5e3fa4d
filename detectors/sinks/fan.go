package sinks

import (
	"sync"
	"sync/atomic"
)

// queued is how many items may wait for a subscriber.
const queued = 1024

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
func (f *Fan[T]) Subscribe() *Subscription[T] { return f.replace(nil, 1)[0] }

// replace closes subscriptions and makes n new ones: an item goes to all of the ones or
// to all of the others.
func (f *Fan[T]) replace(old []*Subscription[T], n int) []*Subscription[T] {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range old {
		f.remove(s)
	}
	if f.subs == nil {
		f.subs = map[*Subscription[T]]bool{}
	}
	all := make([]*Subscription[T], n)
	for i := range all {
		s := &Subscription[T]{c: make(chan T, queued), fan: f}
		s.C = s.c
		f.subs[s] = true
		f.active.Add(1)
		all[i] = s
	}
	return all
}

// remove ends a subscription, if it has not ended. With mu held.
func (f *Fan[T]) remove(s *Subscription[T]) {
	if f.subs[s] {
		delete(f.subs, s)
		f.active.Add(-1)
		close(s.c)
	}
}

// TakeLost returns how many items this subscriber missed since it last asked.
func (s *Subscription[T]) TakeLost() uint64 { return s.lost.Swap(0) }

// Close ends a subscription. Twice is harmless.
func (s *Subscription[T]) Close() {
	s.fan.mu.Lock()
	defer s.fan.mu.Unlock()
	s.fan.remove(s)
}
