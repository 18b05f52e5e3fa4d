package guestmem

import "github.com/hprobe/hprobe/xenevents"

// KernelSpaces returns the address spaces that may map a Linux kernel, by the registers of
// a vCPU. With KPTI a process has two page-table roots, one page apart, and in user mode
// CR3 has the one that lacks the kernel, with bit 12 set (arch/x86/entry/calling.h,
// PTI_USER_PGTABLE_BIT); without KPTI bit 12 may be an address's, and the page before some
// other process's root, which maps the kernel as well, or none. A kernel with 5-level page
// tables is an *xenevents.UnsupportedError.
func KernelSpaces(regs *xenevents.Registers) ([]xenevents.AddressSpace, error) {
	if regs.CR4&xenevents.CR4LA57 != 0 {
		return nil, &xenevents.UnsupportedError{Feature: "a guest with 5-level page tables", Need: `start it with "no5lvl" on its kernel's command line`}
	}
	s := xenevents.AddressSpaceOf(regs)
	if s.Root&xenevents.PageSize == 0 {
		return []xenevents.AddressSpace{s}, nil
	}
	k := s
	k.Root &^= xenevents.PageSize
	return []xenevents.AddressSpace{k, s}, nil
}
