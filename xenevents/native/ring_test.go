package native

import (
	"bytes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/native/internal/abi"
)

func newRing(t testing.TB, version uint32) *ring {
	t.Helper()
	layout, ok := abi.RingLayout(version)
	if !ok {
		t.Fatalf("vm_event %d", version)
	}
	return &ring{page: make([]byte, 4096), layout: layout, version: version}
}

// entry makes a request: each register has its own value, which tells of its place.
func entry(r *ring, flags, reason, vcpu uint32, view uint16, u string) []byte {
	b := make([]byte, r.layout.EntrySize)
	le.PutUint32(b, r.version)
	le.PutUint32(b[4:], flags)
	le.PutUint32(b[8:], reason)
	le.PutUint32(b[12:], vcpu)
	le.PutUint16(b[16:], view)
	raw, err := hex.DecodeString(strings.ReplaceAll(u, " ", ""))
	if err != nil {
		panic(err)
	}
	copy(b[24:56], raw)
	for at := 56; at+8 <= len(b); at += 8 {
		le.PutUint64(b[at:], 0x1111_0000_0000_0000+uint64(at-56))
	}
	return b
}

// TestDecodeRegisters has the offsets of vm_event.h as numbers: of the data, in bytes.
func TestDecodeRegisters(t *testing.T) {
	at := func(n uint64) uint64 { return 0x1111_0000_0000_0000 + n }
	for version, more := range map[uint32]uint64{6: 0, 7: 16} {
		r := newRing(t, version)
		b := entry(r, 1, abi.ReasonGuestRequest, 0, 0, "")
		le.PutUint16(b[56+314+more:], 0x10) // cs_sel
		le.PutUint16(b[56+316+more:], 0x2b) // ss_sel
		var e xenevents.Event
		r.decode(b, &e)
		want := xenevents.Registers{
			RAX: at(0), RCX: at(8), RDX: at(16), RBX: at(24), RSP: at(32), RBP: at(40), RSI: at(48), RDI: at(56),
			R8: at(64), R9: at(72), R10: at(80), R11: at(88), R12: at(96), R13: at(104), R14: at(112), R15: at(120),
			RFLAGS: at(128), DR6: at(136), DR7: at(144), RIP: at(152), CR0: at(160), CR2: at(168), CR3: at(176), CR4: at(184),
			SysenterCS: at(192), SysenterESP: at(200), SysenterEIP: at(208), EFER: at(216), STAR: at(224), LSTAR: at(232), GDTRBase: at(240),
			FSBase: at(264 + more), GSBase: at(272 + more), ShadowGS: at(304 + more), CS: 0x10, SS: 0x2b,
		}
		if e.Regs != want {
			t.Errorf("version %d:\n%+v\nwant\n%+v", version, e.Regs, want)
		}
		if e.Regs.CPL() != 3 {
			t.Errorf("version %d: privilege level %d", version, e.Regs.CPL())
		}
	}
}

