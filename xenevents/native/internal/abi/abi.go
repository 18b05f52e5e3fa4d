// Package abi holds Xen's numbers and memory layouts that the native driver
// uses: offsets in bytes, little endian, x86-64. Their source is Xen's
// xen/include/public/{domctl,sysctl,memory,vm_event}.h, hvm/{hvm_op,params,dm_op}.h
// and arch-x86/hvm/save.h. Of all structures used here two differ between Xen
// 4.14 and 4.22: vm_event's register block and getdomaininfo (see Versions).
package abi

// Hypercall numbers (xen.h).
const (
	HypercallMemoryOp   = 12
	HypercallXenVersion = 17
	HypercallHVMOp      = 34
	HypercallSysctl     = 35
	HypercallDomctl     = 36
)

// Domctl (domctl.h): the header, then the operation's own at DomctlUnion.
const (
	DomctlSize    = 144
	DomctlCmd     = 0 // u32
	DomctlVersion = 4 // u32
	DomctlDomain  = 8 // u16
	DomctlUnion   = 16

	DomctlPause             = 3
	DomctlUnpause           = 4
	DomctlGetDomainInfo     = 5
	DomctlShadowOp          = 10
	DomctlMaxMem            = 11
	DomctlDebugOp           = 54
	DomctlGetContextPartial = 55
	DomctlVMEventOp         = 56
	DomctlMonitorOp         = 77

	ShadowOpGetAllocation = 30 // union: op u32@0, mode u32@4, mb u32@8
	DebugOpStepOff        = 0  // union: op u32@0, vcpu u32@4
)

// Sysctl (sysctl.h).
const (
	SysctlCmd     = 0 // u32
	SysctlVersion = 4 // u32
	SysctlUnion   = 8

	SysctlPhysInfo          = 3 // union: nr_cpus u32@8, cpu_khz u32@24
	SysctlGetDomainInfoList = 6 // union: first u16@0, max u32@4, buffer ptr@8, count u32@16
)

// VM event operations (domctl.h, XEN_DOMCTL_vm_event_op): op u32@0, mode u32@4,
// and the result, port or version, u32@8.
const (
	VMEventEnable     = 0
	VMEventDisable    = 1
	VMEventGetVersion = 3
	VMEventMonitor    = 2 // mode

	DomidInvalid = 0x7ff4
)

// Monitor operations (domctl.h, XEN_DOMCTL_monitor_op): op u32@0, event u32@4,
// union@8; a control register has index u8@8, sync u8@9, onchange u8@10, mask u64@16.
const (
	MonitorEnable       = 0
	MonitorDisable      = 1
	MonitorCapabilities = 2
	// MonitorControlRegisters has writes of control registers and MSRs wait for their
	// reply, until the ring is closed. It names no event.
	MonitorControlRegisters = 4

	MonitorControlReg   = 0
	MonitorMSR          = 1 // msr u32@8, onchange u8@12
	MonitorSingleStep   = 2
	MonitorInt3         = 3
	MonitorGuestRequest = 4 // sync u8@8, allow_userspace u8@9
	MonitorDebug        = 5 // sync u8@8
	MonitorCPUID        = 6
)

// memory_op (memory.h).
const (
	MemoryDecreaseReservation = 1
	MemoryPopulatePhysmap     = 6
	MemoryMaximumGPFN         = 14
)

// hvm_op (hvm_op.h, params.h).
const (
	HVMGetParam = 1 // domid u16@0, index u32@4, value u64@8
	HVMAltp2m   = 25

	ParamNestedHVM   = 24
	ParamMonitorRing = 28
	ParamAltp2m      = 35
)

// altp2m (hvm_op.h, struct xen_hvm_altp2m_op): version u32@0, cmd u32@4, domain u16@8, union@16.
const (
	Altp2mSize    = 80
	Altp2mVersion = 1
	Altp2mUnion   = 16

	Altp2mGetState  = 1
	Altp2mSetState  = 2
	Altp2mCreate    = 4 // view u16@0, default access u16@2
	Altp2mDestroy   = 5
	Altp2mSwitch    = 6
	Altp2mSetAccess = 7 // view u16@0, access u16@2, gfn u64@8
	Altp2mChangeGFN = 8 // view u16@0, old u64@8, new u64@16
)

// Access rights beyond the bits rwx (memory.h, xenmem_access_t). R_PW took the
// number that Default had before Xen 4.20.
const (
	AccessRPW       = 10
	MinorWithRPW    = 20 // Xen 4.20
	MinorWithFast   = 14
	InvalidGFN      = ^uint64(0)
	DMInjectEvent   = 13 // dm_op.h
	TrapSWException = 6  // HVMOP_TRAP_sw_exc
)

// xen_version (version.h).
const (
	XenVersionVersion     = 0
	XenVersionExtra       = 1
	XenVersionCommandline = 9
)

// getdomaininfo (domctl.h, struct xen_domctl_getdomaininfo).
const (
	InfoDomain    = 0 // u16
	InfoFlags     = 4 // u32
	InfoTotPages  = 8
	InfoMaxPages  = 16
	InfoOutPages  = 24
	InfoVCPUs     = 64 // u32
	InfoMaxVCPU   = 68 // u32
	InfoUUID      = 76
	InfoFlagDying = 1 << 0
	InfoFlagHVM   = 1 << 1
	InfoFlagDown  = 1 << 2
	InfoFlagPause = 1 << 3
	InfoFlagHAP   = 1 << 8

	// Why it shut down (domctl.h, XEN_DOMINF_shutdown*; sched.h, SHUTDOWN_suspend).
	InfoReasonShift = 16
	InfoReasonMask  = 0xff
	ReasonSuspend   = 2
)

// The HVM CPU record (save.h, struct hvm_hw_cpu), as gethvmcontext_partial
// gives it: type 2, without a descriptor.
const (
	CPURecord     = 2
	CPURecordSize = 1032

	CPURSP, CPURIP, CPURFLAGS = 568, 640, 648
	CPUCR0, CPUCR2            = 656, 664
	CPUCR3, CPUCR4            = 672, 680
	CPUCS, CPUSS              = 736, 756 // selectors
	CPUDR6, CPUDR7            = 720, 728
	CPUFSBase, CPUGSBase      = 832, 840
	CPUGDTRBase               = 880
	CPUShadowGS, CPULSTAR     = 944, 960
	CPUSTAR, CPUEFER          = 968, 992
	CPUSysenterCS             = 920
	CPUSysenterESP            = 928
	CPUSysenterEIP            = 936
)

// CPUGPR is where the record has general purpose register n, in encoding order.
var CPUGPR = [16]int{512, 528, 536, 520, 568, 544, 552, 560, 576, 584, 592, 600, 608, 616, 624, 632}
