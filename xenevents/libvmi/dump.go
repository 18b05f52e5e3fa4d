//go:build libvmi

package libvmi

/*
#include <stdlib.h>
#include "glue.h"
*/
import "C"

import (
	"fmt"
	"os"
	"unsafe"

	"github.com/hprobe/hprobe/xenevents"
)

// Dump is a raw dump of a guest's physical memory in a file, opened by LibVMI's file
// driver: the frame 0 comes first, and nothing is left out. It is read only, and belongs
// to one goroutine.
type Dump struct {
	vmi  C.vmi_instance_t
	size xenevents.GPA
}

// OpenDump opens a memory dump.
func OpenDump(path string) (*Dump, error) {
	// LibVMI would say no more than that it failed.
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() || info.Size() < xenevents.PageSize:
		return nil, fmt.Errorf("%s is no memory dump: it is no regular file of at least a page", path)
	}
	if err := load(); err != nil {
		return nil, err
	}
	name := C.CString(path)
	defer C.free(unsafe.Pointer(name))
	var stage C.vmi_init_error_t
	d := &Dump{vmi: C.hp_open_file(name, &stage)}
	if d.vmi == nil {
		return nil, fmt.Errorf("open the memory dump %s by LibVMI: vmi_init failed (%d: what it printed says more)", path, stage)
	}
	d.size = xenevents.GPA(C.hp_max_address(d.vmi))
	return d, nil
}

// Size is how many bytes of memory there are.
func (d *Dump) Size() uint64 { return uint64(d.size) }

// MaxGFN is the highest frame in the dump.
func (d *Dump) MaxGFN() (xenevents.GFN, error) { return (d.size - 1).GFN(), nil }

// ReadGPA is xenevents.Memory's.
func (d *Dump) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	if d.vmi == nil {
		return 0, xenevents.ErrClosed
	}
	for done := 0; done < len(p); {
		// A page at a time: LibVMI reads all pages or says nothing of how far it got.
		n := min(len(p)-done, xenevents.PageSize-int(at.Offset()))
		var got C.size_t
		if C.hp_read_pa(d.vmi, C.addr_t(at), C.size_t(n), unsafe.Pointer(&p[done]), &got) != C.VMI_SUCCESS || int(got) != n {
			return done, fmt.Errorf("%v is behind the end of the dump, or in a part of a page there: %w", at, xenevents.ErrAbsent)
		}
		done += n
		at += xenevents.GPA(n)
	}
	return len(p), nil
}

// WriteGPA fails: a dump is read only.
func (d *Dump) WriteGPA([]byte, xenevents.GPA) (int, error) {
	return 0, &xenevents.UnsupportedError{Feature: "writing to a memory dump"}
}

// Close closes the file. Twice is harmless.
func (d *Dump) Close() error {
	if d.vmi != nil {
		C.hp_destroy(d.vmi)
		d.vmi = nil
	}
	return nil
}
