package binder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

func TestParseSource(t *testing.T) {
	for _, c := range []struct {
		s    detectors.Source
		want probe.Source
		at   Location
	}{
		{detectors.Source{Register: "cr3"}, probe.Source{Kind: xenevents.KindControlReg, Index: 3}, Location{}},
		{detectors.Source{Register: "CR4:smep,SMAP", Deny: true}, probe.Source{Kind: xenevents.KindControlReg, Index: 4, Mask: 3 << 20}, Location{}},
		{detectors.Source{Register: "cr0:0x10000"}, probe.Source{Kind: xenevents.KindControlReg, Mask: 1 << 16}, Location{}},
		{detectors.Source{Register: "lstar"}, probe.Source{Kind: xenevents.KindMSR, Index: 0xc000_0082}, Location{}},
		{detectors.Source{Register: "msr:lstar"}, probe.Source{Kind: xenevents.KindMSR, Index: 0xc000_0082}, Location{}},
		{detectors.Source{Register: "msr:0x1b"}, probe.Source{Kind: xenevents.KindMSR, Index: 0x1b}, Location{}},
		{detectors.Source{CPUID: "any"}, probe.Source{Kind: xenevents.KindCPUID, Any: true}, Location{}},
		{detectors.Source{CPUID: "0x40000000"}, probe.Source{Kind: xenevents.KindCPUID, Index: 0x40000000}, Location{}},
		{detectors.Source{Memory: "jiffies"}, probe.Source{Kind: xenevents.KindMemAccess, Len: 8, Access: xenevents.AccessW}, Location{Symbol: "jiffies"}},
		{detectors.Source{Memory: "vuln!area+0x10:4", Access: "rw"}, probe.Source{Kind: xenevents.KindMemAccess, Len: 4, Access: xenevents.AccessRW}, Location{Module: "vuln", Symbol: "area", Offset: 16}},
		{detectors.Source{Memory: "0xffff888000001000+16", Access: "x"}, probe.Source{Kind: xenevents.KindMemAccess, Len: 16, Access: xenevents.AccessX}, Location{Offset: 0xffff888000001000}},
		{detectors.Source{Memory: "phys:0x1000:0x20", Access: "r"}, probe.Source{Kind: xenevents.KindMemAccess, Len: 32, Access: xenevents.AccessR, Physical: true, Phys: 0x1000}, Location{}},
	} {
		got, err := ParseSource(&c.s)
		if err != nil || got.Source != c.want || got.Memory != c.at || got.Text == "" {
			t.Errorf("%+v is %+v, %v", c.s, got, err)
		}
	}
	for _, s := range []detectors.Source{
		{}, {Register: "cr3", CPUID: "1"}, {Register: "cr2"}, {Register: "cr3:1"}, {Register: "cr4:wp"}, {Register: "cr4:0"}, {Register: "cr4:"}, {Register: "lstar:1"}, {Register: "msr:"}, {Register: "msr:0x100000000"},
		{CPUID: "x"}, {CPUID: "0x100000000"}, {Register: "cr3", Access: "w"}, {Memory: "a", Access: "q"}, {Memory: "a", Access: "ww"}, {Memory: "a:0"}, {Memory: "a:0x1000000"}, {Memory: "phys:a"}, {Memory: "0xg"}, {Memory: "a b"},
		{Memory: "0xffffffffffffffff+8"}, {CPUID: "1", Async: true}, {Register: "lstar", Async: true}, {Register: "cr4", Async: true, Deny: true}, {Register: "cr3", Deny: true}, {CPUID: "1", Deny: true},
	} {
		if got, err := ParseSource(&s); err == nil {
			t.Errorf("%+v is %+v", s, got)
		}
	}
}

// FuzzParseSource: what is taken is within bounds, and an error is one line.
func FuzzParseSource(f *testing.F) {
	for _, seed := range []string{"cr4:smep,smap", "msr:0xc0000082", "lstar", "any", "0x40000000", "a!b+0x10:4", "0xffff888000001000+16", "phys:0x1000:8"} {
		f.Add(seed, "rw")
	}
	f.Fuzz(func(t *testing.T, text, access string) {
		for _, s := range []detectors.Source{{Register: text}, {CPUID: text}, {Memory: text, Access: access}} {
			got, err := ParseSource(&s)
			switch {
			case err != nil && strings.Contains(err.Error(), "\n"):
				t.Errorf("%q: %v", text, err)
			case err == nil && s.Memory != "" && (got.Len == 0 || got.Len > probe.MaxWatched || got.Access == 0 || got.Access > xenevents.AccessRWX):
				t.Errorf("%q is %+v", text, got)
			}
		}
	})
}

// sourced is a detector of one source.
type sourced struct {
	source detectors.Source
	handle detectors.Handler
}

func (s *sourced) Name() string { return "sourced" }
func (s *sourced) Probes() []detectors.ProbeSpec {
	return []detectors.ProbeSpec{{Name: "source", At: "source", Source: &s.source, Handle: s.handle}}
}

// TestSources: what a probe of a source sees, who did it, and what a verdict does.
func TestSources(t *testing.T) {
	b := newBench(t)
	v := b.g.VCPU(0)
	run := func(steps ...sim.Step) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if v.Run(steps...); v.Wait(ctx) != nil {
			t.Fatal("it does not end")
		}
	}
	var seen []string
	handle := func(h detectors.Hit) detectors.Outcome {
		s, ok := h.Seen()
		p, _ := h.Process()
		seen = append(seen, fmt.Sprintf("%v %x>%x %x %v %d", ok, s.Old, s.New, s.Leaf, s.Access, p.PID))
		deny := h.CanDeny() == nil
		return detectors.Outcome{Verdict: detectors.Verdict{Deny: true}, Finding: &detectors.Finding{Message: fmt.Sprint(deny)}}
	}
	var all []*Binding
	for _, s := range []detectors.Source{
		{Register: "sysenter_eip", Deny: true}, {CPUID: "7"}, {Register: "cr4:tsd"}, {Memory: "0xffff888000000800+8", Access: "rw"},
	} {
		bound, err := b.binder.Bind(t.Context(), &sourced{s, handle})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, bound)
	}
	cr4 := v.Registers().CR4
	run(sim.WriteMSR(0x176, 5), sim.CPUID(7, 0), sim.CPUID(1, 0), sim.WriteCR(4, cr4|4))
	want := "true 0>5 0 --- 6|true 0>0 7 --- 6|true " + fmt.Sprintf("%x>%x", cr4, cr4|4) + " 0 --- 6"
	if got := strings.Join(seen, "|"); got != want {
		t.Errorf("%s, not %s", got, want)
	}
	if v.MSR(0x176) != 0 || v.Registers().CR4 != cr4|4 {
		t.Errorf("MSR %#x, CR4 %#x", v.MSR(0x176), v.Registers().CR4)
	}
	if len(b.found) != 3 || !b.found[0].Blocked || b.found[0].Message != "true" || b.found[1].Blocked || b.found[2].Blocked || b.found[0].Process == nil {
		t.Errorf("%+v", b.found)
	}
	for _, bound := range all {
		if err := b.binder.Unbind(t.Context(), bound); err != nil {
			t.Error(err)
		}
	}
	if _, err := b.binder.Bind(t.Context(), &sourced{detectors.Source{Memory: "nothing"}, handle}); !errors.Is(err, isf.ErrNotFound) {
		t.Error(err)
	}
	if _, err := b.binder.Bind(t.Context(), &sourced{detectors.Source{Memory: "0x1000"}, handle}); err == nil {
		t.Error("a process's memory is watched")
	}
}
