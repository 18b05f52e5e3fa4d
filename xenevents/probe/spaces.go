package probe

import (
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/pagewatch"
)

// spaces are those whose hits are a probe's: all, or the one or two of a process.
type spaces struct {
	all          bool
	user, kernel xenevents.AddressSpace // kernel: with KPTI
}

// spacesOf finds them for a Request. The kernel's half is in all.
func (e *Engine) spacesOf(r *Request) (s spaces) {
	if s.all = kernelHalf(r.At); s.all {
		s.user = r.Space
		return s
	}
	s.user, s.kernel = pagewatch.Roots(e.dom, r.Space)
	return s
}

func (s *spaces) hold(x xenevents.AddressSpace) bool {
	return s.all || x == s.user || x == s.kernel && s.kernel.Root != 0
}
