package sinks

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

// written are the messages that are in a file.
func written(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for text := range strings.Lines(string(b)) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		all = append(all, l.Message)
	}
	return all
}

func TestEachSinkGetsWhatIsForIt(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	h, s, _ := started(t, dir, Config{File: &rotate.Config{Path: path("all"), Sync: true}},
		Config{Name: "web", File: &rotate.Config{Path: path("web")}, Domains: []string{"web*"}, MinSeverity: "high"},
		Config{Name: "ocsf", File: &rotate.Config{Path: path("ocsf")}, Format: "ocsf"})
	for _, f := range []detectors.Finding{{Domain: "web1", Severity: detectors.High, Message: "a"}, {Domain: "db", Severity: detectors.High, Message: "b"}, {Domain: "web1", Message: "c"}} {
		h.Emit(&f)
	}
	if err := ended(t, s, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	if all, web := written(t, path("all")), written(t, path("web")); !slices.Equal(all, []string{"a", "b", "c"}) || !slices.Equal(web, []string{"a"}) {
		t.Errorf("%q, %q", all, web)
	}
	if b, _ := os.ReadFile(path("ocsf")); strings.Count(string(b), `"class_uid":2004`) != 3 || !strings.Contains(string(b), `"version":"v1"`) {
		t.Errorf("%s", b)
	}
	health := s.Health()
	if health[0].Delivered != 3 || health[1].Delivered != 1 || health[1].Filtered != 2 || health[0].Name != "file" || health[1].Kind != "file" {
		t.Errorf("%+v", health)
	}
}

func TestOneThatCantBeOpenedIsAnError(t *testing.T) {
	dir := t.TempDir()
	configs := []Config{{File: &rotate.Config{Path: filepath.Join(dir, "f")}}, {Name: "bad", File: &rotate.Config{Path: "/dev/null/f"}}}
	h := new(Hub)
	if _, err := Start(h, configs, Options{Log: slog.New(slog.DiscardHandler)}); err == nil || !strings.Contains(err.Error(), `sink "bad"`) {
		t.Errorf("%v", err)
	}
	if h.fan.Active() {
		t.Error("somebody listens still")
	}
}

func TestReplaceLosesNothing(t *testing.T) {
	dir := t.TempDir()
	config := func(name string) Config { return Config{File: &rotate.Config{Path: filepath.Join(dir, name)}} }
	h, s, _ := started(t, dir, config("a"))
	stop, emitted := make(chan struct{}), make(chan int)
	go func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				emitted <- n
				return
			case <-time.After(20 * time.Microsecond):
				emit(h, "x")
			}
		}
	}()
	for i := range 50 {
		if err := s.Replace(context.Background(), []Config{config(string("ab"[i%2]))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Replace(context.Background(), []Config{{}}); err == nil {
		t.Error("a wrong configuration is taken")
	}
	bad := config("c")
	bad.File.Path, bad.Name = "/dev/null/c", "bad"
	if err := s.Replace(context.Background(), []Config{bad, config("c")}); err == nil || len(s.Health()) != 1 {
		t.Errorf("%v, %+v", err, s.Health())
	}
	close(stop)
	n := <-emitted
	if err := ended(t, s, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	got := len(written(t, filepath.Join(dir, "a"))) + len(written(t, filepath.Join(dir, "b"))) + len(written(t, filepath.Join(dir, "c")))
	if got != n || n == 0 {
		t.Errorf("%d of %d findings were written", got, n)
	}
	if err := s.Replace(context.Background(), []Config{config("d")}); err == nil {
		t.Error("a Set that was closed goes on")
	}
}

func TestReopenFollowsLogrotate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	h, s, _ := started(t, t.TempDir(), Config{File: &rotate.Config{Path: path}}, Config{Journal: &Journal{Socket: path + ".none"}})
	emit(h, "a")
	until(t, "a line", func() bool { return s.Health()[0].Delivered == 1 })
	if err := errors.Join(os.Rename(path, path+".1"), s.Reopen()); err != nil {
		t.Fatal(err)
	}
	emit(h, "b")
	until(t, "a line", func() bool { return s.Health()[0].Delivered == 2 })
	if old, now := written(t, path+".1"), written(t, path); !slices.Equal(old, []string{"a"}) || !slices.Equal(now, []string{"b"}) {
		t.Errorf("%q, %q", old, now)
	}
}

// stuck is an output that takes nothing until its context ends.
type stuck struct{ hangs chan struct{} }

func (s stuck) write(ctx context.Context, _ *record) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-s.hangs:
		return nil
	}
}
func (s stuck) flush() error                { return nil }
func (s stuck) close(context.Context) error { return nil }

