package sinks

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/hprobe/hprobe/detectors"
)

// Syslog is a syslog server: RFC 5424 over a unix socket, UDP, TCP, or TCP with TLS.
type Syslog struct {
	// Address is "unix:///dev/log", "udp://host:514", "tcp://host:601" or "tls://host:6514".
	Address string `json:"address" yaml:"address"`
	// Facility is "daemon", which is the default, "user", "auth", "authpriv", or "local0" to "local7".
	Facility string `json:"facility,omitempty" yaml:"facility,omitempty"`
	// CAFile has the certificates, as PEM, that a server's is checked with. "": the system's.
	CAFile string `json:"ca_file,omitempty" yaml:"ca_file,omitempty"`
	// CertFile and KeyFile are hprobed's own, as PEM, where the server wants one.
	CertFile string `json:"cert_file,omitempty" yaml:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty" yaml:"key_file,omitempty"`
}

// facilities are those of RFC 5424, 6.2.1.
var facilities = map[string]int{"": 3, "user": 1, "daemon": 3, "auth": 4, "authpriv": 10,
	"local0": 16, "local1": 17, "local2": 18, "local3": 19, "local4": 20, "local5": 21, "local6": 22, "local7": 23}

func (s *Syslog) check() error {
	u, err := url.Parse(s.Address)
	scheme := ""
	if err == nil {
		scheme = u.Scheme
	}
	switch scheme {
	case "unix":
		if u.Host != "" || !strings.HasPrefix(u.Path, "/") {
			return fmt.Errorf("address: %q names no socket: write unix:///dev/log", s.Address)
		}
	case "udp", "tcp", "tls":
		if u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
			return fmt.Errorf("address: %q: write host and port, as in tls://logs.example.org:6514", s.Address)
		}
	default:
		return fmt.Errorf("address: %q: write unix:///dev/log, or udp://, tcp:// or tls:// with host and port", s.Address)
	}
	if _, ok := facilities[s.Facility]; !ok {
		return fmt.Errorf("facility: %q is not known: write daemon, user, auth, authpriv, or local0 to local7", s.Facility)
	}
	if scheme != "tls" && (s.CAFile != "" || s.CertFile != "" || s.KeyFile != "") {
		return errors.New("ca_file, cert_file and key_file are for TLS: write tls:// in address, or leave them out")
	}
	if (s.CertFile == "") != (s.KeyFile == "") {
		return errors.New("cert_file and key_file belong together: give both, or none")
	}
	return nil
}

// tlsConfig is that of a client; the files are read anew for each connection, as they are replaced
// while hprobed runs.
func tlsConfig(caFile, certFile, keyFile string) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if caFile != "" {
		pem, err := os.ReadFile(caFile)
		if err != nil {
			return nil, fmt.Errorf("ca_file: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("ca_file: %s has no certificate: it must be PEM", caFile)
		}
	}
	if certFile != "" {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("cert_file and key_file: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

// syslogOutput is the output of a sink.
type syslogOutput struct {
	conn
	facility int
	host     string
}

func newSyslog(c *Syslog, trouble func(error)) (*syslogOutput, error) {
	u, err := url.Parse(c.Address)
	if err != nil {
		return nil, err
	}
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "-"
	}
	return &syslogOutput{facility: facilities[c.Facility], host: host, conn: conn{trouble: trouble, pauses: pauses{last: lastPause},
		dial: func(ctx context.Context) (net.Conn, func([]byte) []byte, error) { return c.dial(ctx, u) }}}, nil
}

func (s *Syslog) dial(ctx context.Context, u *url.URL) (net.Conn, func([]byte) []byte, error) {
	var d net.Dialer
	switch u.Scheme {
	case "tls":
		t, err := tlsConfig(s.CAFile, s.CertFile, s.KeyFile)
		if err != nil {
			return nil, nil, err
		}
		c, err := (&tls.Dialer{NetDialer: &d, Config: t}).DialContext(ctx, "tcp", u.Host)
		return c, counted, err
	case "tcp":
		c, err := d.DialContext(ctx, "tcp", u.Host)
		return c, counted, err
	case "udp":
		c, err := d.DialContext(ctx, "udp", u.Host)
		return c, nil, err
	}
	// /dev/log is of datagrams, mostly.
	c, err := d.DialContext(ctx, "unixgram", u.Path)
	if !errors.Is(err, syscall.EPROTOTYPE) {
		return c, nil, err
	}
	c, err = d.DialContext(ctx, "unix", u.Path)
	return c, func(m []byte) []byte { return append(m, '\n') }, err
}

// counted is the framing of RFC 5425, 4.3, and RFC 6587, 3.4.1.
func counted(m []byte) []byte { return append(fmt.Appendf(nil, "%d ", len(m)), m...) }

// priorities are syslog's severities, by hprobe's: RFC 5424, 6.2.1. The journal has the same.
var priorities = map[string]int{"info": 6, "low": 5, "medium": 4, "high": 3, "critical": 2}

func priorityOf(s detectors.Severity) int {
	if p, ok := priorities[s.String()]; ok {
		return p
	}
	return 4 // warning
}

func (s *syslogOutput) write(ctx context.Context, r *record) error {
	return s.send(ctx, fmt.Appendf(nil, "<%d>1 %s %s hprobed %d finding - %s", s.facility*8+priorityOf(r.finding.Severity),
		r.finding.Time.UTC().Format("2006-01-02T15:04:05.000000Z"), s.host, os.Getpid(), bytes.TrimSuffix(r.body, []byte{'\n'})))
}

func (s *syslogOutput) flush() error { return nil }

func (s *syslogOutput) close(context.Context) error { return s.conn.close() }
