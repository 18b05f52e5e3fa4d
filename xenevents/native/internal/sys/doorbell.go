package sys

import (
	"encoding/binary"
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Doorbell rings an event channel of this domain's, and gives the CPU away, by
// one hypercall that is prepared once. It belongs to one goroutine.
//
// A system call of a PV dom0 goes through Xen twice: one that does two things
// spares some 2,000 instructions.
type Doorbell struct {
	fd   int // the Privcmd's
	page []byte
	call [6]uint64 // struct privcmd_hypercall
}

// Xen's public/xen.h, event_channel.h, sched.h.
const (
	hypercallMulticall = 13
	hypercallSchedOp   = 29
	hypercallEvtchnOp  = 32
	evtchnSend         = 4
	schedYield         = 0

	multicallSize = 64 // struct multicall_entry: op, result, args[6]
	portAt        = 2 * multicallSize
)

// NewDoorbell prepares the hypercalls for a port that Bind returned.
func (p *Privcmd) NewDoorbell(port uint32) (*Doorbell, error) {
	hfd, err := openDevice(hypercallDevice)
	if err != nil {
		return nil, err
	}
	defer unix.Close(hfd)
	page, err := unix.Mmap(hfd, 0, PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map %s: %w", hypercallDevice, err)
	}
	addr := uint64(uintptr(unsafe.Pointer(&page[0])))
	le := binary.LittleEndian
	le.PutUint32(page[portAt:], port) // struct evtchn_send
	for i, c := range [2][3]uint64{{hypercallEvtchnOp, evtchnSend, addr + portAt}, {hypercallSchedOp, schedYield, 0}} {
		e := page[i*multicallSize:]
		le.PutUint64(e, c[0])
		le.PutUint64(e[16:], c[1])
		le.PutUint64(e[24:], c[2])
	}
	return &Doorbell{fd: p.fd, page: page, call: [6]uint64{hypercallMulticall, addr}}, nil
}

// Yield has Xen run who else wants this CPU, and returns when it is this vCPU's
// turn again; with ring it first tells the other end that there is something to
// read. It does not tell Go's scheduler: see Evtchn.Wait.
func (d *Doorbell) Yield(ring bool) error {
	first, n := uint64(1), uint64(1)
	if ring {
		first, n = 0, 2
	}
	d.call[1] = uint64(uintptr(unsafe.Pointer(&d.page[first*multicallSize])))
	d.call[2] = n
	if _, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, uintptr(d.fd), ioctlHypercall, uintptr(unsafe.Pointer(&d.call))); errno != 0 {
		return fmt.Errorf("multicall: %w", errno)
	}
	if rc := int64(binary.LittleEndian.Uint64(d.page[8:])); ring && rc < 0 {
		return fmt.Errorf("notify event channel: %w", syscall.Errno(-rc))
	}
	return nil
}

// Close frees the memory. Twice is harmless, and so is a nil Doorbell.
func (d *Doorbell) Close() error {
	if d == nil || d.page == nil {
		return nil
	}
	err := unix.Munmap(d.page)
	d.page = nil
	return err
}
