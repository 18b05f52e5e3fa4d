package sinks

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Webhook is a server that takes findings by HTTPS: POSTs of JSON arrays. What it has not
// taken yet is in a queue on the disk. It may get a finding twice, with the same id.
type Webhook struct {
	// URL is where to post: https://…
	URL string `json:"url" yaml:"url"`
	// TokenFile has a bearer token. It is read anew for each request.
	TokenFile string `json:"token_file,omitempty" yaml:"token_file,omitempty"`
	// CAFile has the certificates, as PEM, that the server's is checked with. "": the system's.
	CAFile string `json:"ca_file,omitempty" yaml:"ca_file,omitempty"`
	// Batch is how many findings are in a request at most. 0: 100.
	Batch int `json:"batch,omitempty" yaml:"batch,omitempty"`
	// TimeoutSeconds is how long a request may take. 0: 10.
	TimeoutSeconds int `json:"timeout_seconds,omitempty" yaml:"timeout_seconds,omitempty"`
	// QueueMiB is how large the queue may be, in MiB; then the oldest findings are lost. 0: 64.
	QueueMiB int `json:"queue_mib,omitempty" yaml:"queue_mib,omitempty"`
	// QueueFolder is where the queue is. "": in hprobed's own folder.
	QueueFolder string `json:"queue_folder,omitempty" yaml:"queue_folder,omitempty"`
}

func (w *Webhook) check() error {
	u, err := url.Parse(w.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" || u.User != nil {
		return errors.New("url: write https:// with a host, and no user or password in it: a token is in token_file")
	}
	for _, n := range []struct {
		name      string
		n, at, to int
	}{{"batch", w.Batch, 1, 10_000}, {"timeout_seconds", w.TimeoutSeconds, 1, 600}, {"queue_mib", w.QueueMiB, 1, 1 << 20}} {
		if n.n != 0 && (n.n < n.at || n.n > n.to) {
			return fmt.Errorf("%s: %d: write %d to %d, or leave it out", n.name, n.n, n.at, n.to)
		}
	}
	if w.QueueFolder != "" && !filepath.IsAbs(w.QueueFolder) {
		return fmt.Errorf("queue_folder: %q: write the whole path, from / on, or leave it out", w.QueueFolder)
	}
	return nil
}

const (
	lastPostPause = 5 * time.Minute
	longestWait   = time.Hour // that a server may ask for
	longestToken  = 4 << 10   // bytes
)

// webhookOutput is the output of a sink: write and flush fill the queue, a goroutine empties it.
type webhookOutput struct {
	c      *Webhook
	stats  *stats
	q      *queue
	pauses pauses
	send   func(ctx context.Context, lines [][]byte) error // post

	some    chan struct{} // there may be something in the queue
	closing chan struct{}
	cancel  context.CancelFunc
	done    chan struct{} // the goroutine ended
}

func newWebhook(c *Webhook, folder string, s *stats) (*webhookOutput, error) {
	w := &webhookOutput{c: c, stats: s, pauses: pauses{last: lastPostPause}, some: make(chan struct{}, 1), closing: make(chan struct{}), done: make(chan struct{})}
	// What may be wrong with them is said when hprobed starts, not in the night.
	if _, err := w.token(); err != nil {
		return nil, err
	}
	if _, err := tlsConfig(c.CAFile, "", ""); err != nil {
		return nil, err
	}
	var err error
	w.q, err = openQueue(cmp.Or(c.QueueFolder, folder), int64(cmp.Or(c.QueueMiB, 64))<<20, func(n int, err error) { s.drop(DropQueue, uint64(n), err) })
	if err != nil {
		return nil, err
	}
	s.waiting, w.send = w.q.waiting, w.post
	var ctx context.Context
	ctx, w.cancel = context.WithCancel(context.Background())
	go w.run(ctx)
	return w, nil
}

func (w *webhookOutput) write(_ context.Context, r *record) error { return w.q.push(r.body) }

func (w *webhookOutput) flush() error {
	select {
	case w.some <- struct{}{}:
	default:
	}
	return w.q.sync()
}

