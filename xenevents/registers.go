package xenevents

// Registers is the state of one vCPU as an event carries it. A field that the
// source does not provide is zero: an event has no RSP of another privilege
// level, and a register set read from a paused vCPU has no DR6/DR7.
type Registers struct {
	RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64
	CR0, CR2, CR3, CR4                     uint64
	DR6, DR7                               uint64
	EFER, STAR, LSTAR                      uint64
	SysenterCS, SysenterESP, SysenterEIP   uint64
	// Bases, in guest virtual addresses. ShadowGS is MSR KERNEL_GS_BASE: the
	// other one of the two that SWAPGS exchanges.
	FSBase, GSBase, ShadowGS, GDTRBase uint64
	CS, SS                             uint16 // selectors
}

// CPL returns the current privilege level, 0 (kernel) to 3 (user), which the
// processor keeps as the DPL of SS. For the flat segments of every 64-bit
// system it equals SS.RPL.
func (r *Registers) CPL() int { return int(r.SS & 3) }

// GPR returns general purpose register n in the encoding order of x86-64
// instructions (0 RAX, 1 RCX, 2 RDX, 3 RBX, 4 RSP, 5 RBP, 6 RSI, 7 RDI, 8 R8 …),
// and nil for n > 15. The pointer stays valid as long as r does.
func (r *Registers) GPR(n int) *uint64 {
	switch n {
	case 0:
		return &r.RAX
	case 1:
		return &r.RCX
	case 2:
		return &r.RDX
	case 3:
		return &r.RBX
	case 4:
		return &r.RSP
	case 5:
		return &r.RBP
	case 6:
		return &r.RSI
	case 7:
		return &r.RDI
	case 8:
		return &r.R8
	case 9:
		return &r.R9
	case 10:
		return &r.R10
	case 11:
		return &r.R11
	case 12:
		return &r.R12
	case 13:
		return &r.R13
	case 14:
		return &r.R14
	case 15:
		return &r.R15
	}
	return nil
}
