// Package audit is the log of who had hprobed do what: lines of JSON, each with the SHA-256
// of the one before. A line that is changed, left out or put elsewhere later shows.
//
// What does not show is an end that was cut off, or a log that was written anew from some
// line on by someone who knows how: for these, compare the last line's hash with one that
// was noted elsewhere before (Log.Head, hprobe audit verify).
package audit

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

// DefaultPath is where the log is.
const DefaultPath = "/var/log/hprobe/audit.json"

const (
	longestText   = 1 << 10 // bytes of each string of an Entry; what is longer is cut
	mostArguments = 32
	longestLine   = 1 << 20
)

// Entry is what somebody had hprobed do.
type Entry struct {
	Time time.Time
	// UID and PID are who asked, by the socket's credentials.
	UID, PID uint32
	// Command is what for: a method of the control API, or what hprobed does by itself.
	Command string
	Domain  string // "": none
	// Arguments are what else was asked for, by name.
	Arguments map[string]string
	// Outcome is what came of it: "done", or the error. "": it is about to be done; another
	// Entry with Of says the outcome.
	Outcome string
	// Of is the number of the entry that this one is the outcome of. 0: none.
	Of uint64
}

// line is an entry in the file: the names are stable.
type line struct {
	Seq       uint64            `json:"seq"`
	Prev      string            `json:"prev"` // of the line before; zeros in the first
	Time      time.Time         `json:"time"`
	UID       uint32            `json:"uid"`
	PID       uint32            `json:"pid"`
	Command   string            `json:"command"`
	Domain    string            `json:"domain,omitempty"`
	Arguments map[string]string `json:"arguments,omitempty"`
	Outcome   string            `json:"outcome,omitempty"`
	Of        uint64            `json:"of,omitempty"`
	// Torn is how many lines before it are none, as a crash or a full disk cut them.
	Torn int `json:"torn,omitempty"`
}

// Head is where a log ends.
type Head struct {
	Seq  uint64 // of the last line; 0: there is none
	Hash string // its SHA-256, in hexadecimal digits
}

// String is what ParseHead reads.
func (h Head) String() string { return fmt.Sprintf("%d:%s", h.Seq, h.Hash) }

// ParseHead reads where a log ended.
func ParseHead(s string) (Head, error) {
	number, hash, ok := strings.Cut(s, ":")
	seq, err := strconv.ParseUint(number, 10, 64)
	b, e := hex.DecodeString(hash)
	if !ok || err != nil || e != nil || seq == 0 || len(b) != sha256.Size {
		return Head{}, fmt.Errorf("%q is no number and hash: write NUMBER:HASH, with %d hexadecimal digits", s, 2*sha256.Size)
	}
	return Head{seq, hex.EncodeToString(b)}, nil
}

// none is the end of a log without lines.
var none = Head{Hash: strings.Repeat("0", 2*sha256.Size)}

// after returns the end of a log whose last line is l, which is text in the file.
func (l *line) after(text []byte) Head {
	sum := sha256.Sum256(bytes.TrimSuffix(text, []byte{'\n'}))
	return Head{l.Seq, hex.EncodeToString(sum[:])}
}

// parse returns the line that a text is; ok is false where it is none.
func parse(text []byte) (l line, ok bool) {
	err := json.Unmarshal(text, &l)
	return l, err == nil && l.Seq > 0 && len(l.Prev) == len(none.Hash)
}

// Log is an audit log that is written to. Its methods may be called from any goroutine.
type Log struct {
	mu              sync.Mutex
	path            string
	file            *rotate.File
	head            Head
	torn            int
	known           bool // head and torn are the file's
	written, failed uint64
}

// Open opens a log to append to, and makes it where it is missing. It goes on where the
// file, or the old one that was moved away last, ends. Each line is on the disk before Write returns.
func Open(c rotate.Config, log *slog.Logger) (*Log, error) {
	c.Sync = true
	file, err := rotate.Open(c, log)
	if err != nil {
		return nil, fmt.Errorf("audit log: %w", err)
	}
	l := &Log{path: c.Path, file: file}
	if err := l.find(); err != nil {
		file.Close()
		return nil, fmt.Errorf("audit log: %w", err)
	}
	return l, nil
}

// Write appends an entry, whose number it returns. What can't be written (the disk is full) should
// not be done.
func (l *Log) Write(e Entry) (seq uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer func() {
		if err != nil {
			l.failed++
			err = fmt.Errorf("audit log: %w", err)
		}
	}()
	if !l.known {
		if err := l.find(); err != nil {
			return 0, err
		}
	}
	one := line{Seq: l.head.Seq + 1, Prev: l.head.Hash, Time: e.Time.UTC(), UID: e.UID, PID: e.PID, Command: cut(e.Command), Domain: cut(e.Domain),
		Arguments: cutAll(e.Arguments), Outcome: cut(e.Outcome), Of: e.Of, Torn: l.torn}
	b, err := json.Marshal(one)
	if err != nil {
		return 0, err
	}
	b = append(sinks.ASCII(b), '\n')
	if err := l.file.WriteLine(b); err != nil {
		l.known = false // a part of it may be there
		return 0, err
	}
	l.head, l.torn = one.after(b), 0
	l.written++
	return one.Seq, l.file.Flush()
}

// cut bounds a string.
func cut(s string) string {
	if len(s) > longestText {
		s = s[:longestText] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

// cutAll bounds arguments. Which are left out, where there are too many, is by chance; how
// many is told.
func cutAll(all map[string]string) map[string]string {
	if len(all) == 0 {
		return nil
	}
	some := map[string]string{}
	for name, value := range all {
		if len(some) == mostArguments {
			some["…"] = fmt.Sprintf("%d more", len(all)-mostArguments)
			break
		}
		some[cut(name)] = cut(value)
	}
	return some
}

// Head is where the log ends.
func (l *Log) Head() Head {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.head
}

// Counts returns how many entries were written since Open, and how many could not be.
func (l *Log) Counts() (written, failed uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.written, l.failed
}

// Reopen opens the file at the path anew: for one that another program has moved away.
func (l *Log) Reopen() error { return l.file.Reopen() }

// Close closes the log.
func (l *Log) Close() error { return l.file.Close() }
