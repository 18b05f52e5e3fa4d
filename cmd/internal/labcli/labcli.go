// Package labcli is `hprobe lab`: the lab for people.
package labcli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/test/lab"
)

// ExitError carries the exit status of a command that ran in the lab.
type ExitError struct{ Status int }

func (e *ExitError) Error() string {
	return fmt.Sprintf("the command ended with exit status %d", e.Status)
}

// TextOnly is the annotation of commands that can't print JSON.
const TextOnly = "text only"

var textOnly = map[string]string{TextOnly: ""}

// JSON prints a value as a line of JSON if the user wants that, and says so.
type JSON func(v any) (printed bool, err error)

// Command makes `hprobe lab`.
func Command(json JSON) *cobra.Command {
	c := &cobra.Command{
		Use: "lab", Short: "Boot a real Xen host in software, to try hprobe on",
		Long: `lab boots a real Xen, a Linux dom0 and a Linux guest in an emulator on this
machine, from Debian's packages, and hands out copies of it in milliseconds. It
needs no Xen and no root here, but some Debian packages, which it names. A first
boot fetches and builds for some minutes, into ` + "$HPROBE_LAB_CACHE" + ` or
~/.cache/hprobe/lab; later ones take about a minute, and need no network.
A lab server in the background keeps what is booted; it ends after 15 minutes
without use. With -o json, status, exec and guest print an object a line; copy and
console are always text.`,
	}
	c.AddCommand(up(), down(), status(json), copyShell(), execIn("exec", "dom0", json, (*lab.Host).Run), execIn("guest", "the guest", json, func(h *lab.Host, ctx context.Context, script string) (lab.Result, error) {
		return h.Guest.Run(ctx, script)
	}), logs("console", "dom0's and the guest's console, and Xen's log, of a host's boot"), serve())
	return c
}

// flags adds the flags that say which host, to a command that has its Args.
func flags(c *cobra.Command) *lab.Config {
	var cfg lab.Config
	f := c.Flags()
	f.StringVar(&cfg.Xen, "xen", "4.20", "the host's Xen: 4.20, 4.17 or 4.14")
	f.StringVar(&cfg.Guest, "guest-linux", "6.12", "the guest's Linux: 6.12, 6.1, 5.10 or 7.2")
	f.IntVar(&cfg.CPUs, "cpus", 1, "processors of the host, 1 to 4")
	f.IntVar(&cfg.VCPUs, "vcpus", 1, "vCPUs of the guest, 1 to 8")
	f.IntVar(&cfg.MemoryMB, "memory", 256, "memory of the guest, in MB, 128 to 512")
	f.BoolVar(&cfg.Direct, "direct", false, "boot the guest's kernel directly: quicker, but without KASLR")
	f.BoolVar(&cfg.KPTI, "kpti", false, "boot the guest with page-table isolation")
	f.BoolVar(&cfg.Pinned, "pinned", false, "dom0 on the first processor, the guest on the others (2 or more)")
	check := c.Args
	c.Args = func(cmd *cobra.Command, args []string) error {
		if err := cfg.Validate(); err != nil {
			return err
		}
		return check(cmd, args)
	}
	return &cfg
}

func progress(w io.Writer) func(string) {
	start := time.Now()
	return func(text string) { fmt.Fprintf(w, "lab %5.1fs  %s\n", time.Since(start).Seconds(), text) }
}

func up() *cobra.Command {
	c := &cobra.Command{Use: "up", Short: "Boot a host, and keep it for copies", Args: cobra.NoArgs}
	cfg := flags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		return lab.Up(cmd.Context(), *cfg, progress(cmd.ErrOrStderr()))
	}
	return c
}

