package daemon

import (
	"fmt"

	"github.com/hprobe/hprobe/cmd/internal/control"
	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
)

// stacks are those that a hit is shown with.
type stacks struct{ kernel, user bool }

func stacksOf(asked string) (s stacks, err error) {
	switch asked {
	case "":
	case "kernel":
		s.kernel = true
	case "user":
		s.user = true
	case "all":
		s.kernel, s.user = true, true
	default:
		err = fmt.Errorf("no stack is called %q: say kernel, user or all", asked)
	}
	return s, err
}

// show puts them into a hit's message.
func (s stacks) show(h detectors.Hit, m *controlapi.Hit) {
	if !s.kernel && !s.user {
		return
	}
	stack := h.Stack(s.kernel, s.user)
	add := func(all []detectors.Frame, user bool) {
		for _, f := range all {
			m.Stack = append(m.Stack, &controlapi.Frame{Address: uint64(f.At), Text: control.Text(f.Text), User: user})
		}
	}
	add(stack.Kernel, false)
	add(stack.User, true)
	if stack.Err != nil {
		m.StackError = control.Text(stack.Err.Error())
	}
}
