// Package control carries the control API: hprobed's socket, and hprobe's end of it.
package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
)

// DefaultSocket is where hprobed listens.
const DefaultSocket = "/run/hprobe/hprobed.sock"

// Listener is hprobed's socket. Close removes it.
type Listener struct {
	net.Listener
	lock *os.File
}

// Listen makes the socket, for root only. One that a dead hprobed left is
// replaced; that of a living one is not touched.
func Listen(path string) (*Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("another hprobed serves %s already", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		lock.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	// The file's mode must be right from its first moment.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(old)
	if err != nil {
		lock.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return &Listener{Listener: l, lock: lock}, nil
}

// Close removes the socket.
func (l *Listener) Close() error { return errors.Join(l.Listener.Close(), l.lock.Close()) }

// ErrNoDaemon says that no hprobed answers.
var ErrNoDaemon = errors.New("no hprobed answers")

// Dial connects to hprobed. It fails with ErrNoDaemon if there is none. The
// caller closes the connection.
func Dial(ctx context.Context, path string) (controlapi.ControlClient, *grpc.ClientConn, error) {
	// gRPC dials when it is used, and tries for long; find out now.
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		hint := "start it: hprobed, as root in dom0"
		if errors.Is(err, os.ErrPermission) {
			hint = "run hprobe as root"
		}
		return nil, nil, fmt.Errorf("%w at %s (%s): %w", ErrNoDaemon, path, hint, err)
	}
	c.Close()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return nil, nil, fmt.Errorf("connect to hprobed: %w", err)
	}
	return controlapi.NewControlClient(conn), conn, nil
}
