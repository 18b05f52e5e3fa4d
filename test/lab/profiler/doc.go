// Package profiler says where the ticks of a lab host go: in the guest, in Xen,
// in dom0's kernel, in hprobed, by function where symbols are known.
//
// The emulator (test/lab/assets/profiler.patch) leaves a sample of each busy processor
// every Period ticks and one at each VM exit. A tick is an instruction, so the
// figures are the same on every machine.
package profiler

// Period is the number of TSC ticks between two samples of a processor: the
// emulator's LAB_PROFILE_TICKS.
const Period = 997
