package guestos

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// A kernel with a few functions that call each other, and its unwind tables.
const (
	orcTableAt = 0xffffffff82c00000 // the offsets; the entries are half a page behind
	orcTexts   = 0xffffffff81101000
	orcStack   = 0xffffc90000010000
	orcUser    = 0x7ffe_0000_1000

	leafAt, calleeAt, handlerAt, entryAt, startAt, deadAt, swapAt, sampleAt = orcTexts, orcTexts + 0x1000, orcTexts + 0x2000, orcTexts + 0x3000, orcTexts + 0x4000, orcTexts + 0x5000, orcTexts + 0x6000, orcTexts + 0x5800
)

// orcRow is one entry: of the code from at on.
type orcRow struct {
	at     uint64
	kind   orcKind
	sp, bp int16
	spReg  orcReg
	bpReg  orcReg
}

var orcRows = []orcRow{
	{at: leafAt, kind: orcCall, spReg: orcSP, sp: 8},
	{at: leafAt + 4, kind: orcCall, spReg: orcBP, sp: 16, bpReg: orcPrevSP, bp: -16},
	{at: calleeAt, kind: orcCall, spReg: orcSP, sp: 24},
	{at: handlerAt, kind: orcCall, spReg: orcSP, sp: 16},
	{at: entryAt, kind: orcRegs, spReg: orcSP},
	{at: entryAt + 0x100, kind: orcPartialRegs, spReg: orcSP},
	{at: startAt, kind: orcEnd},
	{at: deadAt, kind: orcUnknown},
	{at: sampleAt, kind: orcCall, spReg: orcSP, sp: 8},
	{at: swapAt, kind: orcCall, spReg: orcSPIndirect, sp: 8},
}

// orcTypes are those of a kernel since 6.4, or before.
func orcTypes(newer bool) func(*isf.Builder) {
	return func(b *isf.Builder) {
		word := isf.Type{Kind: isf.Base, Name: "unsigned int"}
		bits := func(at, n uint8) isf.Field {
			return isf.Field{Offset: 4, Type: isf.Type{Kind: isf.Bitfield, BitPos: at, BitLen: n, BitsType: &word}}
		}
		u := isf.UserType{Kind: isf.Struct, Size: 6, Fields: map[string]isf.Field{"type": bits(8, 2), "end": bits(10, 1)}}
		if newer {
			u.Fields = map[string]isf.Field{"type": bits(8, 3), "signal": bits(11, 1)}
		}
		b.Users["orc_entry"] = u
		regs := b.Users["pt_regs"]
		regs.Size = 168
		for name, at := range map[string]uint64{"ip": 128, "cs": 136, "sp": 152, "bp": 32, "r13": 16, "ax": 80} {
			regs.Fields[name] = isf.Field{Offset: at, Type: isf.Type{Kind: isf.Base, Name: "unsigned long"}}
		}
		b.Users["pt_regs"] = regs
		n := uint64(len(orcRows))
		b.Symbols = append(b.Symbols, isf.Symbol{Name: "_stext", Addr: orcTexts}, isf.Symbol{Name: "_etext", Addr: orcTexts + 0x8000},
			isf.Symbol{Name: "__start_orc_unwind_ip", Addr: orcTableAt}, isf.Symbol{Name: "__stop_orc_unwind_ip", Addr: orcTableAt + 4*n},
			isf.Symbol{Name: "__start_orc_unwind", Addr: orcTableAt + 0x800}, isf.Symbol{Name: "__stop_orc_unwind", Addr: orcTableAt + 0x800 + 6*n},
			isf.Symbol{Name: "leaf", Addr: leafAt}, isf.Symbol{Name: "vfs_read", Addr: sampleAt}, isf.Symbol{Name: "callee", Addr: calleeAt}, isf.Symbol{Name: "handler", Addr: handlerAt}, isf.Symbol{Name: "entry", Addr: entryAt}, isf.Symbol{Name: "start", Addr: startAt},
			isf.Symbol{Name: "dead", Addr: deadAt}, isf.Symbol{Name: "swap", Addr: swapAt})
	}
}

