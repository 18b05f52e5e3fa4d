package binder

import (
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
)

// Signature is what is known of the function that a place is of.
type Signature struct {
	// Types is the profile that has its types: the kernel's, or the program's.
	Types *isf.Profile
	// Args are its arguments, at its entry or a call of it; elsewhere there are none. Of one
	// whose prototype is not known they are the first six registers, untyped.
	Args []guestos.Arg
	// Result is of what it returns; the zero Type: not known.
	Result isf.Type
}

// Bounds of what an operator's file may say of a place in an image.
const (
	// MaxTypes is how large ImagePlace.Types may be, in bytes.
	MaxTypes  = 1 << 20
	maxParams = 64
)

// errByValue is an argument of a program's: a few bytes of a struct would say little.
var errByValue = errors.New("it is a struct by value, and these are not read")

// SignatureAt finds what is known at a place, of an image by what the operator's file says
// of it (nil: nothing). A module's function has a prototype of its own, module!function: it
// may have the name of one of the kernel's.
func SignatureAt(kernel *isf.Profile, at Location, place *detectors.ImagePlace) (Signature, error) {
	s := Signature{Types: kernel}
	switch {
	case at.Offset != 0, at.Image != "" && at.Symbol == "":
		return s, nil
	case at.Image != "" && place != nil && place.Types != nil:
		return inProgram(at.Symbol, place.Types)
	case at.Image != "":
		s.Args = guestos.UntypedArgs()
		return s, nil
	}
	function := at.Symbol
	switch {
	case at.Callee != "":
		names := at.callees()
		function = names[max(slices.IndexFunc(names, func(c string) bool { return len(kernel.Addresses(c)) > 0 }), 0)]
	case at.Module != "":
		function = at.Module + "!" + function
	}
	if f, err := kernel.Func(function); err == nil {
		s.Result = f.Return
	}
	args, err := guestos.Args(kernel, function)
	switch {
	case errors.Is(err, guestos.ErrNoPrototype):
		s.Args = guestos.UntypedArgs()
	case err == nil:
		s.Args = args
	}
	return s, nil
}

func inProgram(function string, types []byte) (s Signature, err error) {
	fail := func(err error) (Signature, error) {
		return s, fmt.Errorf("the types of %s that came with its place: %w", function, err)
	}
	if len(types) > MaxTypes {
		return fail(fmt.Errorf("more than %d bytes", MaxTypes))
	}
	if s.Types, err = isf.ReadCompact(types); err != nil {
		return fail(err)
	}
	f, err := s.Types.Func(function)
	if err != nil {
		return fail(err)
	}
	if len(f.Params) > maxParams {
		return fail(fmt.Errorf("more than %d arguments", maxParams))
	}
	s.Args, s.Result = guestos.ArgsOf(s.Types, f), f.Return
	for i := range s.Args {
		if kind := s.Args[i].Type.Kind; s.Args[i].Unread == nil && (kind == isf.Struct || kind == isf.Union || kind == isf.Class) {
			s.Args[i].Unread = errByValue
		}
	}
	return s, nil
}
