// Package native is the driver that speaks to Xen itself, through dom0's
// /dev/xen devices: pure Go, no libxenctrl, one static binary for Xen 4.14 to
// today. It finds out by trying which interface versions the running Xen speaks.
//
// Xen's tools interface (domctl, sysctl) is not stable across versions; what
// differs is in internal/abi.
package native

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

var le = binary.LittleEndian

// Options tune the driver. The zero value is what most hosts want.
type Options struct {
	// Poll is for how many TSC cycles Events.Next looks at the ring before it
	// sleeps on the event channel. Zero is 100,000 (30 µs at 3.3 GHz, longer than
	// a guest takes from one hit to the next) where the machine has several CPUs;
	// where it has one, Next offers it to the guest twice, which is faster than to
	// sleep in dom0's kernel. Negative: it sleeps at once.
	Poll int64
	// MaxFrames bounds the guest frames that are kept mapped (default 4096).
	MaxFrames int
}

// Host is the hypervisor that this dom0 runs on.
type Host struct {
	xen  *sys.Privcmd
	ver  abi.Versions
	opts Options
	cpus uint32 // of the machine, not only dom0's
	khz  uint32 // of their TSC
}

// Open connects to the hypervisor. It fails with a sentence that says what to
// do where this is no dom0, and with an *xenevents.UnsupportedError where Xen
// speaks a version that hprobe does not know.
func Open(ctx context.Context, o Options) (*Host, error) {
	xen, err := sys.Open()
	if err != nil {
		return nil, err
	}
	h := &Host{xen: xen, opts: o}
	if err := errors.Join(h.findVersions(), ctx.Err()); err != nil {
		xen.Close()
		return nil, err
	}
	return h, nil
}

// Name is "native".
func (h *Host) Name() string { return "native" }

// Version says which Xen this is and which interfaces it speaks.
func (h *Host) Version() string { return h.ver.String() }

// Close closes the connection. Domains that are open must be closed before.
func (h *Host) Close() error { return h.xen.Close() }

func (h *Host) findVersions() error {
	v, err := h.xen.Hypercall(abi.HypercallXenVersion, func([]byte, uint64) [5]uint64 {
		return [5]uint64{abi.XenVersionVersion}
	}, nil)
	if err != nil {
		return fmt.Errorf("ask Xen for its version: %w", err)
	}
	h.ver.Major, h.ver.Minor = v>>16, v&0xffff
	h.ver.Extra, err = h.versionString(abi.XenVersionExtra)
	if err != nil {
		return fmt.Errorf("ask Xen for its version: %w", err)
	}
	if h.ver.Domctl, err = tryVersions(func(version uint32) error {
		h.ver.Domctl = version
		_, err := h.domainInfo(0)
		return err
	}); err != nil {
		return h.unknown("domctl", err)
	}
	if h.ver.Sysctl, err = tryVersions(func(version uint32) error {
		_, err := h.xen.Hypercall(abi.HypercallSysctl, func(mem []byte, addr uint64) [5]uint64 {
			le.PutUint32(mem[abi.SysctlCmd:], abi.SysctlPhysInfo)
			le.PutUint32(mem[abi.SysctlVersion:], version)
			return [5]uint64{addr}
		}, func(mem []byte) {
			h.cpus, h.khz = le.Uint32(mem[abi.SysctlUnion+8:]), le.Uint32(mem[abi.SysctlUnion+24:])
		})
		return err
	}); err != nil {
		return h.unknown("sysctl", err)
	}
	var vm uint32
	err = h.domctlOn(abi.DomidInvalid, abi.DomctlVMEventOp, func(u []byte, _ uint64) {
		le.PutUint32(u, abi.VMEventGetVersion)
		le.PutUint32(u[4:], abi.VMEventMonitor)
	}, func(mem []byte) { vm = le.Uint32(mem[abi.DomctlUnion+8:]) })
	if err != nil {
		return h.unknown("vm_event", err)
	}
	h.ver.VMEvent = vm
	if _, ok := abi.RingLayout(vm); !ok {
		return h.unknown("vm_event", fmt.Errorf("version %d", vm))
	}
	return nil
}

// tryVersions finds the interface version that Xen does not refuse with EACCES.
func tryVersions(try func(uint32) error) (uint32, error) {
	for v := uint32(abi.FirstInterface); v <= abi.LastInterface; v++ {
		if err := try(v); !errors.Is(err, sys.EACCES) {
			return v, err
		}
	}
	return 0, sys.EACCES
}

func (h *Host) unknown(what string, err error) error {
	if errors.Is(err, sys.EPERM) {
		return fmt.Errorf("the %s interface is refused by Xen: hprobe runs in dom0, as root: %w", what, err)
	}
	return &xenevents.UnsupportedError{Feature: fmt.Sprintf("the %s interface of Xen %d.%d%s", what, h.ver.Major, h.ver.Minor, h.ver.Extra),
		Need: "this hprobe knows Xen 4.14 to 4.22; a newer hprobe may know more", Err: err}
}

// versionString asks for one of xen_version's strings, at most 1 KiB.
func (h *Host) versionString(op uint64) (s string, err error) {
	_, err = h.xen.Hypercall(abi.HypercallXenVersion, func(_ []byte, addr uint64) [5]uint64 {
		return [5]uint64{op, addr}
	}, func(mem []byte) {
		text, _, _ := bytes.Cut(mem[:1024], []byte{0})
		s = string(text)
	})
	return s, err
}

