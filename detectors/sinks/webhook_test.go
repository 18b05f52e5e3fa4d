package sinks

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hprobe/hprobe/detectors"
)

// receiver is a server that takes findings.
type receiver struct {
	*httptest.Server
	dir    string
	mu     sync.Mutex
	answer func(w http.ResponseWriter, findings []line) // nil: 204
	got    []line
	tokens []string
	posts  int
}

func newReceiver(t *testing.T) *receiver {
	r := &receiver{dir: t.TempDir()}
	r.Server = httptest.NewTLSServer(r)
	t.Cleanup(r.Close)
	for name, b := range map[string][]byte{"ca.pem": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.Certificate().Raw}), "token": []byte("secret\n")} {
		if err := os.WriteFile(filepath.Join(r.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	b, err := io.ReadAll(req.Body)
	var findings []line
	if err != nil || json.Unmarshal(b, &findings) != nil || req.Method != http.MethodPost || req.Header.Get("Content-Type") != "application/json" {
		w.WriteHeader(http.StatusTeapot)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.posts++
	r.tokens = append(r.tokens, req.Header.Get("Authorization"))
	if r.answer != nil {
		r.answer(w, findings)
		return
	}
	r.got = append(r.got, findings...)
	w.WriteHeader(http.StatusNoContent)
}

func (r *receiver) set(answer func(http.ResponseWriter, []line)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

// messages are those of what it took, in order.
func (r *receiver) messages() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for i := range r.got {
		all = append(all, r.got[i].Message)
	}
	return all
}

func (r *receiver) config() Config {
	return Config{Webhook: &Webhook{URL: r.URL, TokenFile: filepath.Join(r.dir, "token"), CAFile: filepath.Join(r.dir, "ca.pem"), Batch: 4}}
}

// started starts sinks; what they log is in the buffer, to be read after Close.
func started(t *testing.T, folder string, configs ...Config) (*Hub, *Set, *bytes.Buffer) {
	t.Helper()
	h := new(Hub)
	var logged bytes.Buffer
	s, err := Start(h, configs, Options{Log: slog.New(slog.NewTextHandler(&logged, nil)), Version: "v1", Folder: folder})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ended(t, s, time.Second) })
	return h, s, &logged
}

func ended(t *testing.T, s *Set, d time.Duration) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return s.Close(ctx)
}

func emit(h *Hub, messages ...string) {
	for i, m := range messages {
		h.Emit(&detectors.Finding{Time: time.Unix(1, int64(i)), Domain: "guest", Severity: detectors.High, Message: m})
	}
}

func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("in vain: " + what)
		}
	}
}

