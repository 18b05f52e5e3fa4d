// Package cli is hprobe's command line.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/labcli"
	"github.com/hprobe/hprobe/cmd/internal/version"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/image"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
	"github.com/hprobe/hprobe/xenevents/replay"
)

// The exit statuses.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3 // no such domain, symbol, probe
	exitUnsupported = 4 // this host, guest or CPU can't
	exitNoDaemon    = 5 // or no more
	exitPartial     = 6 // what was printed is not all
)

const exitHelp = `Exit status: 0 done, 1 failed, 2 wrong usage, 3 no such domain, symbol or probe,
4 this host or guest can't do that (see hprobe doctor), 5 no hprobed answers,
or it ended in the middle, 6 the answer is partial, and says so.
hprobe lab exec and hprobe lab guest end with the status of the command they ran.`

// app is what all commands share.
type app struct {
	socket string
	driver string
	json   bool
	out    io.Writer
}

// errUsage marks errors of the command line itself.
var errUsage = errors.New("wrong usage")

// errBlocked is doctor's verdict that something is missing; it was printed.
var errBlocked = fmt.Errorf("hprobe can't watch here as things are: %w", errors.ErrUnsupported)

// Main runs hprobe and returns its exit status.
func Main(args []string, stdout, stderr io.Writer) int {
	a := &app{out: stdout}
	root := a.root()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintln(stderr, "hprobe:", plainLines(message(err))) // of several errors
	return exitStatus(err)
}

// Command is hprobe's command line, for who describes it: its manual pages.
func Command() *cobra.Command { return (&app{out: os.Stdout}).root() }

func message(err error) string {
	if st, ok := status.FromError(err); ok {
		return st.Message()
	}
	return err.Error()
}

func exitStatus(err error) int {
	var lab *labcli.ExitError
	var partial *guestos.PartialError
	var missing *replay.MissingError
	switch {
	case errors.As(err, &lab):
		return lab.Status
	case errors.Is(err, errUsage), errors.Is(err, drivers.ErrName), status.Code(err) == codes.InvalidArgument:
		return exitUsage
	case errors.Is(err, control.ErrNoDaemon):
		return exitNoDaemon
	case errors.As(err, &partial), errors.As(err, &missing):
		return exitPartial
	case errors.Is(err, xenevents.ErrNoDomain), errors.Is(err, image.ErrNoSymbol), errors.Is(err, image.ErrNoLine), errors.Is(err, guestos.ErrAbsent), status.Code(err) == codes.NotFound:
		return exitNotFound
	case errors.Is(err, errors.ErrUnsupported), errors.Is(err, isf.ErrNotFound), status.Code(err) == codes.FailedPrecondition:
		return exitUnsupported
	}
	return exitFailed
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "hprobe",
		Short: "Probes in running Xen guests, from outside, on demand",
		Long: `hprobe puts probes into running Xen guests from dom0 and takes them out again.
Nothing is installed or changed in the guest. It can't read the probes from its
memory; it can measure that a probed function takes longer.

  hprobe doctor guest                        can this guest be watched?
  hprobe profile build vmlinuz-6.12          symbols of the guest's kernel
  hprobe probe add --domain guest --at do_exit
  hprobe trace                               every hit, live
  hprobe ps guest                            what runs in it; maps, files, modules, dmesg
  hprobe stopgap add vmsplice --domain guest --fix
  hprobe policy apply web.yaml               what files say, in guests now and later

` + exitHelp,
		SilenceUsage: true, SilenceErrors: true, Version: version.String(),
	}
	f := root.PersistentFlags()
	f.StringVar(&a.socket, "socket", control.DefaultSocket, "hprobed's socket")
	output := f.StringP("output", "o", "text", "text, for people, or json, for programs: an object a line")
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		if *output != "text" && *output != "json" {
			return fmt.Errorf("%w: -o is text or json, not %q", errUsage, *output)
		}
		a.json = *output == "json"
		if _, ok := cmd.Annotations[labcli.TextOnly]; ok && a.json {
			return fmt.Errorf("%w: %s prints text only: leave -o json out", errUsage, cmd.CommandPath())
		}
		return nil
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w: %w (%s --help)", errUsage, err, cmd.CommandPath())
	})
	root.AddCommand(a.domain(), a.doctor(), a.policy(), a.record(), a.probe(), a.trace(), a.stopgap(), a.findings(), a.status(), a.top(), a.audit(), a.profile(), a.version(),
		a.ps(), a.modules(), a.maps(), a.files(), a.dmesg(), labcli.Command(a.ifJSON))
	a.completeAll(root)
	explainUnknown(root)
	usageErrors(root)
	return root
}

// group is a command that only has others below it.
func group(use, short string, below ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short}
	c.AddCommand(below...)
	return c
}

// explainUnknown has every group, given a command that it does not have, fail
// with a usage error instead of one that is known by its text alone.
func explainUnknown(c *cobra.Command) {
	for _, sub := range c.Commands() {
		explainUnknown(sub)
	}
	if !c.HasSubCommands() || c.Runnable() {
		return
	}
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("%w: %s has no command %q (%s --help)", errUsage, cmd.CommandPath(), args[0], cmd.CommandPath())
		}
		return cmd.Help()
	}
}

// usageErrors makes what commands say about their arguments usage errors.
func usageErrors(c *cobra.Command) {
	for _, sub := range c.Commands() {
		usageErrors(sub)
	}
	check := c.Args
	if check == nil {
		return
	}
	c.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil || errors.Is(err, errUsage) {
			return err
		}
		return fmt.Errorf("%w: %w (%s --help)", errUsage, err, cmd.CommandPath())
	}
}

// exactly is cobra.ExactArgs with an error that says what is wanted.
func exactly(what ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == len(what) {
			return nil
		}
		wanted := "no arguments"
		if len(what) > 0 {
			wanted = strings.Join(what, " ")
		}
		return fmt.Errorf("%w: %s takes %s, and got %q (%s --help)", errUsage, cmd.CommandPath(), wanted, args, cmd.CommandPath())
	}
}

// withDaemon runs f with a connection to hprobed.
func (a *app) withDaemon(ctx context.Context, f func(*control.Client) error) error {
	client, conn, err := control.Dial(ctx, a.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	err = f(client)
	if st := status.Convert(err); st.Code() == codes.Unavailable {
		return fmt.Errorf("%w at %s any more (%s): it was ended, or died, and its log says which; start it again, and add the probes and stopgaps anew", control.ErrNoDaemon, a.socket, st.Message())
	}
	return err
}
