package guestmem

import (
	"errors"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
)

func TestKernelSpaces(t *testing.T) {
	r := xenevents.Registers{CR0: xenevents.CR0PG, EFER: xenevents.EFERLMA, CR3: 0x4000}
	if got, err := KernelSpaces(&r); err != nil || len(got) != 1 || got[0].Root != 0x4000 {
		t.Errorf("%v, %v", got, err)
	}
	r.CR3 = 0x5801 // KPTI: user mode, with a PCID
	if got, err := KernelSpaces(&r); err != nil || len(got) != 2 || got[0].Root != 0x4000 || got[1].Root != 0x5000 {
		t.Errorf("%v, %v", got, err)
	}
	r.CR4 |= xenevents.CR4LA57
	if got, err := KernelSpaces(&r); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("5 levels: %v, %v", got, err)
	}
}
