package detectors

import "github.com/hprobe/hprobe/xenevents"

// Source is what a probe watches that is no instruction's address, as people write it:
// one of Register, CPUID and Memory.
type Source struct {
	// Register is a register that is written: cr0, cr3, cr4, cr4:smep,smap (only where
	// one of these bits changes), cr0:0x10000, lstar, msr:0xc0000082.
	Register string
	// CPUID is a leaf of that instruction: 0x40000000, or any.
	CPUID string
	// Memory is a range: symbol, symbol+0x10:4, module!symbol, 0xffff888000001000+16,
	// phys:0x1000+8; of 8 bytes where it does not say. Access is which accesses: r, w,
	// x, or several; "" is w.
	Memory, Access string
	// Async has nobody wait at a write of cr0, cr3 or cr4.
	Async bool
	// Deny: a Verdict to deny is carried out, where that can be.
	Deny bool
}

// Seen is what a probe of a Source saw.
type Seen struct {
	// Old and New are a register's value before and after, or that of the accessed
	// memory, of which these are the first 8 bytes. Unknown: New is not known, as the
	// write is not done yet.
	Old, New uint64
	Unknown  bool
	// Leaf and Subleaf are CPUID's. Its results are in Hit.Registers.
	Leaf, Subleaf uint32
	// Access, At and Size are what was accessed, in bytes. It may begin before the
	// range, and be longer.
	Access xenevents.Access
	At     xenevents.GVA
	Size   uint32
}
