// Command sunk has a stopgap watch the guest, for dom0 of the lab, and passes what it finds on to
// a sink of each kind, whose other ends it has itself; and to two that nobody answers. On SIGTERM it
// detaches, closes the sinks and prints what came where as one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/detectors/builtin/stopgap"
	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/detectors/sinks/rotate"
	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// Report is what is printed at the end.
type Report struct {
	Found                     uint64
	Health                    []sinks.Health
	Posted, Logged, Journaled uint64 // what the other ends got
	Error                     string // of closing the sinks
}

func main() { monitor.Main("sunk", run) }

func run(ctx context.Context) error {
	var r Report
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, err := io.ReadAll(req.Body)
		var all []json.RawMessage
		if err != nil || json.Unmarshal(b, &all) != nil || req.URL.Path != "/" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		atomic.AddUint64(&r.Posted, uint64(len(all)))
	}))
	defer server.Close()
	if err := os.WriteFile("/tmp/ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		return err
	}
	for path, n := range map[string]*uint64{"/tmp/log": &r.Logged, "/tmp/journal": &r.Journaled} {
		l, err := net.ListenPacket("unixgram", path)
		if err != nil {
			return err
		}
		defer l.Close()
		go count(l, n)
	}
	hub := new(sinks.Hub)
	set, err := sinks.Start(hub, []sinks.Config{
		{File: &rotate.Config{Path: "/tmp/findings/json", MaxMiB: 1, Compress: "zstd"}},
		{Name: "ocsf", Format: "ocsf", File: &rotate.Config{Path: "/tmp/findings/ocsf"}},
		{Name: "others", Domains: []string{"web-*"}, File: &rotate.Config{Path: "/tmp/findings/others"}},
		{Syslog: &sinks.Syslog{Address: "unix:///tmp/log"}},
		{Journal: &sinks.Journal{Socket: "/tmp/journal"}},
		{Webhook: &sinks.Webhook{URL: server.URL, CAFile: "/tmp/ca.pem"}},
		{Name: "refused", Webhook: &sinks.Webhook{URL: server.URL + "/none", CAFile: "/tmp/ca.pem"}},
		{Name: "away", Syslog: &sinks.Syslog{Address: "unix:///tmp/away"}},
	}, sinks.Options{Log: slog.New(slog.NewTextHandler(os.Stderr, nil)), Folder: "/tmp/state"})
	if err != nil {
		return err
	}
	err = watch(ctx, hub)
	limited, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if e := set.Close(limited); e != nil {
		r.Error = e.Error()
	}
	r.Health = set.Health()
	r.Found, _ = hub.Totals()
	// The datagrams are in the sockets.
	for _, n := range []*uint64{&r.Logged, &r.Journaled} {
		for i := 0; i < 200 && atomic.LoadUint64(n) < r.Found; i++ {
			time.Sleep(10 * time.Millisecond)
		}
	}
	b, e := json.Marshal(&r)
	fmt.Println(string(b))
	return errors.Join(err, e)
}

// count counts datagrams that are findings.
func count(l net.PacketConn, n *uint64) {
	b := make([]byte, 1<<16)
	for {
		got, _, err := l.ReadFrom(b)
		if err != nil {
			return
		}
		if strings.Contains(string(b[:got]), `"detector":"stopgap/vmsplice"`) {
			atomic.AddUint64(n, 1)
		}
	}
}

// watch has the stopgap watch the guest until ctx ends.
func watch(ctx context.Context, hub *sinks.Hub) (err error) {
	host, err := monitor.Open(ctx, monitor.Profile, drivers.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	rule, err := stopgap.Known("vmsplice")
	if err != nil {
		return err
	}
	det, err := stopgap.New(rule, true)
	if err != nil {
		return err
	}
	return host.Watch(ctx, monitor.Options(), nil, func(s *monitor.Session) error {
		b := binder.New(s.Engine, s.Kernel, host.Guest, hub)
		bound, err := b.Bind(ctx, det)
		if err != nil {
			return err
		}
		fmt.Println("ready")
		<-ctx.Done()
		return b.Unbind(context.Background(), bound)
	})
}
