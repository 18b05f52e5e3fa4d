package sdnotify

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// systemd is the other end of the socket.
func systemd(t *testing.T) func() string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		b := make([]byte, 1<<10)
		l.SetReadDeadline(time.Now().Add(20 * time.Second))
		n, _, err := l.ReadFrom(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
}

func TestStates(t *testing.T) {
	next := systemd(t)
	for _, w := range []struct {
		tell func() error
		want string
	}{
		{func() error { return Ready("two guests\nSTOPPING=1\xff") }, "READY=1\nSTATUS=two guests?STOPPING=1?"},
		{Reloading, "RELOADING=1\nSTATUS=reading the configuration"},
		{Stopping, "STOPPING=1\nSTATUS=taking probes out of guests"},
	} {
		if err := w.tell(); err != nil {
			t.Fatal(err)
		}
		if got := next(); got != w.want {
			t.Errorf("%q, not %q", got, w.want)
		}
	}
}

func TestWithoutSystemd(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	t.Setenv("WATCHDOG_USEC", "")
	if err := errors.Join(Ready(""), Reloading(), Stopping(), Watch(context.Background(), nil, nil)); err != nil {
		t.Error(err)
	}
	t.Setenv("NOTIFY_SOCKET", filepath.Join(t.TempDir(), "none"))
	if err := Ready(""); err == nil || !strings.Contains(err.Error(), "tell systemd") {
		t.Error(err)
	}
	t.Setenv("WATCHDOG_USEC", "soon")
	if err := Watch(context.Background(), nil, nil); err == nil {
		t.Error("a watchdog's time that is none is taken")
	}
}

func TestTheWatchdogIsToldWhileHprobedLives(t *testing.T) {
	next := systemd(t)
	t.Setenv("WATCHDOG_USEC", "30000")
	t.Setenv("WATCHDOG_PID", "")
	ctx, cancel := context.WithCancel(context.Background())
	asked := 0
	done := make(chan error, 1)
	go func() {
		done <- Watch(ctx, func(context.Context) error {
			switch asked++; {
			case asked == 2 || asked == 3:
				return errors.New("hangs")
			case asked == 6:
				cancel()
			}
			return nil
		}, slog.New(slog.DiscardHandler))
	}()
	for range 4 {
		if got := next(); got != "WATCHDOG=1" {
			t.Errorf("%q", got)
		}
	}
	if err := <-done; err != nil || asked != 6 {
		t.Errorf("%v, asked %d times", err, asked)
	}
}
