package metrics

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// fixed is a Source that says always the same.
type fixed struct {
	says *Snapshot
	err  error
}

func (f fixed) Snapshot(context.Context) (*Snapshot, error) { return f.says, f.err }

// everything has each figure once, at least.
func everything() *Snapshot {
	return &Snapshot{Version: "v1", Driver: "native", Hypervisor: "Xen 4.20",
		Domains: []Domain{{Name: "web", Stats: probe.Stats{Events: map[string]uint64{"int3": 7}, Batches: 3, Ticks: 4000, MaxTicks: 2000, Waiting: 1, Shadows: 2, Reinjected: 5,
			TableStats: probe.TableStats{TableWrites: 8}}, Probes: []Probe{{"p1", "do_exit", probe.Status{Hits: 7, Changed: 1, Gaps: 2, GapTicks: 9}}, {"p2", "x", probe.Status{State: probe.Suspended}}}}},
		Findings: map[sinks.Key]uint64{{Domain: "web", Detector: "stopgap/vmsplice", Severity: "high", Blocked: true}: 3}, FindingsLost: 1,
		Sinks: []sinks.Health{{Name: "file", Kind: "file", Delivered: 2, Filtered: 1, Dropped: map[string]uint64{sinks.DropSlow: 4, sinks.DropFailed: 0}, Waiting: 6,
			LastSuccess: time.UnixMilli(1700000000500)}},
		Profiles: map[string]uint64{"found": 2}, ProfileTime: 1500 * time.Millisecond, Audit: Audit{Written: 5, Failed: 1, Head: 77},
		Plugins: []Plugin{{"sample", true, 2, 1}}, Rescues: map[string]uint64{"done": 1}}
}

// served has a Source served at a place, and returns what Prometheus gets there.
func served(t *testing.T, listen string, s Source) (status int, text string) {
	t.Helper()
	l, err := Listen(Config{Listen: listen})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, l, s, slog.New(slog.DiscardHandler)) }()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, l.Addr().Network(), l.Addr().String())
	}}}
	resp, err := client.Get("http://hprobed/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	cancel()
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestScrape(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "metrics.sock")
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"}) // of one that died
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	for _, listen := range []string{"127.0.0.1:0", "unix:" + socket} {
		status, text := served(t, listen, fixed{says: everything()})
		if status != http.StatusOK {
			t.Fatalf("%d: %s", status, text)
		}
		for _, want := range []string{
			`hprobe_build_info{driver="native",hypervisor="Xen 4.20",version="v1"} 1`, `hprobe_domain_attached{domain="web"} 1`, `hprobe_events_total{domain="web",kind="int3"} 7`,
			`hprobe_stalled_ticks_total{domain="web"} 4000`, `hprobe_stalled_ticks_max{domain="web"} 2000`, `hprobe_probes{domain="web",state="armed"} 1`,
			`hprobe_probes{domain="web",state="suspended"} 1`, `hprobe_probes{domain="web",state="failed"} 0`, `hprobe_probe_hits_total{at="do_exit",domain="web",probe="p1"} 7`,
			`hprobe_probe_suspensions_total{at="do_exit",domain="web",probe="p1"} 2`, `hprobe_page_table_faults_total{cause="write",domain="web"} 8`,
			`hprobe_findings_total{blocked="true",detector="stopgap/vmsplice",domain="web",severity="high"} 3`, `hprobe_findings_lost_total 1`,
			`hprobe_sink_dropped_total{kind="file",reason="slow",sink="file"} 4`, `hprobe_sink_dropped_total{kind="file",reason="failed",sink="file"} 0`, `hprobe_sink_waiting{kind="file",sink="file"} 6`,
			`hprobe_sink_last_success_timestamp_seconds{kind="file",sink="file"} 1.7000000005e+09`, `hprobe_sink_last_error_timestamp_seconds{kind="file",sink="file"} 0`,
			`hprobe_profile_searches_total{result="found"} 2`, `hprobe_profile_search_seconds_total 1.5`, `hprobe_audit_failures_total 1`, `hprobe_audit_last_entry 77`,
			`hprobe_plugin_up{plugin="sample"} 1`, `hprobe_rescues_total{result="done"} 1`, "process_resident_memory_bytes", "go_goroutines",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: no %s", listen, want)
			}
		}
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the socket is left")
	}
}

func TestASourceThatFailsIsAnError(t *testing.T) {
	if status, text := served(t, "127.0.0.1:0", fixed{err: errors.New("no answer")}); status != http.StatusInternalServerError || !strings.Contains(text, "no answer") {
		t.Errorf("%d: %s", status, text)
	}
}

// TestLint: the names and help texts are as Prometheus wants them, and each family has a figure.
func TestLint(t *testing.T) {
	problems, err := testutil.CollectAndLint(&Collector{fixed{says: everything()}})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
	if n, err := testutil.GatherAndCount(registry(t, everything()), names()...); err != nil || n < len(families) {
		t.Errorf("%d figures of %d families, %v", n, len(families), err)
	}
}

