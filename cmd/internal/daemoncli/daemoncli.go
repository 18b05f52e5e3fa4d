// Package daemoncli is hprobed's command line.
package daemoncli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/cmd/internal/config"
	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/version"
	"github.com/hprobe/hprobe/detectors/policy"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// options are the flags. What one says counts before what the configuration says.
type options struct {
	config, socket, findings, driver string
	check, verbose                   bool
	poll                             int64
	profiles                         profileOptions
}

// Main runs hprobed and returns its exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	var o options
	cmd := &cobra.Command{
		Use:   "hprobed",
		Short: "Watch running Xen guests from dom0, on demand",
		Long: `hprobed watches running Xen guests from dom0. It does nothing to any guest until
hprobe or a policy asks it to: see "hprobe --help". On SIGTERM and SIGINT it takes
every probe out, detaches, and leaves the guests as they were. SIGKILL leaves it no
time for that: a guest that it watched then stops at its next hit. On SIGHUP it reads
its configuration and the policies in it anew; what did not change stays armed.

It runs in the foreground and logs to standard error. Its configuration is
` + config.DefaultFile + `, if there is one; all of it has defaults, and flags count
before it. Exit status: 0 ended by a signal, 1 failed, 2 wrong usage or configuration.`,
		Args: noArgs, SilenceUsage: true, SilenceErrors: true, Version: version.String(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.load(cmd)
			if err != nil {
				return err
			}
			if o.check {
				return told(stdout, c)
			}
			return (&program{o: &o, cmd: cmd, stdout: stdout, stderr: stderr}).run(cmd.Context(), c)
		},
	}
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return fmt.Errorf("%w: %w (hprobed --help)", errUsage, err) })
	f := cmd.Flags()
	f.StringVar(&o.config, "config", config.DefaultFile, "the configuration, a YAML file; none is needed at the default place")
	f.BoolVar(&o.check, "check", false, "check the configuration and the policies that it names, say what is wrong, and end")
	f.StringVar(&o.socket, "socket", control.DefaultSocket, "where to listen for hprobe")
	o.profiles.flags(cmd)
	f.StringVar(&o.findings, "findings", "", `file to append findings to, as JSON lines ("-": standard output); beside the configuration's`)
	f.StringVar(&o.driver, "driver", drivers.Auto, "how to speak to Xen: libvmi, native, or auto (libvmi where hprobed was built with it and it is installed)")
	f.Int64Var(&o.poll, "poll", 0, "for how many CPU cycles to poll for the next event before sleeping: lower latency, a dom0 CPU busy\n(0: 100,000, which is some 30 µs, where there are several; negative: off)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "log more")
	cmd.AddCommand(findProfileCommand(stdout))
	cmd.CompletionOptions.DisableDefaultCmd = true
	cmd.SetArgs(args)
	cmd.SetOut(stdout)
	cmd.SetErr(stderr)
	// A second signal must not cut the clean-up short: it stays caught.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGPIPE)
	if err := cmd.ExecuteContext(ctx); err != nil {
		fmt.Fprintln(stderr, "hprobed:", err)
		if wrong(err) {
			return 2
		}
		return 1
	}
	return 0
}

// wrong says whether an error is of what the operator wrote.
func wrong(err error) bool {
	return errors.Is(err, errUsage) || errors.Is(err, drivers.ErrName) || errors.As(err, new(*config.Error)) || errors.As(err, new(policy.Errors))
}

// errUsage marks errors of the command line itself.
var errUsage = errors.New("wrong usage")

func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%w: hprobed takes no arguments, and got %q (hprobed --help)", errUsage, args)
	}
	return nil
}
