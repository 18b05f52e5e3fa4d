// Package sinks takes findings to where somebody reads them. A slow sink never
// holds up a guest: what it can't take in time is dropped, and counted.
package sinks

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"
	"unicode/utf16"

	"github.com/hprobe/hprobe/detectors"
)

// keep is how many findings a Hub remembers.
const keep = 1000

// Hub passes findings to those who subscribed, and keeps the last ones. Its
// methods may be called from any goroutine. The zero Hub is ready.
type Hub struct {
	fan    Fan[detectors.Finding]
	mu     sync.Mutex
	recent []detectors.Finding // a ring once it is full: the oldest is at next
	next   int
	total  uint64
	counts counts
}

// Emit implements detectors.Sink.
func (h *Hub) Emit(f *detectors.Finding) {
	h.mu.Lock()
	h.total++
	if h.counts == nil {
		h.counts = counts{}
	}
	h.counts.add(f)
	if len(h.recent) < keep {
		h.recent = append(h.recent, *f)
	} else {
		h.recent[h.next] = *f
		h.next = (h.next + 1) % keep
	}
	h.mu.Unlock()
	h.fan.Emit(*f)
}

// Subscribe returns the findings from now on.
func (h *Hub) Subscribe() *Subscription[detectors.Finding] { return h.fan.Subscribe() }

// Recent returns the last findings, the oldest first, at most n (0: all that
// are kept).
func (h *Hub) Recent(n int) []detectors.Finding {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]detectors.Finding, 0, len(h.recent))
	for i := range h.recent {
		all = append(all, h.recent[(h.next+i)%len(h.recent)])
	}
	if n > 0 && n < len(all) {
		all = all[len(all)-n:]
	}
	return all
}

// Totals returns how many findings there were, and how many times a subscriber
// missed one.
func (h *Hub) Totals() (findings, lost uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.total, h.fan.Lost()
}

// line is a finding as a line of JSON: the names are stable.
type line struct {
	ID       string            `json:"id"`
	Time     time.Time         `json:"time"`
	Domain   string            `json:"domain"`
	DomainID uint16            `json:"domain_id"`
	Detector string            `json:"detector"`
	Probe    string            `json:"probe"`
	VCPU     uint32            `json:"vcpu"`
	PID      uint32            `json:"pid,omitempty"`
	Comm     string            `json:"comm,omitempty"`
	Severity string            `json:"severity"`
	Message  string            `json:"message"`
	Tags     []string          `json:"tags,omitempty"`
	Blocked  bool              `json:"blocked"`
	Facts    map[string]string `json:"facts,omitempty"`
}

// ASCII writes JSON anew in plain ASCII: the same values, but a terminal sees
// nothing of the guest's that it would obey (C1 controls) or that turns the
// line's order round.
func ASCII(j []byte) []byte {
	out := make([]byte, 0, len(j))
	for _, r := range string(j) {
		switch {
		case r < 0x7f:
			out = append(out, byte(r))
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			out = fmt.Appendf(out, `\u%04x\u%04x`, hi, lo)
		default:
			out = fmt.Appendf(out, `\u%04x`, r)
		}
	}
	return out
}

// Encode makes a line of JSON of a finding, in ASCII, with its line end. Numbers
// of 64 bits are strings of hexadecimal digits: JSON's readers would round them.
func Encode(f *detectors.Finding) ([]byte, error) {
	l := lineOf(f)
	var err error
	if l.ID, err = l.id(); err != nil {
		return nil, err
	}
	b, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode a finding: %w", err)
	}
	return append(ASCII(b), '\n'), nil
}

// ID is the same for a finding wherever and how often it is sent, and another one for
// every other finding: 128 bits of the SHA-256 of all that is known of it.
func ID(f *detectors.Finding) (string, error) { return lineOf(f).id() }

func lineOf(f *detectors.Finding) *line {
	l := &line{Time: f.Time, Domain: f.Domain, DomainID: uint16(f.DomainID), Detector: f.Detector, Probe: f.Probe, VCPU: uint32(f.VCPU),
		Severity: f.Severity.String(), Message: f.Message, Tags: f.Tags, Blocked: f.Blocked, Facts: factsOf(f)}
	if f.Process != nil {
		l.PID, l.Comm = f.Process.PID, f.Process.Comm
	}
	return l
}

// id is of a line that has none yet.
func (l *line) id() (string, error) {
	b, err := json.Marshal(l)
	if err != nil {
		return "", fmt.Errorf("encode a finding: %w", err)
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16]), nil
}

func factsOf(f *detectors.Finding) map[string]string {
	if len(f.Facts) == 0 {
		return nil
	}
	facts := map[string]string{}
	for _, fact := range f.Facts {
		facts[fact.Name] = fmt.Sprintf("%#x", fact.Value)
	}
	return facts
}

// WriteJSON writes findings as JSON lines until s is closed, and then what is in
// the queue. A write that fails (a full disk) loses its finding, is logged, and
// does not end it; the next finding is on a line of its own again.
func WriteJSON(s *Subscription[detectors.Finding], w io.Writer, log *slog.Logger) {
	cut := false // the file ends in the middle of a line
	for f := range s.C {
		b, err := Encode(&f)
		if err == nil {
			if cut {
				b = append([]byte{'\n'}, b...)
			}
			var n int
			n, err = w.Write(b)
			if n > 0 {
				cut = b[n-1] != '\n'
			}
		}
		if err != nil {
			log.Error("a finding could not be written", "detector", f.Detector, "err", err)
		}
		if lost := s.TakeLost(); lost > 0 {
			log.Error("findings came faster than they could be written", "lost", lost)
		}
	}
}
