package binder

import (
	"fmt"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
)

// CallHit is a hit of a system call, whichever of a set's places it came by.
type CallHit struct {
	detectors.Hit
	Number uint64 // among the hits of the set, from 1
	Call   guestos.Syscall
	Params []guestos.Arg // where the arguments of the Call are
}

// Seq is the Number.
func (h *CallHit) Seq() uint64 { return h.Number }

// Syscall is the Call.
func (h *CallHit) Syscall() detectors.Syscall {
	return detectors.Syscall{Name: h.Call.Name, Nr: h.Call.Nr, Compat: h.Call.Compat}
}

// Arg is one of the caller's.
func (h *CallHit) Arg(n int) (uint64, error) {
	if n < 0 || n >= len(h.Params) {
		return 0, fmt.Errorf("%s has no argument %d", h.Call, n)
	}
	return h.Params[n].Read(h.Registers(), h.ReadUint64)
}

// Args are all of them.
func (h *CallHit) Args() []detectors.Arg {
	all := make([]detectors.Arg, len(h.Params))
	for i := range h.Params {
		all[i] = detectors.Arg{Name: h.Params[i].Name, Type: h.Params[i].Type.String()}
		all[i].Value, all[i].Err = h.Arg(i)
	}
	return all
}