func TestDecodeReasons(t *testing.T) {
	const q = "ffffffffffffffff" // padding that is not zero
	for name, c := range map[string]struct {
		flags, reason uint32
		u             string
		want          xenevents.Event
	}{
		"int3": {abi.FlagPaused | abi.FlagAltp2m, 6, "3412000000000000 0000000000000000 02000000 06 ffffff",
			xenevents.Event{Kind: xenevents.KindInt3, Paused: true, View: 5, GFN: 0x1234, InsnLen: 2, IntType: 6}},
		"int3 without altp2m": {abi.FlagPaused, 6, "3412000000000000 0000000000000000 01000000 04 ffffff",
			xenevents.Event{Kind: xenevents.KindInt3, Paused: true, GFN: 0x1234, InsnLen: 1, IntType: 4}},
		"debug": {abi.FlagPaused, 9, "0100000000000000 0040000000000000 01000000 03 ffffff",
			xenevents.Event{Kind: xenevents.KindDebug, Paused: true, GFN: 1, New: 0x4000, InsnLen: 1, IntType: 3}},
		"a write to a page": {abi.FlagPaused, 1, "0001000000000000 f80f000000000000 f80f400000000080 1b000000 ffffffff",
			xenevents.Event{Kind: xenevents.KindMemAccess, Paused: true, GFN: 0x100, Offset: 0xff8, GLA: 0x8000000000400ff8, Access: xenevents.AccessRW,
				Fault: xenevents.FaultGLAValid | xenevents.FaultWithGLA}},
		"a page walk": {abi.FlagPaused, 1, "0001000000000000 0800000000000000 0000000000000000 29000000 ffffffff",
			xenevents.Event{Kind: xenevents.KindMemAccess, Paused: true, GFN: 0x100, Offset: 8, Access: xenevents.AccessR, Fault: xenevents.FaultGLAValid | xenevents.FaultInGPT}},
		"a fetch": {abi.FlagPaused, 1, "0001000000000000 ffffffffffffffff 0000000000000000 04000000 ffffffff",
			xenevents.Event{Kind: xenevents.KindMemAccess, Paused: true, GFN: 0x100, Offset: 0xfff, Access: xenevents.AccessX}},
		"single-step": {abi.FlagPaused, 7, "7700000000000000" + q,
			xenevents.Event{Kind: xenevents.KindSingleStep, Paused: true, GFN: 0x77}},
		"cr3": {0, 4, "01000000 ffffffff 0020000000000000 0010000000000000",
			xenevents.Event{Kind: xenevents.KindControlReg, Index: 3, New: 0x2000, Old: 0x1000}},
		"cr0": {0, 4, "00000000 ffffffff 0100000000000000 0000000000000000", xenevents.Event{Kind: xenevents.KindControlReg, New: 1}},
		"cr4": {0, 4, "02000000 ffffffff 0100000000000000 0000000000000000", xenevents.Event{Kind: xenevents.KindControlReg, Index: 4, New: 1}},
		"msr": {abi.FlagPaused, 5, "820000c000000000 4000000000000000 3000000000000000",
			xenevents.Event{Kind: xenevents.KindMSR, Paused: true, Index: 0xc0000082, New: 0x40, Old: 0x30}},
		"cpuid": {abi.FlagPaused, 10, "02000000 07000000 01000000 ffffffff",
			xenevents.Event{Kind: xenevents.KindCPUID, Paused: true, InsnLen: 2, Leaf: 7, Subleaf: 1}},
		"guest request": {abi.FlagPaused, 8, q + q, xenevents.Event{Kind: xenevents.KindGuestRequest, Paused: true}},
		"one to come":   {abi.FlagPaused, 99, q + q, xenevents.Event{Kind: xenevents.KindOther, Paused: true}},
	} {
		for _, version := range []uint32{6, 7} {
			r := newRing(t, version)
			// An event of another kind was in the same place before.
			got := xenevents.Event{Kind: xenevents.KindMSR, View: 9, GFN: 9, Offset: 9, GLA: 9, Access: 9, Fault: 9, InsnLen: 9, IntType: 9, Index: 9, Leaf: 9, Subleaf: 9, New: 9, Old: 9}
			r.decode(entry(r, c.flags, c.reason, 3, 5, c.u), &got)
			got.Regs = xenevents.Registers{}
			c.want.VCPU, c.want.Cookie = 3, uint64(c.reason)
			if got != c.want {
				t.Errorf("%s, version %d:\n%+v\nwant\n%+v", name, version, got, c.want)
			}
		}
	}
}

// TestRespond compares whole entries: what Xen reads, and nothing else.
func TestRespond(t *testing.T) {
	insn := [16]byte{0x55, 0x48, 0x89, 0xe5, 15: 0xc3}
	regs := xenevents.Registers{RAX: 1, RCX: 2, RDX: 3, RBX: 4, RSP: 5, RBP: 6, RSI: 7, RDI: 8, R8: 9, R9: 10, R10: 11, R11: 12, R12: 13, R13: 14, R14: 15, R15: 16, RFLAGS: 17, RIP: 18}
	for name, c := range map[string]struct {
		reply xenevents.Reply
		flags uint32
		check func(b []byte) bool
	}{
		"run on":      {xenevents.Reply{}, 0x1, nil},
		"switch":      {xenevents.Reply{Switch: true, View: 7}, 0x81, func(b []byte) bool { return le.Uint16(b[16:]) == 7 }},
		"single-step": {xenevents.Reply{Switch: true, Step: xenevents.StepToggle}, 0x91, func(b []byte) bool { return le.Uint16(b[16:]) == 0 }},
		"fast single-step": {xenevents.Reply{Switch: true, Step: xenevents.StepFast, After: 0x102}, 0x881,
			func(b []byte) bool { return le.Uint16(b[16:]) == 0 && le.Uint16(b[24:]) == 0x102 }},
		"emulate what is there": {xenevents.Reply{Emulate: true}, 0x5, nil},
		"emulate these bytes":   {xenevents.Reply{Emulate: true, Insn: insn, InsnLen: 4}, 0x205, func(b []byte) bool { return bytes.Equal(b[56:72], insn[:]) }},
		"deny":                  {xenevents.Reply{Deny: true}, 0x41, nil},
		"registers": {xenevents.Reply{Regs: &regs}, 0x101, func(b []byte) bool {
			for i := range uint64(17) { // the 16 and RFLAGS
				if le.Uint64(b[56+8*i:]) != i+1 {
					return false
				}
			}
			return le.Uint64(b[56+19*8:]) == 18 // after DR6 and DR7
		}},
	} {
		for _, version := range []uint32{6, 7} {
			r := newRing(t, version)
			r.reset()
			r.rspProd = 10 // slot 2
			p := pending{open: true, reason: 6, u: [32]byte{1, 2, 3, 4, 31: 0xee}}
			r.respond(3, &p, &c.reply)
			b := r.page[64+2*r.layout.EntrySize:][:r.layout.EntrySize]
			head := [4]uint32{le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:]), le.Uint32(b[12:])}
			if want := [4]uint32{version, c.flags, 6, 3}; head != want {
				t.Errorf("%s: version, flags, reason and vCPU are %#x, not %#x", name, head, want)
			}
			if c.check != nil && !c.check(b) {
				t.Errorf("%s, version %d: %x", name, version, b)
			}
			if from := 2; !bytes.Equal(b[24+from:56], p.u[from:]) || c.reply.Step != xenevents.StepFast && !bytes.Equal(b[24:56], p.u[:]) {
				t.Errorf("%s: the request's own part came back as %x", name, b[24:56])
			}
			if prod := le.Uint32(r.page[8:]); prod != 11 || !r.unsent {
				t.Errorf("%s: rsp_prod is %d, unsent %v", name, prod, r.unsent)
			}
			clear(b)
			clear(r.page[:64])
			if !bytes.Equal(r.page, make([]byte, 4096)) {
				t.Errorf("%s: it wrote beside its slot", name)
			}
		}
	}
}

