package sys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ioctlBindInterdomain = 0x084501
	ioctlUnbind          = 0x044503
	ioctlNotify          = 0x044504
	evtchnDevice         = "/dev/xen/evtchn"
)

// Evtchn is one bound event channel. Wake may be called from any goroutine, the
// rest belongs to one.
type Evtchn struct {
	fd   int
	port uint32

	mu   sync.Mutex // guards wake against Close
	wake int        // an eventfd: makes Wait return
}

// Bind binds a port of another domain.
func Bind(dom uint16, remotePort uint32) (*Evtchn, error) {
	fd, err := openDevice(evtchnDevice)
	if err != nil {
		return nil, err
	}
	arg := struct{ dom, port uint32 }{uint32(dom), remotePort}
	port, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), ioctlBindInterdomain, uintptr(unsafe.Pointer(&arg)))
	if errno != 0 {
		unix.Close(fd)
		return nil, fmt.Errorf("bind event channel: %w", errno)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	return &Evtchn{fd: fd, port: uint32(port), wake: wake}, nil
}

// Port is the number that it has here.
func (e *Evtchn) Port() uint32 { return e.port }

// Notify tells the other end that there is something to read. It is one short
// hypercall: RawSyscall spares the runtime's book-keeping.
func (e *Evtchn) Notify() error {
	arg := e.port
	if _, _, errno := syscall.RawSyscall(syscall.SYS_IOCTL, uintptr(e.fd), ioctlNotify, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		return fmt.Errorf("notify event channel: %w", errno)
	}
	return nil
}

// Wake makes the present or next Wait return early.
func (e *Evtchn) Wake() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.wake >= 0 {
		one := binary.LittleEndian.AppendUint64(nil, 1)
		unix.Write(e.wake, one) // fails only when the counter is full: it wakes, then, too
	}
}

// Why says why Wait returned.
type Why uint8

// The reasons.
const (
	Timeout Why = iota
	Notified
	Woken
)

// hotWait is how long Wait blocks without telling Go's scheduler.
const hotWait = 2 * time.Millisecond

// Wait sleeps until the channel fires, Wake is called, or the time is over.
//
// At first it blocks in ppoll by RawSyscall: telling the scheduler, which then
// hands this thread's P to another and back, costs 50,000 instructions on one
// CPU, more than all the rest of a hit. That is safe, as the runtime can stop the
// world all the same: it sends the thread a signal, ppoll ends with EINTR
// (signal(7): never restarted), and Wait passes through a point where the
// goroutine can stop. When nothing came for a while it blocks the ordinary way.
func (e *Evtchn) Wait(timeout time.Duration) (Why, error) {
	for _, raw := range []bool{true, false} {
		limit := timeout
		if raw {
			limit = min(hotWait, timeout)
		}
		why, err := e.wait(limit, raw)
		if why != Timeout || err != nil {
			return why, err
		}
		timeout -= limit
	}
	return Timeout, nil
}

func (e *Evtchn) wait(timeout time.Duration, raw bool) (Why, error) {
	fds := [2]unix.PollFd{{Fd: int32(e.fd), Events: unix.POLLIN}, {Fd: int32(e.wake), Events: unix.POLLIN}}
	ts := unix.NsecToTimespec(int64(max(timeout, 0)))
	var n uintptr
	var errno syscall.Errno
	if raw {
		n, _, errno = syscall.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), 2, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	} else {
		n, _, errno = syscall.Syscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&fds[0])), 2, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	}
	switch {
	case errno == unix.EINTR, errno == 0 && n == 0:
		return Timeout, nil
	case errno != 0:
		return Timeout, fmt.Errorf("wait for events: %w", errno)
	}
	if fds[1].Revents != 0 {
		var count [8]byte
		unix.Read(e.wake, count[:]) // non-blocking: another Wait cannot have taken it, we are the only one
		return Woken, nil
	}
	return Notified, e.unmask()
}

// unmask takes the notification and lets the next one come. Both calls return
// at once: there is one to read, and a write only unmasks.
func (e *Evtchn) unmask() error {
	var port [4]byte
	n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(e.fd), uintptr(unsafe.Pointer(&port[0])), 4)
	if errno != 0 {
		return fmt.Errorf("read event channel: %w", errno)
	}
	if _, _, errno = syscall.RawSyscall(syscall.SYS_WRITE, uintptr(e.fd), uintptr(unsafe.Pointer(&port[0])), n); errno != 0 {
		return fmt.Errorf("unmask event channel: %w", errno)
	}
	return nil
}

// Close unbinds the channel. Twice is harmless.
func (e *Evtchn) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fd < 0 {
		return nil
	}
	var err error
	arg := e.port
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(e.fd), ioctlUnbind, uintptr(unsafe.Pointer(&arg))); errno != 0 && !errors.Is(errno, unix.ENOTCONN) {
		err = os.NewSyscallError("unbind event channel", errno)
	}
	err = errors.Join(err, unix.Close(e.fd), unix.Close(e.wake))
	e.fd, e.wake = -1, -1
	return err
}
