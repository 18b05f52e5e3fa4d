package binder

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// Source is a detectors.Source that was read.
type Source struct {
	probe.Source
	// Memory is where watched memory is, if it is not physical.
	Memory Location
	// Text is what people call it: "cr4:smep", "CPUID 0x1", "w of jiffies_64".
	Text string
}

// MSRs by the names that Intel's and AMD's manuals have for them, in short.
var msrs = map[string]uint32{
	"sysenter_cs": 0x174, "sysenter_esp": 0x175, "sysenter_eip": 0x176, "efer": 0xc000_0080, "star": 0xc000_0081, "lstar": 0xc000_0082, "cstar": 0xc000_0083,
	"fmask": 0xc000_0084, "fs_base": 0xc000_0100, "gs_base": 0xc000_0101, "kernel_gs_base": 0xc000_0102, "tsc_aux": 0xc000_0103,
	"apic_base": 0x1b, "spec_ctrl": 0x48, "misc_enable": 0x1a0, "debugctl": 0x1d9, "pat": 0x277,
}

// Bits of CR0 and CR4 (Intel SDM vol. 3, 2.5).
var (
	cr0Bits = map[string]uint{"pe": 0, "mp": 1, "em": 2, "ts": 3, "et": 4, "ne": 5, "wp": 16, "am": 18, "nw": 29, "cd": 30, "pg": 31}
	cr4Bits = map[string]uint{
		"vme": 0, "pvi": 1, "tsd": 2, "de": 3, "pse": 4, "pae": 5, "mce": 6, "pge": 7, "pce": 8, "osfxsr": 9, "osxmmexcpt": 10, "umip": 11, "la57": 12, "vmxe": 13, "smxe": 14,
		"fsgsbase": 16, "pcide": 17, "osxsave": 18, "smep": 20, "smap": 21, "pke": 22, "cet": 23,
	}
)

// ParseSource reads what is to be watched.
func ParseSource(s *detectors.Source) (Source, error) {
	given := 0
	for _, text := range []string{s.Register, s.CPUID, s.Memory} {
		if text != "" {
			given++
		}
	}
	if given != 1 {
		return Source{}, fmt.Errorf("a probe is of one thing: a register, CPUID or memory")
	}
	if s.Access != "" && s.Memory == "" {
		return Source{}, fmt.Errorf("access %q of what is no memory", s.Access)
	}
	var out Source
	var err error
	switch {
	case s.Register != "":
		out, err = parseRegister(s.Register)
	case s.CPUID != "":
		out, err = parseCPUID(s.CPUID)
	default:
		out, err = parseMemory(s.Memory, s.Access)
	}
	switch {
	case err != nil:
		return Source{}, err
	case s.Async && (out.Kind != xenevents.KindControlReg || s.Deny):
		return Source{}, fmt.Errorf("%s: only at writes of cr0, cr3 and cr4 the guest need not wait, and then nothing can be denied", out.Text)
	case s.Deny && out.Kind == xenevents.KindCPUID:
		return Source{}, fmt.Errorf("CPUID can't be denied: Xen has run it before it tells")
	case s.Deny && out.Kind == xenevents.KindControlReg && out.Index == 3:
		return Source{}, fmt.Errorf("a write of cr3 can't be denied: the guest would go on in the wrong address space")
	}
	return out, nil
}

func parseRegister(text string) (Source, error) {
	fail := func(why string) (Source, error) {
		return Source{}, fmt.Errorf("no register that can be watched: %q (%s); it is written like cr3, cr4, cr4:smep,smap, cr0:0x10000, lstar or msr:0xc0000082", text, why)
	}
	name, rest, more := strings.Cut(strings.ToLower(text), ":")
	out := Source{Source: probe.Source{Kind: xenevents.KindMSR}, Text: strings.ToLower(text)}
	if name == "msr" {
		n, err := strconv.ParseUint(rest, 0, 32)
		if byName, ok := msrs[rest]; ok {
			n, err = uint64(byName), nil
		}
		if err != nil {
			return fail("no number of an MSR")
		}
		out.Index = uint32(n)
		return out, nil
	}
	if n, ok := msrs[name]; ok {
		if more {
			return fail("an MSR has no mask")
		}
		out.Index = n
		return out, nil
	}
	bits, ok := map[string]map[string]uint{"cr0": cr0Bits, "cr3": nil, "cr4": cr4Bits}[name]
	if !ok {
		return fail("it is not cr0, cr3, cr4, msr:NUMBER, nor a name that is known")
	}
	out.Kind, out.Index = xenevents.KindControlReg, uint32(name[2]-'0')
	if !more {
		return out, nil
	}
	if bits == nil {
		return fail("cr3 is an address, and has no mask")
	}
	if n, err := strconv.ParseUint(rest, 0, 64); err == nil {
		out.Mask = n
	} else {
		for _, bit := range strings.Split(rest, ",") {
			i, ok := bits[bit]
			if !ok {
				return fail(fmt.Sprintf("%s has no bit %q", name, bit))
			}
			out.Mask |= 1 << i
		}
	}
	if out.Mask == 0 {
		return fail("a mask of no bits")
	}
	return out, nil
}

