package native

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

func answer(yes bool) xenevents.Answer {
	if yes {
		return xenevents.Yes
	}
	return xenevents.No
}

// Features says what this host can do.
func (h *Host) Features(ctx context.Context) ([]xenevents.Feature, error) {
	f := []xenevents.Feature{{
		Name: "xen", Title: "a Xen that hprobe knows", Need: xenevents.Required, Answer: xenevents.Yes, Detail: h.ver.String(),
	}}
	line, err := h.versionString(abi.XenVersionCommandline)
	alt := xenevents.Feature{Name: "xen-altp2m", Title: "altp2m switched on for this host", Need: xenevents.Required,
		Fix: `add altp2m=1 to Xen's command line (Debian: GRUB_CMDLINE_XEN_DEFAULT="altp2m=1" in /etc/default/grub, then update-grub) and restart the host`}
	switch {
	case err != nil:
		alt.Detail = fmt.Sprintf("Xen's command line can't be read: %v", err)
	default:
		alt.Answer = answer(hasOption(line, "altp2m"))
		alt.Detail = fmt.Sprintf("Xen's command line: %q", line)
	}
	if alt.Answer == xenevents.Yes {
		alt.Fix = ""
	}
	return append(f, alt), ctx.Err()
}

// hasOption says whether a boolean option is on in Xen's command line: the last one counts.
func hasOption(line, name string) bool {
	on := false
	for _, word := range strings.Fields(line) {
		key, value, given := strings.Cut(word, "=")
		switch {
		case key == "no-"+name:
			on = false
		case key == name:
			on = !given || value == "1" || value == "yes" || value == "on" || value == "true" || value == "enable"
		}
	}
	return on
}

// Features says what can be done with this domain. It leaves it as it was.
func (d *Domain) Features(ctx context.Context) ([]xenevents.Feature, error) {
	info, err := d.Info(ctx)
	if err != nil {
		return nil, err
	}
	f := []xenevents.Feature{
		{Name: "hvm", Title: "HVM or PVH guest", Need: xenevents.Required, Answer: answer(info.HVM),
			Fix: fixUnless(info.HVM, `set type="pvh" (or "hvm") in the guest's configuration: a PV guest has no nested page tables to hide breakpoints in`)},
		{Name: "hap", Title: "hardware assisted paging (EPT)", Need: xenevents.Required, Answer: answer(info.HAP),
			Fix: fixUnless(info.HAP, "set hap=1 in the guest's configuration; the CPU needs EPT")},
	}
	f = append(f, d.altp2mFeature(), d.passthrough(ctx), d.nestedHVM())
	f = append(f, d.monitorFeatures()...)
	f = append(f, d.rpw(), d.viewMemory())
	return append(f, d.monitored()), nil
}

func fixUnless(ok bool, fix string) string {
	if ok {
		return ""
	}
	return fix
}

func (d *Domain) altp2mFeature() xenevents.Feature {
	f := xenevents.Feature{Name: "altp2m", Title: "altp2m views (hidden breakpoints)", Need: xenevents.Required}
	mode, err := d.param(abi.ParamAltp2m)
	if err != nil {
		f.Detail = fmt.Sprintf("parameter %d can't be read: %v", abi.ParamAltp2m, err)
		return f
	}
	names := []string{"disabled", "mixed", "external", "limited"}
	name := "unknown"
	if mode < uint64(len(names)) {
		name = names[mode]
	}
	// "mixed" would let the guest itself change its views; "limited" gives them to the guest alone.
	f.Answer = answer(mode == 2)
	f.Detail = fmt.Sprintf("altp2m mode is %q", name)
	f.Fix = fixUnless(mode == 2, `add altp2m="external" to the guest's configuration and start it anew`)
	return f
}

func (d *Domain) nestedHVM() xenevents.Feature {
	f := xenevents.Feature{Name: "nested-hvm", Title: "nested HVM in the guest", Need: xenevents.Refused}
	v, err := d.param(abi.ParamNestedHVM)
	switch {
	case errors.Is(err, sys.EINVAL), errors.Is(err, sys.ENOSYS): // newer Xens have no such parameter
		f.Answer, f.Detail = xenevents.No, "this Xen has no such parameter"
	case err != nil:
		f.Detail = fmt.Sprintf("parameter %d can't be read: %v", abi.ParamNestedHVM, err)
	default:
		f.Answer = answer(v != 0)
		f.Fix = fixUnless(v == 0, "set nestedhvm=0: Xen does not support altp2m together with it")
	}
	return f
}

