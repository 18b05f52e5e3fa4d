package native

import (
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
	"github.com/hprobe/hprobe/xenevents/native/internal/sys"
)

// ring is the shared page of requests and responses. Responses need not come in
// the order of the requests: a response's slot is the next one, whose request
// was copied out before.
type ring struct {
	page    []byte
	layout  abi.Layout
	version uint32
	reqCons uint32
	rspProd uint32
	unsent  bool
	holds   bool // writes of registers wait for their replies
}

// reset puts the shared indexes to where Xen's private ones are after
// vm_event ENABLE, which does not touch these: forgetting it works on a page
// that was never used, and replays stale requests on any other.
func (r *ring) reset() {
	sys.Store32(r.page[abi.RingReqProd:], 0)
	sys.Store32(r.page[abi.RingRspProd:], 0)
	sys.Store32(r.page[abi.RingReqEvent:], 1)
	sys.Store32(r.page[abi.RingRspEvent:], 1)
	r.reqCons, r.rspProd = 0, 0
}

func (r *ring) waiting() uint32 { return sys.Load32(r.page[abi.RingReqProd:]) - r.reqCons }

// await looks for a request n times.
func (r *ring) await(n int) bool { return sys.Spin(r.page[abi.RingReqProd:], r.reqCons, n) }

func (r *ring) slot(i uint32) []byte {
	at := abi.RingEntries + int(i%abi.RingSlots)*r.layout.EntrySize
	return r.page[at : at+r.layout.EntrySize : at+r.layout.EntrySize]
}

// request returns the next request; its slot is the caller's until consume.
func (r *ring) request() []byte { return r.slot(r.reqCons) }

func (r *ring) consume() {
	r.reqCons++
	sys.Store32(r.page[abi.RingReqEvent:], r.reqCons+1)
}

// pending is what a reply must repeat of its request: the vCPU waits for it.
type pending struct {
	open   bool
	reason uint32
	u      [abi.EntryUSize]byte

	Unsettled
}

// decode reads a request. Registers and the event's own fields are Xen's, but
// the values in them are the guest's.
func (r *ring) decode(b []byte, e *xenevents.Event) {
	flags := le.Uint32(b[abi.EntryFlags:])
	e.Kind = xenevents.KindOther
	e.Paused = flags&abi.FlagPaused != 0
	e.VCPU = xenevents.VCPU(le.Uint32(b[abi.EntryVCPU:]))
	e.View = xenevents.HostView
	if flags&abi.FlagAltp2m != 0 {
		e.View = xenevents.View(le.Uint16(b[abi.EntryAltp2m:]))
	}
	e.Cookie = uint64(le.Uint32(b[abi.EntryReason:]))
	e.GFN, e.Offset, e.GLA, e.Access, e.Fault = 0, 0, 0, 0, 0
	e.InsnLen, e.IntType, e.Index, e.Leaf, e.Subleaf, e.New, e.Old = 0, 0, 0, 0, 0, 0, 0
	r.decodeRegisters(b[abi.EntryData:], &e.Regs)
	decodeKind(b[abi.EntryU:], e)
}

func decodeKind(u []byte, e *xenevents.Event) {
	switch e.Cookie {
	case abi.ReasonInt3, abi.ReasonDebug:
		e.Kind = xenevents.KindInt3
		if e.Cookie == abi.ReasonDebug {
			e.Kind = xenevents.KindDebug
		}
		e.GFN = xenevents.GFN(le.Uint64(u))
		e.New = le.Uint64(u[8:]) // pending_dbg
		e.InsnLen = uint8(le.Uint32(u[16:]))
		e.IntType = u[20]
	case abi.ReasonMemAccess:
		e.Kind = xenevents.KindMemAccess
		e.GFN = xenevents.GFN(le.Uint64(u))
		e.Offset = uint32(le.Uint64(u[8:])) & xenevents.PageMask
		e.GLA = xenevents.GVA(le.Uint64(u[16:]))
		flags := le.Uint32(u[24:])
		e.Access = xenevents.Access(flags) & xenevents.AccessRWX
		e.Fault = xenevents.Fault(flags/abi.MemGLAValid) & (xenevents.FaultGLAValid | xenevents.FaultWithGLA | xenevents.FaultInGPT)
	case abi.ReasonSingleStep:
		e.Kind = xenevents.KindSingleStep
		e.GFN = xenevents.GFN(le.Uint64(u))
	case abi.ReasonControlReg:
		e.Kind = xenevents.KindControlReg
		e.Index = controlReg(le.Uint32(u))
		e.New, e.Old = le.Uint64(u[8:]), le.Uint64(u[16:])
	case abi.ReasonMSR:
		e.Kind = xenevents.KindMSR
		e.Index = uint32(le.Uint64(u))
		e.New, e.Old = le.Uint64(u[8:]), le.Uint64(u[16:])
	case abi.ReasonCPUID:
		e.Kind = xenevents.KindCPUID
		e.InsnLen = uint8(le.Uint32(u))
		e.Leaf, e.Subleaf = le.Uint32(u[4:]), le.Uint32(u[8:])
	case abi.ReasonGuestRequest:
		e.Kind = xenevents.KindGuestRequest
	}
}

// Xen numbers the control registers 0 (CR0), 1 (CR3), 2 (CR4), 3 (XCR0).
func controlReg(index uint32) uint32 {
	if index < 3 {
		return [3]uint32{0, 3, 4}[index]
	}
	return 0x100 + index
}

