package condition

import (
	"errors"

	"github.com/hprobe/hprobe/detectors"
)

// Of is what a Place is of.
type Of uint8

// What there is.
const (
	Instruction Of = iota
	Register       // that is written
	CPUID          // that is run
	Memory         // that is accessed
)

func (o Of) String() string {
	return [...]string{"a call", "a write", "a CPUID", "an access"}[min(o, Memory)]
}

// DenyWrite is what Rule.Deny says of a register or memory: there is no caller that
// could be told an error.
const DenyWrite = "write"

// errNoSource is an expression of a source at an instruction; it can't be.
var errNoSource = errors.New("nothing but an instruction was seen here")

// seenNumber reads a number of what was seen.
func seenNumber(get func(detectors.Hit, *detectors.Seen) (uint64, error)) func(detectors.Hit) (uint64, error) {
	return func(h detectors.Hit) (uint64, error) {
		s, ok := h.Seen()
		if !ok {
			return 0, errNoSource
		}
		return get(h, &s)
	}
}

var errNotWritten = errors.New("what will be written is not known before")

// named is a variable of a source.
type named struct {
	name string
	source
}

func number64(name string, get func(h detectors.Hit, s *detectors.Seen) (uint64, error)) named {
	return named{name, source{shape: aUint, number: seenNumber(get)}}
}

func register(name string, get func(h detectors.Hit) uint64) named {
	return number64(name, func(h detectors.Hit, _ *detectors.Seen) (uint64, error) { return get(h), nil })
}

var (
	seenOld = number64("old", func(_ detectors.Hit, s *detectors.Seen) (uint64, error) { return s.Old, nil })
	seenNew = number64("new", func(_ detectors.Hit, s *detectors.Seen) (uint64, error) {
		if s.Unknown {
			return 0, errNotWritten
		}
		return s.New, nil
	})
	seenRIP = register("rip", func(h detectors.Hit) uint64 { return h.Registers().RIP })
	seenCPL = named{"cpl", source{shape: anInt, number: func(h detectors.Hit) (uint64, error) { return uint64(h.Registers().CPL()), nil }}}
)

// sources are the variables by what a place is of.
var sources = map[Of][]named{
	Register: {seenOld, seenNew, seenRIP, seenCPL},
	CPUID: {
		number64("leaf", func(_ detectors.Hit, s *detectors.Seen) (uint64, error) { return uint64(s.Leaf), nil }),
		number64("subleaf", func(_ detectors.Hit, s *detectors.Seen) (uint64, error) { return uint64(s.Subleaf), nil }),
		register("eax", func(h detectors.Hit) uint64 { return uint64(uint32(h.Registers().RAX)) }),
		register("ebx", func(h detectors.Hit) uint64 { return uint64(uint32(h.Registers().RBX)) }),
		register("ecx", func(h detectors.Hit) uint64 { return uint64(uint32(h.Registers().RCX)) }),
		register("edx", func(h detectors.Hit) uint64 { return uint64(uint32(h.Registers().RDX)) }),
		seenRIP, seenCPL,
	},
	Memory: {
		{"access", source{shape: aText, text: func(h detectors.Hit) (string, error) {
			s, ok := h.Seen()
			if !ok {
				return "", errNoSource
			}
			text := ""
			for i, c := range []string{"r", "w", "x"} {
				if s.Access&(1<<i) != 0 {
					text += c
				}
			}
			return text, nil
		}}},
		number64("address", func(_ detectors.Hit, s *detectors.Seen) (uint64, error) { return uint64(s.At), nil }),
		number64("length", func(_ detectors.Hit, s *detectors.Seen) (uint64, error) { return uint64(s.Size), nil }),
		seenOld, seenNew, seenRIP, seenCPL,
	},
}

// declareSource makes the variables of a source.
func (s *Scope) declareSource(add func(string, source)) {
	for _, n := range sources[s.of] {
		from := n.source
		from.arg = -1
		add(n.name, s.hit.add(from))
	}
}

// seen are captures of what a source saw.
func (s *Scope) seen() (all []*Capture, err error) {
	for _, n := range sources[s.of] {
		if n.name == "cpl" {
			continue
		}
		c, err := s.Capture(n.name)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// checkSource says what a rule of a source can't have.
func (r *Rule) checkSource(at Place) error {
	switch {
	case r.Deny != "" && !at.Deniable:
		return errors.New("it can't be denied: only writes of cr0, cr4 and MSRs, and plain stores to memory can")
	case r.Deny != "" && r.Deny != DenyWrite:
		return errors.New("there is no caller to be told an error: say deny write, and the write has no effect")
	case len(r.Set) > 0:
		return errors.New("only at an instruction something can be set")
	case r.Pause && at.Async:
		return errors.New("the guest does not wait there: say pause without async")
	}
	return nil
}

// knownOf lists what a source has, for errors.
func knownOf(o Of) (text string) {
	for i, n := range sources[o] {
		if i > 0 {
			text += ", "
		}
		text += n.name
	}
	return text
}
