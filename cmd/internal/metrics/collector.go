package metrics

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hprobe/hprobe/detectors/sinks"
	"github.com/hprobe/hprobe/xenevents/probe"
)

const (
	// snapshotTime is how long a Snapshot may take.
	snapshotTime = 5 * time.Second
	// mostProbes is how many probes have figures of their own; those of the rest are summed up
	// as the probe "other" of their domain.
	mostProbes   = 1000
	longestLabel = 128 // bytes
)

// family is a metric by its name, with labels.
type family struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func counter(name, help string, labels ...string) family {
	return family{prometheus.NewDesc("hprobe_"+name, help, labels, nil), prometheus.CounterValue}
}

func gauge(name, help string, labels ...string) family {
	return family{prometheus.NewDesc("hprobe_"+name, help, labels, nil), prometheus.GaugeValue}
}

// The metrics.
var (
	info = gauge("build_info", "1, with what hprobed is and runs on.", "version", "driver", "hypervisor")

	attached      = gauge("domain_attached", "1 for each domain that hprobed is attached to.", "domain")
	events        = counter("events_total", "Events that Xen passed on, by kind.", "domain", "kind")
	batches       = counter("ring_batches_total", "How often the ring of events was emptied.", "domain")
	stalled       = counter("stalled_ticks_total", "TSC ticks from having a batch of events to having all its replies in the ring.", "domain")
	longestStall  = gauge("stalled_ticks_max", "The longest of these, in TSC ticks.", "domain")
	tooLate       = counter("late_verdicts_total", "Hits whose verdict did not come in time.", "domain")
	waitingVCPUs  = gauge("waiting_vcpus", "vCPUs that wait for a verdict.", "domain")
	shadowPages   = gauge("shadow_pages", "Hidden copies of pages with probes.", "domain")
	tables        = gauge("protected_page_tables", "Page tables of the guest that are write-protected.", "domain")
	tableFaults   = counter("page_table_faults_total", "Faults at protected page tables, by cause.", "domain", "cause")
	ownBreaks     = counter("guest_breakpoints_total", "The guest's own breakpoints, which were given back to it.", "domain")
	calls         = gauge("calls_under_way", "Calls whose return is waited for.", "domain")
	lostCalls     = counter("lost_calls_total", "Calls whose return will not be seen, by cause.", "domain", "cause")
	probes        = gauge("probes", "Probes by state.", "domain", "state")
	hits          = counter("probe_hits_total", "Hits of a probe.", "domain", "probe", "at")
	changed       = counter("probe_verdicts_total", "Hits of a probe that ended in a verdict other than going on.", "domain", "probe", "at")
	passed        = counter("probe_passed_total", "What hit a probe for nothing: in other processes, mostly.", "domain", "probe", "at")
	suspensions   = counter("probe_suspensions_total", "How often a probe was suspended, as it was over its budget.", "domain", "probe", "at")
	suspendedTime = counter("probe_suspended_ticks_total", "For how long in all, in TSC ticks.", "domain", "probe", "at")
	missed        = counter("probe_missed_places_total", "Places that a probe should have had, and could not have.", "domain", "probe", "at")

	findings     = counter("findings_total", "Findings.", "domain", "detector", "severity", "blocked")
	findingsLost = counter("findings_lost_total", "How many times a listener (a sink, hprobe findings -f) missed a finding.")
	delivered    = counter("sink_delivered_total", "Findings that a sink passed on.", "sink", "kind")
	filtered     = counter("sink_filtered_total", "Findings that a sink's configuration leaves out.", "sink", "kind")
	dropped      = counter("sink_dropped_total", "Findings that are lost to a sink, by reason.", "sink", "kind", "reason")
	waiting      = gauge("sink_waiting", "Findings that wait in memory or on the disk.", "sink", "kind")
	lastSuccess  = gauge("sink_last_success_timestamp_seconds", "When a sink passed on a finding last; 0: never.", "sink", "kind")
	lastError    = gauge("sink_last_error_timestamp_seconds", "When a sink failed to last; 0: never.", "sink", "kind")

	searches     = counter("profile_searches_total", "Searches for the profile of a guest's kernel, by result.", "result")
	searchTime   = counter("profile_search_seconds_total", "How long these took in all.")
	auditEntries = counter("audit_entries_total", "Entries of the audit log that were written.")
	auditFailed  = counter("audit_failures_total", "Entries of the audit log that could not be written.")
	auditHead    = gauge("audit_last_entry", "The number of the audit log's last entry.")

	pluginUp       = gauge("plugin_up", "1 if a plugin's process runs.", "plugin")
	pluginRestarts = counter("plugin_restarts_total", "How often a plugin was started anew.", "plugin")
	pluginLate     = counter("plugin_missed_deadlines_total", "Verdicts of a plugin that came too late.", "plugin")
	rescues        = counter("rescues_total", "Domains that were put right after their monitor died, by result.", "result")
)

// families are all of them.
var families = []family{info, attached, events, batches, stalled, longestStall, tooLate, waitingVCPUs, shadowPages, tables, tableFaults, ownBreaks, calls, lostCalls, probes,
	hits, changed, passed, suspensions, suspendedTime, missed, findings, findingsLost, delivered, filtered, dropped, waiting, lastSuccess, lastError,
	searches, searchTime, auditEntries, auditFailed, auditHead, pluginUp, pluginRestarts, pluginLate, rescues}

// Collector is a prometheus.Collector of a Source.
type Collector struct{ Source Source }

