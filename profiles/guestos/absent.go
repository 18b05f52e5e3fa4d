package guestos

import (
	"errors"

	"github.com/hprobe/hprobe/profiles/isf"
)

// ErrAbsent is what the running guest does not have: a process, a module.
var ErrAbsent = errors.New("not in the guest")

// absentError says what the running guest does not have. It matches ErrAbsent, and
// isf.ErrNotFound, as who named it named nothing; but the profile is not at fault.
type absentError struct{ what string }

func (e *absentError) Error() string { return e.what }
func (e *absentError) Is(target error) bool {
	return target == ErrAbsent || target == isf.ErrNotFound
}
