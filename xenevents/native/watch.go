package native

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// xenstore's watches (xs_wire.h, and docs/misc/xenstore.txt for the paths): one that is
// set is told of at once, and at each change.
const (
	xsWatch      = 4
	xsWatchEvent = 15
)

// watched are the paths by which xenstored tells of domains: @introduceDomain of those
// that come, @releaseDomain of those that go, and of those that shut down, crash or are
// suspended.
var watched = []string{"@introduceDomain", "@releaseDomain"}

// Watch calls changed whenever a domain may have come, gone, or shut down, from its own
// goroutine, and at once. It returns when ctx ends, or xenstore does not answer.
func (h *Host) Watch(ctx context.Context, changed func()) error {
	x, err := openXenstore(ctx)
	if err != nil {
		return err
	}
	defer x.Close()
	defer context.AfterFunc(ctx, func() { x.Close() })()
	if c, ok := x.ReadWriteCloser.(net.Conn); ok { // watches may be silent for days
		if err := c.SetDeadline(time.Time{}); err != nil {
			return fmt.Errorf("xenstore: %w", err)
		}
	}
	for i, path := range watched {
		if err := x.send(xsWatch, path, fmt.Sprint(i)); err != nil {
			return err
		}
	}
	for {
		kind, err := readMessage(x)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case kind == xsWatchEvent:
			changed()
		}
	}
}

// readMessage reads what xenstore says next: a watch's event, or that one is set.
func readMessage(r io.Reader) (kind uint32, err error) {
	head := make([]byte, xsHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return 0, fmt.Errorf("xenstore: %w", err)
	}
	kind = binary.LittleEndian.Uint32(head)
	length := binary.LittleEndian.Uint32(head[12:])
	if length > xsMaxPayload {
		return 0, fmt.Errorf("xenstore: a message of %d bytes", length)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, fmt.Errorf("xenstore: %w", err)
	}
	switch kind {
	case xsWatch, xsWatchEvent:
		return kind, nil
	case xsError:
		return 0, fmt.Errorf("xenstore: watch: %q", body)
	}
	return 0, errors.New("xenstore: an answer to what was not asked")
}
