// Package replay records what a driver gives an engine of a guest, and plays it back: to
// the same probes or to others, as far as the recording has what those need.
//
// A recording has each event with its registers and its time, and the frames of guest
// memory that were read: whole when they were first read, then what changed of them. They
// stand before the event that they were read for, so a Player has memory as it was then.
// There are no replies in it: the engine that it is played to gives its own.
//
// What is played is the guest as it was. Nothing that an engine replies changes what comes
// next: a call that is refused now goes on, as it did then. Events come one at a time, each
// when the one before it has its reply.
package replay

import (
	"fmt"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// version is of the format; magic is what a recording begins with, before the zstd stream.
const (
	version = 1
	magic   = "hprobe recording\x00\x01\r\n"
)

// What a recording may hold: of bytes, unpacked, with overhead for each of its records; and
// of different frames, which both ends keep in memory.
const (
	MaxSize   = 256 << 20
	MaxFrames = 32 << 10
	overhead  = 64 // what a record takes in memory beside its content
)

const (
	maxText  = 1 << 20 // of the header and of the end, in bytes
	maxVCPUs = 8192
	maxGFN   = 1 << 40 // physical addresses have 52 bits
)

// About is what is known of a recording's guest that no driver knows.
type About struct {
	Banner   string   `json:"banner,omitempty"`   // of its kernel
	BuildID  string   `json:"build_id,omitempty"` // of its kernel's profile
	Slide    uint64   `json:"slide,omitempty"`    // of KASLR
	Policies []string `json:"policies,omitempty"` // by whose probes it was made
}

// Header is what a recording says of itself.
type Header struct {
	Version int                  `json:"version"`
	Began   time.Time            `json:"began"`
	Domain  xenevents.DomainInfo `json:"domain"`
	MaxGFN  xenevents.GFN        `json:"max_gfn"`
	// Ticks is the driver's clock when it began; TicksPerSecond is never 0.
	Ticks          uint64 `json:"ticks"`
	TicksPerSecond uint64 `json:"ticks_per_second"`
	About          About  `json:"about"`
}

// since is the time from the beginning to a reading of the clock; at most maxSeconds.
func (h *Header) since(ticks uint64) time.Duration {
	if ticks < h.Ticks {
		return 0
	}
	seconds, rest := (ticks-h.Ticks)/h.TicksPerSecond, (ticks-h.Ticks)%h.TicksPerSecond
	if seconds >= maxSeconds {
		return maxSeconds * time.Second
	}
	return time.Duration(seconds)*time.Second + time.Duration(float64(rest)/float64(h.TicksPerSecond)*float64(time.Second))
}

// maxSeconds is a hundred years: a Duration has room for it.
const maxSeconds = 100 * 366 * 24 * 3600

// end is the last that a recording says.
type end struct {
	Ticks  uint64   `json:"ticks"`
	Events uint64   `json:"events"`
	Early  string   `json:"early,omitempty"`  // why it ended before its guest, or whoever made it, did
	Places []string `json:"places,omitempty"` // see Recorder.Watches
}

// FormatError is that a file is no recording, or not a whole one.
type FormatError struct {
	Offset int64 // in the recording as it is when unpacked, in bytes
	Err    error
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("not a whole recording: at byte %d (unpacked): %v", e.Offset, e.Err)
}

// Unwrap returns what is wrong there.
func (e *FormatError) Unwrap() error { return e.Err }

// MissingError is that something of the guest is not in the recording, or not yet at this
// event.
type MissingError struct {
	What  string // "gfn 0x1234"
	Event uint64 // which is played, from 1; 0: none yet
}

func (e *MissingError) Error() string {
	at := "before the first event"
	if e.Event > 0 {
		at = fmt.Sprintf("at event %d", e.Event)
	}
	return fmt.Sprintf("not in the recording: %s %s", e.What, at)
}

// The records of a recording: a byte that says which, its length, and
const (
	recordHeader    = 'H' // a Header in JSON; first
	recordFrame     = 'F' // gfn, a bit for each block that changed, those blocks
	recordSame      = 'S' // gfn of a frame that was read again, and is as it was
	recordAbsent    = 'A' // gfn of a frame that the guest has not
	recordRegisters = 'R' // vCPU, its registers; without those it was down
	recordEvent     = 'E' // ticks, the event for which all since the one before was read
	recordEnd       = 'Z' // an end in JSON; last
)

// A frame is recorded by blocks: one of 64 changed.
const (
	blockSize = 64
	blocks    = xenevents.PageSize / blockSize
)

type frame [xenevents.PageSize]byte

func (f *frame) block(i int) *[blockSize]byte { return (*[blockSize]byte)(f[i*blockSize:]) }

// changed has a bit for each block in which f is not as old.
func (f *frame) changed(old *frame) (mask uint64) {
	for i := range blocks {
		if *f.block(i) != *old.block(i) {
			mask |= 1 << i
		}
	}
	return mask
}
