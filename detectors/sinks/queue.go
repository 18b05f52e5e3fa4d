package sinks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
)

// longestLine is how long a finding in a queue may be, in bytes.
const longestLine = 1 << 20

// queue is a queue of lines on the disk: what is in it outlives hprobed. It is a folder of
// segments, which are files of lines, and "position", which says what of the first segment
// was taken already. Its methods may be called from any goroutine.
type queue struct {
	dir  string
	max  int64                      // bytes
	drop func(lines int, why error) // is told of lines that are lost; with mu held
	lock *os.File                   // on the folder

	mu       sync.Mutex
	segments []segment // the oldest first
	taken    int64     // bytes of the first
	tail     *os.File  // the last one, while it is written to
}

type segment struct {
	number uint64
	size   int64
	lines  int // that were not taken
}

var (
	errQueueFull    = errors.New("the queue on the disk is full: its oldest findings made room for new ones")
	errQueueCorrupt = errors.New("the queue on the disk has something in it that is no finding")
)

// openQueue opens the queue in a folder, and makes it where it is missing.
func openQueue(dir string, max int64, drop func(int, error)) (*queue, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("queue: %w", err)
	}
	q := &queue{dir: dir, max: max, drop: drop, lock: lock}
	if err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		err = fmt.Errorf("another hprobed has it: give each a folder of its own: %w", err)
	} else {
		err = q.load()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("queue %s: %w", dir, err), lock.Close())
	}
	return q, nil
}

func (q *queue) path(s *segment) string { return filepath.Join(q.dir, fmt.Sprintf("%020d", s.number)) }

// load finds what a hprobed before left.
func (q *queue) load() error {
	entries, err := os.ReadDir(q.dir) // sorted
	if err != nil {
		return err
	}
	for _, e := range entries {
		var s segment
		if n, err := fmt.Sscanf(e.Name(), "%d", &s.number); n != 1 || err != nil || q.path(&s) != filepath.Join(q.dir, e.Name()) {
			continue
		}
		b, err := os.ReadFile(q.path(&s))
		if err != nil {
			return err
		}
		// A line that was cut by a crash was never promised to be kept.
		s.size, s.lines = int64(bytes.LastIndexByte(b, '\n')+1), bytes.Count(b, []byte{'\n'})
		if s.size < int64(len(b)) {
			if err := os.Truncate(q.path(&s), s.size); err != nil {
				return err
			}
		}
		if len(q.segments) == 0 {
			q.taken = q.position(s.number, b[:s.size])
			s.lines -= bytes.Count(b[:q.taken], []byte{'\n'})
		}
		q.segments = append(q.segments, s)
	}
	return nil
}

// position is how much of a segment was taken. One that is wrong is none: what was sent is
// sent once more.
func (q *queue) position(number uint64, segment []byte) int64 {
	b, err := os.ReadFile(filepath.Join(q.dir, "position"))
	var n uint64
	var at int64
	if _, e := fmt.Sscan(string(b), &n, &at); err != nil || e != nil || n != number || at <= 0 || at > int64(len(segment)) || segment[at-1] != '\n' {
		return 0
	}
	return at
}

// push appends a line, which has its end. Where there is no room the oldest segment goes.
func (q *queue) push(line []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(line) > longestLine {
		return fmt.Errorf("a finding of %d bytes is too long for the queue", len(line))
	}
	if err := q.makeTail(); err != nil {
		return err
	}
	s := &q.segments[len(q.segments)-1]
	if _, err := q.tail.Write(line); err != nil {
		return errors.Join(err, q.tail.Truncate(s.size))
	}
	s.size += int64(len(line))
	s.lines++
	var all int64
	for i := range q.segments {
		all += q.segments[i].size
	}
	for all > q.max && len(q.segments) > 1 {
		lost := q.segments[0]
		all -= lost.size
		if err := q.removeFirst(); err != nil {
			return err
		}
		q.drop(lost.lines, errQueueFull)
	}
	return nil
}

