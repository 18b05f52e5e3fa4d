package lab

import (
	"bufio"

	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"
)

// idleLimit is how long a server stays that nobody uses.
const idleLimit = 15 * time.Minute

// hostMB is what a booted host takes of this machine's memory, at most.
const hostMB = 2048

// runDir is where a server of this version keeps its socket and its hosts' logs.
func runDir() (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(cache, "run-"+Version())
	return dir, os.MkdirAll(dir, 0o755)
}

func socketPath() (string, error) {
	dir, err := runDir()
	return filepath.Join(dir, "socket"), err
}

// server boots hosts and hands out copies of them.
type server struct {
	dir     string
	slots   chan struct{} // one token for each copy that runs
	maxHost int
	used    chan struct{} // something happened: not idle
	quit    context.CancelFunc

	mu    sync.Mutex
	hosts map[Config]*slot
	boots int
}

// slot is a host that is booted or on the way.
type slot struct {
	machine  *machine
	err      error
	booted   chan struct{}
	watchers []func(string)
	users    int
	last     time.Time
}

// Serve runs a lab server until ctx ends, nobody needs it, or it is told to go.
// There is one for each version of the lab; a second one fails at once.
func Serve(ctx context.Context) error {
	if err := CheckTools(); err != nil {
		return err
	}
	dir, err := runDir()
	if err != nil {
		return err
	}
	short, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	unlock, err := lock(short, filepath.Join(dir, "server.lock"))
	if err != nil {
		return fmt.Errorf("a lab server runs already: %w", err)
	}
	defer unlock()
	path := filepath.Join(dir, "socket")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Logs of earlier servers.
	old, err := filepath.Glob(filepath.Join(dir, "host-*"))
	if err != nil {
		return err
	}
	for _, o := range old {
		if err := os.RemoveAll(o); err != nil {
			return err
		}
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("lab server: %w", err)
	}
	ctx, quit := context.WithCancel(ctx)
	defer quit()
	s := &server{dir: dir, slots: make(chan struct{}, runtime.NumCPU()), maxHost: hostsThatFit(), used: make(chan struct{}, 1), quit: quit, hosts: map[Config]*slot{}}
	stop := context.AfterFunc(ctx, func() { listener.Close() })
	defer stop()
	go s.idle(ctx)
	defer s.stopAll()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("lab server: %w", err)
		}
		go s.serve(ctx, conn) // ends with the connection
	}
}

// hostsThatFit is how many booted hosts this machine has memory for: half of it.
func hostsThatFit() int {
	b, err := os.ReadFile("/proc/meminfo")
	var kb int
	if err == nil {
		_, err = fmt.Sscanf(string(b), "MemTotal: %d kB", &kb)
	}
	if err != nil {
		return 1
	}
	return max(1, kb/1024/2/hostMB)
}

func (s *server) idle(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.used:
		case <-time.After(idleLimit):
			if len(s.slots) == 0 {
				s.quit()
			}
		}
	}
}

func (s *server) stopAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range s.hosts {
		if h.machine != nil {
			h.machine.stop()
		}
	}
}

func (s *server) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReader(conn)
	var req request
	if receive(r, &req) != nil {
		return
	}
	select {
	case s.used <- struct{}{}:
	default:
	}
	// The connection's end is the end of what was asked for.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var err error
	switch req.Do {
	case "status":
		err = send(conn, answer{Status: s.status()})
	case "down":
		err = send(conn, answer{})
		s.quit()
	case "up":
		_, err = s.host(ctx, req.Config, progressTo(conn))
		if err == nil {
			err = send(conn, answer{})
		}
	case "copy":
		err = s.copy(ctx, conn, r, req)
	default:
		err = fmt.Errorf("the lab server does not know %q", req.Do)
	}
	if err != nil {
		_ = send(conn, answer{Error: err.Error()}) // who asked may be gone
	}
}

func progressTo(w io.Writer) func(string) {
	return func(text string) { _ = send(w, answer{Progress: text}) }
}

