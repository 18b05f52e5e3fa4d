package xenevents

import "fmt"

// VCPU is the index of a virtual CPU of one domain.
type VCPU uint32

// View is an altp2m view: a second guest-physical map of the same guest.
type View uint16

// HostView is view 0, the map that the guest has without hprobe. It always
// exists and can't be destroyed.
const HostView View = 0

// Access is what a guest may do with a page. The bits are Xen's
// (xenmem_access_t: r 1, w 2, x 4).
type Access uint8

// The access rights, and the sets of them that hprobe uses.
const (
	AccessNone Access = 0
	AccessR    Access = 1 << 0
	AccessW    Access = 1 << 1
	AccessX    Access = 1 << 2
	AccessRW          = AccessR | AccessW
	AccessRX          = AccessR | AccessX
	AccessRWX         = AccessR | AccessW | AccessX

	// AccessRPW is AccessR, but the processor's own page walks may write
	// (set accessed and dirty bits): Xen 4.20 and later, on CPUs with EPT
	// paging-write. A driver without it answers with an *UnsupportedError.
	AccessRPW Access = 1<<3 | AccessR
)

func (a Access) String() string {
	s := []byte("---")
	for i, c := range []byte("rwx") {
		if a&(1<<i) != 0 {
			s[i] = c
		}
	}
	if a == AccessRPW {
		return "r-pw"
	}
	return string(s)
}

// Kind is what an event tells. Values are hprobe's own, not Xen's.
type Kind uint8

// The kinds of events.
const (
	KindNone         Kind = iota
	KindInt3              // the guest ran int3: GFN, InsnLen
	KindMemAccess         // a view's access rights were violated: GFN, Offset, GLA, Access, Fault
	KindSingleStep        // one instruction was run: GFN of the next
	KindControlReg        // CR0, CR3 or CR4 was written: Index (0, 3, 4), New, Old
	KindMSR               // an MSR was written: Index, New, Old
	KindCPUID             // CPUID was run: Leaf, Subleaf, InsnLen. Its results are in the registers, RIP is still at it
	KindGuestRequest      // the guest asked by hypercall
	KindDebug             // a debug exception: GFN, InsnLen, New (pending_dbg)
	KindOther             // a reason that this version of hprobe has no name for
)

var kindNames = [...]string{"none", "int3", "mem_access", "singlestep", "control register", "msr", "cpuid", "guest request", "debug", "other"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Fault says how a KindMemAccess event came about.
type Fault uint8

// The causes of an EPT violation (Xen's MEM_ACCESS_* flags).
const (
	FaultGLAValid Fault = 1 << 0 // Event.GLA is set
	FaultWithGLA  Fault = 1 << 1 // by the access to GLA itself
	FaultInGPT    Fault = 1 << 2 // by the page walk that translated GLA
)

// Event is one entry of the monitor ring, decoded. It is a flat value so that
// a driver can fill a slice of them again and again without allocating; fields
// that its Kind does not name are zero.
//
// An Event belongs to the caller until it passes it to Events.Reply.
type Event struct {
	Kind Kind
	// Paused: the vCPU stands still until the reply. An event without it
	// (asynchronous) needs no reply, and Events.Reply ignores one.
	Paused bool
	VCPU   VCPU
	// View is the view in which the vCPU ran, HostView without altp2m.
	View View
	Regs Registers

	GFN     GFN
	Offset  uint32 // KindMemAccess: offset in the page, in bytes
	GLA     GVA    // KindMemAccess: the guest linear address, if FaultGLAValid
	Access  Access // KindMemAccess: what was tried; a write has AccessR as well
	Fault   Fault
	InsnLen uint8  // bytes, prefixes included
	IntType uint8  // KindInt3, KindDebug: Xen's HVMOP_TRAP_* (6: software exception)
	Index   uint32 // control register or MSR number
	Leaf    uint32
	Subleaf uint32
	New     uint64
	Old     uint64

	// Cookie is the driver's own: what it needs to answer this event.
	Cookie uint64
}

// Step is how a vCPU goes on after a reply.
type Step uint8

// The ways to step.
const (
	// StepNone leaves single-stepping as it is.
	StepNone Step = iota
	// StepToggle turns single-stepping of this vCPU on, or off again: each
	// instruction gives a KindSingleStep event while it is on.
	StepToggle
	// StepFast runs one instruction in Reply.View and then goes on in
	// Reply.After, with no further event (Xen 4.14 and later).
	StepFast
)

// Reply says how the vCPU of an event goes on. The zero Reply lets it run on
// as it was: an int3 or a violation is then simply tried again.
type Reply struct {
	// Switch moves the vCPU to View before it runs.
	Switch bool
	View   View
	Step   Step
	After  View // StepFast: the view after the one instruction

	// Emulate has Xen emulate the instruction at RIP instead of running it,
	// with guest memory as the host p2m shows it, whatever the view forbids.
	Emulate bool
	// Insn, when InsnLen > 0, is what Emulate takes for the bytes at RIP
	// (VM_EVENT_FLAG_SET_EMUL_INSN_DATA).
	Insn    [16]byte
	InsnLen uint8

	// Deny refuses the write of a control register or MSR: see WriteHolder.
	Deny bool

	// Regs, when not nil, replaces the vCPU's general purpose registers, RIP
	// and RFLAGS. The driver reads it during the call of Reply only.
	Regs *Registers
}
