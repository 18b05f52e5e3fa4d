package guestos

import (
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// TestModuleVariable: what a module has by a name, code or not, but not what it imports.
func TestModuleVariable(t *testing.T) {
	g, _ := loaded(t)
	k := g.find(t, testProfile(t, nil))
	m, err := k.Module("vuln_one")
	if err != nil {
		t.Fatal(err)
	}
	s, err := k.Symbols(m)
	if err != nil {
		t.Fatal(err)
	}
	if at, err := s.Address("data"); at != two+8 || err != nil {
		t.Errorf("data is at %v, %v", at, err)
	}
	if at, err := s.Address("x"); at != xenevents.GVA(two+codeAt+3) || err != nil {
		t.Errorf("x is at %v, %v", at, err)
	}
	for _, name := range []string{"printk", "nothing", ""} {
		if at, err := s.Address(name); !errors.Is(err, isf.ErrNotFound) {
			t.Errorf("%q is at %v, %v", name, at, err)
		}
	}
	if _, err := s.Address("twice"); err == nil || !strings.Contains(err.Error(), "2 symbols") {
		t.Errorf("%v", err)
	}
}
