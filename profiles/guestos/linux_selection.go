package guestos

import (
	"errors"
	"slices"
	"strings"
)

// Selection says which system calls somebody wants.
type Selection struct {
	all     bool
	in, out []string
}

// ParseSelection reads names, "all", and "!name" for one that is left out. Where some
// are left out and none is named, all others are meant.
func ParseSelection(words []string) (s Selection, err error) {
	for _, w := range words {
		w = strings.TrimSpace(w)
		name, not := strings.CutPrefix(w, "!")
		switch {
		case name == "":
			return s, errors.New("a system call without a name: they are written like openat,execve, or all, or 'all,!read,!write'")
		case not && name == "all":
			return s, errors.New("!all leaves nothing: say which system calls")
		case not:
			s.out = append(s.out, name)
		case name == "all":
			s.all = true
		default:
			s.in = append(s.in, name)
		}
	}
	s.all = s.all || len(s.in) == 0
	return s, nil
}

func (s *Selection) picks(name string) bool {
	return (s.all || slices.Contains(s.in, name)) && !slices.Contains(s.out, name)
}

// Find finds the calls in a guest's kernel. A name that it does not have is an error.
// Guest memory belongs to the engine's goroutine.
func (s *Selection) Find(k *Kernel) (*SyscallSet, error) {
	known := k.SyscallNames()
	for _, name := range slices.Concat(s.in, s.out) {
		if !slices.Contains(known, name) {
			return nil, k.NoSyscall(name)
		}
	}
	set, err := k.Syscalls(s.picks)
	if err != nil {
		return nil, err
	}
	for _, name := range s.in {
		if s.picks(name) && !slices.Contains(set.Names, name) { // a number without a call
			return nil, k.NoSyscall(name)
		}
	}
	if len(set.Places) == 0 {
		return nil, errors.New("no system call is left to be probed")
	}
	return set, nil
}
