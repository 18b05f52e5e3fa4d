package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/proto"

	"github.com/hprobe/hprobe/cmd/internal/control"
)

// Command is what a client of the control API asked for.
type Command struct {
	Time    time.Time
	Who     *control.Peer // nil: not known
	Method  string        // "AddProbe"
	Request proto.Message // nil: it was not read
	Err     error         // nil: it was done
}

// Serve keeps track of the host's guests, and serves the control API on a listener until
// ctx ends; then it takes every probe out and returns. The listener stays the caller's to
// close.
func (d *Daemon) Serve(ctx context.Context, l net.Listener, c credentials.TransportCredentials) error {
	// A domain's memory is large, a command is not: a policy file is the largest.
	s := grpc.NewServer(grpc.MaxRecvMsgSize(4<<20), grpc.MaxConcurrentStreams(64), grpc.Creds(c), grpc.UnaryInterceptor(d.recordCall), grpc.StreamInterceptor(d.recordStream))
	d.Register(s)
	d.work.Go(func() { d.watch(d.run) })
	var wg sync.WaitGroup
	failed := make(chan error, 1)
	wg.Go(func() { failed <- s.Serve(l) })
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
		err = fmt.Errorf("control socket: %w", err)
	}
	// The guests first: whoever traces can wait.
	err = errors.Join(err, d.Close())
	s.Stop()
	wg.Wait()
	return err
}

func (d *Daemon) recordCall(ctx context.Context, request any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	out, err := handle(ctx, request)
	m, _ := request.(proto.Message)
	d.record(ctx, info.FullMethod, m, err)
	return out, err
}

func (d *Daemon) recordStream(s any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	return handle(s, &recorded{ServerStream: stream, told: func(m proto.Message) { d.record(stream.Context(), info.FullMethod, m, nil) }})
}

// recorded tells of what a client asks a stream for when it does: it may last for days.
type recorded struct {
	grpc.ServerStream
	told func(proto.Message)
}

func (r *recorded) RecvMsg(m any) error {
	err := r.ServerStream.RecvMsg(m)
	if p, ok := m.(proto.Message); ok && err == nil {
		r.told(p)
	}
	return err
}

func (d *Daemon) record(ctx context.Context, method string, request proto.Message, err error) {
	if d.Record == nil {
		return
	}
	c := &Command{Time: time.Now(), Method: path.Base(method), Request: request, Err: err}
	if who, ok := control.PeerOf(ctx); ok {
		c.Who = &who
	}
	d.Record(c)
}
