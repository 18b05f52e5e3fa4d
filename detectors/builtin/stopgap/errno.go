package stopgap

import (
	"fmt"
	"slices"
	"strings"
)

// Errno is an error number of Linux on x86-64 (asm-generic/errno-base.h): the
// guest's, whatever this machine runs.
type Errno int

// The errors that a kernel refuses a bad argument with.
const (
	EPERM  Errno = 1
	ENOMEM Errno = 12
	EACCES Errno = 13
	EFAULT Errno = 14
	EINVAL Errno = 22
	ENOSYS Errno = 38
)

var errnoNames = map[string]Errno{"EPERM": EPERM, "ENOMEM": ENOMEM, "EACCES": EACCES, "EFAULT": EFAULT, "EINVAL": EINVAL, "ENOSYS": ENOSYS}

func (e Errno) String() string {
	for name, v := range errnoNames {
		if v == e {
			return name
		}
	}
	return fmt.Sprintf("errno %d", int(e))
}

// ParseErrno reads a name.
func ParseErrno(name string) (Errno, error) {
	if e, ok := errnoNames[strings.ToUpper(name)]; ok {
		return e, nil
	}
	var all []string
	for n := range errnoNames {
		all = append(all, n)
	}
	slices.Sort(all)
	return 0, fmt.Errorf("no errno for a stopgap is called %q; there are %s", name, strings.Join(all, ", "))
}
