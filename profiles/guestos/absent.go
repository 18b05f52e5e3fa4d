package guestos

import "github.com/hprobe/hprobe/profiles/isf"

// absentError says what the running guest does not have. It matches
// isf.ErrNotFound, as who named it named nothing; but the profile is not at fault.
type absentError struct{ what string }

func (e *absentError) Error() string        { return e.what }
func (e *absentError) Is(target error) bool { return target == isf.ErrNotFound }
