package guestos

import (
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// NoSymbolError says that a module has neither a variable nor a function of a name. It
// matches isf.ErrNotFound.
type NoSymbolError struct{ Module, Symbol string }

func (e *NoSymbolError) Error() string {
	return fmt.Sprintf("module %q has no variable or function %q", e.Module, e.Symbol)
}

// Is makes it match isf.ErrNotFound.
func (e *NoSymbolError) Is(target error) bool { return target == isf.ErrNotFound }

// Address finds a variable or a function. It fails with a *NoSymbolError where there is
// none.
func (s *ModuleSymbols) Address(name string) (xenevents.GVA, error) {
	var found []xenevents.GVA
	for _, e := range s.table.entries {
		if s.names.is(e.name, name) {
			found = append(found, e.at)
		}
	}
	slices.Sort(found)
	found = slices.Compact(found)
	switch len(found) {
	case 0:
		return 0, &NoSymbolError{Module: s.module.Name, Symbol: name}
	case 1:
		return found[0], nil
	}
	return 0, fmt.Errorf("module %q has %d symbols called %q: give an address", s.module.Name, len(found), name)
}
