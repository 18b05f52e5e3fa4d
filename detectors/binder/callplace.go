package binder

import (
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

// maxFunction bounds how much code is searched for a call, in bytes.
const maxFunction = 64 << 10

// findCall finds the one place in a kernel's function that calls one of callees. It
// takes the code as the guest has it now: what is patched at boot is patched. Calls by
// a pointer are none.
func findCall(k *guestos.Kernel, function string, callees []string) (xenevents.GVA, error) {
	targets, err := targetsOf(k, callees)
	if err != nil {
		return 0, err
	}
	start, err := k.Address(function)
	if err != nil {
		return 0, err
	}
	code, err := functionCode(k, start)
	if err != nil {
		return 0, fmt.Errorf("%s can't be read: %w", function, err)
	}
	var found []xenevents.GVA
	for off := 0; off < len(code); {
		n, to, err := probe.Callee(code[off:])
		if err != nil {
			return 0, fmt.Errorf("%s+%#x is no instruction that hprobe knows, so its calls can't be told: %w", function, off, err)
		}
		at := start + xenevents.GVA(off)
		if to != 0 && slices.ContainsFunc(targets, func(t target) bool { return at+to >= t.from && at+to <= t.to }) {
			found = append(found, at)
		}
		off += n
	}
	switch what := strings.Join(callees, " or "); len(found) {
	case 0:
		return 0, fmt.Errorf("%s of this kernel does not call %s: the compiler may have made it a part of the caller", function, what)
	case 1:
		return found[0], nil
	default:
		return 0, fmt.Errorf("%s of this kernel calls %s in %d places, not one", function, what, len(found))
	}
}

// target is where calls of a function go to.
type target struct{ from, to xenevents.GVA }

// targetsOf are those of callees that the kernel has. With CONFIG_CALL_THUNKS a call
// goes to the padding before a function, which has a symbol of its own.
func targetsOf(k *guestos.Kernel, callees []string) ([]target, error) {
	var all []target
	var missing error
	for _, c := range callees {
		at, err := k.Address(c)
		if err != nil {
			missing = err
			continue
		}
		t := target{at, at}
		if padding, err := k.Address("__pfx_" + c); err == nil && padding < at && at-padding < 64 {
			t.from = padding
		}
		all = append(all, t)
	}
	if all == nil {
		return nil, missing
	}
	return all, nil
}

// functionCode reads a function of the kernel, up to the next symbol.
func functionCode(k *guestos.Kernel, start xenevents.GVA) ([]byte, error) {
	linked := uint64(start) - k.Slide
	size := sort.Search(maxFunction, func(n int) bool {
		s, ok := k.Profile.Nearest(linked + uint64(n))
		return !ok || s.Addr != linked
	})
	code := make([]byte, size)
	n, err := k.Read(code, start)
	if err == nil && n < size {
		err = errors.New("a part of it is not in memory")
	}
	return code, err
}
