package sinks

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors"
)

// format of a message: RFC 5424, 6.
var rfc5424 = regexp.MustCompile(`^<(\d{1,3})>1 \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z (\S+) hprobed (\d+) finding - (\{.*\})$`)

func checkSyslog(t *testing.T, m string, priority, message string) {
	t.Helper()
	p := rfc5424.FindStringSubmatch(m)
	if p == nil || p[1] != priority {
		t.Fatalf("%q", m)
	}
	var l line
	if err := json.Unmarshal([]byte(p[4]), &l); err != nil || l.Message != message {
		t.Errorf("%q: %v", m, err)
	}
}

func TestSyslogByDatagrams(t *testing.T) {
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	path := filepath.Join(t.TempDir(), "log")
	unix, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	h, s, _ := started(t, t.TempDir(), Config{Name: "udp", Syslog: &Syslog{Address: "udp://" + udp.LocalAddr().String(), Facility: "local0"}}, Config{Name: "unix", Syslog: &Syslog{Address: "unix://" + path}})
	emit(h, "a\nb\u202e")
	checkSyslog(t, datagram(t, udp), "131", "a\nb\u202e") // local0, error
	checkSyslog(t, datagram(t, unix), "27", "a\nb\u202e") // daemon, error
	// The server is started anew.
	unix.Close()
	os.Remove(path)
	emit(h, "c")
	until(t, "an error", func() bool { return s.Health()[1].Error != "" })
	if unix, err = net.ListenPacket("unixgram", path); err != nil {
		t.Fatal(err)
	}
	defer unix.Close()
	checkSyslog(t, datagram(t, unix), "27", "c")
	until(t, "both", func() bool { return s.Health()[1].Delivered == 2 })
	// No datagram is as long.
	emit(h, strings.Repeat("x", 1<<20), "d")
	checkSyslog(t, datagram(t, unix), "27", "d")
	until(t, "one that is lost", func() bool { return s.Health()[1].Dropped[DropFailed] == 1 })
}

func datagram(t *testing.T, c net.PacketConn) string {
	t.Helper()
	b := make([]byte, 1<<16)
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	n, _, err := c.ReadFrom(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// frame reads a message with its length before it.
func frame(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	var n int
	if _, err := fmt.Fscanf(r, "%d ", &n); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSyslogByStreams: a server that ends and comes back misses nothing that comes after
// its end was seen.
func TestSyslogByStreams(t *testing.T) {
	server := httptest.NewTLSServer(nil) // for its certificate
	defer server.Close()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, scheme := range []string{"tcp", "tls"} {
		listen := func(at string) net.Listener {
			l, err := net.Listen("tcp", at)
			if err != nil {
				t.Fatal(err)
			}
			if scheme == "tls" {
				l = tls.NewListener(l, &tls.Config{Certificates: server.TLS.Certificates})
			}
			return l
		}
		l := listen("127.0.0.1:0")
		c := Syslog{Address: scheme + "://" + l.Addr().String()}
		if scheme == "tls" {
			c.CAFile = ca
		}
		h, s, _ := started(t, t.TempDir(), Config{Syslog: &c})
		emit(h, "a", "b")
		conn, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		checkSyslog(t, frame(t, r), "27", "a")
		checkSyslog(t, frame(t, r), "27", "b")
		conn.Close()
		l.Close()
		out := s.sinks[0].out.(*syslogOutput)
		<-out.read // it knows
		emit(h, "c")
		until(t, "an error", func() bool { return s.Health()[0].Error != "" })
		l = listen(l.Addr().String())
		if conn, err = l.Accept(); err != nil {
			t.Fatal(err)
		}
		checkSyslog(t, frame(t, bufio.NewReader(conn)), "27", "c")
		if err := ended(t, s, 5*time.Second); err != nil || s.Health()[0].Delivered != 3 {
			t.Errorf("%v, %+v", err, s.Health())
		}
		conn.Close()
		l.Close()
	}
}

func TestSyslogByAUnixStream(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h, _, _ := started(t, t.TempDir(), Config{Syslog: &Syslog{Address: "unix://" + path}})
	emit(h, "a\n", "b")
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	lines := bufio.NewScanner(conn)
	for _, want := range []string{"a\n", "b"} {
		if !lines.Scan() {
			t.Fatal(lines.Err())
		}
		checkSyslog(t, lines.Text(), "27", want)
	}
}

func TestJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenPacket("unixgram", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	h, _, _ := started(t, t.TempDir(), Config{Journal: &Journal{Socket: path}})
	f := detectors.Finding{Domain: "web", DomainID: 7, Detector: "stopgap/vmsplice", Probe: "p", Severity: detectors.Medium, Message: "no \"x\" äh\nPRIORITY=0",
		Process: &detectors.Process{PID: 9, Comm: "a\nHPROBE_DOMAIN=dom0"}}
	id, _ := ID(&f)
	h.Emit(&f)
	got := map[string]string{}
	for text := range strings.Lines(datagram(t, l)) {
		name, value, ok := strings.Cut(strings.TrimSuffix(text, "\n"), "=")
		if _, twice := got[name]; !ok || twice {
			t.Errorf("%q", text)
		}
		got[name] = value
	}
	var body line
	if err := json.Unmarshal([]byte(got["HPROBE_FINDING"]), &body); err != nil || body.ID != id {
		t.Errorf("%q: %v", got["HPROBE_FINDING"], err)
	}
	delete(got, "HPROBE_FINDING")
	for name, want := range map[string]string{"MESSAGE": `web: no "x" \u00e4h\ufffdPRIORITY=0`, "PRIORITY": "4", "SYSLOG_IDENTIFIER": "hprobed", "HPROBE_ID": id, "HPROBE_DOMAIN": "web",
		"HPROBE_DOMAIN_ID": "7", "HPROBE_DETECTOR": "stopgap/vmsplice", "HPROBE_PROBE": "p", "HPROBE_SEVERITY": "medium", "HPROBE_BLOCKED": "false", "HPROBE_PID": "9",
		"HPROBE_COMM": `a\ufffdHPROBE_DOMAIN=dom0`} {
		if got[name] != want {
			t.Errorf("%s is %q, not %q", name, got[name], want)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("and %q", got)
	}
}

func FuzzJournalFields(f *testing.F) {
	f.Add("a\nb=c\x00\xff\u2028")
	f.Fuzz(func(t *testing.T, s string) {
		for _, c := range []byte(oneLine(s)) {
			if c < ' ' || c > '~' {
				t.Fatalf("%q became %q", s, oneLine(s))
			}
		}
	})
}
