package profiler

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

func record(tick, rip uint64, exit uint32, cpu byte, guest bool, callers ...uint64) []byte {
	b := make([]byte, sampleSize)
	binary.LittleEndian.PutUint64(b, tick)
	binary.LittleEndian.PutUint64(b[8:], rip)
	binary.LittleEndian.PutUint32(b[24:], exit)
	b[28] = cpu
	if guest {
		b[29] = 1
	}
	for i, c := range callers {
		binary.LittleEndian.PutUint64(b[32+8*i:], c)
	}
	return b
}

const syms = `ffff82d040201000 t arch/x86/mm/p2m-ept.c#ept_get_entry
ffff82d040202000 T update_runstate_area
ffff82d040203000 t common/timer.c#remove_from_heap.isra.0
`

func TestReport(t *testing.T) {
	xen, err := ReadKallsyms(strings.NewReader(syms))
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	for _, b := range [][]byte{
		record(50_000, 0xffff82d040201010, noExit, 1, false), // before the first hit
		record(100_000, 0x1000, 0, 1, true),
		record(100_100, 0xffff82d040201010, noExit, 1, false, 0xffff82d040202020),
		record(100_200, 0xffff82d040201010, noExit, 1, false),
		record(100_300, 0xffffffff81000000, noExit, 0, false),
		record(100_400, 0x1000, 32, 1, true),
		record(150_000, 0x1000, 0, 1, true),
		record(900_000, 0x1000, 0, 1, true), // too far away: no stretch
	} {
		file.Write(b)
	}
	file.Write(make([]byte, 10)) // cut off
	samples, err := Read(&file)
	if err != nil || len(samples) != 8 {
		t.Fatalf("%d samples, %v", len(samples), err)
	}
	r := New(samples, Options{Longest: 100_000, GuestCPU: 1, Xen: xen, Anchors: Hit})
	if r.Windows != 1 || r.Ticks != 50_000 || len(r.CPUs) != 2 {
		t.Fatalf("report %+v", r)
	}
	guestCPU := r.CPUs[1]
	if guestCPU.Busy != 2*Period || len(guestCPU.Self) != 1 || guestCPU.Self[0].Name != "xen ept_get_entry" {
		t.Errorf("self: %+v", guestCPU)
	}
	want := map[string]bool{"update_runstate_area": true, "xen, other": true}
	for _, u := range guestCPU.Under {
		if !want[u.Name] || u.N != Period {
			t.Errorf("under: %+v", guestCPU.Under)
		}
	}
	var out strings.Builder
	if _, err := r.WriteTo(&out); err != nil || !strings.Contains(out.String(), "1.00 VM exits: WRMSR") {
		t.Errorf("%v, output:\n%s", err, out.String())
	}
}

func TestSymbolNames(t *testing.T) {
	s, err := ReadKallsyms(strings.NewReader(syms))
	if err != nil {
		t.Fatal(err)
	}
	for addr, want := range map[uint64]string{0xffff82d040203fff: "remove_from_heap", 0xffff82d040202000: "update_runstate_area"} {
		if got, ok := s.Name(addr); !ok || got != want {
			t.Errorf("%#x: %q, %v, want %q", addr, got, ok, want)
		}
	}
	for _, addr := range []uint64{0, 0xffff82d040200fff, 0xffff82d050000000} {
		if got, ok := s.Name(addr); ok {
			t.Errorf("%#x has the name %q", addr, got)
		}
	}
	if _, err := ReadKallsyms(strings.NewReader("not hex here\n")); err == nil {
		t.Error("a wrong line was taken")
	}
}
