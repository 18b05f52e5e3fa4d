// Command many is a monitor for dom0 of the lab that arms many probes. It takes
// orders from a pipe, a line each, and answers each with a line of JSON:
//
//	arm N         have N probes armed, on functions that a quiet guest does not call
//	quiet         replace those that had hits meanwhile by others
//	rounds R N    arm N and remove them, R times
//	hits          how many hits the probe on getpriority has, which is there always
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hprobe/hprobe/test/xen/monitor"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// State answers an order.
type State struct {
	Armed   int    // of the many
	Ticks   uint64 // that the order took
	Shadows int
	Pages   uint64 // of the domain
	Max     uint64
	monitor.Usage
	Hits    uint64
	Skipped int // functions that can't be probed
	Error   string
}

// prefixes are of functions that a guest without network, disks and desktop leaves alone.
var prefixes = []string{"acpi_", "pci_", "tcp_", "udp_", "ip_", "ip6_", "ipv6_", "inet_", "sock_", "netlink_", "genl_", "rtnl_", "dev_", "eth_", "ethtool_", "xfrm_", "nf_", "bpf_", "btf_", "perf_",
	"crypto_", "usb_", "scsi_", "ata_", "blk_", "bio_", "dm_", "md_", "nfs_", "drm_", "fb_", "tty_", "vt_", "input_", "hid_", "power_", "pm_", "efi_", "trace_event_", "security_", "selinux_", "apparmor_", "aa_", "audit_",
	"__ia32_sys_", "__ia32_compat_sys_", "iommu_", "intel_", "amd_", "xen_", "kvm_", "hugetlb_", "swap_", "zswap_", "cgroup_", "cpuset_", "ext4_", "proc_", "sysfs_", "kernfs_", "fuse_", "jbd2_"}

type many struct {
	*monitor.Session
	host    *monitor.Host
	at      []xenevents.GVA        // to be probed, in an order that has neighbours far apart
	next    int                    // in at
	hot     map[xenevents.GVA]bool // functions that the guest calls after all
	armed   []probe.ID
	skipped int
	base    probe.ID
	hits    uint64
}

func main() {
	var profile, pipe string
	flag.StringVar(&profile, "profile", monitor.Profile, "profile of the guest's kernel")
	flag.StringVar(&pipe, "pipe", "/tmp/many.in", "the pipe with the orders")
	flag.Parse()
	monitor.Main("many", func(ctx context.Context) error { return run(ctx, profile, pipe) })
}

func run(ctx context.Context, profile, pipe string) (err error) {
	host, err := monitor.Open(ctx, profile, drivers.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	return host.Watch(ctx, monitor.Options(), nil, func(s *monitor.Session) error {
		m := &many{Session: s, host: host, hot: map[xenevents.GVA]bool{}}
		if err := m.find(); err != nil {
			return err
		}
		return m.serve(ctx, pipe)
	})
}

// find chooses the functions, and arms the one probe that is hit.
func (m *many) find() error {
	at, err := m.Kernel.Address("__x64_sys_getpriority")
	if err != nil {
		return err
	}
	p := m.Kernel.Profile
	linked, err := p.Address("__x64_sys_getpriority")
	if err != nil {
		return err
	}
	slide := uint64(at) - linked
	begin, err := p.Address("_stext")
	if err != nil {
		return err
	}
	end, err := p.Address("_etext")
	if err != nil {
		return err
	}
	for i := range p.NumSymbols() {
		s := p.SymbolAt(i)
		if s.Addr < begin || s.Addr >= end || strings.Contains(s.Name, ".") || !slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(s.Name, prefix) }) {
			continue
		}
		m.at = append(m.at, xenevents.GVA(s.Addr+slide))
	}
	slices.Sort(m.at)
	m.at = slices.Compact(m.at)
	const stride = 7919 // a prime
	spread := make([]xenevents.GVA, 0, len(m.at))
	for i := range m.at {
		spread = append(spread, m.at[i*stride%len(m.at)])
	}
	m.at = spread
	m.base, err = m.Engine.Add(context.Background(), probe.Request{Name: "getpriority", At: at, Space: m.Kernel.Space, Decide: func(h *probe.Hit) probe.Verdict {
		m.hits++
		return probe.Verdict{}
	}})
	return err
}

