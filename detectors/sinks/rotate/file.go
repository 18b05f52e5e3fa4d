package rotate

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// mode is of the file and of what becomes of it: its group may read what guests did.
const mode = 0o640

// ErrClosed is that of a File that was closed.
var ErrClosed = errors.New("the file was closed")

// File is the file. Its methods may be called from any goroutine.
type File struct {
	c   Config
	log *slog.Logger
	now func() time.Time

	mu     sync.Mutex
	f      *os.File // nil: it could not be opened; the next line tries again
	size   int64
	last   time.Time // of the last line
	later  time.Time // it can't begin anew, and until then that is not tried again
	cut    bool      // it ends in the middle of a line
	closed bool

	old  chan struct{} // there may be old files to compress and to remove
	end  chan struct{} // closed by Close: compress no more
	tidy sync.WaitGroup
}

// Open opens the file to append to, and makes it and its folder where they are missing.
func Open(c Config, log *slog.Logger) (*File, error) { return open(c, log, time.Now) }

func open(c Config, log *slog.Logger, now func() time.Time) (*File, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(c.Path), 0o750); err != nil {
		return nil, fmt.Errorf("the folder of %s: %w", c.Path, err)
	}
	f := &File{c: c, log: log.With("file", c.Path), now: now, old: make(chan struct{}, 1), end: make(chan struct{})}
	if err := f.openLocked(); err != nil {
		return nil, err
	}
	f.tidy.Go(f.tidyUp)
	f.old <- struct{}{}
	return f, nil
}

// openLocked opens the file at the path.
func (f *File) openLocked() error {
	file, err := os.OpenFile(f.c.Path, os.O_CREATE|os.O_APPEND|os.O_RDWR, mode)
	if err != nil {
		return err
	}
	st, err := file.Stat()
	var end [1]byte
	if err == nil && st.Mode().IsRegular() && st.Size() > 0 {
		_, err = file.ReadAt(end[:], st.Size()-1)
	} else {
		end[0] = '\n'
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	f.f, f.size, f.last, f.cut = file, st.Size(), st.ModTime(), end[0] != '\n'
	return nil
}

// WriteLine appends a line, which has its end. One that does not get into the file as a
// whole is taken out again; then, too, the next one is on a line of its own.
func (f *File) WriteLine(line []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	now := f.now()
	if f.f != nil && f.due(now, len(line)) {
		f.rotate(now)
	}
	if f.f == nil {
		if err := f.openLocked(); err != nil {
			return err
		}
	}
	if f.cut {
		line = append([]byte{'\n'}, line...)
	}
	n, err := f.f.Write(line)
	if err != nil && n > 0 && f.f.Truncate(f.size) == nil {
		n = 0
	}
	if n > 0 {
		f.size, f.cut, f.last = f.size+int64(n), line[n-1] != '\n', now
	}
	return err
}

// due says whether a line is to be the first of a new file.
func (f *File) due(now time.Time, n int) bool {
	layout := layouts[f.c.Every]
	return f.size > 0 && !now.Before(f.later) && (f.c.MaxMiB > 0 && f.size+int64(n) > int64(f.c.MaxMiB)<<20 || now.UTC().Format(layout) != f.last.UTC().Format(layout))
}

// rotate moves the file away; where that fails it goes on.
func (f *File) rotate(now time.Time) {
	to, err := f.nextName(now)
	if err == nil {
		err = os.Rename(f.c.Path, to)
	}
	// One that somebody else moved away already is left to him.
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		f.log.Error("the file can't begin anew: it goes on as it is", "err", err)
		f.later = now.Add(time.Minute)
		return
	}
	if err := f.closeLocked(); err != nil {
		f.log.Error("the old file", "err", err)
	}
	select {
	case f.old <- struct{}{}:
	default:
	}
}

func (f *File) closeLocked() error {
	if f.f == nil {
		return nil
	}
	var err error
	if f.c.Sync {
		err = f.f.Sync()
	}
	err = errors.Join(err, f.f.Close())
	f.f = nil
	return err
}

// Flush has what was written on the disk, if the Config asks for that.
func (f *File) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.f == nil || !f.c.Sync {
		return nil
	}
	return f.f.Sync()
}

// Reopen opens the file at the path anew: for one that another program has moved away.
func (f *File) Reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return ErrClosed
	}
	return errors.Join(f.closeLocked(), f.openLocked())
}

// Close closes the file. An old one that is being compressed stays as it was. Twice is
// harmless.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.closed {
		return nil
	}
	f.closed = true
	close(f.end)
	close(f.old)
	f.tidy.Wait()
	return f.closeLocked()
}
