// Package daemoncli is hprobed's command line.
package daemoncli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/daemon"
	"github.com/hprobe/hprobe/cmd/internal/version"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

type options struct {
	socket, findings string
	driver           string
	poll             int64
	verbose          bool
	profiles         profileOptions
}

// Main runs hprobed and returns its exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	var o options
	cmd := &cobra.Command{
		Use:   "hprobed",
		Short: "Watch running Xen guests from dom0, on demand",
		Long: `hprobed watches running Xen guests from dom0. It does nothing to any guest until
hprobe asks it to: see "hprobe --help". On SIGTERM, SIGINT or SIGHUP it takes
every probe out, detaches, and leaves the guests as they were. SIGKILL leaves it no
time for that: a guest that it watched then stops at its next hit.

It runs in the foreground and logs to standard error. Exit status: 0 ended by a
signal, 1 failed, 2 wrong usage.`,
		Args: noArgs, SilenceUsage: true, SilenceErrors: true, Version: version.String(),
		RunE: func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), o, stdout, stderr) },
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w (hprobed --help)", errUsage, err) })
	f := cmd.Flags()
	f.StringVar(&o.socket, "socket", control.DefaultSocket, "where to listen for hprobe")
	o.profiles.flags(cmd)
	f.StringVar(&o.findings, "findings", "", `file to append findings to, as JSON lines ("-": standard output)`)
	f.StringVar(&o.driver, "driver", drivers.Auto, "how to speak to Xen: libvmi, native, or auto (libvmi where hprobed was built with it and it is installed)")
	f.Int64Var(&o.poll, "poll", 0, "for how many CPU cycles to poll for the next event before sleeping: lower latency, a dom0 CPU busy\n(0: 100,000, which is some 30 µs, where there are several; negative: off)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log more")
	cmd.AddCommand(findProfileCommand(stdout))
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	// A second signal must not cut the clean-up short: it stays caught.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "hprobed:", err)
		if errors.Is(err, errUsage) || errors.Is(err, drivers.ErrName) {
			return 2
		}
		return 1
	}
	return 0
}

// errUsage marks errors of the command line itself.
var errUsage = errors.New("wrong usage")

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: hprobed takes no arguments, and got %q (hprobed --help)", errUsage, args)
	}
	return nil
}

func run(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	level := slog.LevelInfo
	if o.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	listener, err := control.Listen(o.socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	host, why, err := drivers.Open(ctx, o.driver, drivers.Options{Poll: o.poll})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	d := daemon.New(daemon.Options{Host: host, FindProfile: o.profiles.find, Log: log})
	if o.findings != "" {
		out := stdout
		if o.findings != "-" {
			file, err := os.OpenFile(o.findings, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
			if err != nil {
				return fmt.Errorf("findings: %w", err)
			}
			defer func() { err = errors.Join(err, file.Close()) }()
			out = file
		}
		sub := d.Findings.Subscribe()
		var wg sync.WaitGroup
		wg.Go(func() { sinks.WriteJSON(sub, out, log) })
		defer wg.Wait()   // before the file is closed
		defer sub.Close() // before the wait
	}
	log.Info("ready", "version", version.String(), "xen", host.Version(), "driver", host.Name(), "because", why, "socket", o.socket, "profiles", strings.Join(o.profiles.folders, ", "))
	return d.Serve(ctx, listener)
}
