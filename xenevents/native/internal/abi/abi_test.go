package abi

import "testing"

// TestRingLayout has the numbers of the public headers, written as the fields
// that come before each one: a slip in RingLayout can't repeat itself here.
func TestRingLayout(t *testing.T) {
	const (
		gprs     = 16 * 8
		toGDTR   = gprs + 15*8 // rflags dr6 dr7 rip cr0 cr2 cr3 cr4 sysenter_{cs,esp,eip} efer star lstar gdtr_base
		segBases = 4 * 4       // cs ss ds es
		attrs    = 6 * 4
	)
	for version, added := range map[uint32]int{VMEvent6: 0, VMEvent7: 2 * 8} { // npt_base, vmtrace_pos
		fs := toGDTR + added + segBases
		gs := fs + 8
		shadow := gs + 8 + attrs
		cs := shadow + 8 + 2 // gdtr_limit
		want := Layout{EntrySize: EntryData + cs + 6*2 + 2, FSBase: fs, GSBase: gs, ShadowGS: shadow, CS: cs, SS: cs + 2}
		if got, ok := RingLayout(version); !ok || got != want {
			t.Errorf("version %d is %+v (%v), not %+v", version, got, ok, want)
		}
		if at := 8 * RegGDTRBase; at != toGDTR-8 {
			t.Errorf("gdtr_base is at %d", at)
		}
	}
	for version, size := range map[uint32]int{6: 384, 7: 400} {
		if got, _ := RingLayout(version); got.EntrySize != size || RingEntries+RingSlots*size > 4096 || RingEntries+2*RingSlots*size <= 4096 {
			t.Errorf("version %d: entries of %d bytes", version, got.EntrySize)
		}
	}
	for _, version := range []uint32{0, 1, 2, 3, 4, 5, 8, 1 << 31} {
		if l, ok := RingLayout(version); ok {
			t.Errorf("version %d is known: %+v", version, l)
		}
	}
}

func TestInfoSize(t *testing.T) {
	for _, v := range []struct {
		xen    string
		domctl uint32
		size   int
	}{{"4.14", 0x12, 104}, {"4.15", 0x13, 104}, {"4.16", 0x14, 112}, {"4.17", 0x15, 112}, {"4.20", 0x17, 112}, {"4.22", 0x18, 112}} {
		if got := (Versions{Domctl: v.domctl}).InfoSize(); got != v.size {
			t.Errorf("Xen %s: getdomaininfo has %d bytes, not %d", v.xen, got, v.size)
		}
		if v.domctl < FirstInterface || v.domctl > LastInterface {
			t.Errorf("Xen %s: domctl %#x is not tried", v.xen, v.domctl)
		}
	}
}

func TestVersionsString(t *testing.T) {
	v := Versions{Major: 4, Minor: 17, Extra: ".7", Domctl: 0x15, Sysctl: 0x15, VMEvent: 7}
	if got, want := v.String(), "Xen 4.17.7 (domctl 0x15, sysctl 0x15, vm_event 7)"; got != want {
		t.Errorf("%q", got)
	}
}

// TestCPURecord checks the record's registers for being different ones, in it
// and at the places of the table in save.h.
func TestCPURecord(t *testing.T) {
	seen := map[int]bool{}
	for _, at := range append(CPUGPR[:], CPURIP, CPURFLAGS, CPUCR0, CPUCR2, CPUCR3, CPUCR4, CPUDR6, CPUDR7, CPUFSBase, CPUGSBase, CPUGDTRBase,
		CPUShadowGS, CPULSTAR, CPUSTAR, CPUEFER, CPUSysenterCS, CPUSysenterESP, CPUSysenterEIP) {
		if seen[at] || at%8 != 0 || at < 512 || at+8 > CPURecordSize { // after the 512 bytes of fxsave
			t.Errorf("offset %d", at)
		}
		seen[at] = true
	}
	if CPUGPR[4] != CPURSP || CPURSP != 568 || CPURIP != 640 || CPUCR3 != 672 || CPUEFER != 992 || CPULSTAR != 960 || CPUShadowGS != 944 {
		t.Error("the record is not that of save.h")
	}
}
