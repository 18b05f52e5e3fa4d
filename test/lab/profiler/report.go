package profiler

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Report is where the ticks between two events of the same kind went.
type Report struct {
	Windows int     // how many such stretches
	Ticks   float64 // average length of one, in ticks
	Exits   []Count // VM exits for each stretch, by reason
	CPUs    []CPU
}

// CPU is what one processor did in an average stretch.
type CPU struct {
	Number int
	Busy   float64 // ticks
	// Self counts by the function that ran, Under by the first of the
	// Options.Anchors on the way to it.
	Self, Under []Count
}

// Count is a name and its share, in ticks of an average stretch (or a number of exits).
type Count struct {
	Name string
	N    float64
}

// Options say what a Report is about.
type Options struct {
	// Exit is the reason of the VM exits that begin a stretch; 0 is an
	// exception, such as an int3. Exits further apart than Longest ticks do
	// not: the guest did something else between.
	Exit    int
	Longest uint64
	// GuestCPU is the processor that the guest runs on.
	GuestCPU int
	// Xen, Kernel (dom0's), User (hprobed), Guest: may be nil.
	Xen, Kernel, User, Guest *Symbols
	// Anchors are the names of Xen's functions under which to count, the most
	// particular first.
	Anchors []string
}

// Hit is the anchors of an int3 hit, from the particular to the general.
var Hit = []string{
	"update_runstate_area", "__update_vcpu_system_time", "hvm_monitor_debug", "vm_event_fill_regs", "hvm_emulate_one_vm_event",
	"vm_event_resume", "evtchn_send", "context_switch", "do_schedule", "schedule", "vmx_vmexit_handler", "hvm_do_resume", "vmx_intr_assist",
	"vmx_asm_do_vmentry", "pv_hypercall",
}

type window struct{ from, to uint64 }

// New makes the report of a profile.
func New(samples []Sample, o Options) Report {
	windows, total := stretches(samples, o)
	r := Report{Windows: len(windows)}
	if len(windows) == 0 {
		return r
	}
	n := float64(len(windows))
	r.Ticks = total / n
	exits := map[string]float64{}
	self, under := map[int]map[string]float64{}, map[int]map[string]float64{}
	w := 0
	for i := range samples {
		s := &samples[i]
		for w < len(windows) && s.Tick >= windows[w].to {
			w++
		}
		if w == len(windows) {
			break
		}
		if s.Tick < windows[w].from {
			continue
		}
		if s.Exit >= 0 {
			exits[exitName(s.Exit)] += 1 / n
			continue
		}
		if self[s.CPU] == nil {
			self[s.CPU], under[s.CPU] = map[string]float64{}, map[string]float64{}
		}
		where, name := o.name(s)
		self[s.CPU][where+" "+name] += Period / n
		under[s.CPU][o.anchor(s, where, name)] += Period / n
	}
	r.Exits = sorted(exits)
	for cpu := range self {
		c := CPU{Number: cpu, Self: sorted(self[cpu]), Under: sorted(under[cpu])}
		for _, x := range c.Self {
			c.Busy += x.N
		}
		r.CPUs = append(r.CPUs, c)
	}
	slices.SortFunc(r.CPUs, func(a, b CPU) int { return cmp.Compare(a.Number, b.Number) })
	return r
}

func stretches(samples []Sample, o Options) (all []window, total float64) {
	var last uint64
	for i := range samples {
		s := &samples[i]
		if s.Exit != o.Exit || s.CPU != o.GuestCPU {
			continue
		}
		if last != 0 && s.Tick-last <= o.Longest {
			all = append(all, window{last, s.Tick})
			total += float64(s.Tick - last)
		}
		last = s.Tick
	}
	return all, total
}

// Where Xen keeps itself: xen/arch/x86/include/asm/config.h.
const (
	xenFirst = 0xffff8200_00000000
	xenLast  = 0xffff8300_00000000
)

func (o *Options) name(s *Sample) (where, name string) {
	where, from := "dom0", o.User
	switch {
	case s.Guest:
		where, from = "guest", o.Guest
	case s.RIP >= xenFirst && s.RIP < xenLast:
		where, from = "xen", o.Xen
	case s.RIP>>63 != 0:
		where, from = "dom0 kernel", o.Kernel
	}
	name, ok := from.Name(s.RIP)
	if !ok {
		name = "?"
	}
	return where, name
}

// anchor names the part of Xen's work that a sample belongs to.
func (o *Options) anchor(s *Sample, where, name string) string {
	if where != "xen" {
		return where
	}
	for _, a := range o.Anchors {
		if a == name {
			return a
		}
		for _, c := range s.Callers {
			if n, _ := o.Xen.Name(c); n == a {
				return a
			}
		}
	}
	return "xen, other"
}

// exitName names the VM exits that a hit can have (Intel SDM vol. 3, appendix C).
func exitName(reason int) string {
	names := map[int]string{0: "exception", 1: "interrupt", 7: "interrupt window", 10: "CPUID", 12: "HLT", 18: "VMCALL", 28: "control register",
		31: "RDMSR", 32: "WRMSR", 37: "monitor trap flag", 48: "EPT violation", 52: "preemption timer"}
	if n, ok := names[reason]; ok {
		return n
	}
	return fmt.Sprintf("exit %d", reason)
}

func sorted(m map[string]float64) []Count {
	var all []Count
	for name, n := range m {
		all = append(all, Count{name, n})
	}
	slices.SortFunc(all, func(a, b Count) int {
		return cmp.Or(cmp.Compare(b.N, a.N), strings.Compare(a.Name, b.Name))
	})
	return all
}

// WriteTo prints the report: for each processor the longest rows first, and not
// those below 1 % of its time.
func (r Report) WriteTo(w io.Writer) (int64, error) {
	var b strings.Builder
	fmt.Fprintf(&b, "%d hits, %.0f ticks each\n", r.Windows, r.Ticks)
	for _, e := range r.Exits {
		fmt.Fprintf(&b, "  %6.2f VM exits: %s\n", e.N, e.Name)
	}
	for _, c := range r.CPUs {
		fmt.Fprintf(&b, "processor %d: busy for %.0f ticks of a hit, under\n", c.Number, c.Busy)
		rows(&b, c.Under, c.Busy)
		fmt.Fprintf(&b, "processor %d: in\n", c.Number)
		rows(&b, c.Self, c.Busy)
	}
	n, err := io.WriteString(w, b.String())
	return int64(n), err
}

func rows(b *strings.Builder, all []Count, of float64) {
	for _, x := range all {
		if x.N >= of/100 {
			fmt.Fprintf(b, "  %7.0f %5.1f %% %s\n", x.N, 100*x.N/of, x.Name)
		}
	}
}