// close sends what is in the queue, until ctx ends or the server does not take it. The
// rest stays there.
func (w *webhookOutput) close(ctx context.Context) error {
	close(w.closing)
	stop := context.AfterFunc(ctx, w.cancel)
	defer stop()
	<-w.done
	w.cancel()
	return w.q.close()
}

// run sends until closing is closed and the queue is empty, or the server takes no more.
func (w *webhookOutput) run(ctx context.Context) {
	defer close(w.done)
	most := cmp.Or(w.c.Batch, 100)
	size := most
	for {
		b, err := w.q.peek(size)
		if err == nil && len(b.lines) == 0 {
			select {
			case <-w.some:
				continue
			case <-w.closing:
				// Nothing is pushed any more: it may have been just now.
				if w.q.waiting() == 0 {
					return
				}
				continue
			}
		}
		if err == nil {
			err = w.send(ctx, b.lines)
		}
		var refused *refusedError
		switch {
		case err == nil:
			w.pauses.reset()
			w.stats.delivered(uint64(len(b.lines)))
			size = min(2*size, most)
			err = w.q.done(b)
		case errors.As(err, &refused) && refused.hopeless() && len(b.lines) > 1:
			size = max(1, len(b.lines)/2) // which of them is it?
			continue
		case errors.As(err, &refused) && refused.hopeless():
			w.stats.drop(DropRefused, 1, err)
			err = w.q.done(b)
		}
		if err == nil {
			continue
		}
		w.stats.trouble(err)
		pause := w.pauses.next()
		if refused != nil {
			pause = max(pause, min(refused.after, longestWait))
		}
		select {
		case <-w.closing:
			return // it is on the disk
		case <-time.After(pause):
		}
	}
}

// refusedError is an answer that is not what it should be.
type refusedError struct {
	status int
	after  time.Duration // 0: the server does not say when to come again
}

func (e *refusedError) Error() string {
	text := fmt.Sprintf("the server's answer is %d %s", e.status, http.StatusText(e.status))
	if e.status/100 == 3 {
		text += ": redirects are not followed, as the token is not theirs: write the new address in url"
	}
	return text
}

// hopeless says whether the same request would have the same answer for ever, because of
// what is in it. What is wrong with url or token may be put right.
func (e *refusedError) hopeless() bool {
	switch e.status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

func (w *webhookOutput) token() (string, error) {
	if w.c.TokenFile == "" {
		return "", nil
	}
	f, err := os.Open(w.c.TokenFile)
	if err != nil {
		return "", fmt.Errorf("token_file: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, longestToken+1))
	token := strings.TrimSpace(string(b))
	if err == nil && (len(b) > longestToken || token == "" || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' })) {
		err = fmt.Errorf("%s has no token: it must have one line of printable characters without spaces", w.c.TokenFile)
	}
	if err != nil {
		return "", fmt.Errorf("token_file: %w", err)
	}
	return token, nil
}

// post sends lines as one array.
func (w *webhookOutput) post(ctx context.Context, lines [][]byte) error {
	token, err := w.token()
	if err != nil {
		return err
	}
	t, err := tlsConfig(w.c.CAFile, "", "")
	if err != nil {
		return err
	}
	// One connection a request: findings are rare, and its certificates may be replaced.
	transport := &http.Transport{TLSClientConfig: t, Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, ForceAttemptHTTP2: true}
	client := http.Client{Transport: transport, Timeout: time.Duration(cmp.Or(w.c.TimeoutSeconds, 10)) * time.Second,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	body := append(append([]byte{'['}, bytes.Join(lines, []byte{','})...), ']')
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, w.c.URL, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "hprobed")
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 == 2 {
		return nil
	}
	return &refusedError{resp.StatusCode, retryAfter(resp.Header.Get("Retry-After"), time.Now())}
}

// retryAfter reads the header of that name: RFC 9110, 10.2.3. 0: it says nothing.
func retryAfter(value string, now time.Time) time.Duration {
	if n, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(value); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}
