package lab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// File is a file of a copy: /payload/NAME in dom0, or in the guest. All of them
// may be run.
type File struct {
	Name   string
	Source string // a path on this machine, or
	Data   []byte // its content, or
	Link   string // where it points to: it is a symbolic link
	Guest  bool
}

// Options are what Open takes beside the host and the files.
type Options struct {
	// Progress is told how far a boot is.
	Progress func(string)
	// Delay has dom0 spin for so many rounds of an empty loop before the first
	// command: copies with different delays meet the guest at different moments.
	Delay int
	// Profile, if not "", is the file that the emulator's samples go to: see test/lab/profiler.
	Profile string
	// Dir is where logs go; a temporary folder otherwise, which Close removes.
	Dir string
	// Driver, if not "", is what dom0's programs have as HPROBE_DRIVER.
	Driver string
}

// Host is a copy of a host that belongs to the caller, who closes it. Commands
// run one at a time: a second call waits for the first.
type Host struct {
	Config  Config
	Guest   *Guest
	dir     string
	keep    bool
	profile string
	driver  string
	conn    net.Conn
	r       *bufio.Reader
	line    chan struct{} // a token: who may use the connection
	broken  error
	once    sync.Once
}

// Guest is the guest of a Host.
type Guest struct{ host *Host }

// Open makes a copy of a host. It boots the host, and starts the lab server, if
// need be: see Options.Progress.
func Open(ctx context.Context, cfg Config, o Options, files ...File) (_ *Host, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	h := &Host{Config: cfg.withDefaults(), dir: o.Dir, keep: o.Dir != "", driver: o.Driver, line: make(chan struct{}, 1)}
	h.Guest = &Guest{h}
	h.line <- struct{}{}
	if !h.keep {
		if h.dir, err = os.MkdirTemp("", "hprobe-lab-"); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	progress := o.Progress
	if progress == nil {
		progress = func(string) {}
	}
	if files, err = withLibVMI(ctx, h.Config.Xen, files, progress); err != nil {
		return nil, err
	}
	payloads, err := payloadImages(ctx, h.dir, files)
	if err != nil {
		return nil, err
	}
	if o.Profile != "" {
		payloads["PROFILE"], h.profile = o.Profile, o.Profile
	}
	if h.conn, h.r, err = dial(ctx, request{Do: "copy", Config: cfg, Payloads: payloads, Serial: h.SerialLog()}, o.Progress, nil); err != nil {
		return nil, err
	}
	return h, h.prepare(ctx, payloads, o.Delay)
}

// prepare mounts what was paid in.
func (h *Host) prepare(ctx context.Context, payloads map[string]string, delay int) error {
	for _, p := range []struct {
		tag  string
		kind byte
	}{{"dom0", 'M'}, {"guest", 'N'}} {
		if payloads[p.tag] == "" {
			continue
		}
		if err := h.must(ctx, p.kind, ""); err != nil {
			return fmt.Errorf("mount the files of %s: %w", p.tag, err)
		}
	}
	if delay > 0 {
		return h.must(ctx, 'R', fmt.Sprintf("n=0; while [ $n -lt %d ]; do n=$((n+1)); done", delay))
	}
	return nil
}

func (h *Host) must(ctx context.Context, kind byte, script string) error {
	res, err := h.run(ctx, kind, script)
	if err == nil && res.Exit != 0 {
		err = errors.New(res.Output)
	}
	return err
}

// SerialLog is the file with the host's serial output: dom0's console and Xen's.
func (h *Host) SerialLog() string { return filepath.Join(h.dir, "serial.log") }

// payloadImages makes the images that dom0 and the guest mount at /payload.
func payloadImages(ctx context.Context, dir string, files []File) (map[string]string, error) {
	images := map[string]string{}
	for tag, guest := range map[string]bool{"dom0": false, "guest": true} {
		tree := filepath.Join(dir, tag)
		n := 0
		for _, f := range files {
			if f.Guest != guest {
				continue
			}
			if err := place(tree, f); err != nil {
				return nil, err
			}
			n++
		}
		if n == 0 {
			continue
		}
		image := tree + ".squashfs"
		// Not compressed: unpacking would cost the copy more than it saves.
		if _, err := command(ctx, "", "mksquashfs", tree, image, "-noI", "-noId", "-noD", "-noF", "-noX", "-no-xattrs", "-all-root", "-quiet", "-no-progress"); err != nil {
			return nil, err
		}
		room := int64(hostPayloadMB)
		if guest {
			room = guestPayloadMB
		}
		info, err := os.Stat(image)
		if err != nil {
			return nil, err
		}
		if info.Size() > room<<20 {
			return nil, fmt.Errorf("the files for %s take %.1f MB, a copy has room for %d: %s", tag, float64(info.Size())/(1<<20), room, tree)
		}
		images[tag] = image
	}
	return images, nil
}

func place(tree string, f File) error {
	if !fs.ValidPath(f.Name) {
		return fmt.Errorf("no file of a copy may be called %q", f.Name)
	}
	to := filepath.Join(tree, f.Name)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if _, err := os.Lstat(to); err == nil { // what it is linked to would be overwritten
		return fmt.Errorf("two files of a copy are called %q", f.Name)
	}
	if f.Link != "" {
		return os.Symlink(f.Link, to)
	}
	if f.Source == "" {
		return os.WriteFile(to, f.Data, 0o755)
	}
	if err := os.Link(f.Source, to); err == nil {
		return os.Chmod(to, 0o755)
	}
	return copyFile(f.Source, to, 0o755)
}

// Run runs a shell script in dom0, as root, with its output in one piece.
// Background processes of it go on when it ended; their output must be
// redirected. When ctx ends first the copy is of no more use.
func (h *Host) Run(ctx context.Context, script string) (Result, error) {
	if h.driver != "" {
		script = "export HPROBE_DRIVER=" + h.driver + "\n" + script
	}
	return h.run(ctx, 'R', script)
}

// Run runs a shell script in the guest: see Host.Run.
func (g *Guest) Run(ctx context.Context, script string) (Result, error) {
	return g.host.run(ctx, 'G', script)
}

func (h *Host) run(ctx context.Context, kind byte, script string) (Result, error) {
	select {
	case <-h.line:
	case <-ctx.Done():
		return Result{}, ctx.Err()
	}
	defer func() { h.line <- struct{}{} }()
	if h.broken != nil {
		return Result{}, h.broken
	}
	stop := context.AfterFunc(ctx, func() { h.conn.Close() })
	defer stop()
	var out strings.Builder
	res, err := runScript(h.conn, h.r, kind, script, func(b []byte) { out.Write(b) })
	res.Output = out.String()
	if err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("%w (so far: %q)", ctx.Err(), lastLines(res.Output, 5))
		}
		h.broken = err
	}
	return res, err
}

