package guestos

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/hprobe/hprobe/profiles/isf"
)

// PartialError says that an answer is not all that there is, or not of one moment, and
// why: the guest's lists make no sense, are longer than Linux makes them, or change faster
// than they can be read. What came with it is what was found.
type PartialError struct {
	Why  []string // the first few; they quote what is the guest's
	More int      // that came after them
}

func (e *PartialError) Error() string { return "the answer is partial: " + e.Reasons() }

// Reasons are why, in one line.
func (e *PartialError) Reasons() string {
	text := strings.Join(e.Why, "; ")
	if e.More > 0 {
		text += fmt.Sprintf("; and %d more", e.More)
	}
	return text
}

// maxReasons bounds what an answer says of why it is partial.
const maxReasons = 8

// reasons collects why an answer is partial, and how long it was waited for the guest.
type reasons struct {
	PartialError
	waited time.Duration
}

// maxWait is for how long an answer waits in all: as long as a busy host may take to give
// a guest a processor.
const maxWait = time.Second

// wait comes before the nth try, for the guest to go on: a vCPU that Xen has taken the
// processor from, in the middle of a change, leaves things half done until it runs again.
func (r *reasons) wait(ctx context.Context, n int) {
	d := time.Duration(n) * time.Millisecond
	if n < 2 || r.waited+d > maxWait {
		return
	}
	r.waited += d
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

func (r *reasons) add(format string, args ...any) {
	if len(r.Why) < maxReasons {
		r.Why = append(r.Why, fmt.Sprintf(format, args...))
		return
	}
	r.More++
}

// err is nil where the answer is whole.
func (r *reasons) err() error {
	if len(r.Why) == 0 {
		return nil
	}
	return &r.PartialError
}

// tries is how often something that changes while it is read is read anew.
const tries = 16

// errChanged says that something never stood still for as long as it took to read it.
var errChanged = errors.New("it changes faster than it can be read")

// ended says whether a reader has to stop, and notes why: its time is over. Another end of
// a context is the caller's wish, and his error.
func (r *reasons) ended(ctx context.Context, what string) (bool, error) {
	err := ctx.Err()
	if errors.Is(err, context.DeadlineExceeded) {
		r.add("the time for %s was over", what)
		return true, nil
	}
	return err != nil, err
}

// wanted is a field that is looked up, by the first of its names that the kernel has.
type wanted struct {
	of    string
	to    *uint64
	names []string
}

func want(to *uint64, of string, names ...string) wanted { return wanted{of, to, names} }

func (k *Kernel) locate(all ...wanted) error {
	for _, w := range all {
		at, err := k.anyField(w.of, w.names...)
		if err != nil {
			return err
		}
		*w.to = at.Offset
	}
	return nil
}

// locateSome is locate for what a kernel may lack: noField is where it does.
func (k *Kernel) locateSome(all ...wanted) error {
	for _, w := range all {
		*w.to = noField
		if err := k.locate(w); err != nil && !errors.Is(err, isf.ErrNotFound) {
			return err
		}
	}
	return nil
}

const noField = ^uint64(0)
