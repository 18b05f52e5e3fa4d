// Package sys is where the native driver speaks to dom0's kernel: hypercalls
// through /dev/xen/privcmd, memory that never moves from /dev/xen/hypercall,
// mappings of guest frames, and event channels. Nothing else in hprobe's driver
// says `unix.` or `unsafe`.
//
// The ioctl numbers and structures are those of Linux's
// include/uapi/xen/privcmd.h and evtchn.h.
package sys

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The errors of Xen that the driver tells apart.
const (
	EACCES  = unix.EACCES
	EAGAIN  = unix.EAGAIN
	EBUSY   = unix.EBUSY
	EINVAL  = unix.EINVAL
	ENODATA = unix.ENODATA
	ENOENT  = unix.ENOENT
	ENOMEM  = unix.ENOMEM
	ENOSYS  = unix.ENOSYS
	EPERM   = unix.EPERM
	ESRCH   = unix.ESRCH
	EEXIST  = unix.EEXIST

	EOPNOTSUPP = unix.EOPNOTSUPP
)

// PageSize is the size of a frame, of Xen's and of dom0's kernel on x86.
const PageSize = 4096

const (
	ioctlHypercall    = 0x305000 // _IOC(0, 'P', 0, 48)
	ioctlDMOp         = 0x105005
	ioctlMmapBatchV2  = 0x205004
	scratchPages      = 4
	privcmdDevice     = "/dev/xen/privcmd"
	hypercallDevice   = "/dev/xen/hypercall"
	hypercallArgCount = 5
)

// Privcmd is an open connection to the hypervisor. Its methods may be called
// from several goroutines at once.
type Privcmd struct {
	fd int

	mu      sync.Mutex // held while scratch is in use
	scratch []byte     // hypercall-safe memory
}

// Open opens the devices. The error says what to do where one is missing.
func Open() (*Privcmd, error) {
	fd, err := openDevice(privcmdDevice)
	if err != nil {
		return nil, err
	}
	hfd, err := openDevice(hypercallDevice)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	defer unix.Close(hfd)
	mem, err := unix.Mmap(hfd, 0, scratchPages*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("map %s: %w", hypercallDevice, err)
	}
	return &Privcmd{fd: fd, scratch: mem}, nil
}

func openDevice(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("%s is not there: hprobe runs in dom0 of a Xen host, with its modules loaded (modprobe -a xen-privcmd xen-evtchn): %w", path, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return -1, fmt.Errorf("%s may be opened by root only: %w", path, err)
	}
	return -1, fmt.Errorf("open %s: %w", path, err)
}

// Close closes the connection. Twice is harmless.
func (p *Privcmd) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return nil
	}
	err := errors.Join(unix.Munmap(p.scratch), unix.Close(p.fd))
	p.fd, p.scratch = -1, nil
	return err
}

// Hypercall runs one. fill gets the scratch memory, zeroed, and the address
// that a hypercall may point to for its first byte; it returns the hypercall's
// arguments. read, if not nil, sees the memory after a hypercall that did not
// fail. The result is the hypercall's; an error is a syscall.Errno that Xen gave.
func (p *Privcmd) Hypercall(op uint64, fill func(mem []byte, addr uint64) [hypercallArgCount]uint64, read func(mem []byte)) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fd < 0 {
		return 0, os.ErrClosed
	}
	clear(p.scratch)
	var c struct {
		op   uint64
		args [hypercallArgCount]uint64
	}
	c.op = op
	c.args = fill(p.scratch, uint64(uintptr(unsafe.Pointer(&p.scratch[0]))))
	r, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(p.fd), ioctlHypercall, uintptr(unsafe.Pointer(&c)))
	if errno != 0 {
		return 0, errno
	}
	if read != nil {
		read(p.scratch)
	}
	return int(r), nil
}

// DMOp runs a device model operation on a domain.
func (p *Privcmd) DMOp(dom uint16, op []byte) error {
	buf := struct {
		ptr  uint64
		size uint64
	}{size: uint64(len(op))}
	arg := struct {
		dom, num uint16
		_        uint32
		bufs     uint64
	}{dom: dom, num: 1}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&op[0])
	pin.Pin(&buf)
	buf.ptr, arg.bufs = uint64(uintptr(unsafe.Pointer(&op[0]))), uint64(uintptr(unsafe.Pointer(&buf)))
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(p.fd), ioctlDMOp, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return errno
	}
	return nil
}

// Map maps guest frames, readable and writable, one after the other. errs has
// an entry for each: 0, or the errno for a frame that is not there; its part of
// the mapping must not be touched. The mapping holds the frames until Unmap,
// even when the guest gives them up.
func (p *Privcmd) Map(dom uint16, gfns []uint64, errs []int32) ([]byte, error) {
	mem, err := unix.Mmap(p.fd, 0, len(gfns)*PageSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map guest frames: %w", err)
	}
	arg := struct {
		num        uint32
		dom        uint16
		_          uint16
		addr       uint64
		gfns, errs uint64
	}{num: uint32(len(gfns)), dom: dom}
	var pin runtime.Pinner
	defer pin.Unpin()
	pin.Pin(&gfns[0])
	pin.Pin(&errs[0])
	arg.addr = uint64(uintptr(unsafe.Pointer(&mem[0])))
	arg.gfns, arg.errs = uint64(uintptr(unsafe.Pointer(&gfns[0]))), uint64(uintptr(unsafe.Pointer(&errs[0])))
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(p.fd), ioctlMmapBatchV2, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 && errno != unix.ENOENT { // ENOENT: at least one was paged out, errs says which
		unix.Munmap(mem)
		return nil, fmt.Errorf("map guest frames: %w", errno)
	}
	return mem, nil
}

// Unmap undoes Map.
func Unmap(mem []byte) error { return unix.Munmap(mem) }
