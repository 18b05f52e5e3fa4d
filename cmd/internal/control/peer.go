package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Peer is the process at the other end of hprobed's socket, as it was when it connected
// (unix(7), SO_PEERCRED): the kernel says so.
type Peer struct {
	PID      int32
	UID, GID uint32
}

// AuthType implements credentials.AuthInfo.
func (Peer) AuthType() string { return "peercred" }

// PeerOf returns who sent a request. ok is false where it came by another way.
func PeerOf(ctx context.Context) (who Peer, ok bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return who, false
	}
	who, ok = p.AuthInfo.(Peer)
	return who, ok
}

// Credentials are hprobed's end: they find out who connects. Root may, and who runs
// hprobed; others only where Group says that the socket is theirs, too: then its file
// decides.
type Credentials struct{ Group bool }

var errClientOnly = errors.New("the control API's clients have no credentials of their own")

// ServerHandshake implements credentials.TransportCredentials.
func (c Credentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	who, err := peerOf(conn)
	if err != nil {
		return nil, nil, err
	}
	if !c.Group && who.UID != 0 && who.UID != uint32(os.Geteuid()) {
		return nil, nil, fmt.Errorf("control socket: user %d (process %d) is not root", who.UID, who.PID)
	}
	return conn, who, nil
}

func peerOf(conn net.Conn) (who Peer, err error) {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return who, errors.New("control socket: who connected can't be found out")
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return who, fmt.Errorf("control socket: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return who, fmt.Errorf("control socket: %w", err)
	}
	if credErr != nil {
		return who, fmt.Errorf("control socket: who connected can't be found out: %w", credErr)
	}
	return Peer{PID: cred.Pid, UID: cred.Uid, GID: cred.Gid}, nil
}

// ClientHandshake implements credentials.TransportCredentials.
func (Credentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errClientOnly
}

// Info implements credentials.TransportCredentials.
func (Credentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "peercred"}
}

// Clone implements credentials.TransportCredentials.
func (c Credentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials.
func (Credentials) OverrideServerName(string) error { return nil }
