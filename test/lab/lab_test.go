package lab_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/test/lab"
)

// TestCopy: what a test has of its copy: files on both sides, commands with
// their output, status and ticks, and a host of its own.
func TestCopy(t *testing.T) {
	t.Parallel()
	files := []lab.File{
		{Name: "dir/hello", Data: []byte("#!/bin/sh\necho hello from $1; exit 3\n")},
		{Name: "hello", Data: []byte("#!/bin/sh\necho guest $1\n"), Guest: true},
	}
	one := lab.Copy(t, lab.Config{}, files...)
	ctx, cancel := context.WithTimeout(context.Background(), lab.CommandLimit)
	defer cancel()
	res, err := one.Run(ctx, "/payload/dir/hello dom0")
	if err != nil || res.Output != "hello from dom0\n" || res.Exit != 3 {
		t.Errorf("dom0 says %q, status %d, %v", res.Output, res.Exit, err)
	}
	if res.TSC == 0 || res.End-res.Start != res.TSC {
		t.Errorf("it took %d ticks, from %d to %d", res.TSC, res.Start, res.End)
	}
	if out := one.Guest.MustRun(t, "hello 1 && uname -r"); !strings.HasPrefix(out, "guest 1\n6.12.") {
		t.Errorf("the guest says %q", out)
	}
	if out := one.MustRun(t, "guest 'echo by dom0; exit 0'"); out != "by dom0\n" {
		t.Errorf("dom0's own way into the guest says %q", out)
	}
	if out := one.MustRun(t, "xl info | grep xen_version"); !strings.Contains(out, "4.20") {
		t.Errorf("Xen is %q", out)
	}
	// A hundred kilobytes come through whole.
	if out := one.MustRun(t, "seq 1 20000"); len(out) != 108894 || !strings.HasSuffix(out, "\n19999\n20000\n") {
		t.Errorf("20,000 numbers came as %d bytes", len(out))
	}
	one.Guest.MustRun(t, "echo mine > /tmp/mine")
	// Before the next one: who holds one copy and waits for another may wait for ever.
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	two := lab.Copy(t, lab.Config{}, files...)
	if res, err := two.Guest.Run(ctx, "cat /tmp/mine"); err != nil || res.Exit == 0 {
		t.Errorf("another copy has this one's file: %q, %v", res.Output, err)
	}
}

// TestCopyEnds: nothing of a copy stays when its owner closes it, or when a
// command's context ends.
func TestCopyEnds(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h, err := lab.Open(context.Background(), lab.Config{}, lab.Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	serial := h.SerialLog()
	if !inUse(t, serial) {
		t.Error("no emulator writes the serial log of a copy that lives")
	}
	short, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	if _, err := h.Run(short, "sleep 1000000000"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command past its time: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Error(err)
	}
	for range 200 { // generous: a copy looks at its connection now and then
		if !inUse(t, serial) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Error("the copy's emulator lives on")
}

func inUse(t testing.TB, file string) bool {
	t.Helper()
	open, err := lab.InUse(file)
	if err != nil {
		t.Fatal(err)
	}
	return open
}

// TestKASLR: a guest that GRUB boots has its kernel elsewhere than it was linked
// to, one that Xen boots directly has not.
func TestKASLR(t *testing.T) {
	t.Parallel()
	const linked = "ffffffff81000000"
	for _, direct := range []bool{false, true} {
		t.Run(fmt.Sprintf("direct=%v", direct), func(t *testing.T) {
			h := lab.Copy(t, lab.Config{Direct: direct})
			text, _, _ := strings.Cut(h.Guest.MustRun(t, "grep -m 1 ' _text$' /proc/kallsyms"), " ")
			if (text == linked) != direct {
				t.Errorf("the kernel is at %s", text)
			}
		})
	}
}

// BenchmarkCopy: from the order to the end of the first command, with as many
// megabytes of files: 30 are hprobed, hprobe and a profile. The copy before it has ended.
func BenchmarkCopy(b *testing.B) {
	if err := lab.Up(context.Background(), lab.Config{}, nil); err != nil {
		b.Fatal(err)
	}
	for _, megabytes := range []int{0, 1, 30} {
		b.Run(fmt.Sprintf("%dMB", megabytes), func(b *testing.B) {
			source := filepath.Join(b.TempDir(), "file")
			if err := os.WriteFile(source, make([]byte, megabytes<<20), 0o644); err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				h, err := lab.Open(context.Background(), lab.Config{}, lab.Options{}, lab.File{Name: "file", Source: source})
				if err != nil {
					b.Fatal(err)
				}
				if _, err := h.Run(context.Background(), "true"); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				if err := h.Close(); err != nil {
					b.Fatal(err)
				}
				for inUse(b, h.SerialLog()) {
					time.Sleep(time.Millisecond)
				}
				b.StartTimer()
			}
		})
	}
}

func TestValidate(t *testing.T) {
	for _, c := range []struct {
		cfg  lab.Config
		want string // "" for a good one
	}{
		{lab.Config{}, ""},
		{lab.Config{Xen: "4.14", Guest: "7.2", CPUs: 4, VCPUs: 8, MemoryMB: 512, KPTI: true, Pinned: true}, ""},
		{lab.Config{Xen: "3.0"}, "it has 4.14, 4.17, 4.20"},
		{lab.Config{Guest: "2.4"}, "it has 5.10, 6.1, 6.12, 7.2"},
		{lab.Config{CPUs: 5}, "1 to 4"},
		{lab.Config{VCPUs: 9}, "1 to 8"},
		{lab.Config{MemoryMB: 64}, "128 to 512"},
		{lab.Config{Pinned: true}, "needs 2 CPUs"},
	} {
		err := c.cfg.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, not %q", c.cfg, err, c.want)
		}
	}
}
