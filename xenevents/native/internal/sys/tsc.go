package sys

// TSC reads the processor's time-stamp counter: some 25 cycles, where a clock
// may cost a PV dom0 a system call.
func TSC() uint64
