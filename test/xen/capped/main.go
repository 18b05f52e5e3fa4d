// Command capped runs a program with what hprobed's systemd unit leaves it: the capabilities
// of these numbers and no others, no new privileges, no memory that is written and then run.
//
//	capped 0,5 PROGRAM [ARGUMENT...]
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// prctl(2)'s numbers.
const (
	dropBounding    = 24
	setNoNewPrivs   = 38
	setMDWE         = 65 // since Linux 6.3
	refuseExecGain  = 1
	mostCapablities = 64
)

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: capped NUMBER,NUMBER PROGRAM [ARGUMENT...]")
		os.Exit(2)
	}
	if err := run(strings.Split(os.Args[1], ","), os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "capped:", err)
		os.Exit(1)
	}
}

func run(keep, args []string) error {
	path, err := exec.LookPath(args[0])
	if err != nil {
		return err
	}
	runtime.LockOSThread() // what execs
	for n := range mostCapablities {
		if slices.Contains(keep, strconv.Itoa(n)) {
			continue
		}
		if err := prctl(dropBounding, uintptr(n)); err == syscall.EINVAL {
			break // there are no more
		} else if err != 0 {
			return fmt.Errorf("drop capability %d: %w", n, err)
		}
	}
	if err := prctl(setNoNewPrivs, 1); err != 0 {
		return fmt.Errorf("no new privileges: %w", err)
	}
	if err := prctl(setMDWE, refuseExecGain); err != 0 && err != syscall.EINVAL {
		return fmt.Errorf("no memory that is written and then run: %w", err)
	}
	return syscall.Exec(path, args, os.Environ())
}

func prctl(option, value uintptr) syscall.Errno {
	_, _, err := syscall.RawSyscall6(syscall.SYS_PRCTL, option, value, 0, 0, 0, 0)
	return err
}
