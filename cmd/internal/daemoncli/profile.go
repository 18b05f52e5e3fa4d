package daemoncli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/hprobe/hprobe/profiles/store"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// To find a profile, and all the more to make one, takes memory that hprobed does not want
// to have, and parses what others wrote: a process of its own does it, hprobed once more
// with a command that is for itself only, within bounds.
const (
	findCommand = "find-profile"
	// findLimit is for a folder of hundreds of files that are looked at for the first time.
	// What was found until then stays found.
	findLimit = 5 * time.Minute
	// endLimit is how long it has to let a guest go on that it has paused.
	endLimit = 10 * time.Second
	// findMemory is how much memory it may have, in bytes, and findGoal what it makes do
	// with if it can. A capture takes a quarter of a GiB.
	findMemory = 2 << 30
	findGoal   = 512 << 20
	// maxAnswer bounds what it may say, in bytes.
	maxAnswer = 1 << 20
)

// profileOptions say how the profile of a guest's kernel is found.
type profileOptions struct {
	folders []string
	capture bool
}

func (o *profileOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&o.folders, "profiles", []string{store.DefaultFolder}, "`FOLDER` with profiles of guests' kernels, or with ISF files as Volatility has them; again for more. New profiles go to the first")
	f.BoolVar(&o.capture, "capture", true, "make the profile of a guest's kernel from its memory where there is none")
}

func (o *profileOptions) store() *store.Store { return store.Open(o.folders[0], o.folders[1:]...) }

// answer is what that process says.
type answer struct {
	Found       *store.Found `json:"found,omitempty"`
	Error       string       `json:"error,omitempty"`
	Unsupported bool         `json:"unsupported,omitempty"` // the error is that the guest can't be watched
}

// maxFinders is how many processes look for profiles at a time: each may take the memory
// of a capture.
const maxFinders = 2

// finder finds profiles for several guests.
type finder struct {
	profileOptions
	running chan struct{}

	mu   sync.Mutex
	came map[string]uint64 // by what came of it
	took time.Duration
}

func newFinder(o profileOptions) *finder {
	return &finder{profileOptions: o, running: make(chan struct{}, maxFinders), came: map[string]uint64{}}
}

// counts are how many searches there were, by what came of them, and what they took in all.
func (f *finder) counts() (map[string]uint64, time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.came), f.took
}

func (f *finder) note(found *store.Found, err error, took time.Duration) {
	what := "found"
	switch {
	case err != nil:
		what = "failed"
	case found.Captured:
		what = "captured"
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.came[what]++
	f.took += took
}

// find waits for its turn.
func (f *finder) find(ctx context.Context, info *xenevents.DomainInfo) (*store.Found, error) {
	select {
	case f.running <- struct{}{}:
		defer func() { <-f.running }()
		began := time.Now()
		found, err := f.profileOptions.find(ctx, info)
		f.note(found, err, time.Since(began))
		return found, err
	case <-ctx.Done():
		return nil, fmt.Errorf("profile: %w", context.Cause(ctx))
	}
}

// find has another process find the profile of the kernel that a domain runs.
func (o *profileOptions) find(ctx context.Context, info *xenevents.DomainInfo) (*store.Found, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, findLimit, fmt.Errorf("no profile was found within %v: try again, it goes on where it was", findLimit))
	defer cancel()
	args := []string{findCommand, fmt.Sprintf("--capture=%t", o.capture), info.UUIDString()}
	for _, f := range o.folders {
		args = append(args, "--profiles", f)
	}
	var out, said head
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Stdout, cmd.Stderr = &out, &said
	// If it was killed while the guest is paused, nobody would let the guest go on.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = endLimit
	runErr := cmd.Run()
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	var a answer
	if err := json.Unmarshal(out.Bytes(), &a); err != nil {
		line, _, _ := strings.Cut(strings.TrimSpace(said.String()), "\n")
		return nil, fmt.Errorf("profile: the process that looks for it failed (%w): %q", errors.Join(runErr, err), line)
	}
	switch {
	case a.Unsupported:
		return nil, unsupportedError(a.Error)
	case a.Error != "":
		return nil, errors.New(a.Error)
	case a.Found == nil:
		return nil, errors.New("profile: the process that looks for it gave no answer")
	}
	return a.Found, nil
}

// unsupportedError is another process's: it matches errors.ErrUnsupported.
type unsupportedError string

func (e unsupportedError) Error() string        { return string(e) }
func (e unsupportedError) Is(target error) bool { return target == errors.ErrUnsupported }

// head keeps the first bytes that are written to it.
type head struct{ bytes.Buffer }

func (h *head) Write(b []byte) (int, error) {
	h.Buffer.Write(b[:min(len(b), maxAnswer-h.Len())])
	return len(b), nil
}

// findProfileCommand is the other process.
func findProfileCommand(stdout io.Writer) *cobra.Command {
	var o profileOptions
	cmd := &cobra.Command{Use: findCommand, Hidden: true, Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		debug.SetMemoryLimit(findGoal)
		limit := syscall.Rlimit{Cur: findMemory, Max: findMemory}
		if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &limit); err != nil {
			return os.NewSyscallError("setrlimit", err)
		}
		var a answer
		var err error
		if a.Found, err = o.findHere(cmd.Context(), args[0]); err != nil {
			a.Error, a.Unsupported = err.Error(), errors.Is(err, errors.ErrUnsupported)
		}
		return json.NewEncoder(stdout).Encode(a)
	}}
	o.flags(cmd)
	return cmd
}

// findHere finds the profile of the kernel that a domain runs, or makes it. It only reads
// the guest, for which the driver that needs nothing installed will do.
func (o *profileOptions) findHere(ctx context.Context, domain string) (found *store.Found, err error) {
	host, _, err := drivers.Open(ctx, drivers.Native, drivers.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	info, err := xenevents.FindDomain(ctx, host, domain)
	if err != nil {
		return nil, err
	}
	dom, err := host.Open(ctx, info.ID)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, dom.Close()) }()
	s := o.store()
	found, err = s.Find(ctx, dom, &info)
	var none *store.NoProfileError
	if !errors.As(err, &none) {
		return found, err
	}
	const make = "make one (hprobe profile build VMLINUZ, or hprobe profile capture DOMAIN)"
	if !o.capture {
		return nil, fmt.Errorf("%w: %s", err, make)
	}
	found, captureErr := s.Capture(ctx, dom, &info, none)
	if captureErr != nil {
		return nil, fmt.Errorf("%w, and it can't be captured: %w: %s", err, captureErr, make)
	}
	return found, nil
}