// Describe implements prometheus.Collector.
func (c *Collector) Describe(out chan<- *prometheus.Desc) {
	for _, f := range families {
		out <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (c *Collector) Collect(out chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), snapshotTime)
	defer cancel()
	s, err := c.Source.Snapshot(ctx)
	if err != nil {
		out <- prometheus.NewInvalidMetric(info.desc, err)
		return
	}
	all := samples{}
	all.hprobed(s)
	for i := range s.Domains {
		all.domain(&s.Domains[i])
	}
	all.probes(s.Domains)
	for i := range s.Sinks {
		all.sink(&s.Sinks[i])
	}
	for k, v := range all {
		out <- prometheus.MustNewConstMetric(k.family.desc, k.family.kind, v, strings.Split(k.labels, separator)[:k.n]...)
	}
}

// separator is between labels' values, none of which has it.
const separator = "\xff"

type sampleKey struct {
	family family
	labels string
	n      int
}

// samples are figures by their labels. Two with the same labels are one, which is the sum: Prometheus
// would refuse all figures.
type samples map[sampleKey]float64

func (s samples) add(f family, v float64, labels ...string) {
	for i, l := range labels {
		labels[i] = strings.ToValidUTF8(l[:min(len(l), longestLabel)], "\uFFFD")
	}
	s[sampleKey{f, strings.Join(labels, separator), len(labels)}] += v
}

func (s samples) count(f family, n uint64, labels ...string) { s.add(f, float64(n), labels...) }

func (s samples) hprobed(p *Snapshot) {
	s.add(info, 1, p.Version, p.Driver, p.Hypervisor)
	for k, n := range p.Findings {
		s.count(findings, n, k.Domain, k.Detector, k.Severity, strconv.FormatBool(k.Blocked))
	}
	s.count(findingsLost, p.FindingsLost)
	for result, n := range p.Profiles {
		s.count(searches, n, result)
	}
	s.add(searchTime, p.ProfileTime.Seconds())
	s.count(auditEntries, p.Audit.Written)
	s.count(auditFailed, p.Audit.Failed)
	s.count(auditHead, p.Audit.Head)
	for i := range p.Plugins {
		one := &p.Plugins[i]
		up := uint64(0)
		if one.Up {
			up = 1
		}
		s.count(pluginUp, up, one.Name)
		s.count(pluginRestarts, one.Restarts, one.Name)
		s.count(pluginLate, one.MissedDeadlines, one.Name)
	}
	for result, n := range p.Rescues {
		s.count(rescues, n, result)
	}
}

func (s samples) domain(d *Domain) {
	st := &d.Stats
	s.add(attached, 1, d.Name)
	for kind, n := range st.Events {
		s.count(events, n, d.Name, kind)
	}
	s.count(batches, st.Batches, d.Name)
	s.count(stalled, st.Ticks, d.Name)
	s.count(longestStall, st.MaxTicks, d.Name)
	s.count(tooLate, st.TooLate, d.Name)
	s.add(waitingVCPUs, float64(st.Waiting), d.Name)
	s.add(shadowPages, float64(st.Shadows), d.Name)
	s.add(tables, float64(st.Tables), d.Name)
	s.count(tableFaults, st.TableWrites, d.Name, "write")
	s.count(tableFaults, st.AccessedBits, d.Name, "accessed")
	s.count(tableFaults, st.OtherWalks, d.Name, "walk")
	s.count(ownBreaks, st.Reinjected, d.Name)
	s.add(calls, float64(st.Calls), d.Name)
	s.count(lostCalls, st.StaleCalls, d.Name, "stale")
	s.count(lostCalls, st.Evicted, d.Name, "evicted")
	for state := probe.Armed; state <= probe.Suspended; state++ {
		s.add(probes, 0, d.Name, state.String())
	}
	for i := range d.Probes {
		s.add(probes, 1, d.Name, d.Probes[i].Status.State.String())
	}
}

// probes adds those of all domains, of which the oldest have figures of their own.
func (s samples) probes(domains []Domain) {
	n := 0
	for i := range domains {
		d := &domains[i]
		// "p9" is older than "p10".
		for _, p := range slices.SortedFunc(slices.Values(d.Probes), func(a, b Probe) int { return cmp.Or(cmp.Compare(len(a.ID), len(b.ID)), cmp.Compare(a.ID, b.ID)) }) {
			labels := []string{d.Name, p.ID, p.At}
			if n++; n > mostProbes {
				labels = []string{d.Name, sinks.Other, ""}
			}
			st := &p.Status
			s.count(hits, st.Hits, labels...)
			s.count(changed, st.Changed, labels...)
			s.count(passed, st.Passed, labels...)
			s.count(suspensions, st.Gaps, labels...)
			s.count(suspendedTime, st.GapTicks, labels...)
			s.count(missed, st.Missed, labels...)
		}
	}
}

func (s samples) sink(h *sinks.Health) {
	s.count(delivered, h.Delivered, h.Name, h.Kind)
	s.count(filtered, h.Filtered, h.Name, h.Kind)
	for _, reason := range slices.Sorted(maps.Keys(h.Dropped)) {
		s.count(dropped, h.Dropped[reason], h.Name, h.Kind, reason)
	}
	s.add(waiting, float64(h.Waiting), h.Name, h.Kind)
	s.add(lastSuccess, seconds(h.LastSuccess), h.Name, h.Kind)
	s.add(lastError, seconds(h.LastError), h.Name, h.Kind)
}

// seconds are since 1970; 0 is never.
func seconds(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.UnixMilli()) / 1000
}
