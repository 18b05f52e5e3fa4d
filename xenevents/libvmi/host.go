//go:build libvmi

package libvmi

/*
#cgo LDFLAGS: -ldl
#cgo CFLAGS: -O2 -Wall -Wextra
#include "glue.h"
*/
import "C"

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native"
)

// Host is the hypervisor that this dom0 runs on, by way of LibVMI.
type Host struct {
	native *native.Host
}

var loading sync.Mutex

// load finds the library, once for the process.
func load() error {
	loading.Lock()
	defer loading.Unlock()
	if why := C.hp_load(); why != nil {
		return &xenevents.UnsupportedError{Feature: "LibVMI", Need: "libvmi.so.0 of LibVMI 0.15 where the loader looks (ldconfig -p), or --driver native, which needs nothing", Err: errors.New(C.GoString(why))}
	}
	return nil
}

// Open loads LibVMI, and connects to the hypervisor. It fails with an
// *xenevents.UnsupportedError where the library is missing or another version than
// hprobe was built for.
func Open(ctx context.Context, o native.Options) (*Host, error) {
	if err := load(); err != nil {
		return nil, err
	}
	host, err := native.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	// LibVMI would leave a ring enabled that it then finds it can't read.
	if v := host.VMEventVersion(); v < C.HP_OLDEST_RING || v > C.HP_NEWEST_RING {
		return nil, errors.Join(&xenevents.UnsupportedError{Feature: fmt.Sprintf("version %d of Xen's vm_event interface by LibVMI", v), Need: "a newer LibVMI, or --driver native"}, host.Close())
	}
	return &Host{host}, nil
}

// Watch tells of domains that come and go: LibVMI does not.
func (h *Host) Watch(ctx context.Context, changed func()) error {
	return h.native.Watch(ctx, changed)
}

// Name is "libvmi".
func (h *Host) Name() string { return "libvmi" }

// Version says which Xen this is.
func (h *Host) Version() string { return h.native.Version() }

// Domains lists the domains, as the native driver does: LibVMI has no list.
func (h *Host) Domains(ctx context.Context) ([]xenevents.DomainInfo, error) {
	return h.native.Domains(ctx)
}

// Features says what this host can do.
func (h *Host) Features(ctx context.Context) ([]xenevents.Feature, error) {
	all, err := h.native.Features(ctx)
	return append(all, xenevents.Feature{Name: "libvmi", Title: "LibVMI", Answer: xenevents.Yes, Detail: fmt.Sprintf("version %d of its events", C.VMI_EVENTS_VERSION)}), err
}

// Close closes the connection. Domains that are open must be closed before.
func (h *Host) Close() error { return h.native.Close() }

// Open opens a domain. LibVMI changes its memory limit by that, which is put back.
func (h *Host) Open(ctx context.Context, id xenevents.DomainID) (xenevents.Domain, error) {
	opened, err := h.native.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	d := &Domain{native: opened.(*native.Domain), host: h, id: id}
	err = d.keepLimit(ctx, func() error {
		var stage C.vmi_init_error_t
		if d.vmi = C.hp_open(C.uint64_t(id), &stage); d.vmi == nil {
			return fmt.Errorf("open domain %d by LibVMI: vmi_init failed (%d: what it printed says more)", id, stage)
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.native.MapBy(func(own native.Mapper) native.Mapper { return mapper{d.vmi, own} })
	d.Frames = &d.native.Frames
	return d, nil
}
