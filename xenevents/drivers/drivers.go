// Package drivers opens the driver that somebody asks for by name.
package drivers

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
	"github.com/hprobe/hprobe/xenevents/native"
)

// The names of drivers.
const (
	Auto   = "auto" // LibVMI where this binary has it and it opens, else native
	LibVMI = "libvmi"
	Native = "native"
)

// ErrName is Open's for a name that is none of these.
var ErrName = errors.New("no driver is called")

// Host is what every driver here has beside the roles of a xenevents.Host.
type Host interface {
	xenevents.Host
	xenevents.Prober
	// Version says which Xen this is.
	Version() string
}

// Domain is what a Host of this package opens.
type Domain interface {
	xenevents.Domain
	xenevents.Views
	xenevents.PageAllocator
	xenevents.Injector
	xenevents.Swapper
	xenevents.Prober
	guestmem.Loader
	Ticks() uint64
	TicksPerSecond() uint64
}

// Events is what such a Domain attaches.
type Events interface {
	xenevents.Events
	xenevents.Settler
	xenevents.WriteHolder
}

var _ Domain = (*native.Domain)(nil)
var _ Events = (*native.Events)(nil)

// Dump is a memory dump that is open for reading.
type Dump interface {
	xenevents.Memory
	// Size is how many bytes of memory there are.
	Size() uint64
	io.Closer
}

// OpenDump opens a raw dump of a guest's memory by the driver of a name: LibVMI's, as the
// native one can't.
func OpenDump(name, path string) (Dump, error) {
	switch name {
	case LibVMI, Auto, "":
		return openDump(path)
	case Native:
		return nil, &xenevents.UnsupportedError{Feature: "a memory dump with the native driver", Need: "--driver libvmi"}
	}
	return nil, errNoDriver(name)
}

func errNoDriver(name string) error {
	return fmt.Errorf("%w %q: it is %s, %s or %s", ErrName, name, Auto, LibVMI, Native)
}

// Options are the native driver's; LibVMI's heeds Poll.
type Options = native.Options

// Open opens a driver, and says why it is this one, in a sentence for a log. The native
// driver is opened instead of LibVMI's only where the name is Auto.
func Open(ctx context.Context, name string, o Options) (h Host, why string, err error) {
	switch name {
	case Native:
		why = "it was asked for"
	case LibVMI:
		h, err = openLibVMI(ctx, o)
		return h, "it was asked for", err
	case Auto, "":
		if h, err = openLibVMI(ctx, o); err == nil {
			return h, "LibVMI is installed, and this binary was built with it", nil
		}
		why = "LibVMI's can't be had: " + err.Error()
	default:
		return nil, "", errNoDriver(name)
	}
	n, err := native.Open(ctx, o)
	if err != nil {
		return nil, "", err
	}
	return n, why, nil
}
