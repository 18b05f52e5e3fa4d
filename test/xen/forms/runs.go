package forms

import (
	"golang.org/x/arch/x86/x86asm"
)

// Runs says whether a program may run the form, and with a result that only
// depends on registers and memory.
func (f *Form) Runs() bool {
	switch f.Inst.Op {
	case x86asm.CLI, x86asm.STI, x86asm.HLT, x86asm.LGDT, x86asm.LIDT, x86asm.LLDT, x86asm.LTR, x86asm.LMSW, x86asm.CLTS,
		x86asm.SGDT, x86asm.SIDT, x86asm.SLDT, x86asm.STR, x86asm.SMSW, x86asm.INVD, x86asm.WBINVD, x86asm.INVLPG, x86asm.INVPCID,
		x86asm.IN, x86asm.OUT, x86asm.INSB, x86asm.INSW, x86asm.INSD, x86asm.OUTSB, x86asm.OUTSW, x86asm.OUTSD,
		x86asm.RDMSR, x86asm.WRMSR, x86asm.RDPMC, x86asm.SWAPGS, x86asm.MONITOR, x86asm.MWAIT, x86asm.XSETBV,
		x86asm.SYSCALL, x86asm.SYSRET, x86asm.SYSENTER, x86asm.SYSEXIT, x86asm.INT, x86asm.ICEBP, x86asm.IRET, x86asm.IRETD, x86asm.IRETQ,
		x86asm.RDTSC, x86asm.RDTSCP, x86asm.RDRAND, x86asm.WRFSBASE, x86asm.WRGSBASE, x86asm.LCALL, x86asm.LJMP, x86asm.LRET,
		x86asm.XSAVE, x86asm.XSAVE64, x86asm.XSAVEC, x86asm.XSAVEC64, x86asm.XSAVES, x86asm.XSAVES64, x86asm.XSAVEOPT, x86asm.XSAVEOPT64,
		x86asm.XRSTOR, x86asm.XRSTOR64, x86asm.XRSTORS, x86asm.XRSTORS64, x86asm.FXSAVE, x86asm.FXSAVE64, x86asm.FXRSTOR, x86asm.FXRSTOR64,
		x86asm.XBEGIN, x86asm.XEND, x86asm.XABORT, x86asm.XTEST, x86asm.CLFLUSH, x86asm.RSM, x86asm.UD0, x86asm.EMMS:
		return false
	}
	for _, a := range f.Inst.Args {
		if r, ok := a.(x86asm.Reg); ok {
			switch regKind(r) {
			case "cr", "dr", "sreg":
				return false // written by hand
			}
		}
	}
	return true
}

// RegsDiffer says whether no register is named twice: an instruction that does
// less than its form can.
func (f *Form) RegsDiffer() bool {
	seen := map[x86asm.Reg]bool{}
	add := func(r x86asm.Reg) bool {
		twice := r != 0 && seen[r]
		seen[r] = true
		return !twice
	}
	for _, a := range f.Inst.Args {
		switch a := a.(type) {
		case x86asm.Reg:
			if !add(a) {
				return false
			}
		case x86asm.Mem:
			if !add(a.Base) || !add(a.Index) {
				return false
			}
		}
	}
	return true
}