// makeTail makes a new last segment, if there is none that is written to, or it is large.
func (q *queue) makeTail() error {
	if q.tail != nil {
		if q.segments[len(q.segments)-1].size < q.max/16 {
			return nil
		}
		if err := q.closeTail(); err != nil {
			return err
		}
	}
	next := segment{number: 1}
	if n := len(q.segments); n > 0 {
		next.number = q.segments[n-1].number + 1
	}
	f, err := os.OpenFile(q.path(&next), os.O_CREATE|os.O_EXCL|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	q.tail = f
	q.segments = append(q.segments, next)
	return q.lock.Sync() // the folder: so that the file has its name after a crash
}

func (q *queue) closeTail() error {
	if q.tail == nil {
		return nil
	}
	err := errors.Join(q.tail.Sync(), q.tail.Close())
	q.tail = nil
	return err
}

func (q *queue) removeFirst() error {
	var err error
	if len(q.segments) == 1 {
		err = q.closeTail()
	}
	if e := os.Remove(q.path(&q.segments[0])); !errors.Is(e, fs.ErrNotExist) {
		err = errors.Join(err, e)
	}
	q.segments, q.taken = q.segments[1:], 0
	return err
}

// sync has what was pushed on the disk.
func (q *queue) sync() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.tail == nil {
		return nil
	}
	return q.tail.Sync()
}

// batch is what peek found.
type batch struct {
	lines   [][]byte // without their ends
	segment uint64
	end     int64 // in the segment
	n       int   // lines, with those that are no findings
}

// peek returns the oldest lines, at most n of them. They stay in the queue. No lines:
// it is empty.
func (q *queue) peek(n int) (batch, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.segments) > 0 {
		s := &q.segments[0]
		b, err := q.read(s)
		if err != nil {
			return batch{}, err
		}
		out := batch{segment: s.number, end: q.taken}
		bad := 0
		for out.n < n {
			line, rest, ok := bytes.Cut(b, []byte{'\n'})
			if !ok {
				break
			}
			if json.Valid(line) {
				out.lines = append(out.lines, line)
			} else {
				bad++
			}
			out.n++
			out.end += int64(len(line)) + 1
			b = rest
		}
		if bad > 0 {
			q.drop(bad, errQueueCorrupt)
		}
		if len(out.lines) > 0 {
			return out, nil
		}
		// Nothing of it is a finding: on with what comes after it, if anything does.
		if out.n == 0 {
			out.end = s.size
			if s.lines > 0 {
				q.drop(s.lines, errQueueCorrupt)
			}
		}
		if err := q.take(out); err != nil {
			return batch{}, err
		}
	}
	return batch{}, nil
}

// read returns what was not taken of the first segment, as far as it is looked at at once.
func (q *queue) read(s *segment) ([]byte, error) {
	f, err := os.Open(q.path(s))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, min(s.size-q.taken, longestLine))
	n, err := f.ReadAt(b, q.taken)
	if n < len(b) { // it was cut by somebody
		return b[:n], nil
	}
	return b, err
}

// done takes a batch out of the queue.
func (q *queue) done(b batch) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.take(b)
}

func (q *queue) take(b batch) error {
	if len(q.segments) == 0 || q.segments[0].number != b.segment {
		return nil // it was dropped meanwhile
	}
	s := &q.segments[0]
	if b.end >= s.size {
		return q.removeFirst()
	}
	s.lines -= b.n
	q.taken = b.end
	// Not synced: what it says after a crash may be old, and then some is sent twice.
	part := filepath.Join(q.dir, "position.part")
	if err := os.WriteFile(part, fmt.Appendf(nil, "%d %d\n", s.number, q.taken), 0o600); err != nil {
		return err
	}
	return os.Rename(part, filepath.Join(q.dir, "position"))
}

// waiting is how many lines are in it.
func (q *queue) waiting() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := 0
	for i := range q.segments {
		n += q.segments[i].lines
	}
	return n
}

func (q *queue) close() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return errors.Join(q.closeTail(), q.lock.Close())
}