func parseCPUID(text string) (Source, error) {
	out := Source{Source: probe.Source{Kind: xenevents.KindCPUID}, Text: "CPUID " + text}
	if text == "any" {
		out.Any = true
		return out, nil
	}
	n, err := strconv.ParseUint(text, 0, 32)
	if err != nil {
		return Source{}, fmt.Errorf("no leaf of CPUID: %q; it is a number (0x40000000), or any", text)
	}
	out.Index = uint32(n)
	return out, nil
}

// defaultLength is how much memory is watched where nobody says, in bytes.
const defaultLength = 8

func parseMemory(text, access string) (Source, error) {
	out := Source{Source: probe.Source{Kind: xenevents.KindMemAccess, Len: defaultLength}}
	fail := func(why string) (Source, error) {
		return Source{}, fmt.Errorf("no memory that can be watched: %q (%s); it is written like symbol, symbol+0x10:4, module!symbol, 0xffff888000001000+16 or phys:0x1000+8", text, why)
	}
	if access == "" {
		access = "w"
	}
	for _, c := range access {
		i := strings.IndexRune("rwx", c)
		if i < 0 || out.Access&(1<<i) != 0 {
			return Source{}, fmt.Errorf("no accesses: %q; they are r, w, x, or several of these: rw, rwx", access)
		}
		out.Access |= 1 << i
	}
	out.Text = fmt.Sprintf("%s of %s", access, text)
	rest, physical := strings.CutPrefix(text, "phys:")
	address := strings.HasPrefix(rest, "0x")
	if physical && !address {
		return fail("no physical address")
	}
	place, length, ok := strings.Cut(rest, ":")
	if address && !ok {
		place, length, ok = strings.Cut(rest, "+")
	}
	if ok {
		n, err := strconv.ParseUint(length, 0, 64)
		if err != nil || n == 0 || n > probe.MaxWatched {
			return fail(fmt.Sprintf("a length from 1 to %d", probe.MaxWatched))
		}
		out.Len = n
	}
	if !address {
		var err error
		out.Memory, err = ParseLocation(place)
		if err != nil || out.Memory.Image != "" {
			return fail("no symbol of the kernel")
		}
		return out, nil
	}
	at, err := strconv.ParseUint(place, 0, 64)
	if err != nil || at > ^uint64(0)-out.Len {
		return fail("no address")
	}
	if physical {
		out.Physical, out.Phys = true, xenevents.GPA(at)
	} else {
		out.Memory = Location{Offset: at}
	}
	return out, nil
}

// memory finds where a range of memory begins. A module must be loaded.
func (b *Binder) memory(l Location) (xenevents.GVA, error) {
	if l.Module == "" {
		return l.resolve(b.kernel)
	}
	m, err := b.kernel.Module(l.Module)
	if err != nil {
		return 0, err
	}
	syms, err := b.kernel.Symbols(m)
	if err != nil {
		return 0, err
	}
	at, err := syms.Address(l.Symbol)
	return at + xenevents.GVA(l.Offset), err
}

// watch arms a probe of a source.
func (b *Binder) watch(ctx context.Context, d detectors.Detector, spec detectors.ProbeSpec) (Bound, error) {
	src, err := ParseSource(spec.Source)
	if err != nil {
		return Bound{}, err
	}
	if src.Kind == xenevents.KindMemAccess && !src.Physical {
		err := b.engine.Do(ctx, func(xenevents.Domain) (err error) {
			src.At, err = b.memory(src.Memory)
			return err
		})
		if err != nil {
			return Bound{}, err
		}
	}
	h := &hit{kernel: b.kernel}
	h.read = h.readKernel
	w := probe.Watch{
		Name: spec.Name, Source: src.Source, Space: b.kernel.Space, Async: spec.Source.Async, Deny: spec.Source.Deny, Decide: b.decide(d, spec, h),
		Gap: func(g probe.Gap) { b.sink.Emit(b.gap(d, spec, &g)) },
	}
	w.Budget = b.budget(&spec)
	at := src.At
	if src.Physical {
		at = xenevents.GVA(src.Phys)
	}
	id, err := b.engine.Watch(ctx, w)
	return Bound{Spec: spec, ID: id, At: at}, err
}

func (h *hit) Seen() (detectors.Seen, bool) {
	s := h.Hit.Seen
	if s == nil {
		return detectors.Seen{}, false
	}
	seen := detectors.Seen{Old: s.Old, New: s.New, Unknown: !s.NewKnown, Subleaf: s.Subleaf, Access: s.Access, At: s.At, Size: s.Size}
	if s.Kind == xenevents.KindCPUID {
		seen.Leaf = s.Index
	}
	return seen, true
}

// MSRNames lists the MSRs that have a name, for help.
func MSRNames() []string {
	all := make([]string, 0, len(msrs))
	for name := range msrs {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}
