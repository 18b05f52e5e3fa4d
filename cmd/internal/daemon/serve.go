package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc"
)

// Serve serves the control API on a listener until ctx ends, then takes every
// probe out and returns. The listener stays the caller's to close.
func (d *Daemon) Serve(ctx context.Context, l net.Listener) error {
	// A domain's memory is large, a command is not.
	s := grpc.NewServer(grpc.MaxRecvMsgSize(1<<20), grpc.MaxConcurrentStreams(64))
	d.Register(s)
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
