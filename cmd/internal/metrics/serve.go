package metrics

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Config says where Prometheus gets the figures.
type Config struct {
	// Listen is "127.0.0.1:9433", "[::1]:9433", "localhost:9433", or "unix:" and the path of a
	// socket, for root and the file's group. "": nowhere.
	Listen string `json:"listen,omitempty" yaml:"listen,omitempty"`
}

// Check says what is wrong, and what to write instead. Figures name guests, and who asks for
// them is not asked for a name: they stay on this host.
func (c *Config) Check() error {
	if c.Listen == "" {
		return nil
	}
	if path, ok := strings.CutPrefix(c.Listen, "unix:"); ok {
		if !filepath.IsAbs(path) {
			return fmt.Errorf("metrics: listen: %q names no socket: write unix:/run/hprobe/metrics.sock", c.Listen)
		}
		return nil
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil || port == "" {
		return fmt.Errorf("metrics: listen: %q: write 127.0.0.1:9433, or unix: and the path of a socket", c.Listen)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return fmt.Errorf("metrics: listen: %q is not of this host alone: write 127.0.0.1:%s, and let a proxy with TLS and passwords stand before it", c.Listen, port)
	}
	return nil
}

// Listen makes the listener of a configuration that listens somewhere. Closing it removes a socket.
func Listen(c Config) (net.Listener, error) {
	if err := c.Check(); err != nil {
		return nil, err
	}
	path, ok := strings.CutPrefix(c.Listen, "unix:")
	if !ok {
		l, err := net.Listen("tcp", c.Listen)
		if err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
		return l, nil
	}
	// One that a dead hprobed left has nobody behind it.
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == fs.ModeSocket {
		if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
			conn.Close()
			return nil, fmt.Errorf("metrics: another program listens on %s already", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("metrics: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err == nil {
		if err = os.Chmod(path, 0o660); err != nil {
			err = errors.Join(err, l.Close())
		}
	}
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	return l, nil
}

// Serve answers at /metrics until ctx ends. The listener is closed then.
func Serve(ctx context.Context, l net.Listener, source Source, log *slog.Logger) error {
	registry, err := newRegistry(source)
	if err != nil {
		return errors.Join(err, l.Close())
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 2, Timeout: 2 * snapshotTime,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}))
	server := &http.Server{Handler: mux, ReadTimeout: snapshotTime, WriteTimeout: 4 * snapshotTime, IdleTimeout: time.Minute, MaxHeaderBytes: 16 << 10,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug)}
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("metrics: %w", err)
	}
	return nil
}

// newRegistry has a Source's figures, and those of the process: its memory, CPU and goroutines.
func newRegistry(source Source) (*prometheus.Registry, error) {
	r := prometheus.NewRegistry()
	return r, errors.Join(r.Register(&Collector{source}), r.Register(collectors.NewGoCollector()), r.Register(collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})))
}
