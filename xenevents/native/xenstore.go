package native

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"
)

// The xenstore wire (xen/include/public/io/xs_wire.h): type, request id,
// transaction id and length, each u32, then the payload.
const (
	xsRead       = 2
	xsError      = 16
	xsHeader     = 16
	xsMaxPayload = 4096
	xsTimeout    = 2 * time.Second
)

// Where xenstore listens: xenstored's socket first, which has a time-out, then
// the kernel's device, which works with a stub domain, too.
var xenstorePaths = []string{"/run/xenstored/socket", "/var/run/xenstored/socket"}

const xenstoreDevice = "/dev/xen/xenbus"

var errNoEntry = errors.New("no such xenstore entry")

// xenstore is a connection that only reads. It belongs to one goroutine.
type xenstore struct {
	io.ReadWriteCloser
	id uint32
}

func openXenstore(ctx context.Context) (*xenstore, error) {
	for _, path := range xenstorePaths {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			continue
		}
		if err := c.SetDeadline(time.Now().Add(xsTimeout)); err != nil {
			c.Close()
			return nil, fmt.Errorf("xenstore: %w", err)
		}
		return &xenstore{ReadWriteCloser: c}, nil
	}
	f, err := os.OpenFile(xenstoreDevice, os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("xenstore: neither %s nor %w", xenstorePaths[0], err)
	}
	return &xenstore{ReadWriteCloser: f}, nil
}

// read returns the value of one entry, at most 4 KiB.
func (x *xenstore) read(path string) (string, error) {
	v, err := x.ask(xsRead, path)
	return string(v), err
}

func (x *xenstore) ask(op uint32, path string) ([]byte, error) {
	if err := x.send(op, path); err != nil {
		return nil, err
	}
	return readReply(x, op, x.id)
}

// send sends a request of strings, each with a zero behind it.
func (x *xenstore) send(op uint32, words ...string) error {
	x.id++
	size := len(words)
	for _, w := range words {
		size += len(w)
	}
	m := make([]byte, 0, xsHeader+size)
	for _, v := range []uint32{op, x.id, 0, uint32(size)} {
		m = binary.LittleEndian.AppendUint32(m, v)
	}
	for _, w := range words {
		m = append(append(m, w...), 0)
	}
	if _, err := x.Write(m); err != nil {
		return fmt.Errorf("xenstore: %w", err)
	}
	return nil
}

func readReply(r io.Reader, op, id uint32) ([]byte, error) {
	head := make([]byte, xsHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, fmt.Errorf("xenstore: %w", err)
	}
	kind, gotID, length := binary.LittleEndian.Uint32(head), binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[12:])
	if length > xsMaxPayload || gotID != id {
		return nil, fmt.Errorf("xenstore: an answer of %d bytes to request %d, not %d", length, gotID, id)
	}
	body := make([]byte, length)
	if _, err := io.ReadFull(r, body); err != nil {
		return nil, fmt.Errorf("xenstore: %w", err)
	}
	switch {
	case kind == op:
		return body, nil
	case kind == xsError && bytes.HasPrefix(body, []byte("ENOENT")):
		return nil, errNoEntry
	case kind == xsError:
		return nil, fmt.Errorf("xenstore: %q", bytes.TrimRight(body, "\x00"))
	}
	return nil, fmt.Errorf("xenstore: an answer of kind %d to a request of kind %d", kind, op)
}