func (m *many) serve(ctx context.Context, pipe string) error {
	f, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	fmt.Println("ready")
	for in := bufio.NewScanner(f); in.Scan(); {
		began := m.ticks(ctx)
		err := m.obey(ctx, in.Text())
		took := m.ticks(ctx) - began
		s, stateErr := m.state(ctx)
		s.Ticks = took
		if err = errors.Join(err, stateErr); err != nil {
			s.Error = err.Error()
		}
		if err := json.NewEncoder(os.Stdout).Encode(s); err != nil {
			return err
		}
	}
	return nil
}

func (m *many) obey(ctx context.Context, order string) error {
	var n, rounds int
	switch {
	case order == "hits":
		return nil
	case order == "quiet":
		return m.quiet(ctx)
	case scanned(fmt.Sscanf(order, "arm %d", &n)):
		return m.arm(ctx, n)
	case scanned(fmt.Sscanf(order, "rounds %d %d", &rounds, &n)):
		for range rounds {
			if err := m.arm(ctx, n); err != nil {
				return err
			}
			if err := m.arm(ctx, 0); err != nil {
				return err
			}
		}
		return m.reclaimed(ctx)
	}
	return fmt.Errorf("no order: %q", order)
}

// ticks are what has passed, of the TSC.
func (m *many) ticks(ctx context.Context) (tsc uint64) {
	_ = m.Engine.Do(ctx, func(dom xenevents.Domain) error { // when it ended, the order says so
		tsc = dom.(probe.Clock).Ticks()
		return nil
	})
	return tsc
}

func scanned(n int, err error) bool { return n > 0 && err == nil }

func (m *many) arm(ctx context.Context, n int) error {
	for len(m.armed) > n {
		last := len(m.armed) - 1
		if err := m.Engine.Remove(ctx, m.armed[last]); err != nil {
			return err
		}
		m.armed = m.armed[:last]
	}
	if len(m.armed) == 0 {
		m.next, m.skipped = 0, 0
	}
	for len(m.armed) < n {
		if m.next == len(m.at) {
			return fmt.Errorf("no more than %d functions to probe", len(m.armed))
		}
		at := m.at[m.next]
		m.next++
		if m.hot[at] {
			continue
		}
		id, err := m.Engine.Add(ctx, probe.Request{Name: "one of many", At: at, Space: m.Kernel.Space})
		if err != nil {
			m.skipped++
			continue
		}
		m.armed = append(m.armed, id)
	}
	return nil
}

func (m *many) quiet(ctx context.Context) error {
	all, _, err := m.Engine.Probes(ctx)
	if err != nil {
		return err
	}
	n := len(m.armed)
	for _, s := range all {
		if s.ID == m.base || s.Hits == 0 {
			continue
		}
		m.hot[s.At] = true
		m.armed = slices.DeleteFunc(m.armed, func(id probe.ID) bool { return id == s.ID })
		if err := m.Engine.Remove(ctx, s.ID); err != nil {
			return err
		}
	}
	return m.arm(ctx, n)
}

// reclaimed waits until only the page of the one probe has a copy.
func (m *many) reclaimed(ctx context.Context) error {
	for ctx.Err() == nil {
		_, stats, err := m.Engine.Probes(ctx)
		if err != nil || stats.Shadows == 1 {
			return err
		}
		time.Sleep(10 * time.Millisecond)
	}
	return ctx.Err()
}

func (m *many) state(ctx context.Context) (s State, err error) {
	s = State{Armed: len(m.armed), Skipped: m.skipped}
	all, stats, err := m.Engine.Probes(ctx)
	if err != nil {
		return s, err
	}
	s.Shadows, s.Hits = stats.Shadows, all[0].Hits
	if s.Hits != m.hits {
		return s, fmt.Errorf("%d hits, %d of which were decided", s.Hits, m.hits)
	}
	domains, err := m.host.Domains(ctx)
	if err != nil || len(domains) != 1 {
		return s, fmt.Errorf("%d domains: %w", len(domains), err)
	}
	s.Pages, s.Max = domains[0].Pages, domains[0].MaxPages
	s.Usage, err = monitor.Used()
	return s, err
}
