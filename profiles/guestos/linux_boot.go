package guestos

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// Started says whether the kernel has come so far that it runs programs. Until then it
// changes its own code: alternatives, ftrace's places, static keys and calls, retpolines; a
// breakpoint that is set before may be on what is another instruction afterwards. known is
// false where the profile does not say. (init/main.c, kernel_init: system_state becomes
// SYSTEM_RUNNING when all that is over, before /init is run.)
func (k *Kernel) Started() (started, known bool, err error) {
	at, err := k.Profile.Address("system_state")
	if errors.Is(err, isf.ErrNotFound) {
		return false, false, nil
	} else if err != nil {
		return false, false, err
	}
	running, err := k.constant("system_states", "SYSTEM_RUNNING")
	if errors.Is(err, isf.ErrNotFound) {
		return false, false, nil
	} else if err != nil {
		return false, false, err
	}
	var b [4]byte
	if _, err := k.Read(b[:], xenevents.GVA(at+k.Slide)); err != nil {
		return false, true, fmt.Errorf("how far the kernel's start is: %w", err)
	}
	// Behind it there are only the states of a kernel that ends or sleeps.
	return binary.LittleEndian.Uint32(b[:]) >= running, true, nil
}