// passthrough looks for PCI backends in xenstore: Xen's SUPPORT.md calls
// passthrough "not compatible with … altp2m, introspection".
func (d *Domain) passthrough(ctx context.Context) xenevents.Feature {
	f := xenevents.Feature{Name: "pci-passthrough", Title: "a PCI device given to the guest", Need: xenevents.Refused}
	store, err := openXenstore(ctx)
	if err != nil {
		f.Detail = err.Error()
		return f
	}
	defer store.Close()
	n, err := store.read(fmt.Sprintf("/local/domain/0/backend/pci/%d/0/num_devs", d.id))
	switch {
	case errors.Is(err, errNoEntry):
		f.Answer = xenevents.No
	case err != nil:
		f.Detail = err.Error()
	default:
		f.Answer = answer(n != "0")
		f.Detail = n + " devices"
		f.Fix = fixUnless(n == "0", "take the devices away (xl pci-detach): a device can write to memory that a view hides")
	}
	return f
}

// monitorFeatures asks Xen for the monitor events that this CPU has.
func (d *Domain) monitorFeatures() []xenevents.Feature {
	var caps uint32
	err := d.host.domctlOn(d.id, abi.DomctlMonitorOp, func(u []byte, _ uint64) {
		le.PutUint32(u, abi.MonitorCapabilities)
	}, func(mem []byte) { caps = le.Uint32(mem[abi.DomctlUnion+4:]) })
	one := func(name, title string, bit int, need xenevents.Need) xenevents.Feature {
		f := xenevents.Feature{Name: name, Title: title, Need: need}
		if err != nil {
			f.Detail = fmt.Sprintf("Xen did not say: %v", err)
			return f
		}
		f.Answer, f.Detail = answer(caps&(1<<bit) != 0), fmt.Sprintf("monitor capabilities %#x", caps)
		return f
	}
	fast := one("fast-singlestep", "fast single-step (one event for a step)", abi.MonitorSingleStep, xenevents.Optional)
	if fast.Answer == xenevents.Yes && d.host.ver.Major == 4 && d.host.ver.Minor < abi.MinorWithFast {
		fast.Answer, fast.Fix = xenevents.No, "Xen 4.14 or later"
	}
	return []xenevents.Feature{
		one("int3", "int3 events", abi.MonitorInt3, xenevents.Required),
		one("singlestep", "single-step events", abi.MonitorSingleStep, xenevents.Optional),
		fast,
		one("cr-events", "control register events", abi.MonitorControlReg, xenevents.Optional),
		one("msr-events", "MSR events", abi.MonitorMSR, xenevents.Optional),
		one("cpuid-events", "CPUID events", abi.MonitorCPUID, xenevents.Optional),
	}
}

func (d *Domain) rpw() xenevents.Feature {
	f := xenevents.Feature{Name: "r-pw", Title: "access r_pw (quiet page-table protection)", Need: xenevents.Optional}
	if v := d.host.ver; v.Major == 4 && v.Minor < abi.MinorWithRPW {
		f.Answer, f.Fix = xenevents.No, "Xen 4.20 or later, and a CPU with EPT paging-write (Alder Lake, Sapphire Rapids and later)"
	} else {
		f.Detail = "this Xen has it; whether the CPU has EPT paging-write shows only with a view at hand"
	}
	return f
}

// minViewMB is what the views of a small guest take of the pool for nested
// page tables; where that pool runs dry Xen crashes the guest.
const minViewMB = 2

func (d *Domain) viewMemory() xenevents.Feature {
	f := xenevents.Feature{Name: "view-memory", Title: "memory for views (the guest's paging pool)", Need: xenevents.Required}
	var mb uint32
	err := d.host.domctlOn(d.id, abi.DomctlShadowOp, func(u []byte, _ uint64) {
		le.PutUint32(u, abi.ShadowOpGetAllocation)
	}, func(mem []byte) { mb = le.Uint32(mem[abi.DomctlUnion+8:]) })
	if err != nil {
		f.Detail = fmt.Sprintf("Xen did not say how large the pool is: %v", err)
		return f
	}
	f.Answer, f.Detail = answer(mb >= minViewMB), fmt.Sprintf("a pool of %d MiB", mb)
	f.Fix = fixUnless(mb >= minViewMB, fmt.Sprintf("add shadow_memory=%d to the guest's configuration", 2*minViewMB+mb))
	return f
}

// monitored finds out by the smallest real thing: it opens the ring and closes
// it again. It is the last probe, so that a domain that can't be attached at
// all is left alone.
func (d *Domain) monitored() xenevents.Feature {
	f := xenevents.Feature{Name: "monitored", Title: "another monitor on this domain", Need: xenevents.Refused}
	if d.events != nil && !d.events.closed {
		f.Answer, f.Need, f.Detail = xenevents.Yes, xenevents.Optional, "by this hprobed"
		return f
	}
	e, err := d.Attach(context.Background())
	switch {
	case errors.Is(err, xenevents.ErrMonitored):
		f.Answer, f.Detail = xenevents.Yes, err.Error()
		f.Fix = "stop the other one; a monitor that died leaves its domain so"
	case err != nil:
		f.Detail = err.Error()
	default:
		if err := e.Close(); err != nil {
			f.Detail = err.Error()
			return f
		}
		f.Answer = xenevents.No
	}
	return f
}
