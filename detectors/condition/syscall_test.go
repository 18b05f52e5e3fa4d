package condition

import (
	"testing"

	"github.com/hprobe/hprobe/detectors"
)

// ofCall is a hit of a system call.
type ofCall struct {
	detectors.Hit
	call detectors.Syscall
}

func (h *ofCall) Syscall() detectors.Syscall { return h.call }

func TestSyscallNames(t *testing.T) {
	p := testProfile(t)
	scope, err := NewScope(p, Place{Entry: true, Syscall: true})
	if err != nil {
		t.Fatal(err)
	}
	old, native := &ofCall{call: detectors.Syscall{Name: "openat", Nr: 295, Compat: true}}, &ofCall{call: detectors.Syscall{Name: "read"}}
	for text, want := range map[string][2]bool{
		"syscall.compat": {true, false}, "!syscall.compat": {false, true}, "syscall.nr == 295": {true, false}, "syscall.nr < 5": {false, true},
		`syscall.name in ["read", "write"]`: {false, true}, `syscall.name.startsWith("open") && syscall.compat`: {true, false}, "syscall.compat == false || syscall.nr > 1": {true, true},
	} {
		c, err := scope.Condition(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		for i, h := range []detectors.Hit{old, native} {
			scope.At(h)
			if got, err := c.Holds(); err != nil || got != want[i] {
				t.Errorf("%s: %t, %v", text, got, err)
			}
			if got, err := c.interpret(); err != nil || got != want[i] {
				t.Errorf("%s, by CEL: %t, %v", text, got, err)
			}
		}
	}
	c, err := scope.Condition("syscall.compat")
	if err != nil {
		t.Fatal(err)
	}
	scope.At(struct{ detectors.Hit }{})
	if _, err := c.Holds(); err == nil {
		t.Error("a hit that is no system call was judged")
	}
	elsewhere, err := NewScope(p, Place{Entry: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := elsewhere.Condition("syscall.compat"); err == nil {
		t.Error("syscall is known where it is not")
	}
}