// copy waits for a free slot, forks the host and passes bytes both ways until
// either side ends.
func (s *server) copy(ctx context.Context, conn net.Conn, r *bufio.Reader, req request) error {
	h, err := s.host(ctx, req.Config, progressTo(conn))
	if err != nil {
		return err
	}
	defer s.release(h)
	gone := make(chan struct{})
	up := make(chan net.Conn, 1)
	go func() { // ends with the client's connection
		defer close(gone)
		first, err := r.Peek(1) // the client speaks only once it has its copy
		if err != nil || len(first) == 0 {
			return
		}
		if to, ok := <-up; ok {
			_, _ = io.Copy(to, r) // its end is the end of the copy, however it came
		}
	}()
	defer close(up)
	select {
	case s.slots <- struct{}{}:
	case <-gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.slots }()
	com2, err := h.machine.fork(req.Serial, req.Payloads)
	if err != nil {
		return err
	}
	defer com2.Close()
	if err := send(conn, answer{}); err != nil {
		return nil // the client is gone
	}
	up <- com2
	go func() { // ends with com2, which this function closes
		_, _ = io.Copy(conn, com2)
		conn.Close()
	}()
	<-gone
	return nil
}

// host returns a booted host, booting it if need be. Who asks for the same one
// meanwhile waits for the same boot.
func (s *server) host(ctx context.Context, cfg Config, say func(string)) (*slot, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	s.mu.Lock()
	h := s.hosts[cfg]
	if h != nil && h.ended() {
		delete(s.hosts, cfg)
		h = nil
	}
	if h == nil {
		s.evict()
		s.boots++
		h = &slot{booted: make(chan struct{})}
		s.hosts[cfg] = h
		dir := filepath.Join(s.dir, fmt.Sprintf("host-%d-%s", s.boots, cfg))
		go s.boot(h, cfg, dir) // ends with the boot
	}
	h.users++
	h.last = time.Now()
	h.watchers = append(h.watchers, say)
	s.mu.Unlock()
	select {
	case <-h.booted:
	case <-ctx.Done():
		s.release(h)
		return nil, ctx.Err()
	}
	if h.err != nil {
		s.release(h)
		return nil, h.err
	}
	return h, nil
}

func (s *server) boot(h *slot, cfg Config, dir string) {
	defer close(h.booted)
	// Not with the context of who asked first: others may wait for it, too.
	h.machine, h.err = boot(context.Background(), cfg, dir, func(text string) {
		s.mu.Lock()
		watchers := slices.Clone(h.watchers)
		s.mu.Unlock()
		for _, w := range watchers {
			w(text)
		}
	})
}

// ended says whether a host is of no use: its boot failed, or its emulator died.
func (h *slot) ended() bool {
	select {
	case <-h.booted:
	default:
		return false
	}
	if h.err != nil {
		return true
	}
	select {
	case <-h.machine.dead:
		return true
	default:
		return false
	}
}

func (s *server) release(h *slot) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h.users--
	h.last = time.Now()
	h.watchers = nil
}

// evict makes room for one more host: of those that nobody uses, the one that
// was not used for longest goes. With s.mu held.
func (s *server) evict() {
	for len(s.hosts) >= s.maxHost {
		var oldest *Config
		for cfg, h := range s.hosts {
			if h.users == 0 && (oldest == nil || h.last.Before(s.hosts[*oldest].last)) {
				oldest = &cfg
			}
		}
		if oldest == nil {
			return // all are in use: the machine has to bear one more
		}
		h := s.hosts[*oldest]
		delete(s.hosts, *oldest)
		if h.machine != nil {
			h.machine.stop()
		}
	}
}

func (s *server) status() *Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := &Status{PID: os.Getpid(), Dir: s.dir, Running: len(s.slots), Slots: cap(s.slots)}
	for cfg, h := range s.hosts {
		hs := HostStatus{Config: cfg, Booting: true}
		select {
		case <-h.booted:
			hs.Booting = false
			if h.machine != nil {
				hs.Dir, hs.Boot, hs.Copies = h.machine.dir, h.machine.took.Seconds(), h.machine.copies
			}
		default:
		}
		st.Hosts = append(st.Hosts, hs)
	}
	slices.SortFunc(st.Hosts, func(a, b HostStatus) int { return strings.Compare(a.Config.String(), b.Config.String()) })
	return st
}
