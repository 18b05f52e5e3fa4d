package binder

import (
	"github.com/hprobe/hprobe/detectors/condition"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/xenevents"
)

// Place is a location as rules see it: where its function is called, or with ends where a
// call ends.
func (s *Signature) Place(at Location, ends bool) condition.Place {
	place := condition.Place{Entry: at.Entry() || at.Callee != "", Args: s.Args, Ends: ends}
	if ends {
		place.Result = s.Result
	}
	return place
}

// Place is a source as rules see it.
func (s *Source) Place(async bool) condition.Place {
	p := condition.Place{Async: async}
	switch s.Kind {
	case xenevents.KindCPUID:
		p.Of = condition.CPUID
	case xenevents.KindMemAccess:
		p.Of, p.Deniable = condition.Memory, s.Access&xenevents.AccessW != 0
	default:
		p.Of, p.Deniable = condition.Register, s.Kind == xenevents.KindMSR || s.Index != 3
	}
	p.Deniable = p.Deniable && !async
	return p
}

// PlaceOfCalls is a set of system calls as rules see it: of one, with its arguments by
// name and type; of several, with arg0 to arg5.
func PlaceOfCalls(k *guestos.Kernel, set *guestos.SyscallSet) (condition.Place, error) {
	args, err := k.AnyArgs()
	if len(set.Names) == 1 {
		args, err = set.Args(guestos.Syscall{Name: set.Names[0], Compat: !set.Native(set.Names[0])})
	}
	return condition.Place{Entry: true, Args: args, Syscall: true}, err
}