func down() *cobra.Command {
	var purge bool
	c := &cobra.Command{Use: "down", Short: "End all hosts and the lab server", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		err := lab.Down(cmd.Context())
		if errors.Is(err, lab.ErrNoServer) {
			fmt.Fprintln(cmd.ErrOrStderr(), "no lab server runs")
			err = nil
		}
		if err != nil || !purge {
			return err
		}
		dir, err := lab.CacheDir()
		if err != nil {
			return err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "removing", dir)
		return os.RemoveAll(dir)
	}}
	c.Flags().BoolVar(&purge, "purge", false, "remove all that the lab fetched and built as well")
	return c
}

// statusLine is what is booted, for programs. PID is 0 where no server runs.
type statusLine struct {
	PID    int        `json:"pid"`
	Logs   string     `json:"logs"`
	Copies int        `json:"copies"`
	Slots  int        `json:"slots"`
	Hosts  []hostLine `json:"hosts"`
}

type hostLine struct {
	Host        string  `json:"host"`
	Booting     bool    `json:"booting"`
	BootSeconds float64 `json:"boot_seconds"`
	Copies      int     `json:"copies"`
	Logs        string  `json:"logs"`
}

func statusLineOf(st *lab.Status) statusLine {
	l := statusLine{PID: st.PID, Logs: st.Dir, Copies: st.Running, Slots: st.Slots, Hosts: []hostLine{}}
	for _, h := range st.Hosts {
		l.Hosts = append(l.Hosts, hostLine{h.Config.String(), h.Booting, h.Boot, h.Copies, h.Dir})
	}
	return l
}

func status(json JSON) *cobra.Command {
	return &cobra.Command{Use: "status", Short: "Show what is booted", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		st, err := lab.ServerStatus(cmd.Context())
		none := errors.Is(err, lab.ErrNoServer)
		switch {
		case none:
			st = &lab.Status{}
		case err != nil:
			return err
		}
		if printed, err := json(statusLineOf(st)); printed || err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if none {
			fmt.Fprintln(out, "nothing is booted: hprobe lab up boots a host")
			return nil
		}
		fmt.Fprintf(out, "lab server, process %d: copies that run: %d of %d; logs in %s\n", st.PID, st.Running, st.Slots, st.Dir)
		for _, h := range st.Hosts {
			if h.Booting {
				fmt.Fprintf(out, "  %s  boots\n", h.Config)
				continue
			}
			fmt.Fprintf(out, "  %s  up, booted in %.0f s, copies so far: %d\n", h.Config, h.Boot, h.Copies)
		}
		return nil
	}}
}

// open makes a copy with the files that the command line names.
func open(cmd *cobra.Command, cfg lab.Config, files []lab.File, guest []string) (*lab.Host, error) {
	for _, f := range guest {
		files = append(files, lab.File{Name: filepath.Base(f), Source: f, Guest: true})
	}
	return lab.Open(cmd.Context(), cfg, lab.Options{Progress: progress(cmd.ErrOrStderr())}, files...)
}

// Copies makes copies of a host, for other commands than those here.
type Copies struct {
	Config *lab.Config
	guest  *[]string
}

// CopyFlags adds the flags that say which host, and what is to be in its guest, to a
// command that has its Args.
func CopyFlags(c *cobra.Command) *Copies {
	return &Copies{Config: flags(c), guest: c.Flags().StringSlice("put-guest", nil, "`FILE` to put into /payload of the guest; again for more")}
}

// Open makes a copy with files in dom0. The caller closes it.
func (c *Copies) Open(cmd *cobra.Command, files ...lab.File) (*lab.Host, error) {
	return open(cmd, *c.Config, files, *c.guest)
}

// named are files by their paths, for dom0.
func named(paths []string) (files []lab.File) {
	for _, f := range paths {
		files = append(files, lab.File{Name: filepath.Base(f), Source: f})
	}
	return files
}

func fileFlags(c *cobra.Command) (host, guest *[]string) {
	return c.Flags().StringSlice("put", nil, "`FILE` to put into /payload of dom0; again for more"), c.Flags().StringSlice("put-guest", nil, "`FILE` to put into /payload of the guest; again for more")
}

