package binder

import (
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/isf"
)

// newCaller is a guest with a function that calls vfs_read in one place.
func newCaller(t *testing.T) *bench {
	t.Helper()
	return newBenchOf(t, func(b *isf.Builder) {
		b.Symbols = append(b.Symbols, isf.Symbol{Name: "outer", Addr: caller}, isf.Symbol{Name: "behind", Addr: caller + 7},
			isf.Symbol{Name: "unreadable", Addr: function + 0x100000}, isf.Symbol{Name: "padded", Addr: function + 0x10}, isf.Symbol{Name: "__pfx_padded", Addr: function})
		b.Users["file"] = isf.UserType{Kind: isf.Struct, Size: 16, Fields: map[string]isf.Field{"mode": {Offset: 8}}}
	})
}

// TestCallPlace: a probe at a call has the callee's arguments, and a denial leaves the
// call out.
func TestCallPlace(t *testing.T) {
	b := newCaller(t)
	deny, field := false, uint64(0)
	var args []detectors.Arg
	var can error
	d := &watcher{at: []string{"outer:nosuch|vfs_read"}, handle: func(h detectors.Hit) detectors.Outcome {
		args, can = h.Args(), h.CanDeny()
		return detectors.Outcome{Verdict: detectors.Verdict{Deny: deny, Return: -14}, Finding: &detectors.Finding{}}
	}}
	if _, err := b.binder.Bind(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	inner := 0
	if _, err := b.binder.Bind(t.Context(), &fielder{field: "file.nosuch|mode", handle: func(h detectors.Hit) detectors.Outcome {
		inner, field = inner+1, h.Field(0)
		return detectors.Outcome{}
	}}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []uint64{0x77, ^uint64(13), 0x77} {
		deny = i == 1
		if rax := b.callAt(t, caller, 5, 6); rax != want {
			t.Errorf("%d: it returned %#x", i, rax)
		}
		if len(args) != 2 || args[0].Name != "file" || args[0].Value != 5 || args[1].Value != 6 || can != nil {
			t.Errorf("%d: %+v, %v", i, args, can)
		}
		if b.found[i].Blocked != deny {
			t.Errorf("%d: %+v", i, b.found[i])
		}
	}
	if inner != 2 || field != 8 {
		t.Errorf("the function ran %d times; its field is at %d", inner, field)
	}
}

// TestCallPlaceTwo: of two that deny, the first one's word counts, and the other knows.
func TestCallPlaceTwo(t *testing.T) {
	b := newCaller(t)
	var said []error
	for _, ret := range []int64{-1, -2} {
		if _, err := b.binder.Bind(t.Context(), &watcher{at: []string{"outer:vfs_read"}, handle: func(h detectors.Hit) detectors.Outcome {
			said = append(said, h.CanDeny())
			return detectors.Outcome{Verdict: detectors.Verdict{Deny: true, Return: ret}}
		}}); err != nil {
			t.Fatal(err)
		}
	}
	if rax := b.callAt(t, caller); rax != ^uint64(0) || len(said) != 2 || said[0] != nil || !errors.Is(said[1], detectors.ErrDenied) {
		t.Errorf("it returned %#x; %v", rax, said)
	}
}

// TestNoCallPlace: what is wrong is said.
func TestNoCallPlace(t *testing.T) {
	b := newCaller(t)
	for at, want := range map[string]string{
		"outer:behind":        "does not call behind",
		"outer:nosuch":        "nosuch",
		"nosuch:vfs_read":     "nosuch",
		"unreadable:vfs_read": "unreadable can't be read",
		"vfs_read:outer":      "vfs_read+0xf is no instruction",
	} {
		if _, err := b.binder.Bind(t.Context(), &watcher{at: []string{at}}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", at, err)
		}
	}
	// A call of the padding before a function is one of it.
	if _, err := b.binder.Bind(t.Context(), &watcher{at: []string{"outer:padded"}}); err != nil {
		t.Error(err)
	}
	if _, err := b.binder.Bind(t.Context(), &fielder{field: "file.size|length"}); err == nil || !strings.Contains(err.Error(), "length") {
		t.Errorf("a field that is none: %v", err)
	}
	if _, err := b.binder.Bind(t.Context(), &fielder{field: "file"}); err == nil || !strings.Contains(err.Error(), "struct.member") {
		t.Errorf("no field: %v", err)
	}
	if s, stats, err := b.engine.Probes(t.Context()); err != nil || len(s) != 1 {
		t.Errorf("%+v, %+v, %v", s, stats, err)
	}
}

// fielder asks for a field at vfs_read.
type fielder struct {
	field  string
	handle detectors.Handler
}

func (f *fielder) Name() string { return "fielder" }
func (f *fielder) Probes() []detectors.ProbeSpec {
	return []detectors.ProbeSpec{{Name: "fielder", At: "vfs_read", Fields: []string{f.field}, Handle: f.handle}}
}
