package sinks

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
)

// Journal is systemd's journal, by its native protocol:
// https://systemd.io/JOURNAL_NATIVE_PROTOCOL. go-systemd's client has one connection for a
// whole process, and waits for the journal without limit.
type Journal struct {
	// Socket is where journald listens. "": /run/systemd/journal/socket.
	Socket string `json:"socket,omitempty" yaml:"socket,omitempty"`
}

const journalSocket = "/run/systemd/journal/socket"

func (j *Journal) check() error {
	if j.Socket != "" && !filepath.IsAbs(j.Socket) {
		return fmt.Errorf("socket: %q: write the whole path, from / on, or leave it out", j.Socket)
	}
	return nil
}

// journalOutput is the output of a sink.
type journalOutput struct{ conn }

func newJournal(c *Journal, trouble func(error)) *journalOutput {
	socket := cmp.Or(c.Socket, journalSocket)
	return &journalOutput{conn{trouble: trouble, pauses: pauses{last: lastPause}, dial: func(ctx context.Context) (net.Conn, func([]byte) []byte, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unixgram", socket)
		return c, nil, err
	}}}
}

func (j *journalOutput) write(ctx context.Context, r *record) error {
	f := r.finding
	var b bytes.Buffer
	field := func(name, value string) { fmt.Fprintf(&b, "%s=%s\n", name, oneLine(value)) }
	field("MESSAGE", f.Domain+": "+f.Message)
	field("PRIORITY", strconv.Itoa(priorityOf(f.Severity)))
	field("SYSLOG_IDENTIFIER", "hprobed")
	field("HPROBE_ID", r.id)
	field("HPROBE_DOMAIN", f.Domain)
	field("HPROBE_DOMAIN_ID", strconv.Itoa(int(f.DomainID)))
	field("HPROBE_DETECTOR", f.Detector)
	field("HPROBE_PROBE", f.Probe)
	field("HPROBE_SEVERITY", f.Severity.String())
	field("HPROBE_BLOCKED", strconv.FormatBool(f.Blocked))
	if f.Process != nil {
		field("HPROBE_PID", strconv.FormatUint(uint64(f.Process.PID), 10))
		field("HPROBE_COMM", f.Process.Comm)
	}
	field("HPROBE_FINDING", strings.TrimSuffix(string(r.body), "\n"))
	return j.send(ctx, b.Bytes())
}

// oneLine makes a guest's string one of printable ASCII: no field of the journal begins in it.
func oneLine(s string) string {
	return string(ASCII([]byte(strings.Map(func(r rune) rune {
		if r < ' ' {
			return '\uFFFD'
		}
		return r
	}, s))))
}

func (j *journalOutput) flush() error { return nil }

func (j *journalOutput) close(context.Context) error { return j.conn.close() }
