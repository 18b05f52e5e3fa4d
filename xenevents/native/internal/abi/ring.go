package abi

// The ring page (io/ring.h, vm_event.h): producer indexes, then the entries,
// each of which is a request or a response.
const (
	RingReqProd  = 0 // u32
	RingReqEvent = 4
	RingRspProd  = 8
	RingRspEvent = 12
	RingEntries  = 64
	RingSlots    = 8
)

// An entry (vm_event.h, struct vm_event_st).
const (
	EntryVersion = 0 // u32
	EntryFlags   = 4
	EntryReason  = 8
	EntryVCPU    = 12
	EntryAltp2m  = 16 // u16
	EntryU       = 24 // the event's own
	EntryUSize   = 32
	EntryData    = 56 // registers, or bytes to emulate
)

// Flags (VM_EVENT_FLAG_*).
const (
	FlagPaused       = 1 << 0
	FlagEmulate      = 1 << 2
	FlagToggleStep   = 1 << 4
	FlagDeny         = 1 << 6
	FlagAltp2m       = 1 << 7
	FlagSetRegisters = 1 << 8
	FlagSetEmulInsn  = 1 << 9
	FlagFastStep     = 1 << 11
)

// Reasons (VM_EVENT_REASON_*).
const (
	ReasonMemAccess    = 1
	ReasonControlReg   = 4
	ReasonMSR          = 5
	ReasonInt3         = 6
	ReasonSingleStep   = 7
	ReasonGuestRequest = 8
	ReasonDebug        = 9
	ReasonCPUID        = 10
)

// Flags of a memory access (MEM_ACCESS_*).
const (
	MemGLAValid = 1 << 3
	MemWithGLA  = 1 << 4
	MemInGPT    = 1 << 5
)

// Layout is where an entry has what the two versions of vm_event have at
// different places: version 7 put npt_base and vmtrace_pos into the middle of the registers.
type Layout struct {
	EntrySize      int
	FSBase, GSBase int // from EntryData
	ShadowGS       int
	CS, SS         int
}

// RingLayout returns the layout of a version, and false for one that hprobe
// does not know.
func RingLayout(version uint32) (Layout, bool) {
	switch version {
	case VMEvent6:
		return Layout{EntrySize: 384, FSBase: 264, GSBase: 272, ShadowGS: 304, CS: 314, SS: 316}, true
	case VMEvent7:
		return Layout{EntrySize: 400, FSBase: 280, GSBase: 288, ShadowGS: 320, CS: 330, SS: 332}, true
	}
	return Layout{}, false
}

// Registers of an entry that are at the same place in both, as indexes of u64
// from EntryData. The general purpose ones come first, in encoding order.
const (
	RegRFLAGS = 16 + iota
	RegDR6
	RegDR7
	RegRIP
	RegCR0
	RegCR2
	RegCR3
	RegCR4
	RegSysenterCS
	RegSysenterESP
	RegSysenterEIP
	RegEFER
	RegSTAR
	RegLSTAR
	RegGDTRBase
	RegFixed // how many they are
)