func (r *ring) decodeRegisters(b []byte, to *xenevents.Registers) {
	to.FSBase, to.GSBase, to.ShadowGS = le.Uint64(b[r.layout.FSBase:]), le.Uint64(b[r.layout.GSBase:]), le.Uint64(b[r.layout.ShadowGS:])
	to.CS, to.SS = le.Uint16(b[r.layout.CS:]), le.Uint16(b[r.layout.SS:])
	decodeFixed((*[8 * abi.RegFixed]byte)(b), to)
}

// decodeFixed takes those that all layouts have at the same place; an array has
// no bounds to check.
func decodeFixed(b *[8 * abi.RegFixed]byte, to *xenevents.Registers) {
	to.RAX, to.RCX, to.RDX, to.RBX = le.Uint64(b[:]), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])
	to.RSP, to.RBP, to.RSI, to.RDI = le.Uint64(b[32:]), le.Uint64(b[40:]), le.Uint64(b[48:]), le.Uint64(b[56:])
	to.R8, to.R9, to.R10, to.R11 = le.Uint64(b[64:]), le.Uint64(b[72:]), le.Uint64(b[80:]), le.Uint64(b[88:])
	to.R12, to.R13, to.R14, to.R15 = le.Uint64(b[96:]), le.Uint64(b[104:]), le.Uint64(b[112:]), le.Uint64(b[120:])
	to.RFLAGS, to.RIP = le.Uint64(b[8*abi.RegRFLAGS:]), le.Uint64(b[8*abi.RegRIP:])
	to.DR6, to.DR7 = le.Uint64(b[8*abi.RegDR6:]), le.Uint64(b[8*abi.RegDR7:])
	to.CR0, to.CR2, to.CR3, to.CR4 = le.Uint64(b[8*abi.RegCR0:]), le.Uint64(b[8*abi.RegCR2:]), le.Uint64(b[8*abi.RegCR3:]), le.Uint64(b[8*abi.RegCR4:])
	to.EFER, to.STAR, to.LSTAR = le.Uint64(b[8*abi.RegEFER:]), le.Uint64(b[8*abi.RegSTAR:]), le.Uint64(b[8*abi.RegLSTAR:])
	to.SysenterCS, to.SysenterESP, to.SysenterEIP = le.Uint64(b[8*abi.RegSysenterCS:]), le.Uint64(b[8*abi.RegSysenterESP:]), le.Uint64(b[8*abi.RegSysenterEIP:])
	to.GDTRBase = le.Uint64(b[8*abi.RegGDTRBase:])
}

// respond writes one response. Xen takes of it what the flags name.
func (r *ring) respond(v xenevents.VCPU, p *pending, reply *xenevents.Reply) {
	b := r.slot(r.rspProd)
	flags := uint32(abi.FlagPaused)
	le.PutUint32(b[abi.EntryVersion:], r.version)
	le.PutUint32(b[abi.EntryReason:], p.reason)
	le.PutUint32(b[abi.EntryVCPU:], uint32(v))
	*(*[abi.EntryUSize]byte)(b[abi.EntryU:]) = p.u
	if reply.Switch {
		flags |= abi.FlagAltp2m
		le.PutUint16(b[abi.EntryAltp2m:], uint16(reply.View))
	}
	switch reply.Step {
	case xenevents.StepToggle:
		flags |= abi.FlagToggleStep
	case xenevents.StepFast:
		flags |= abi.FlagFastStep
		le.PutUint16(b[abi.EntryU:], uint16(reply.After))
	}
	if reply.Emulate {
		flags |= abi.FlagEmulate
		if reply.InsnLen > 0 {
			flags |= abi.FlagSetEmulInsn
			copy(b[abi.EntryData:abi.EntryData+16], reply.Insn[:])
		}
	}
	if reply.Deny {
		flags |= abi.FlagDeny
	}
	if reply.Regs != nil {
		flags |= abi.FlagSetRegisters
		encodeRegisters(b[abi.EntryData:], reply.Regs)
	}
	le.PutUint32(b[abi.EntryFlags:], flags)
	p.Due, p.Slack = reply.Emulate || reply.Regs != nil, 0
	if r.holds && (p.reason == abi.ReasonControlReg || p.reason == abi.ReasonMSR) {
		p.Due, p.Slack = true, LongestInsn
	}
	r.push()
}

// acknowledge responds to a request whose vCPU does not wait. Xen counts a slot
// as taken until a response was read, whatever is in it (ring.h,
// RING_FREE_REQUESTS); without VM_EVENT_FLAG_VCPU_PAUSED it does nothing else.
func (r *ring) acknowledge(e *xenevents.Event) {
	b := r.slot(r.rspProd)
	le.PutUint32(b[abi.EntryVersion:], r.version)
	le.PutUint32(b[abi.EntryFlags:], 0)
	le.PutUint32(b[abi.EntryReason:], uint32(e.Cookie))
	le.PutUint32(b[abi.EntryVCPU:], uint32(e.VCPU))
	r.push()
}

// push gives Xen the response that was just written.
func (r *ring) push() {
	r.rspProd++
	sys.Store32(r.page[abi.RingRspProd:], r.rspProd)
	r.unsent = true
}

// encodeRegisters writes what Xen takes of a response: the general purpose
// registers, RFLAGS and RIP (xen/arch/x86/vm_event.c, vm_event_set_registers).
func encodeRegisters(b []byte, r *xenevents.Registers) {
	for i, v := range [16]uint64{r.RAX, r.RCX, r.RDX, r.RBX, r.RSP, r.RBP, r.RSI, r.RDI, r.R8, r.R9, r.R10, r.R11, r.R12, r.R13, r.R14, r.R15} {
		le.PutUint64(b[8*i:], v)
	}
	le.PutUint64(b[8*abi.RegRFLAGS:], r.RFLAGS)
	le.PutUint64(b[8*abi.RegRIP:], r.RIP)
}