func registry(t *testing.T, s *Snapshot) *prometheus.Registry {
	t.Helper()
	r, err := newRegistry(fixed{says: s})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var fqName = regexp.MustCompile(`fqName: "([a-z_]+)"`)

// names are those of all families.
func names() (all []string) {
	for _, f := range families {
		all = append(all, fqName.FindStringSubmatch(f.desc.String())[1])
	}
	return all
}

func TestAnEmptyHprobedHasFigures(t *testing.T) {
	all, err := registry(t, &Snapshot{}).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if f.GetName() == "hprobe_audit_entries_total" {
			return
		}
	}
	t.Error("it has not")
}

// TestLabelsAreBounded: a domain, a probe or a detector may be called anything, and be many.
func TestLabelsAreBounded(t *testing.T) {
	s := everything()
	hostile := "a\xff\n\"}" + strings.Repeat("x", 1<<16)
	s.Domains = append(s.Domains, s.Domains[0], Domain{Name: hostile, Stats: probe.Stats{Events: map[string]uint64{hostile: 1}}})
	for i := range 3 * mostProbes {
		s.Domains[2].Probes = append(s.Domains[2].Probes, Probe{fmt.Sprint("p", 3*mostProbes-i), hostile, probe.Status{Hits: 1}})
	}
	status, text := served(t, "127.0.0.1:0", fixed{says: s})
	if status != http.StatusOK {
		t.Fatalf("%d: %.1000s", status, text)
	}
	if !strings.Contains(text, `hprobe_probe_hits_total{at="do_exit",domain="web",probe="p1"} 14`) {
		t.Error("two domains of one name are not summed up")
	}
	if n := strings.Count(text, "\nhprobe_probe_hits_total{"); n != mostProbes-1 { // two of them were counted twice
		t.Errorf("%d probes", n)
	}
	if !regexp.MustCompile(`hprobe_probe_hits_total\{at="",domain="a[^\n]*",probe="other"\} 2004`).MatchString(text) || !strings.Contains(text, `probe="p996"} 1`) || strings.Contains(text, `probe="p997"}`) {
		t.Error("the others are not summed up")
	}
	for l := range strings.Lines(text) {
		if len(l) > 1000 {
			t.Fatalf("a line of %d bytes: %.200s", len(l), l)
		}
	}
}

func TestListenIsOfThisHostAlone(t *testing.T) {
	for _, listen := range []string{"", "127.0.0.1:9433", "127.8.9.1:1", "[::1]:9433", "localhost:9433", "unix:/run/x"} {
		if err := (&Config{listen}).Check(); err != nil {
			t.Errorf("%s: %v", listen, err)
		}
	}
	for listen, want := range map[string]string{":9433": "write 127.0.0.1:9433", "0.0.0.0:9433": "let a proxy", "[::]:1": "write 127.0.0.1:1", "192.168.1.1:9433": "not of this host alone",
		"example.org:1": "not of this host", "9433": "write 127.0.0.1:9433, or", "127.0.0.1:": "write 127", "unix:metrics.sock": "names no socket"} {
		if err := (&Config{listen}).Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", listen, err)
		}
		if l, err := Listen(Config{listen}); err == nil {
			l.Close()
			t.Errorf("%s is listened at", listen)
		}
	}
	path := filepath.Join(t.TempDir(), "socket")
	l, err := Listen(Config{"unix:" + path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", st, err)
	}
	if _, err := Listen(Config{"unix:" + path}); err == nil || !strings.Contains(err.Error(), "another program listens") {
		t.Error(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	os.WriteFile(file, []byte("x"), 0o600)
	if _, err := Listen(Config{"unix:" + file}); err == nil {
		t.Error("a file was replaced")
	}
}

var inText = regexp.MustCompile(`\b(?:hprobe|process|go)_[a-z_]+\b`)

// TestDashboard: each metric that Grafana's dashboard asks for is there.
func TestDashboard(t *testing.T) {
	b, err := os.ReadFile("../../../docs/grafana/hprobe.json")
	if err != nil {
		t.Fatal(err)
	}
	var d struct {
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
		Templating struct {
			List []struct{ Query any }
		}
	}
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	known := names()
	all, err := registry(t, everything()).Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		known = append(known, f.GetName())
	}
	asked, ids := 0, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("two panels are number %d", p.ID)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			in := inText.FindAllString(target.Expr, -1)
			if len(in) == 0 {
				t.Errorf("%s: no metric in %s", p.Title, target.Expr)
			}
			for _, name := range in {
				asked++
				if !slices.Contains(known, name) {
					t.Errorf("%s: there is no %s", p.Title, name)
				}
			}
		}
	}
	for _, v := range d.Templating.List {
		for _, name := range inText.FindAllString(fmt.Sprint(v.Query), -1) {
			if asked++; !slices.Contains(known, name) {
				t.Errorf("a variable asks for %s, which is not there", name)
			}
		}
	}
	if asked < 20 {
		t.Errorf("only %d metrics are asked for", asked)
	}
}

// TestDocs: docs/metrics.md has each metric, and none that is not there.
func TestDocs(t *testing.T) {
	b, err := os.ReadFile("../../../docs/metrics.md")
	if err != nil {
		t.Fatal(err)
	}
	in := regexp.MustCompile(`\bhprobe_[a-z_]+\b`).FindAllString(string(b), -1)
	for _, n := range names() {
		if !slices.Contains(in, n) {
			t.Errorf("docs/metrics.md lacks %s", n)
		}
	}
	for _, n := range in {
		if !slices.Contains(names(), n) {
			t.Errorf("docs/metrics.md has %s, which is not there", n)
		}
	}
}