// Close ends the copy. Twice is harmless.
func (h *Host) Close() error {
	var err error
	h.once.Do(func() {
		if h.conn != nil {
			err = h.conn.Close()
			if errors.Is(err, net.ErrClosed) {
				err = nil
			}
			if h.profile != "" {
				err = errors.Join(err, unused(h.profile))
			}
		}
		if !h.keep {
			err = errors.Join(err, os.RemoveAll(h.dir))
		}
	})
	return err
}

// unused waits until no process has the file open: a copy's emulator writes its
// last samples when it sees that its owner is gone, which it looks for now and then.
func unused(file string) error {
	for range 400 {
		if open, err := InUse(file); err != nil || !open {
			return err
		}
		time.Sleep(25 * time.Millisecond)
	}
	return fmt.Errorf("the emulator still writes %s", file)
}

// InUse says whether a process of this machine has the file open.
func InUse(file string) (bool, error) {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return false, err
	}
	for _, fd := range fds {
		if to, err := os.Readlink(fd); err == nil && to == file {
			return true, nil
		}
	}
	return false, nil
}

// Up boots a host, unless it is up.
func Up(ctx context.Context, cfg Config, progress func(string)) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	conn, _, err := dial(ctx, request{Do: "up", Config: cfg}, progress, nil)
	if err == nil {
		conn.Close()
	}
	return err
}

// ErrNoServer says that no lab server of this version runs.
var ErrNoServer = errors.New("no lab server runs")

// ServerStatus asks a running server, and fails with ErrNoServer if there is none.
func ServerStatus(ctx context.Context) (*Status, error) {
	var st *Status
	err := askRunning(ctx, request{Do: "status"}, &st)
	return st, err
}

// Down ends the server and all hosts. It is ErrNoServer if there is none.
func Down(ctx context.Context) error { return askRunning(ctx, request{Do: "down"}, new(*Status)) }

func askRunning(ctx context.Context, req request, st **Status) error {
	path, err := socketPath()
	if err != nil {
		return err
	}
	if conn, err := net.Dial("unix", path); err != nil {
		return ErrNoServer
	} else {
		conn.Close()
	}
	conn, _, err := dial(ctx, req, nil, st)
	if err == nil {
		conn.Close()
	}
	return err
}

// dial sends a request and takes answers until the one that is no progress.
func dial(ctx context.Context, req request, progress func(string), st **Status) (net.Conn, *bufio.Reader, error) {
	conn, err := connect(ctx)
	if err != nil {
		return nil, nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	fail := func(err error) (net.Conn, *bufio.Reader, error) {
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, nil, err
	}
	if err := send(conn, req); err != nil {
		return fail(fmt.Errorf("lab server: %w", err))
	}
	r := bufio.NewReader(conn)
	for {
		var a answer
		if err := receive(r, &a); err != nil {
			return fail(fmt.Errorf("the lab server went away: %w", err))
		}
		switch {
		case a.Error != "":
			return fail(errors.New(a.Error))
		case a.Progress == "":
			if st != nil {
				*st = a.Status
			}
			return conn, r, nil
		case progress != nil:
			progress(a.Progress)
		}
	}
}

// connect reaches the server of this version, and starts one if there is none.
func connect(ctx context.Context) (net.Conn, error) {
	path, err := socketPath()
	if err != nil {
		return nil, err
	}
	for try := 0; ; try++ {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		if try == 0 {
			if err := CheckTools(); err != nil {
				return nil, err
			}
			if err := startServer(ctx, filepath.Dir(path)); err != nil {
				return nil, err
			}
		}
		if try > 200 {
			return nil, fmt.Errorf("the lab server does not start: see %s: %w", filepath.Join(filepath.Dir(path), "server.log"), err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// serverPackage is the program that serves, for those who are not it themselves.
const serverPackage = "github.com/hprobe/hprobe/test/lab/labd"

// startServer starts a server in the background: this very program, if it is
// hprobe, or else one that is built now, with the Go that runs the tests.
func startServer(ctx context.Context, dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	args := []string{"lab", "serve"}
	if filepath.Base(self) != "hprobe" {
		if self, err = once(ctx, dir, "labd", func(tmp string) error {
			_, err := command(ctx, "", "go", "build", "-o", tmp, serverPackage)
			return err
		}); err != nil {
			return err
		}
		args = nil
	}
	log, err := os.OpenFile(filepath.Join(dir, "server.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(self, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a Ctrl-C here is not for it: others use it
	// What this process was given open stays with it: the lock of a `flock … go test`
	// would be held as long as the server lives.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("start the lab server: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the lab server: %w", err)
	}
	return cmd.Process.Release()
}
