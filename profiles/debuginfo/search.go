package debuginfo

import (
	"debug/dwarf"
	"slices"

	"github.com/hprobe/hprobe/profiles/isf"
)

// Function is one that was compiled.
type Function struct {
	Name   string
	Symbol string // what linkers call it, where that is not its name
	Addr   uint64 // of its first instruction; 0: it has no code of its own
	// Copies are the first instructions of those that the compiler has put into other
	// functions, in order; Copied is how many they are, if more than are kept.
	Copies []uint64
	Copied int
	// Calls says which convention callers keep to.
	Calls Calls

	at   dwarf.Offset
	line int64
}

// Calls is a calling convention, as far as DWARF tells.
type Calls uint8

// What is known of one.
const (
	CallsLikeC   Calls = iota // the System V ABI
	CallsLikeCPP              // the same, but for classes by value
	CallsChanged              // the compiler has left arguments out, or moved them
	CallsOther                // of another language
)

// maxCopies bounds how many copies of a function are kept.
const maxCopies = 256

// Functions finds those of a name, or of what linkers call it, and those whose first
// instruction is at an address (0: none). isCode says whether an address is in the
// program: what the linker threw away has others. It goes through all of the file.
func (i *Info) Functions(name string, at uint64, isCode func(uint64) bool) ([]Function, error) {
	s := search{info: i, name: name, addr: at, isCode: isCode, copies: map[dwarf.Offset]*copies{}}
	for w := i.Walk(); ; {
		e, err := w.Next()
		if err != nil {
			return nil, err
		}
		if e == nil {
			break
		}
		if err := s.entry(e); err != nil {
			return nil, err
		}
	}
	return s.found, s.addCopies()
}

type search struct {
	info   *Info
	name   string
	addr   uint64
	isCode func(uint64) bool
	calls  Calls // of the unit
	found  []Function
	copies map[dwarf.Offset]*copies // by what they are copies of
}

type copies struct {
	n     int
	first []uint64
}

func (s *search) entry(e *dwarf.Entry) error {
	switch e.Tag {
	case dwarf.TagCompileUnit, dwarf.TagPartialUnit:
		s.calls = callsOf(e)
	case dwarf.TagInlinedSubroutine:
		of, ok := e.Val(dwarf.AttrAbstractOrigin).(dwarf.Offset)
		at := s.begin(e)
		if !ok || !s.isCode(at) {
			return nil
		}
		c := s.copies[of]
		if c == nil {
			c = &copies{}
			s.copies[of] = c
		}
		if c.n++; len(c.first) < maxCopies {
			c.first = append(c.first, at)
		}
	case dwarf.TagSubprogram:
		return s.function(e)
	}
	return nil
}

// function takes one that is asked for: where its code is, or what copies are of.
func (s *search) function(e *dwarf.Entry) error {
	if e.Val(dwarf.AttrDeclaration) != nil {
		return nil
	}
	f, err := s.named(e)
	if err != nil {
		return err
	}
	if at := s.begin(e); s.isCode(at) {
		f.Addr = at
	}
	mine := s.name != "" && (f.Name == s.name || f.Symbol == s.name)
	if !mine && (s.addr == 0 || f.Addr != s.addr) || len(s.found) == maxCopies {
		return nil
	}
	const noCall = 3 // DW_CC_nocall, DWARF 5, 3.3.1.1
	if f.Calls = s.calls; f.Calls <= CallsLikeCPP {
		if cc, ok := number(e, dwarf.AttrCalling); ok && cc == noCall {
			f.Calls = CallsChanged
		}
	}
	s.found = append(s.found, f)
	return nil
}

// named reads what a function is called, be it elsewhere that it says so.
func (s *search) named(e *dwarf.Entry) (f Function, err error) {
	f.at = e.Offset
	for attr, to := range map[dwarf.Attr]*string{dwarf.AttrName: &f.Name, dwarf.AttrLinkageName: &f.Symbol} {
		v, err := s.info.Val(e, attr)
		if err != nil {
			return f, err
		}
		*to, _ = v.(string)
	}
	v, err := s.info.Val(e, dwarf.AttrDeclLine)
	f.line, _ = v.(int64)
	return f, err
}

// begin is the first instruction of an entry's code; 0 where it has none.
func (s *search) begin(e *dwarf.Entry) uint64 {
	for _, attr := range []dwarf.Attr{dwarf.AttrEntrypc, dwarf.AttrLowpc} {
		if at, ok := e.Val(attr).(uint64); ok {
			return at
		}
	}
	if e.Val(dwarf.AttrRanges) == nil {
		return 0
	}
	if all, err := s.info.data.Ranges(e); err == nil && len(all) > 0 {
		return all[0][0]
	}
	return 0
}

// addCopies gives each function that was found those of its copies. Each file that was
// compiled with a header has its own idea of a function that is in it.
func (s *search) addCopies() error {
	if len(s.found) == 0 {
		return nil
	}
	for at, c := range s.copies {
		e, err := s.info.entry(at)
		if err != nil || e == nil {
			return err
		}
		of, err := s.named(e)
		if err != nil {
			return err
		}
		for n := range s.found {
			if f := &s.found[n]; f.Name == of.Name && f.Symbol == of.Symbol && f.line == of.line {
				f.Copied += c.n
				f.Copies = append(f.Copies, c.first...)
			}
		}
	}
	for n := range s.found {
		f := &s.found[n]
		slices.Sort(f.Copies)
		f.Copies = f.Copies[:min(len(f.Copies), maxCopies)]
	}
	return nil
}

// languages that call as the System V ABI says (DWARF 5, 7.12, and what it has been given
// since): C, Objective C, and of C++.
var (
	likeC   = []int64{0x01, 0x02, 0x0c, 0x10, 0x1d, 0x2c, 0x3e}
	likeCPP = []int64{0x04, 0x11, 0x19, 0x1a, 0x21, 0x2a, 0x2b, 0x3a}
)

func callsOf(unit *dwarf.Entry) Calls {
	switch language, _ := number(unit, dwarf.AttrLanguage); {
	case slices.Contains(likeC, language):
		return CallsLikeC
	case slices.Contains(likeCPP, language):
		return CallsLikeCPP
	}
	return CallsOther
}

// maxTypes bounds the types that a function's prototype brings along, in bytes, about.
const maxTypes = 256 << 10

// Prototype adds a function's to out, by a name, with the types that it leads to, the
// nearest first. all is false where it leads to more than are taken.
func (i *Info) Prototype(f *Function, name string, out *isf.Builder) (all bool, err error) {
	e, err := i.entry(f.at)
	if err != nil || e == nil {
		return false, err
	}
	if e, err = i.Origin(e); err != nil { // the copy of one may lack what it does not use
		return false, err
	}
	w := i.WalkFrom(e.Offset)
	if _, err := w.step(); err != nil {
		return false, err
	}
	c := NewConverter(i, out, true)
	if out.Funcs[name], err = c.Func(w, e); err != nil {
		return false, err
	}
	return c.Members(maxTypes)
}