func TestRingReset(t *testing.T) {
	r := newRing(t, 7)
	for i := range r.page {
		r.page[i] = 0xaa // an earlier session's
	}
	r.reqCons, r.rspProd = 5, 6
	r.reset()
	if got, want := hex.EncodeToString(r.page[:16]), "00000000"+"01000000"+"00000000"+"01000000"; got != want {
		t.Errorf("the indexes are %s, not %s", got, want)
	}
	if r.waiting() != 0 || r.reqCons != 0 || r.rspProd != 0 {
		t.Errorf("%d wait", r.waiting())
	}
}

func events(r *ring, vcpus int) *Events {
	return &Events{dom: &Domain{id: 7}, ring: *r, pending: make([]pending, vcpus), subs: map[xenevents.Subscription]bool{}}
}

// put is Xen's end of the ring.
func put(e *Events, prod uint32, b []byte) {
	copy(e.ring.page[64+int(prod%8)*e.ring.layout.EntrySize:], b)
	le.PutUint32(e.ring.page, prod+1)
}

func TestRingWrapsAndAnswersInAnyOrder(t *testing.T) {
	r := newRing(t, 7)
	e := events(r, 4)
	start := ^uint32(0) - 3 // the indexes themselves wrap in the middle
	e.ring.reqCons, e.ring.rspProd = start, start
	le.PutUint32(e.ring.page, start)
	for i := range uint32(8) {
		flags := uint32(abi.FlagPaused)
		if i >= 4 {
			flags = 0 // asynchronous
		}
		put(e, start+i, entry(&e.ring, flags, abi.ReasonInt3, i%4, 0, hex.EncodeToString([]byte{byte(i)})))
	}
	var batch [5]xenevents.Event
	if n, err := e.TryNext(batch[:]); n != 5 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	// Xen has the slot of an event that nobody waits for back at once.
	if slot := e.ring.page[64+int(start%8)*400:]; e.ring.rspProd != start+1 || !e.ring.unsent || le.Uint32(slot) != 7 || le.Uint32(slot[4:]) != 0 || le.Uint32(slot[12:]) != 0 {
		t.Errorf("an asynchronous event is acknowledged by % x, %d responses", slot[:16], e.ring.rspProd-start)
	}
	for _, v := range []int{2, 0, 3, 1} {
		if err := e.Reply(&batch[v], &xenevents.Reply{}); err != nil {
			t.Fatal(err)
		}
		slot := e.ring.page[64+int((e.ring.rspProd-1)%8)*400:]
		if le.Uint32(slot[12:]) != uint32(v) || slot[24] != byte(v) {
			t.Errorf("the answer to vCPU %d is that of vCPU %d, %d", v, slot[12], slot[24])
		}
		if err := e.Reply(&batch[v], &xenevents.Reply{}); err == nil {
			t.Error("a second reply is taken")
		}
	}
	if err := e.Reply(&batch[4], &xenevents.Reply{}); err != nil || e.ring.rspProd != start+5 {
		t.Errorf("an asynchronous event was answered twice: %v", err)
	}
	if n, err := e.TryNext(batch[:]); n != 3 || err != nil || batch[2].GFN != 7 {
		t.Errorf("then %d, %v", n, err)
	}
	if n, err := e.TryNext(batch[:]); n != 0 || err != nil {
		t.Errorf("then %d, %v", n, err)
	}
	if got := le.Uint32(e.ring.page[8:]); got != start+8 {
		t.Errorf("%d responses to 8 requests", got-start)
	}
	if got := le.Uint32(e.ring.page[4:]); got != start+9 {
		t.Errorf("req_event is %d, not %d", got, start+9)
	}
}

