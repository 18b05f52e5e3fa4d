package sinks

import (
	"strings"
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

func TestCheck(t *testing.T) {
	hook := func(c Webhook) Config { return Config{Webhook: &c} }
	slog := func(c Syslog) Config { return Config{Syslog: &c} }
	file := &rotate.Config{Path: "/var/log/f"}
	for _, c := range []Config{
		{File: file}, {File: file, Name: "a-1_b", MinSeverity: "medium", Domains: []string{"web-*", "db"}, Format: "ocsf"}, {Journal: &Journal{}},
		slog(Syslog{Address: "unix:///dev/log"}), slog(Syslog{Address: "tls://[::1]:6514", CAFile: "f", CertFile: "c", KeyFile: "k", Facility: "local7"}),
		hook(Webhook{URL: "https://example.org/x?y=z"}), hook(Webhook{URL: "https://example.org:8443", Batch: 1, TimeoutSeconds: 600, QueueMiB: 1, QueueFolder: "/q"}),
	} {
		if err := Check([]Config{c}); err != nil {
			t.Error(err)
		}
	}
	for want, c := range map[string]Config{
		"write exactly one of file, syslog":                                 {},
		"write exactly one of file, syslog, ":                               {File: file, Journal: &Journal{}},
		`name: "../x": write`:                                               {File: file, Name: "../x"},
		`min_severity: no severity is called "bad": there are info, medium`: {File: file, MinSeverity: "bad"},
		`domains: "[" is no pattern`:                                        {File: file, Domains: []string{"a", "["}},
		`domains: "" is no`:                                                 {File: file, Domains: []string{""}},
		`format: "xml" is not known: write json`:                            {File: file, Format: "xml"},
		"file: path:":                                                       {File: &rotate.Config{}},
		`address: "localhost:514": write unix:///dev/log, or`:               slog(Syslog{Address: "localhost:514"}),
		"write host and port":                                               slog(Syslog{Address: "udp://localhost"}),
		`address: "": write unix:///dev/log, or`:                            slog(Syslog{}),
		"names no socket":                                                   slog(Syslog{Address: "unix://dev/log"}),
		"write host and port, as":                                           slog(Syslog{Address: "tcp://localhost:1/x"}),
		"facility:":                                                         slog(Syslog{Address: "unix:///dev/log", Facility: "kern"}),
		"are for TLS":                                                       slog(Syslog{Address: "tcp://h:1", CAFile: "f"}),
		"belong together":                                                   slog(Syslog{Address: "tls://h:1", CertFile: "f"}),
		"journal: socket:":                                                  {Journal: &Journal{Socket: "x"}},
		"webhook: url: write https":                                         hook(Webhook{URL: "http://h"}),
		"no user or password":                                               hook(Webhook{URL: "https://me:pw@h"}),
		"batch: -1: write 1 to":                                             hook(Webhook{URL: "https://h", Batch: -1}),
		"timeout_seconds: 601":                                              hook(Webhook{URL: "https://h", TimeoutSeconds: 601}),
		"queue_mib: -5":                                                     hook(Webhook{URL: "https://h", QueueMiB: -5}),
		"queue_folder:":                                                     hook(Webhook{URL: "https://h", QueueFolder: "q"}),
	} {
		err := Check([]Config{{Name: "first", Journal: &Journal{}}, c})
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "(number 2)") {
			t.Errorf("%s: %v", want, err)
		}
	}
	if err := Check([]Config{{File: file}, {Name: "file", Journal: &Journal{}}}); err == nil || !strings.Contains(err.Error(), `two sinks "file"`) {
		t.Error(err)
	}
}

func TestFilter(t *testing.T) {
	c := Config{MinSeverity: "medium", Domains: []string{"web-*", "db"}}
	keep := c.filter()
	for _, w := range []struct {
		domain   string
		severity detectors.Severity
		keep     bool
	}{{"web-1", detectors.Medium, true}, {"db", detectors.High, true}, {"db2", detectors.High, false}, {"web-1", detectors.Informational, false}, {"", detectors.High, false}} {
		if got := keep(&detectors.Finding{Domain: w.domain, Severity: w.severity}); got != w.keep {
			t.Errorf("%+v: %v", w, got)
		}
	}
	if keep := new(Config).filter(); !keep(&detectors.Finding{Domain: "x"}) {
		t.Error("a filter that is not there leaves something out")
	}
}
