package sinks

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/hprobe/hprobe/detectors"
)

func TestHubKeepsTheLastOnes(t *testing.T) {
	h := new(Hub)
	for i := range keep + 7 {
		h.Emit(&detectors.Finding{VCPU: 1, Facts: []detectors.Fact{{Name: "i", Value: uint64(i)}}})
	}
	all := h.Recent(0)
	if len(all) != keep || all[0].Facts[0].Value != 7 || all[keep-1].Facts[0].Value != keep+6 {
		t.Errorf("%d are kept, from %v to %v", len(all), all[0].Facts, all[len(all)-1].Facts)
	}
	if last := h.Recent(2); len(last) != 2 || last[1].Facts[0].Value != keep+6 {
		t.Errorf("the last two are %v", last)
	}
}

func TestASlowSubscriberLosesAndCounts(t *testing.T) {
	h := new(Hub)
	slow, fast := h.Subscribe(), h.Subscribe()
	for range queued + 3 {
		h.Emit(&detectors.Finding{})
		<-fast.C
	}
	slowLost, fastLost := slow.TakeLost(), fast.TakeLost()
	if slowLost != 3 || fastLost != 0 {
		t.Errorf("the slow one lost %d, the fast one %d", slowLost, fastLost)
	}
	if n, dropped := h.Totals(); n != queued+3 || dropped != 3 {
		t.Errorf("totals are %d and %d", n, dropped)
	}
	slow.Close()
	slow.Close()
	n := 0
	for range slow.C {
		n++
	}
	if n != queued {
		t.Errorf("%d were in the closed queue", n)
	}
}

// full is a disk that has room for so many bytes of each write until it is empty
// again.
type full struct {
	bytes.Buffer
	room []int
}

func (f *full) Write(p []byte) (int, error) {
	if len(f.room) == 0 {
		return f.Buffer.Write(p)
	}
	n := min(f.room[0], len(p))
	f.room = f.room[1:]
	f.Buffer.Write(p[:n])
	return n, errors.New("no space left on device")
}

func TestWriteJSONOutlivesAFullDisk(t *testing.T) {
	for name, room := range map[string][]int{"nothing written": {0}, "a part written": {17}, "twice a part": {17, 5}, "a part, then nothing": {17, 0, 0}, "only the line's end lost": {1 << 10}} {
		h := new(Hub)
		s := h.Subscribe()
		for range room {
			h.Emit(&detectors.Finding{Message: "lost"})
		}
		h.Emit(&detectors.Finding{Time: time.Unix(1, 0).UTC(), Domain: "guest", Process: &detectors.Process{PID: 7, Comm: "a\x1b[2J\"b"}, Severity: detectors.High,
			Message: "kept", Tags: []string{"cve"}, Blocked: true, Facts: []detectors.Fact{{Name: "iov_len", Value: 1 << 63}}})
		h.Emit(&detectors.Finding{Message: "kept, too"})
		s.Close()
		out := &full{room: room}
		var logged bytes.Buffer
		WriteJSON(s, out, slog.New(slog.NewTextHandler(&logged, nil)))
		lines := bytes.Split(bytes.TrimSuffix(out.Bytes(), []byte("\n")), []byte("\n"))
		if len(lines) < 2 {
			t.Fatalf("%s: %q", name, out.String())
		}
		var got, last line
		if err := errors.Join(json.Unmarshal(lines[len(lines)-2], &got), json.Unmarshal(lines[len(lines)-1], &last)); err != nil {
			t.Errorf("%s: %v: %q", name, err, out.String())
			continue
		}
		if got.Message != "kept" || !got.Blocked || got.Facts["iov_len"] != "0x8000000000000000" || got.PID != 7 || got.Severity != "high" || len(got.Tags) != 1 || got.Tags[0] != "cve" || last.Tags != nil || last.Message != "kept, too" {
			t.Errorf("%s: %+v, %+v", name, got, last)
		}
		if n := strings.Count(logged.String(), "no space left"); n != len(room) {
			t.Errorf("%s: logged %d times: %s", name, n, logged.String())
		}
	}
}

func TestLostFindingsAreLogged(t *testing.T) {
	h := new(Hub)
	s := h.Subscribe()
	for range queued + 5 {
		h.Emit(&detectors.Finding{})
	}
	s.Close()
	var out, logged bytes.Buffer
	WriteJSON(s, &out, slog.New(slog.NewTextHandler(&logged, nil)))
	if n := strings.Count(out.String(), "\n"); n != queued || strings.Count(logged.String(), "lost=5") != 1 {
		t.Errorf("%d lines; %s", n, logged.String())
	}
}

// TestAGuestsStringsAreHarmless: a process may call itself anything.
func TestAGuestsStringsAreHarmless(t *testing.T) {
	for _, comm := range []string{"plain", "\x1b[2J", "a\x9b2J", "\u009b2J", "\x7f", "\u202ekcab", "a\"b\\c\n", "\u00e9\U0001f600", "\xff\xfe", "\u2028", "</script>"} {
		f := detectors.Finding{Domain: comm, Message: comm, Process: &detectors.Process{Comm: comm}}
		b, err := Encode(&f)
		if err != nil {
			t.Errorf("%q: %v", comm, err)
			continue
		}
		for i, c := range b {
			if (c < ' ' || c > '~') && i != len(b)-1 {
				t.Errorf("%q is written as %q", comm, b)
			}
		}
		var got line
		if err := json.Unmarshal(b, &got); err != nil || got.Comm != strings.ToValidUTF8(got.Comm, "") || utf8.ValidString(comm) && (got.Comm != comm || got.Message != comm || got.Domain != comm) {
			t.Errorf("%q is read as %q, %v", comm, got.Comm, err)
		}
	}
}

func FuzzEncode(f *testing.F) {
	f.Add("comm\x1b\u009b\U0001f600", "message", uint64(1))
	f.Fuzz(func(t *testing.T, comm, message string, value uint64) {
		b, err := Encode(&detectors.Finding{Process: &detectors.Process{PID: 1, Comm: comm}, Message: message, Facts: []detectors.Fact{{Name: comm, Value: value}}})
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range b[:len(b)-1] {
			if c < ' ' || c > '~' {
				t.Fatalf("%q", b)
			}
		}
		var got line
		if err := json.Unmarshal(b, &got); err != nil || got.Message != strings.ToValidUTF8(got.Message, "") {
			t.Fatalf("%q: %v", b, err)
		}
		if utf8.ValidString(comm) && (got.Comm != comm || got.Facts[comm] != fmt.Sprintf("%#x", value)) {
			t.Errorf("%q became %+v", comm, got)
		}
	})
}
