// Package sdnotify tells systemd how hprobed is. Where hprobed was not started by it, or
// not with Type=notify, nothing is told, and nothing fails.
package sdnotify

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// Ready says that hprobed serves: after the start, and after each Reloading. status is for
// people who ask systemctl.
func Ready(status string) error { return tell(daemon.SdNotifyReady, status) }

// Reloading says that the configuration is read anew. Ready ends it.
func Reloading() error { return tell(daemon.SdNotifyReloading, "reading the configuration") }

// Stopping says that probes are being taken out. From then on there is no watchdog.
func Stopping() error { return tell(daemon.SdNotifyStopping, "taking probes out of guests") }

func tell(state, status string) error {
	if _, err := daemon.SdNotify(false, state+"\nSTATUS="+oneLine(status)); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	return nil
}

// oneLine keeps a text from being more than one of systemd's variables.
func oneLine(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c < ' ' || c > '~' {
			b[i] = '?'
		}
	}
	return string(b)
}

// Watch tells systemd's watchdog that hprobed lives, until ctx ends: each time that alive returns
// nil, which it is asked three times in the watchdog's time. Where alive fails, or does not return, systemd does what the
// unit says. Without a watchdog it returns at once.
func Watch(ctx context.Context, alive func(context.Context) error, log *slog.Logger) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return fmt.Errorf("systemd's watchdog: %w", err)
	}
	if every == 0 {
		return nil
	}
	t := time.NewTicker(every / 3)
	defer t.Stop()
	for {
		if err := alive(ctx); err != nil {
			log.Error("systemd's watchdog is not told that hprobed lives", "err", err)
		} else if _, err := daemon.SdNotify(false, daemon.SdNotifyWatchdog); err != nil {
			log.Error("systemd's watchdog can't be told that hprobed lives", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}
