package lab

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// CommandLimit bounds a command of MustRun. It is generous: a machine may be slow.
const CommandLimit = 5 * time.Minute

// Copy gives a test a copy of a host of its own, with files in it. It ends with
// the test. When the test failed, its logs are kept, and how to repeat it is printed.
//
// It waits until the lab has room. A test holds one copy at a time: two that each
// hold one and wait for another would wait for ever.
func Copy(t testing.TB, cfg Config, files ...File) *Host {
	t.Helper()
	return CopyWith(t, cfg, Options{}, files...)
}

// CopyWith is Copy with options.
func CopyWith(t testing.TB, cfg Config, o Options, files ...File) *Host {
	t.Helper()
	if testing.Short() {
		t.Skip("boots a Xen host in software: not with -short")
	}
	if d := driver(t); d != driverNative {
		o.Driver = d
	}
	dir, err := os.MkdirTemp("", "hprobe-lab-")
	if err != nil {
		t.Fatal(err)
	}
	o.Dir = dir
	if o.Progress == nil {
		o.Progress = func(text string) { t.Log("lab:", text) }
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute) // a first run fetches and builds
	defer cancel()
	h, err := Open(ctx, cfg, o, files...)
	if err != nil {
		t.Fatalf("lab: no copy of %s: %v", cfg, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			h.keepLogs(t)
		}
		if err := h.Close(); err != nil {
			t.Errorf("lab: %v", err)
		}
		if !t.Failed() {
			os.RemoveAll(dir)
		}
	})
	return h
}

// keepLogs saves what the copy can still tell, before it ends.
func (h *Host) keepLogs(t testing.TB) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for name, script := range map[string]string{
		"xen.log":  "xl dmesg; xl list; xenstore-ls -f /local/domain/1 2> /dev/null | head -n 50",
		"dom0.log": "dmesg | tail -n 200; ps; tail -n 200 /tmp/*.log", "guest.log": "timeout 10 guest 'dmesg | tail -n 200; ps'",
	} {
		res, err := h.Run(ctx, script)
		if err != nil {
			res.Output += "\n" + err.Error()
		}
		if err := os.WriteFile(filepath.Join(h.dir, name), []byte(res.Output), 0o644); err != nil {
			t.Log("lab:", err)
		}
	}
	for _, tag := range []string{"dom0", "guest"} {
		os.RemoveAll(filepath.Join(h.dir, tag))
	}
	t.Logf("lab: logs of dom0, Xen and the guest are in %s\nlab: again: go test ./... -run '^%s$' -count=1\nlab: such a host for yourself: hprobe lab copy %s",
		h.dir, strings.ReplaceAll(t.Name(), "/", "$/^"), strings.Join(h.Config.Flags(), " "))
}

// MustRun runs a script in dom0 that must end with 0, and returns its output.
func (h *Host) MustRun(t testing.TB, script string) string {
	t.Helper()
	return mustRun(t, "dom0", h.Run, script)
}

// MustRun runs a script in the guest that must end with 0, and returns its output.
func (g *Guest) MustRun(t testing.TB, script string) string {
	t.Helper()
	return mustRun(t, "the guest", g.Run, script)
}

func mustRun(t testing.TB, where string, run func(context.Context, string) (Result, error), script string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), CommandLimit)
	defer cancel()
	res, err := run(ctx, script)
	if err != nil {
		t.Fatalf("in %s: %s: %v", where, script, err)
	}
	if res.Exit != 0 {
		t.Fatalf("in %s: %s: exit status %d\n%s", where, script, res.Exit, res.Output)
	}
	return res.Output
}