func TestRingOfAHotPluggedVCPU(t *testing.T) {
	e := events(newRing(t, 6), 1)
	put(e, 0, entry(&e.ring, abi.FlagPaused, abi.ReasonInt3, 5, 0, ""))
	var batch [1]xenevents.Event
	if n, err := e.TryNext(batch[:]); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	if err := e.Reply(&batch[0], &xenevents.Reply{}); err != nil {
		t.Error(err)
	}
}

func TestABrokenRingIsAnError(t *testing.T) {
	e := events(newRing(t, 7), 1)
	le.PutUint32(e.ring.page, 9)
	var batch [8]xenevents.Event
	if n, err := e.TryNext(batch[:]); n != 0 || err == nil || !strings.Contains(err.Error(), "domain 7") {
		t.Errorf("9 requests in 8 slots: %d, %v", n, err)
	}
	e = events(newRing(t, 7), 1)
	put(e, 0, entry(&e.ring, abi.FlagPaused, abi.ReasonInt3, 1<<31, 0, ""))
	if n, err := e.TryNext(batch[:]); n != 0 || err == nil || !strings.Contains(err.Error(), "vCPU") {
		t.Errorf("vCPU 2147483648: %d, %v", n, err)
	}
}

// FuzzDecode puts any bytes into the ring, with any of the two layouts.
func FuzzDecode(f *testing.F) {
	for _, version := range []uint32{6, 7} {
		r := newRing(f, version)
		for reason := range uint32(14) {
			f.Add(version == 6, entry(r, abi.FlagPaused|abi.FlagAltp2m, reason, 1, 2, "0102030405060708"))
		}
	}
	f.Fuzz(func(t *testing.T, old bool, raw []byte) {
		version := uint32(7)
		if old {
			version = 6
		}
		e := events(newRing(t, version), 2)
		b := make([]byte, e.ring.layout.EntrySize)
		copy(b, raw)
		put(e, 0, b)
		var batch [8]xenevents.Event
		n, err := e.TryNext(batch[:])
		if err != nil {
			return
		}
		ev := &batch[0]
		if n != 1 || ev.Kind == xenevents.KindNone || ev.Kind > xenevents.KindOther || ev.Offset > 4095 || ev.Access&^xenevents.AccessRWX != 0 {
			t.Fatalf("%d: %+v", n, ev)
		}
		if err := e.Reply(ev, &xenevents.Reply{}); err != nil {
			t.Fatal(err)
		}
		if ev.Paused && !bytes.Equal(e.ring.page[64+8:64+16], b[8:16]) {
			t.Errorf("reason and vCPU %x came back as %x", b[8:16], e.ring.page[72:80])
		}
	})
}

// TestHeldWritesSettle: the event of a write is of before its instruction, behind which
// the vCPU stands until the write is done.
func TestHeldWritesSettle(t *testing.T) {
	for reason, want := range map[uint32]bool{abi.ReasonControlReg: true, abi.ReasonMSR: true, abi.ReasonInt3: false} {
		for _, holds := range []bool{false, true} {
			r := newRing(t, 7)
			r.reset()
			r.holds = holds
			p := pending{open: true, reason: reason, Unsettled: Unsettled{RIP: 0x1000}}
			r.respond(0, &p, &xenevents.Reply{Deny: true})
			if p.Due != (want && holds) || p.Due && p.Slack != LongestInsn {
				t.Errorf("reason %d, held %v: unsettled %v, slack %d", reason, holds, p.Due, p.Slack)
			}
		}
	}
}

// TestLastReply: CPUID was run already, and must not be again.
func TestLastReply(t *testing.T) {
	events := []xenevents.Event{{Kind: xenevents.KindInt3, VCPU: 1, Paused: true}, {Kind: xenevents.KindCPUID, VCPU: 2, Paused: true, InsnLen: 2, Regs: xenevents.Registers{RIP: 0x1000, RAX: 5}}}
	if r := last(events, 1); r.Regs != nil {
		t.Errorf("%+v", r)
	}
	if r := last(events, 2); r.Regs == nil || r.Regs.RIP != 0x1002 || r.Regs.RAX != 5 {
		t.Errorf("%+v", r)
	}
}