// hanging is one that does not even notice that.
type hanging struct{ stuck }

func (h hanging) write(context.Context, *record) error { <-h.hangs; return nil }

// TestWhatIsNotPassedOnIsCounted: nothing is dropped without a counter and a log line.
func TestWhatIsNotPassedOnIsCounted(t *testing.T) {
	dir := t.TempDir()
	h, s, logged := started(t, dir, Config{File: &rotate.Config{Path: filepath.Join(dir, "f")}})
	free := make(chan struct{})
	s.sinks[0].out = stuck{free} // before the first finding
	for range queued + 11 {
		emit(h, "x")
	}
	until(t, "what did not fit", func() bool { return s.Health()[0].Dropped[DropSlow] >= 10 })
	health := s.Health()[0]
	lost := health.Dropped[DropSlow]
	if total := lost + uint64(health.Waiting); total != queued+10 && total != queued+11 { // one may be in write
		t.Errorf("%+v", health)
	}
	err := ended(t, s, 10*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "findings are lost to it") {
		t.Errorf("the error is %v", err)
	}
	health = s.Health()[0]
	if health.Dropped[DropClosed]+health.Dropped[DropSlow] != queued+11 || health.Waiting != 0 || health.Delivered != 0 {
		t.Errorf("%+v", health)
	}
	for _, want := range []string{"reason=slow", "reason=closed", "sink=file"} {
		if !strings.Contains(logged.String(), want) {
			t.Errorf("no %s in %s", want, logged)
		}
	}
}

func TestASinkThatHangsDoesNotHoldUpTheEnd(t *testing.T) {
	dir := t.TempDir()
	h, s, logged := started(t, dir, Config{File: &rotate.Config{Path: filepath.Join(dir, "f")}}, Config{Name: "good", File: &rotate.Config{Path: filepath.Join(dir, "g")}})
	free := make(chan struct{})
	s.sinks[0].out = hanging{stuck{free}}
	asked := make(chan struct{})
	emit(h, "a", "b", "c")
	begin := time.Now()
	go func() { // who asks meanwhile does not wait for it
		for range 100 {
			s.Health()
			time.Sleep(time.Millisecond)
		}
		if time.Since(begin) > hung {
			t.Error("Health waits for Close")
		}
		close(asked)
	}()
	err := ended(t, s, 10*time.Millisecond)
	<-asked
	if err == nil || time.Since(begin) > 10*hung || !strings.Contains(logged.String(), "hangs") {
		t.Errorf("%v after %v: %s", err, time.Since(begin), logged)
	}
	close(free)
	if got := written(t, filepath.Join(dir, "g")); len(got) != 3 {
		t.Errorf("the other one has %q", got)
	}
}

func TestALogIsNotFlooded(t *testing.T) {
	dir := t.TempDir()
	h, s, logged := started(t, dir, Config{File: &rotate.Config{Path: "/dev/full"}})
	for range 500 {
		emit(h, "x")
	}
	until(t, "500 failures", func() bool { return s.Health()[0].Dropped[DropFailed] == 500 })
	if err := ended(t, s, time.Second); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(logged.String(), "are lost"); n != 2 || !strings.Contains(logged.String(), "lost=499") || !strings.Contains(logged.String(), "no space left") {
		t.Errorf("logged %d times: %s", n, logged)
	}
}