// resultLine is how a command ended, for programs. Ticks are the lab's clock's.
type resultLine struct {
	Output string `json:"output"`
	Exit   int    `json:"exit"`
	Ticks  uint64 `json:"ticks"`
}

// report prints how a command ended; its exit status becomes hprobe's.
func report(out io.Writer, json JSON, res lab.Result) error {
	printed, err := json(resultLine{res.Output, res.Exit, res.TSC})
	if err == nil && !printed {
		_, err = fmt.Fprint(out, res.Output)
	}
	if err == nil && res.Exit != 0 {
		err = &ExitError{res.Exit}
	}
	return err
}

func execIn(use, where string, json JSON, run func(*lab.Host, context.Context, string) (lab.Result, error)) *cobra.Command {
	c := &cobra.Command{
		Use: use + " COMMAND...", Short: "Run a shell command in " + where + " of a new copy", Args: cobra.MinimumNArgs(1),
		Long: use + " makes a copy of the host, runs a shell command in " + where + " as root, prints its\noutput, ends the copy, and ends with the command's exit status. Quote the command, or\nput -- before it, where it has flags. /payload, with the files of --put and\n--put-guest, is in its PATH.",
	}
	cfg := flags(c)
	host, guest := fileFlags(c)
	c.RunE = func(cmd *cobra.Command, args []string) error {
		h, err := open(cmd, *cfg, named(*host), *guest)
		if err != nil {
			return err
		}
		defer h.Close()
		res, err := run(h, cmd.Context(), strings.Join(args, " "))
		if err != nil {
			return err
		}
		return report(cmd.OutOrStdout(), json, res)
	}
	return c
}

func copyShell() *cobra.Command {
	c := &cobra.Command{
		Use: "copy", Short: "Make a copy of a host for yourself, with a prompt", Args: cobra.NoArgs, Annotations: textOnly,
		Long: "copy makes a copy of the host and reads commands from standard input, a line each:\nthey run in dom0, or in the guest if they begin with \"guest \". Each runs in a shell of\nits own, without a terminal. The copy ends with the input (Ctrl-D).",
	}
	cfg := flags(c)
	host, guest := fileFlags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		h, err := open(cmd, *cfg, named(*host), *guest)
		if err != nil {
			return err
		}
		defer h.Close()
		out := cmd.OutOrStdout()
		in := bufio.NewScanner(cmd.InOrStdin())
		for fmt.Fprint(out, "dom0# "); in.Scan(); fmt.Fprint(out, "dom0# ") {
			run, line := h.Run, in.Text()
			if script, ok := strings.CutPrefix(line, "guest "); ok {
				run, line = h.Guest.Run, script
			}
			if strings.TrimSpace(line) == "" {
				continue
			}
			res, err := run(cmd.Context(), line)
			if err != nil {
				return err
			}
			fmt.Fprint(out, res.Output)
			if res.Exit != 0 {
				fmt.Fprintf(out, "(exit status %d)\n", res.Exit)
			}
		}
		fmt.Fprintln(out)
		return in.Err()
	}
	return c
}

func logs(use, short string) *cobra.Command {
	c := &cobra.Command{Use: use, Short: "Print " + short, Args: cobra.NoArgs, Annotations: textOnly}
	cfg := flags(c)
	c.RunE = func(cmd *cobra.Command, _ []string) error {
		st, err := lab.ServerStatus(cmd.Context())
		if err != nil {
			return err
		}
		for _, h := range st.Hosts {
			if h.Config.String() != cfg.String() || h.Dir == "" {
				continue
			}
			b, err := os.ReadFile(filepath.Join(h.Dir, "serial.out"))
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(b)
			return err
		}
		return fmt.Errorf("%s is not booted (hprobe lab up %s)", cfg, strings.Join(cfg.Flags(), " "))
	}
	return c
}

func serve() *cobra.Command {
	return &cobra.Command{Use: "serve", Short: "Be the lab server", Hidden: true, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		return lab.Serve(cmd.Context())
	}}
}