// unwound is a guest with those tables, and a stack of these words.
func unwound(t testing.TB, newer bool, numbers int, stack ...uint64) (*guest, *Kernel) {
	t.Helper()
	g := newGuest(t, banner+"\n\x00")
	table := make([]byte, 4096)
	for i, r := range orcRows {
		le.PutUint32(table[4*i:], uint32(r.at-orcTableAt-4*uint64(i)))
		e := table[0x800+6*i:]
		le.PutUint16(e, uint16(r.sp))
		le.PutUint16(e[2:], uint16(r.bp))
		kinds := map[orcKind]uint16{orcCall: 0, orcRegs: 1, orcPartialRegs: 2, orcEnd: 4}
		if newer {
			kinds = map[orcKind]uint16{orcEnd: 1, orcCall: 2, orcRegs: 3, orcPartialRegs: 4}
		}
		number := func(r orcReg) uint16 { return uint16(slices.Index(orcNumbers[numbers], r)) }
		le.PutUint16(e[4:], number(r.spReg)|number(r.bpReg)<<4|kinds[r.kind]<<8)
	}
	g.space.Page(orcTableAt+slide, table...)
	page := make([]byte, 4096)
	for i, w := range stack {
		le.PutUint64(page[8*i:], w)
	}
	g.space.Page(orcStack, page...)
	return g, g.find(t, testProfile(t, orcTypes(newer)))
}

// ptRegs are the words of a struct pt_regs.
func ptRegs(ip, cs, sp, bp uint64) []uint64 {
	r := make([]uint64, 21)
	r[16], r[17], r[19], r[4] = ip, cs, sp, bp
	return r
}

func framesText(k *Kernel, s *KernelStack) string {
	var all []string
	for _, f := range s.Frames {
		all = append(all, k.FrameText(f))
	}
	return strings.Join(all, " ")
}

func TestUnwindKernel(t *testing.T) {
	call := func(at uint64) uint64 { return at + slide }
	for name, c := range map[string]struct {
		ip, bp uint64
		stack  []uint64
		want   string
		user   *UserFrame
		err    string
	}{
		"to a program": {ip: leafAt, stack: append([]uint64{call(calleeAt + 0x10), 0, 0, call(entryAt + 0x20)}, ptRegs(0x401234, 0x33, orcUser, 0x7fff)...),
			want: "leaf callee+0x10 entry+0x20", user: &UserFrame{IP: 0x401234, SP: orcUser, BP: 0x7fff, BPKnown: true}},
		"to its start":   {ip: leafAt, stack: []uint64{call(calleeAt + 0x10), 0, 0, call(startAt + 0x20)}, want: "leaf callee+0x10 start+0x20"},
		"with a pointer": {ip: leafAt + 8, bp: orcStack + 16, stack: []uint64{0, 0, 0x77, call(calleeAt + 0x10), 0, 0, call(startAt + 1)}, want: "leaf+0x8 callee+0x10 start+0x1"},
		"through an interrupt": {ip: leafAt, stack: append([]uint64{call(entryAt + 0x20)}, append(ptRegs(call(calleeAt), 0x10, orcStack+8*22, 0), 0, 0, call(startAt+0x20))...),
			want: "leaf entry+0x20 callee start+0x20"},
		"through the end of one": {ip: leafAt, stack: []uint64{call(entryAt + 0x120), call(calleeAt), 0x10, 0, orcStack + 8*6, 0, 0, 0, call(startAt + 0x20)},
			want: "leaf entry+0x120 callee start+0x20"},
		"behind a last call":  {ip: leafAt, stack: []uint64{call(handlerAt), 0, 0, call(startAt + 0x20)}, want: "leaf callee+0x1000 start+0x20"},
		"to another stack":    {ip: swapAt, stack: []uint64{orcStack + 8*8, 0, 0, 0, 0, 0, 0, 0, call(startAt + 4)}, want: "swap start+0x4"},
		"to what nobody says": {ip: leafAt, stack: []uint64{call(deadAt + 9)}, want: "leaf dead+0x9", err: "does not say"},
		"out of the kernel":   {ip: leafAt, stack: []uint64{0x1234}, want: "leaf 0x1234", err: "not in the kernel proper"},
		"in a circle": {ip: leafAt + 8, bp: orcStack, stack: []uint64{orcStack, call(leafAt + 9)},
			want: "leaf+0x8" + strings.Repeat(" leaf+0x9", MaxFrames-1), err: "more than 64"},
	} {
		for version, newer := range []bool{false, true, true} {
			_, k := unwound(t, newer, version/2, c.stack...)
			regs := &xenevents.Registers{RIP: c.ip + slide, RSP: orcStack, RBP: c.bp}
			for range 2 { // the second time what is known is taken
				s := k.UnwindKernel(regs)
				if got := framesText(k, &s); got != c.want {
					t.Errorf("%s: %s, want %s (%v)", name, got, c.want, s.Err)
				}
				if (s.Err == nil) != (c.err == "") || s.Err != nil && !strings.Contains(s.Err.Error(), c.err) {
					t.Errorf("%s: %v, want %q", name, s.Err, c.err)
				}
				if fmt.Sprint(s.User) != fmt.Sprint(c.user) {
					t.Errorf("%s: the program is at %+v, want %+v", name, s.User, c.user)
				}
			}
		}
	}
}

