package lab

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Config says which host. The zero value is Xen 4.20 on one CPU, with one guest
// of one vCPU, 256 MB and Linux 6.12, booted by GRUB and so with KASLR, without KPTI.
type Config struct {
	Xen      string // "4.20", "4.17", "4.14"
	Guest    string // the guest's Linux: "6.12", "6.1", "5.10", "7.2"
	CPUs     int    // emulated processors
	VCPUs    int    // of the guest
	MemoryMB int    // of the guest
	// Direct has Xen load the guest's kernel, which is quicker, but there is
	// no KASLR then: the kernel's decompressor does that.
	Direct bool
	// KPTI gives each guest process two page-table roots.
	KPTI bool
	// Pinned gives dom0 the first CPU and the guest the others.
	Pinned bool
}

// suites are Debian's releases, which have the Xen and the Linux of a version.
var (
	xenSuites   = map[string]string{"4.20": "trixie", "4.17": "bookworm", "4.14": "bullseye"}
	linuxSuites = map[string]string{"6.12": "trixie", "6.1": "bookworm", "5.10": "bullseye", "7.2": "forky"}
)

// baseSuite has dom0's Linux, the emulator, its BIOS and GRUB for PVH.
const baseSuite = "trixie"

// withDefaults fills in what is zero.
func (c Config) withDefaults() Config {
	c.Xen, c.Guest = cmp.Or(c.Xen, "4.20"), cmp.Or(c.Guest, "6.12")
	c.CPUs, c.VCPUs, c.MemoryMB = cmp.Or(c.CPUs, 1), cmp.Or(c.VCPUs, 1), cmp.Or(c.MemoryMB, 256)
	return c
}

// Validate says what is wrong with a Config, and what would be right.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case xenSuites[c.Xen] == "":
		return fmt.Errorf("the lab has no Xen %q; it has %s", c.Xen, keys(xenSuites))
	case linuxSuites[c.Guest] == "":
		return fmt.Errorf("the lab has no guest with Linux %q; it has %s", c.Guest, keys(linuxSuites))
	case c.CPUs < 1 || c.CPUs > 4:
		return fmt.Errorf("%d CPUs: the lab emulates 1 to 4", c.CPUs)
	case c.VCPUs < 1 || c.VCPUs > 8:
		return fmt.Errorf("%d vCPUs: a guest of the lab has 1 to 8", c.VCPUs)
	case c.MemoryMB < 128 || c.MemoryMB > 512:
		return fmt.Errorf("%d MB: a guest of the lab has 128 to 512", c.MemoryMB)
	case c.Pinned && c.CPUs < 2:
		return fmt.Errorf("pinned apart: that needs 2 CPUs")
	}
	return nil
}

func keys(m map[string]string) string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// String is a short name, the same for the same host: "xen4.20-linux6.12-1cpu-1vcpu".
func (c Config) String() string {
	c = c.withDefaults()
	s := fmt.Sprintf("xen%s-linux%s-%dcpu-%dvcpu", c.Xen, c.Guest, c.CPUs, c.VCPUs)
	if c.MemoryMB != 256 {
		s += fmt.Sprintf("-%dmb", c.MemoryMB)
	}
	for _, x := range []struct {
		on   bool
		name string
	}{{c.Direct, "direct"}, {c.KPTI, "kpti"}, {c.Pinned, "pinned"}} {
		if x.on {
			s += "-" + x.name
		}
	}
	return s
}

// Flags are the arguments of `hprobe lab` that mean this Config.
func (c Config) Flags() []string {
	c = c.withDefaults()
	f := []string{"--xen", c.Xen, "--guest-linux", c.Guest, "--cpus", fmt.Sprint(c.CPUs), "--vcpus", fmt.Sprint(c.VCPUs)}
	if c.MemoryMB != 256 {
		f = append(f, "--memory", fmt.Sprint(c.MemoryMB))
	}
	for _, x := range []struct {
		on   bool
		name string
	}{{c.Direct, "--direct"}, {c.KPTI, "--kpti"}, {c.Pinned, "--pinned"}} {
		if x.on {
			f = append(f, x.name)
		}
	}
	return f
}
