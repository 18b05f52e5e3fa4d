package native

import (
	"errors"

	"github.com/hprobe/hprobe/xenevents"
)

// Unsettled is what there is to know of a vCPU's last reply to tell whether Xen has
// carried it out: see xenevents.Settler.
type Unsettled struct {
	RIP uint64 // at the event
	// Slack: it is carried out when the vCPU is further than so many bytes from RIP.
	Slack uint64
	// Due: the reply asked for something that Xen does when it schedules the vCPU.
	Due bool
}

// LongestInsn is how long an instruction may be, in bytes: the Slack of a write that is
// held, whose event is of before the instruction while the vCPU stands behind it.
const LongestInsn = 15

// Settled says whether it was carried out: the vCPU is at another instruction, or down.
// One that loops back to the same may be seen as not settled, which is true of it again
// a moment later.
func (u *Unsettled) Settled(vcpus xenevents.VCPUs, v xenevents.VCPU) (bool, error) {
	if !u.Due {
		return true, nil
	}
	r, err := vcpus.Registers(v)
	if err != nil && !errors.Is(err, xenevents.ErrVCPUDown) {
		return false, err
	}
	if err == nil && r.RIP-u.RIP <= u.Slack {
		return false, nil
	}
	u.Due = false
	return true, nil
}
