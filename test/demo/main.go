// Command demo is `make demo`: it boots a Xen host in software, lets hprobe
// report and then stop attacks on a running guest, and shows that the guest is
// what it was. It fails if any of that does not come out as the story says.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/hprobe/hprobe/test/guests"
	"github.com/hprobe/hprobe/test/lab"
)

const module = "github.com/hprobe/hprobe/"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	start := time.Now()
	if err := demo(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: %v\n", err)
		os.Exit(1)
	}
	fmt.Printf("\nAll of it came out as told, in %.0f s. What next: README.md; `go run ./cmd/hprobe lab copy` is such a host for you.\n", time.Since(start).Seconds())
}

func demo(ctx context.Context) error {
	heading("hprobe watches a running Xen guest from outside", `
This machine needs no Xen: an emulator runs a real Xen hypervisor, a Linux dom0
and a Linux guest. In dom0 runs hprobed. The guest runs an unchanged Debian kernel
with KASLR, and knows nothing of hprobe. Preparing it (a first run fetches Debian's
packages and builds the emulator: some minutes; later ones take about a minute):`)
	s, err := stage(ctx)
	if err != nil {
		return err
	}
	defer s.host.Close()
	for _, act := range []func(*show) error{(*show).look, (*show).unprotected, (*show).readOnly, (*show).fix, (*show).gone} {
		if err := errors.Join(ctx.Err(), act(s)); err != nil {
			return err
		}
	}
	return nil
}

// stage builds everything and makes a copy of a booted host with it.
func stage(ctx context.Context) (*show, error) {
	start := time.Now()
	say := func(text string) { fmt.Printf("  %5.1f s  %s\n", time.Since(start).Seconds(), text) }
	cfg := lab.Config{}
	dir, err := os.MkdirTemp("", "hprobe-demo-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if err := lab.CheckTools(); err != nil {
		return nil, err
	}
	booted := make(chan error, 1)
	go func() { booted <- lab.Up(ctx, cfg, say) }() // ends with ctx; waited for below
	files, err := files(ctx, dir, say)
	if err := errors.Join(err, <-booted); err != nil {
		return nil, err
	}
	host, err := lab.Open(ctx, cfg, lab.Options{Progress: say}, files...)
	if err != nil {
		return nil, err
	}
	say("a copy of the running host is ready, with hprobe and the attacks in it")
	return &show{ctx: ctx, host: host}, nil
}

func files(ctx context.Context, dir string, say func(string)) ([]lab.File, error) {
	say("building hprobe and hprobed")
	var all []lab.File
	for _, name := range []string{"cmd/hprobe", "cmd/hprobed", "test/xen/texthash"} {
		path, err := lab.BuildGo(ctx, module+name)
		if err != nil {
			return nil, err
		}
		all = append(all, lab.File{Name: filepath.Base(name), Source: path})
	}
	for _, name := range []string{"vmsplice", "vuln", "texthash"} {
		f, err := guests.Program(ctx, name)
		if err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	ko, err := guests.Module(ctx, "6.12", say)
	if err != nil {
		return nil, err
	}
	kernel, release, err := lab.GuestKernel(ctx, "6.12")
	if err != nil {
		return nil, err
	}
	say("making the profile (symbols and types) of the guest's kernel " + release + " from its vmlinuz")
	profile, err := guests.Profile(ctx, all[0].Source, kernel, dir)
	return append(all, ko, profile), err
}
