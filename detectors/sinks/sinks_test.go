package sinks

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"
	"time"

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
	for range queue + 3 {
		h.Emit(&detectors.Finding{})
		<-fast.C
	}
	slowLost, fastLost := slow.TakeLost(), fast.TakeLost()
	if slowLost != 3 || fastLost != 0 {
		t.Errorf("the slow one lost %d, the fast one %d", slowLost, fastLost)
	}
	if n, dropped := h.Totals(); n != queue+3 || dropped != 3 {
		t.Errorf("totals are %d and %d", n, dropped)
	}
	slow.Close()
	slow.Close()
	n := 0
	for range slow.C {
		n++
	}
	if n != queue {
		t.Errorf("%d were in the closed queue", n)
	}
}

type failing struct {
	bytes.Buffer
	fail int
}

func (f *failing) Write(p []byte) (int, error) {
	if f.fail > 0 {
		f.fail--
		return 0, errors.New("no space left on device")
	}
	return f.Buffer.Write(p)
}

func TestWriteJSONOutlivesAFullDisk(t *testing.T) {
	h := new(Hub)
	s := h.Subscribe()
	h.Emit(&detectors.Finding{Message: "lost"})
	h.Emit(&detectors.Finding{Time: time.Unix(1, 0).UTC(), Domain: "guest", Process: &detectors.Process{PID: 7, Comm: "a\x1b[2J\"b"}, Severity: detectors.High,
		Message: "kept", Blocked: true, Facts: []detectors.Fact{{Name: "iov_len", Value: 1 << 63}}})
	s.Close()
	out := &failing{fail: 1}
	WriteJSON(s, out, slog.New(slog.DiscardHandler))
	var got line
	if err := json.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%q: %v", out.String(), err)
	}
	if got.Message != "kept" || !got.Blocked || got.Facts["iov_len"] != "0x8000000000000000" || got.PID != 7 || got.Severity != "high" {
		t.Errorf("%+v", got)
	}
	if bytes.ContainsAny(out.Bytes(), "\x1b") {
		t.Errorf("a guest's escape sequence is in %q", out.String())
	}
}
