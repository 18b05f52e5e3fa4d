package sinks

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"syscall"
	"time"
)

const (
	// patience is how long a server may take for a connection, or for one finding.
	patience = 5 * time.Second
	// firstPause and lastPause are between tries: each is at most twice the one before.
	firstPause = time.Second
	lastPause  = 30 * time.Second
)

// pauses are how long to wait between tries. They are random, so that not all hosts come
// back to a server at one moment.
type pauses struct{ most, last time.Duration }

// next is at least half of the time that it may be.
func (p *pauses) next() time.Duration {
	p.most = min(max(2*p.most, firstPause), p.last)
	return p.most/2 + rand.N(p.most/2)
}

func (p *pauses) reset() { p.most = 0 }

// wait waits; it fails if ctx ends meanwhile.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// conn is a connection that is made when it is needed, and anew when it breaks.
type conn struct {
	// dial also says how a message is framed there; nil: as it is, a message a datagram.
	dial func(ctx context.Context) (_ net.Conn, frame func([]byte) []byte, _ error)
	// trouble is told of each try that failed.
	trouble func(error)

	net.Conn
	frame func([]byte) []byte
	// read is closed when a stream's other end is: written to, it would not say so.
	read   chan struct{}
	pauses pauses
}

// send sends a message as a whole. It tries again until that is done or ctx ends: what
// comes after it waits in the sink's queue. Only one that is too long for a datagram fails.
func (c *conn) send(ctx context.Context, message []byte) error {
	for {
		err := c.try(ctx, message)
		if err == nil {
			c.pauses.reset()
			return nil
		}
		c.close()
		if errors.Is(err, syscall.EMSGSIZE) {
			return err
		}
		c.trouble(err)
		if wait(ctx, c.pauses.next()) != nil {
			return err
		}
	}
}

func (c *conn) try(ctx context.Context, message []byte) error {
	if c.Conn == nil {
		limited, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		var err error
		if c.Conn, c.frame, err = c.dial(limited); err != nil {
			c.Conn = nil
			return err
		}
		if c.frame != nil {
			c.read = make(chan struct{})
			go func(stream net.Conn, read chan struct{}) { // ends with the connection
				defer close(read)
				io.Copy(io.Discard, stream)
				stream.Close()
			}(c.Conn, c.read)
		}
	}
	if c.frame != nil {
		message = c.frame(message)
	}
	if err := c.SetWriteDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	_, err := c.Write(message)
	return err
}

func (c *conn) close() error {
	if c.Conn == nil {
		return nil
	}
	err := c.Conn.Close()
	if c.read != nil {
		<-c.read
	}
	c.Conn, c.read = nil, nil
	return err
}
