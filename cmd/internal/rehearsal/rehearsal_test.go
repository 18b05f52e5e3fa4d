package rehearsal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/cmd/internal/rehearsal/rehearsaltest"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/replay"
)

const head = "apiVersion: hprobe/v1\nkind: ProbePolicy\nmetadata: {name: test, tags: [t]}\nspec:\n  domains: {names: ['*']}\n"

func policies(t testing.TB, spec string) []*policy.Policy {
	t.Helper()
	all, err := policy.Parse("test.yaml", []byte(head+spec))
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const opens = `  probes:
  - {name: open, at: vfs_open, when: name == "/etc/shadow", then: {finding: {severity: high, message: '{comm} opens {name}'}}}
`

// record records a guest that opens two files in turn, and unlinks one.
func record(t testing.TB, spec string) (Recorded, []byte) {
	t.Helper()
	g := rehearsaltest.New(t)
	dom := g.Open()
	kernel, err := guestos.FindKernel(dom, 1, g.Profile)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	r := Recorder{Policies: policies(t, spec), To: &file, Log: slog.New(slog.DiscardHandler), Armed: func() {
		for i := range 3 {
			if got := g.Call("cat", "vfs_open", "/etc/shadow", uint64(i)); got != 0 {
				t.Errorf("what is recorded is refused: %#x", got)
			}
			g.Call("ls", "vfs_open", "/tmp", 0)
			g.Call("rm", "vfs_unlink", "/etc/shadow", 0)
		}
		stop()
	}}
	done, err := r.Record(ctx, dom, kernel)
	if err != nil {
		t.Fatal(err)
	}
	if leaks := append(g.Sim.Leaks(), g.Sim.Accidents()...); len(leaks) > 0 {
		t.Error(leaks)
	}
	return done, file.Bytes()
}

func play(t testing.TB, file []byte, spec string) *Played {
	t.Helper()
	rec, err := replay.Read(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	p, err := Play(t.Context(), rec, rehearsaltest.New(t).Profile, policies(t, spec))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func said(all []*detectors.Finding) (text string) {
	for _, f := range all {
		text += fmt.Sprintf("%v %v %s\n", f.Severity, f.Blocked, f.Message)
	}
	return text
}

// TestPlay: the policy that was recorded has the findings that it had; another one has
// others, of the same guest.
func TestPlay(t *testing.T) {
	done, file := record(t, opens)
	if done.Findings != 3 || done.Events != 6 || done.Early != "" {
		t.Errorf("%+v", done)
	}
	if again, _ := record(t, "  mode: enforce\n"+strings.Replace(opens, "then: {", "then: {deny: EPERM, ", 1)); again != done {
		t.Errorf("%+v", again)
	}
	p := play(t, file, opens)
	if got := said(p.Findings); got != strings.Repeat("high false \"cat\" opens \"/etc/shadow\"\n", 3) || p.Stats.Missing+p.Stats.Older+p.Stats.Unwanted != 0 || len(p.Unrecorded) != 0 {
		t.Errorf("%q, %+v, %q", got, p.Stats, p.Unrecorded)
	}
	if n := p.Probes; len(n) != 1 || n[0].Name != "open" || n[0].Matched != 3 || n[0].Errors != 0 {
		t.Errorf("%+v", n)
	}
	for i, f := range p.Findings {
		if f.Domain != "guest" || f.Process == nil || f.Process.PID != 6 || i > 0 && !f.Time.After(p.Findings[i-1].Time) || time.Since(f.Time) > time.Minute {
			t.Errorf("%+v", f)
		}
	}
	// Enforced; of other files; counted.
	p = play(t, file, "  mode: enforce\n"+strings.Replace(opens, "then: {", "then: {deny: EPERM, ", 1))
	if got := said(p.Findings); !strings.HasPrefix(got, "high true \"cat\" opens \"/etc/shadow\"") || strings.Count(got, "\n") != 3 {
		t.Errorf("%q", got)
	}
	if p.Stats.Missing+p.Stats.Older != 0 {
		t.Errorf("%+v", p.Stats)
	}
	p = play(t, file, strings.Replace(opens, "/etc/shadow", "/tmp", 1))
	if got := said(p.Findings); got != strings.Repeat("high false \"ls\" opens \"/tmp\"\n", 3) {
		t.Errorf("%q", got)
	}
	p = play(t, file, "  counters: [{name: n, key: comm}]\n"+strings.Replace(opens, "then: {", "then: {count: n, threshold: 2, ", 1))
	if got := said(p.Findings); got != "high false \"cat\" opens \"/etc/shadow\"\n" {
		t.Errorf("%q", got)
	}
}

// TestUnrecorded: a probe where the recording has none is told.
func TestUnrecorded(t *testing.T) {
	_, file := record(t, opens)
	p := play(t, file, opens+"  - {name: gone, at: vfs_unlink, then: {finding: {}}}\n  - {name: ends, at: vfs_open, return: true, then: {finding: {}}}\n")
	if strings.Join(p.Unrecorded, ",") != "vfs_unlink,vfs_open (with returns)" || len(p.Findings) < 3 {
		t.Errorf("%q, %s", p.Unrecorded, said(p.Findings))
	}
}

// TestTime: a watchdog sees the guest's time pass, and not this machine's.
func TestTime(t *testing.T) {
	const beats = `  probes: [{name: beat, at: heartbeat, then: {finding: {severity: info}}}]
  watchdogs: [{name: alive, expect: beat, within: 200ms, finding: {severity: high}}]
`
	g := rehearsaltest.New(t)
	dom := g.Open()
	kernel, err := guestos.FindKernel(dom, 1, g.Profile)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	ctx, stop := context.WithCancel(t.Context())
	r := Recorder{Policies: policies(t, beats), To: &file, Log: slog.New(slog.DiscardHandler), Armed: func() {
		for range 3 {
			g.Call("init", "heartbeat", "", 0)
		}
		time.Sleep(500 * time.Millisecond)
		g.Call("init", "heartbeat", "", 0)
		time.Sleep(200 * time.Millisecond)
		stop()
	}}
	if _, err := r.Record(ctx, dom, kernel); err != nil {
		t.Fatal(err)
	}
	p := play(t, file.Bytes(), beats)
	if got := said(p.Findings); strings.Count(got, "info") != 5 || !strings.Contains(got, "high false alive: beat did not match for more than 200ms\n") || !strings.Contains(got, "alive: beat matches again") {
		t.Errorf("%q", got)
	}
}

// TestRecordEnds: with the guest, with what it may hold; and it does not begin where it
// must not.
func TestRecordEnds(t *testing.T) {
	g := rehearsaltest.New(t)
	dom := g.Open()
	kernel, err := guestos.FindKernel(dom, 1, g.Profile)
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	r := Recorder{Policies: policies(t, opens), To: &file, Log: slog.New(slog.DiscardHandler), Armed: func() {
		g.Call("cat", "vfs_open", "/etc/shadow", 0)
		g.Sim.Destroy()
	}}
	done, err := r.Record(t.Context(), dom, kernel)
	if err != nil || done.Early != "the guest ended" || done.Findings != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	if p := play(t, file.Bytes(), opens); len(p.Findings) != 1 {
		t.Errorf("%q", said(p.Findings))
	}

	g = rehearsaltest.New(t)
	other := g.Open()
	if _, err := other.Attach(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Armed = func() { t.Error("it is armed") }
	if _, err := r.Record(t.Context(), g.Open(), kernel); !errors.Is(err, xenevents.ErrMonitored) && !errors.Is(err, errors.ErrUnsupported) {
		t.Error(err)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
}

func finding(message string) *controlapi.Finding {
	return control.FindingMessage(&detectors.Finding{Time: time.Now(), Domain: "d", Detector: "policy/p", Probe: "at", Message: message, Process: &detectors.Process{PID: 7, Comm: "a\x1b[2Jb"}})
}

func fact(message string, v uint64) *controlapi.Finding {
	f := finding(message)
	f.Facts = []*controlapi.Fact{{Name: "n", Value: v}}
	return f
}

// TestCompare: what differs is named, and what differs in each run is not.
func TestCompare(t *testing.T) {
	a, b, c := finding("a"), finding("b"), finding("c")
	later := finding("a")
	later.TimeUnixNano, later.DomainId, later.Vcpu, later.Process.Pid, later.Domain = 1, 99, 3, 8, "e"
	of := func(all ...*controlapi.Finding) []*controlapi.Finding { return all }
	marks := func(diff string) (m string) {
		for _, l := range strings.Split(strings.TrimSuffix(diff, "\n"), "\n") {
			m += l[:min(len(l), 1)] + l[max(0, len(l)-2):]
		}
		return m
	}
	blocked := finding("a")
	blocked.Blocked = true
	for _, x := range []struct {
		want, got []*controlapi.Finding
		diff      string
	}{
		{nil, nil, ""},
		{of(a, b), of(later, b), ""},
		{of(a, b, c), of(a, c), ` a"-b" c"`},
		{of(a, c), of(a, b, c), ` a"+b" c"`},
		{of(a), of(b), `-a"+b"`},
		{of(a), of(blocked), `-a"+a"`},
		{of(a, a, a, a, b), of(a, a, a, a), ` a" a"-b"`},
		{nil, of(a), `+a"`},
		{of(fact("a", 0xffff_8881_0000_0000)), of(fact("a", 0xffff_8882_0000_0000)), ""},
		{of(fact("a", 0x7ffc_0000_0000)), of(fact("a", 0x7ffd_0000_0000)), ""},
		{of(fact("a", ^uint64(99))), of(fact("a", ^uint64(98))), `-9c+9d`},
	} {
		diff := Compare(x.want, x.got)
		if marks(diff) != x.diff || strings.Contains(diff, "\x1b") {
			t.Errorf("%q, not %q: %s", marks(diff), x.diff, diff)
		}
	}
	many := make([]*controlapi.Finding, 3000)
	for i := range many {
		many[i] = finding(fmt.Sprint(i))
	}
	back := append(of(b), append(many[1:2999:2999], c)...)
	if diff := Compare(many, back); strings.Count(diff, "\n") < 2 {
		t.Error(diff)
	}
}

func TestReadFindings(t *testing.T) {
	all, err := ReadFindings(strings.NewReader("\n{\"message\":\"a\",\"domain_id\":3}\n{\"message\":\"b\"}"))
	if err != nil || len(all) != 2 || all[0].GetMessage() != "a" || all[1].GetMessage() != "b" {
		t.Errorf("%v, %v", all, err)
	}
	for text, says := range map[string]string{"{}\n{": "line 2: ", `{"mesage":"a"}`: "line 1: no finding", strings.Repeat("x", maxLine+1): "too long"} {
		if _, err := ReadFindings(strings.NewReader(text)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.20q: %v", text, err)
		}
	}
}

func FuzzCompare(f *testing.F) {
	f.Add("{\"message\":\"a\"}\n{}", "{}\n")
	f.Fuzz(func(t *testing.T, want, got string) {
		a, err := ReadFindings(strings.NewReader(want))
		b, err2 := ReadFindings(strings.NewReader(got))
		if err != nil || err2 != nil {
			return
		}
		if diff := Compare(a, b); (diff == "") != (len(a) == len(b) && strings.Join(lines(a), "\n") == strings.Join(lines(b), "\n")) {
			t.Errorf("%q", diff)
		}
	})
}
