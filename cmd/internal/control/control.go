// Package control carries the control API: hprobed's socket, and hprobe's end of it.
package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
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

// Listen makes the socket: for root, and for a group if one is named. One that a dead
// hprobed left is replaced; that of a living one is not touched.
func Listen(path, group string) (*Listener, error) {
	gid, err := groupID(group)
	if err != nil {
		return nil, err
	}
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
	listener := &Listener{Listener: l, lock: lock}
	if group == "" {
		return listener, nil
	}
	// The owner first: in between it is root's alone.
	if err := errors.Join(os.Chown(path, -1, gid), os.Chmod(path, 0o660)); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), listener.Close())
	}
	return listener, nil
}

func groupID(name string) (int, error) {
	if name == "" {
		return 0, nil
	}
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("control socket: group %q: %w: make it (groupadd --system %s), or name another in hprobed's configuration (control.group)", name, err, name)
	}
	return strconv.Atoi(g.Gid)
}

// Close removes the socket.
func (l *Listener) Close() error { return errors.Join(l.Listener.Close(), l.lock.Close()) }

// ErrNoDaemon says that no hprobed answers.
var ErrNoDaemon = errors.New("no hprobed answers")

// Client is hprobe's end of the control API: all its services.
type Client struct {
	controlapi.ProbeServiceClient
	controlapi.DetectorServiceClient
	controlapi.FindingServiceClient
	controlapi.PolicyServiceClient
	controlapi.DomainServiceClient
	controlapi.StatusServiceClient
}

// Dial connects to hprobed. It fails with ErrNoDaemon if there is none. The
// caller closes the connection.
func Dial(ctx context.Context, path string) (*Client, *grpc.ClientConn, error) {
	// gRPC dials when it is used, and tries for long; find out now.
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		hint := "start it: hprobed, as root in dom0"
		if errors.Is(err, os.ErrPermission) {
			hint = "run hprobe as root, or as a member of the group that hprobed's configuration names"
		}
		return nil, nil, fmt.Errorf("%w at %s (%s): %w", ErrNoDaemon, path, hint, err)
	}
	c.Close()
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return nil, nil, fmt.Errorf("connect to hprobed: %w", err)
	}
	return &Client{
		controlapi.NewProbeServiceClient(conn), controlapi.NewDetectorServiceClient(conn), controlapi.NewFindingServiceClient(conn),
		controlapi.NewPolicyServiceClient(conn), controlapi.NewDomainServiceClient(conn), controlapi.NewStatusServiceClient(conn),
	}, conn, nil
}
