package sim

import (
	"slices"

	"github.com/hprobe/hprobe/xenevents"
)

// Step is one thing that a vCPU does: see Exec, Call, Read, Write, ….
type Step struct {
	// run does one instruction's worth of it, or fails with a stop and has done
	// nothing. It says whether the step is over.
	run func(v *VCPU) (over bool, err error)
	// over says whether the step is over when a reply moved RIP, which ends the
	// present instruction; nil: it is.
	over func(v *VCPU) bool
}

// Exec runs the one instruction at an address. It stays behind it.
func Exec(at xenevents.GVA) Step {
	return Step{run: func(v *VCPU) (bool, error) {
		if v.phase == 0 {
			v.regs.RIP, v.phase = uint64(at), 1
		}
		return true, v.instruction()
	}}
}

// Call calls a function as System V would, with RSP where it is, and runs until
// that returns.
func Call(at xenevents.GVA, args ...uint64) Step {
	back := func(v *VCPU) bool { return v.regs.RIP == v.from && v.regs.RSP == v.stack }
	return Step{over: back, run: func(v *VCPU) (bool, error) {
		if v.phase == 0 {
			for i, n := range []int{7, 6, 2, 1, 8, 9}[:len(args)] { // RDI, RSI, RDX, RCX, R8, R9
				*v.regs.GPR(n) = args[i]
			}
			v.from, v.stack = v.regs.RIP, v.regs.RSP
			if err := v.push(v.from); err != nil {
				return false, err
			}
			v.regs.RSP -= 8
			v.regs.RIP, v.phase = uint64(at), 1
			return false, nil
		}
		err := v.instruction()
		return back(v), err
	}}
}

// Read loads into p, which is the test's again when the script is over.
func Read(at xenevents.GVA, p []byte) Step {
	return Step{run: func(v *VCPU) (bool, error) { return true, v.read(at, p) }}
}

// Write stores p.
func Write(at xenevents.GVA, p ...byte) Step {
	return Step{run: func(v *VCPU) (bool, error) { return true, v.write(at, p) }}
}

// See shows the registers to f, which must not call the guest.
func See(f func(r xenevents.Registers)) Step {
	return Step{run: func(v *VCPU) (bool, error) {
		f(v.regs)
		return true, nil
	}}
}

// Repeat is n times all steps.
func Repeat(n int, steps ...Step) []Step { return slices.Repeat(steps, n) }