// TestNoOrc: a kernel without tables, or with others, is said to be one.
func TestNoOrc(t *testing.T) {
	for name, change := range map[string]func(*isf.Builder){
		"none": nil,
		"of other bits": func(b *isf.Builder) {
			orcTypes(true)(b)
			b.Users["orc_entry"].Fields["type"] = isf.Field{Offset: 4, Type: isf.Type{Kind: isf.Bitfield, BitPos: 8, BitLen: 5}}
		},
	} {
		g := newGuest(t, banner+"\n\x00")
		k := g.find(t, testProfile(t, change))
		if s := k.UnwindKernel(&xenevents.Registers{RIP: leafAt + slide}); s.Err == nil || len(s.Frames) != 1 || s.User != nil {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// FuzzUnwind: whatever the guest has for a stack and for tables, a walk of it ends.
func FuzzUnwind(f *testing.F) {
	f.Add([]byte{1}, []byte{2}, uint64(0))
	f.Fuzz(func(t *testing.T, stack, table []byte, bp uint64) {
		g, k := unwound(t, true, 1)
		g.Poke(g.walk(t, orcStack), stack[:min(len(stack), xenevents.PageSize)])
		g.Poke(g.walk(t, orcTableAt+slide+0x800), table[:min(len(table), 6*len(orcRows))])
		s := k.UnwindKernel(&xenevents.Registers{RIP: leafAt + slide, RSP: orcStack, RBP: orcStack + bp%xenevents.PageSize})
		if len(s.Frames) == 0 || len(s.Frames) > MaxFrames {
			t.Errorf("%d frames", len(s.Frames))
		}
		framesText(k, &s)
	})
}

// TestUnwindUser: frame pointers are followed as long as they go up, and what they lead
// to is code.
func TestUnwindUser(t *testing.T) {
	const stackAt, inCode, more, noCode = 0x7f0000000000, 1<<20 + 0x10, 3<<20 + 0x20, 2<<20 + 0x10
	for name, c := range map[string]struct {
		stack map[int]uint64 // by word
		entry bool
		bp    uint64
		want  string
	}{
		"at an entry":         {map[int]uint64{0: inCode, 2: stackAt + 8*6, 3: more}, true, stackAt + 16, "0x100001 0x100010 0x300020"},
		"in a function":       {map[int]uint64{0: inCode, 2: stackAt + 8*6, 3: more, 7: inCode}, false, stackAt + 16, "0x100001 0x300020 0x100010"},
		"without frames":      {map[int]uint64{0: inCode}, true, 5, "0x100001 0x100010"},
		"to data":             {map[int]uint64{2: stackAt + 8*6, 3: noCode}, false, stackAt + 16, "0x100001"},
		"downwards":           {map[int]uint64{2: stackAt + 8, 3: more, 1: 0}, false, stackAt + 16, "0x100001 0x300020"},
		"to the same place":   {map[int]uint64{2: stackAt + 16, 3: more}, false, stackAt + 16, "0x100001 0x300020"},
		"to where nothing is": {map[int]uint64{2: stackAt + 1<<20, 3: more}, false, stackAt + 16, "0x100001 0x300020"},
	} {
		for _, tree := range []bool{false, true} {
			m := newMapped(t, tree)
			m.fill(tree, 4)
			page := make([]byte, 4096)
			for i, w := range c.stack {
				le.PutUint64(page[8*i:], w)
			}
			m.space.Page(stackAt, page...)
			var got []string
			for _, f := range m.k.UnwindUser(m.space.AddressSpace(), mmAt, UserFrame{IP: 1<<20 + 1, SP: stackAt, BP: xenevents.GVA(c.bp), BPKnown: true}, c.entry) {
				got = append(got, f.At.String())
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("%s: %q, want %s", name, got, c.want)
			}
		}
	}
}