// domctlOn runs a domctl. fill gets the operation's union and the address of
// hypercall-safe memory behind the structure, dataOffset bytes from mem's start.
func (h *Host) domctlOn(dom xenevents.DomainID, cmd uint32, fill func(u []byte, data uint64), read func(mem []byte)) error {
	_, err := h.xen.Hypercall(abi.HypercallDomctl, func(mem []byte, addr uint64) [5]uint64 {
		le.PutUint32(mem[abi.DomctlCmd:], cmd)
		le.PutUint32(mem[abi.DomctlVersion:], h.ver.Domctl)
		le.PutUint16(mem[abi.DomctlDomain:], uint16(dom))
		if fill != nil {
			fill(mem[abi.DomctlUnion:abi.DomctlSize], addr+dataOffset)
		}
		return [5]uint64{addr}
	}, read)
	if errors.Is(err, sys.ESRCH) && dom != abi.DomidInvalid {
		return fmt.Errorf("domain %d: %w", dom, xenevents.ErrNoDomain)
	}
	return err
}

const dataOffset = sys.PageSize

// firstReserved is the first number that no domain has but Xen gives a meaning
// to (xen.h, DOMID_FIRST_RESERVED): some Xens answer EINVAL for these, not ESRCH.
const firstReserved = 0x7ff0

// domainInfo asks for exactly one domain: Xen answers with the next one where
// the asked one is not there.
func (h *Host) domainInfo(id xenevents.DomainID) (info xenevents.DomainInfo, err error) {
	if id >= firstReserved {
		return info, fmt.Errorf("domain %d: %w", id, xenevents.ErrNoDomain)
	}
	err = h.domctlOn(id, abi.DomctlGetDomainInfo, nil, func(mem []byte) { info = decodeInfo(mem[abi.DomctlUnion:]) })
	if err == nil && info.ID != id {
		return info, fmt.Errorf("domain %d: %w", id, xenevents.ErrNoDomain)
	}
	return info, err
}

func decodeInfo(b []byte) xenevents.DomainInfo {
	flags := le.Uint32(b[abi.InfoFlags:])
	info := xenevents.DomainInfo{
		ID:       xenevents.DomainID(le.Uint16(b[abi.InfoDomain:])),
		HVM:      flags&abi.InfoFlagHVM != 0,
		HAP:      flags&abi.InfoFlagHAP != 0,
		Paused:   flags&abi.InfoFlagPause != 0,
		Dying:    flags&abi.InfoFlagDying != 0,
		Shutdown: flags&abi.InfoFlagDown != 0,
		VCPUs:    int(le.Uint32(b[abi.InfoVCPUs:])),
		MaxVCPU:  xenevents.VCPU(le.Uint32(b[abi.InfoMaxVCPU:])),
		Pages:    le.Uint64(b[abi.InfoTotPages:]),
		MaxPages: le.Uint64(b[abi.InfoMaxPages:]),
	}
	info.Suspended = info.Shutdown && flags>>abi.InfoReasonShift&abi.InfoReasonMask == abi.ReasonSuspend
	copy(info.UUID[:], b[abi.InfoUUID:])
	return info
}

// Domains lists the domains but dom0. Names come from xenstore; where that does
// not answer they are empty, which is no error.
func (h *Host) Domains(ctx context.Context) ([]xenevents.DomainInfo, error) {
	var all []xenevents.DomainInfo
	size := h.ver.InfoSize()
	const batch = 64
	for first := xenevents.DomainID(1); ; {
		var got []xenevents.DomainInfo
		_, err := h.xen.Hypercall(abi.HypercallSysctl, func(mem []byte, addr uint64) [5]uint64 {
			le.PutUint32(mem[abi.SysctlCmd:], abi.SysctlGetDomainInfoList)
			le.PutUint32(mem[abi.SysctlVersion:], h.ver.Sysctl)
			u := mem[abi.SysctlUnion:]
			le.PutUint16(u, uint16(first))
			le.PutUint32(u[4:], batch)
			le.PutUint64(u[8:], addr+dataOffset)
			return [5]uint64{addr}
		}, func(mem []byte) {
			n := min(int(le.Uint32(mem[abi.SysctlUnion+16:])), batch)
			for i := range n {
				got = append(got, decodeInfo(mem[dataOffset+i*size:]))
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list domains: %w", err)
		}
		all = append(all, got...)
		if len(got) < batch {
			break
		}
		first = got[len(got)-1].ID + 1
	}
	// Domains of Xen's own (dom_io, dom_xen …) are at 0x7ff0 and above.
	all = slices.DeleteFunc(all, func(d xenevents.DomainInfo) bool { return d.ID >= 0x7ff0 })
	h.addNames(ctx, all)
	return all, nil
}

func (h *Host) addNames(ctx context.Context, all []xenevents.DomainInfo) {
	store, err := openXenstore(ctx)
	if err != nil {
		return
	}
	defer store.Close()
	for i := range all {
		all[i].Name, err = store.read(fmt.Sprintf("/local/domain/%d/name", all[i].ID))
		if err != nil && !errors.Is(err, errNoEntry) {
			return
		}
	}
}