func TestAWebhookGetsBatches(t *testing.T) {
	r := newReceiver(t)
	h, s, _ := started(t, t.TempDir(), r.config())
	var want []string
	for i := range 10 {
		want = append(want, strings.Repeat("m", i))
	}
	emit(h, want...)
	if err := ended(t, s, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := r.messages(); !slices.Equal(got, want) {
		t.Errorf("it got %q", got)
	}
	ids := map[string]bool{}
	for _, l := range r.got {
		ids[l.ID] = true
	}
	if len(ids) != 10 || r.posts < 3 || slices.ContainsFunc(r.tokens, func(s string) bool { return s != "Bearer secret" }) {
		t.Errorf("%d ids, %d posts, %q", len(ids), r.posts, r.tokens)
	}
	if health := s.Health()[0]; health.Delivered != 10 || health.Waiting != 0 || health.LastSuccess.IsZero() {
		t.Errorf("%+v", health)
	}
}

func TestWhatAWebhookDoesNotTakeWaitsOnTheDisk(t *testing.T) {
	r, folder := newReceiver(t), t.TempDir()
	r.set(func(w http.ResponseWriter, _ []line) { w.WriteHeader(http.StatusServiceUnavailable) })
	h, s, logged := started(t, folder, r.config())
	emit(h, "a", "b")
	until(t, "an error", func() bool { return s.Health()[0].Error != "" && s.Health()[0].Waiting == 2 })
	if health := s.Health()[0]; !strings.Contains(health.Error, "503 Service Unavailable") || health.Delivered != 0 {
		t.Errorf("%+v", health)
	}
	begin := time.Now()
	if err := ended(t, s, 20*time.Second); err != nil || time.Since(begin) > 10*time.Second {
		t.Errorf("it ended after %v: %v", time.Since(begin), err)
	}
	if !strings.Contains(logged.String(), "503") {
		t.Error(logged)
	}
	r.set(nil)
	_, s, _ = started(t, folder, r.config())
	until(t, "what waited", func() bool { return slices.Equal(r.messages(), []string{"a", "b"}) })
	until(t, "an empty queue", func() bool { return s.Health()[0].Waiting == 0 })
}

func TestWhatAWebhookRefusesIsLostAlone(t *testing.T) {
	r := newReceiver(t)
	r.set(func(w http.ResponseWriter, all []line) {
		if slices.ContainsFunc(all, func(l line) bool { return l.Message == "bad" }) {
			w.WriteHeader(http.StatusBadRequest)
			return
		}
		r.got = append(r.got, all...)
	})
	h, s, logged := started(t, t.TempDir(), r.config())
	emit(h, "a", "bad", "b", "c", "bad", "d")
	if err := ended(t, s, 20*time.Second); err != nil {
		t.Fatal(err)
	}
	if got := r.messages(); !slices.Equal(got, []string{"a", "b", "c", "d"}) {
		t.Errorf("it got %q", got)
	}
	if health := s.Health()[0]; health.Dropped[DropRefused] != 2 || health.Delivered != 4 {
		t.Errorf("%+v", health)
	}
	if !strings.Contains(logged.String(), "reason=refused") || !strings.Contains(logged.String(), "400 Bad Request") {
		t.Error(logged)
	}
}

func TestARedirectIsNotFollowed(t *testing.T) {
	other, r := newReceiver(t), newReceiver(t)
	r.set(func(w http.ResponseWriter, _ []line) {
		w.Header().Set("Location", other.URL)
		w.WriteHeader(http.StatusTemporaryRedirect)
	})
	h, s, _ := started(t, t.TempDir(), r.config())
	emit(h, "a")
	until(t, "an error", func() bool { return strings.Contains(s.Health()[0].Error, "redirects are not followed") })
	if other.posts != 0 {
		t.Error("the token went to another server")
	}
}

func TestWhatIsWrongWithAWebhookIsSaidAtOnce(t *testing.T) {
	r := newReceiver(t)
	for want, change := range map[string]func(*Webhook){
		"token_file: open":            func(w *Webhook) { w.TokenFile += "x" },
		"ca_file: open":               func(w *Webhook) { w.CAFile += "x" },
		"has no certificate":          func(w *Webhook) { w.CAFile = w.TokenFile },
		"has no token: it must":       func(w *Webhook) { w.TokenFile = os.DevNull },
		"has no token: it must have ": func(w *Webhook) { w.TokenFile = w.CAFile },
		"queue: mkdir":                func(w *Webhook) { w.QueueFolder = "/dev/null/x" },
	} {
		c := r.config()
		change(c.Webhook)
		if _, err := Start(new(Hub), []Config{c}, Options{Log: slog.New(slog.DiscardHandler), Folder: t.TempDir()}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestAServerOfAnotherCAGetsNothing(t *testing.T) {
	r := newReceiver(t)
	c := r.config()
	c.Webhook.CAFile = "" // the system's
	h, s, _ := started(t, t.TempDir(), c)
	emit(h, "a")
	until(t, "an error", func() bool { return strings.Contains(s.Health()[0].Error, "certificate") })
	if r.posts != 0 {
		t.Error("it got the token")
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for value, want := range map[string]time.Duration{"": 0, "120": 2 * time.Minute, "-1": 0, "soon": 0, "99999999999": 0, now.Add(time.Minute).Format(http.TimeFormat): time.Minute,
		now.Add(-time.Minute).Format(http.TimeFormat): 0} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("%q: %v", value, got)
		}
	}
}

func TestPauses(t *testing.T) {
	p := pauses{last: 10 * time.Second}
	for _, most := range []time.Duration{1, 2, 4, 8, 10, 10} {
		if d := p.next(); d < most*time.Second/2 || d >= most*time.Second {
			t.Errorf("%v, where %d s is the most", d, most)
		}
	}
	p.reset()
	if d := p.next(); d >= time.Second {
		t.Errorf("%v after a success", d)
	}
}

// TestAServerSaysWhenToComeAgain runs on a clock of its own.
func TestAServerSaysWhenToComeAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newStats("hook", "webhook", slog.New(slog.DiscardHandler))
		q, err := openQueue(t.TempDir(), 1<<20, func(int, error) {})
		if err != nil {
			t.Fatal(err)
		}
		w := &webhookOutput{c: &Webhook{}, stats: s, q: q, pauses: pauses{last: lastPostPause}, some: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{})}
		var tries []time.Duration
		begin := time.Now()
		w.send = func(context.Context, [][]byte) error {
			tries = append(tries, time.Since(begin))
			switch len(tries) {
			case 1:
				return &refusedError{http.StatusTooManyRequests, 20 * time.Minute}
			case 2:
				return &refusedError{http.StatusTooManyRequests, 48 * time.Hour}
			case 3:
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err := q.push([]byte("{}\n")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		w.cancel = cancel
		go w.run(ctx)
		time.Sleep(3 * time.Hour)
		if err := w.close(ctx); err != nil {
			t.Fatal(err)
		}
		if len(tries) != 4 || tries[1] != 20*time.Minute || tries[2] != 20*time.Minute+longestWait || tries[3]-tries[2] < time.Second || tries[3]-tries[2] > 5*time.Second {
			t.Errorf("it tried at %v", tries)
		}
		if h := s.snapshot(); h.Delivered != 1 || q.waiting() != 0 {
			t.Errorf("%+v", h)
		}
	})
}
