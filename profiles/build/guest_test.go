package build

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/test/lab"
	"github.com/hprobe/hprobe/xenevents"
)

// fakeGuest is a guest's physical memory, from which on the page tables are, and
// the registers of its vCPUs.
type fakeGuest struct {
	mem    []byte
	tables xenevents.GPA // the next one
	root   xenevents.GPA
	vcpus  []xenevents.Registers

	paused, pauses int
	free           bool          // it may be read while it runs
	absent         xenevents.GFN // 0: none is
	reads          int           // bytes
}

func (g *fakeGuest) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	g.reads += len(p)
	end := uint64(len(g.mem))
	if hole := uint64(g.absent.GPA()); hole != 0 && uint64(at) < hole+xenevents.PageSize && uint64(at)+uint64(len(p)) > hole {
		end = hole
	}
	if uint64(at) >= end {
		return 0, xenevents.ErrAbsent
	}
	n := copy(p, g.mem[at:end])
	if n < len(p) {
		return n, xenevents.ErrAbsent
	}
	return n, nil
}

func (g *fakeGuest) WriteGPA([]byte, xenevents.GPA) (int, error) { panic("the guest is only read") }
func (g *fakeGuest) MaxGFN() (xenevents.GFN, error)              { return xenevents.GFN(len(g.mem)-1) >> 12, nil }
func (g *fakeGuest) Pause() error                                { g.paused++; g.pauses++; return nil }
func (g *fakeGuest) Unpause() error                              { g.paused--; return nil }

func (g *fakeGuest) Registers(v xenevents.VCPU) (xenevents.Registers, error) {
	if g.paused == 0 && !g.free {
		return xenevents.Registers{}, errors.New("it runs: registers and page tables are not of one moment")
	}
	if int(v) >= len(g.vcpus) || g.vcpus[v].CR0 == 0 {
		return xenevents.Registers{}, xenevents.ErrVCPUDown
	}
	return g.vcpus[v], nil
}

// Bits of a page-table entry (Intel SDM vol. 3, 4.5).
const pteP, pteW, ptePS, pteNX = 1, 2, 1 << 7, uint64(1) << 63

// entry is the place of the entry for an address, at a level.
func (g *fakeGuest) entry(at uint64, level int) []byte {
	table := g.root
	for l := 4; ; l-- {
		e := g.mem[uint64(table)+at>>(12+9*(l-1))&511*8:]
		if l == level {
			return e
		}
		if le.Uint64(e)&pteP == 0 {
			le.PutUint64(e, uint64(g.tables)|pteP|pteW)
			g.tables += xenevents.PageSize
		}
		table = xenevents.GPA(le.Uint64(e) &^ (xenevents.PageSize - 1) &^ pteNX)
	}
}

// mapRange maps whole pages, of 2 MiB where it can, to physical memory.
func (g *fakeGuest) mapRange(at, end, to, rights uint64) {
	for at < end {
		if size := uint64(2 << 20); at%size == 0 && to%size == 0 && end-at >= size {
			le.PutUint64(g.entry(at, 2), to|rights|pteP|ptePS)
			at, to = at+size, to+size
			continue
		}
		le.PutUint64(g.entry(at, 1), to|rights|pteP)
		at, to = at+xenevents.PageSize, to+xenevents.PageSize
	}
}

const fakeBase = 1 << 20 // the physical address of 0xffffffff81000000

// newFakeGuest is a guest that runs a kernel with these sections, at a slide.
func newFakeGuest(slide uint64, sections ...section) *fakeGuest {
	top := uint64(0)
	for _, s := range sections {
		top = max(top, s.addr+uint64(len(s.data)))
	}
	size := (top - linkedText + 4<<20) &^ (2<<20 - 1)
	g := &fakeGuest{mem: make([]byte, fakeBase+size+64*xenevents.PageSize)}
	g.root = xenevents.GPA(fakeBase + size)
	g.tables = g.root + xenevents.PageSize
	for _, s := range sections {
		rights := uint64(pteW) | pteNX
		switch {
		case s.flags&uint32(elf.SHF_EXECINSTR) != 0:
			rights = 0
		case s.flags&uint32(elf.SHF_WRITE) == 0:
			rights = pteNX
		}
		to := fakeBase + s.addr - linkedText
		copy(g.mem[to:], s.data)
		first, end := s.addr&^0xfff, (s.addr+uint64(len(s.data))+0xfff)&^0xfff
		g.mapRange(first+slide, end+slide, to&^0xfff, rights)
	}
	return g
}

// runs adds a vCPU with this entry.
func (g *fakeGuest) runs(entry uint64) *fakeGuest {
	g.vcpus = append(g.vcpus, xenevents.Registers{CR0: xenevents.CR0PG, CR4: xenevents.CR4PAE, EFER: xenevents.EFERLMA, CR3: uint64(g.root), LSTAR: entry})
	return g
}

// domain is a guest with so many vCPUs, and what a profile says of it.
func domain(vcpus int) *xenevents.DomainInfo {
	return &xenevents.DomainInfo{ID: 7, Name: "g", UUID: [16]byte{0xab}, MaxVCPU: xenevents.VCPU(vcpus - 1)}
}

const (
	fakeSource = "memory of domain 7 (g)"
	fakeUUID   = "ab000000-0000-0000-0000-000000000000"
)

const fakeEntry = linkedText + 0x80

// guestSections are those of a kernel in memory, in one of the forms of the table.
func guestSections(t testing.TB, l layout, slide uint64) []section {
	all := symbolsOf(l, 1200)
	types := kernelTypes(t)
	named := []isf.Symbol{{Name: "_text", Addr: linkedText}, {Name: "entry_SYSCALL_64", Addr: fakeEntry}}
	last := []isf.Symbol{{Name: "__start_notes", Addr: 0xffffffff83000000}, {Name: "__stop_notes", Addr: 0xffffffff83000000 + 40},
		{Name: "__start_BTF", Addr: 0xffffffff84000000}, {Name: "__stop_BTF", Addr: 0xffffffff84000000 + uint64(len(types))},
		{Name: "phys_base", Addr: dataAddr + 16}}
	data := make([]byte, 4096)
	le.PutUint64(data[16:], fakePhysBase(slide))
	all = append(append(all, named...), last...)
	slices.SortStableFunc(all, func(a, b isf.Symbol) int { return int(int64(a.Addr>>1) - int64(b.Addr>>1)) })
	rodata := append([]byte(testBanner+"\n\x00"), make([]byte, 64)...)
	rodata = append(rodata, slidTable(l, rodataAddr+uint64(len(rodata)), all, slide)...)
	note := []byte("\x04\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00Xen\x00\x01\x02\x00\x00" + "\x04\x00\x00\x00\x03\x00\x00\x00\x03\x00\x00\x00GNU\x00\xab\xcd\xef\x00")
	return []section{
		{".text", uint32(elf.SHT_PROGBITS), uint32(elf.SHF_ALLOC | elf.SHF_EXECINSTR), linkedText, make([]byte, 7<<20)},
		{".rodata", uint32(elf.SHT_PROGBITS), uint32(elf.SHF_ALLOC), rodataAddr, rodata},
		{".notes", uint32(elf.SHT_NOTE), uint32(elf.SHF_ALLOC), 0xffffffff83000000, note},
		{".BTF", uint32(elf.SHT_PROGBITS), uint32(elf.SHF_ALLOC), 0xffffffff84000000, types},
		{".data", uint32(elf.SHT_PROGBITS), uint32(elf.SHF_ALLOC | elf.SHF_WRITE), dataAddr, data},
	}
}

const dataAddr = 0xffffffff84400000

// fakePhysBase is what a kernel at a slide has in phys_base, where it is at fakeBase.
func fakePhysBase(slide uint64) uint64 { return fakeBase - (linkedText + slide - kernelText) }

// slidTable is a table as KASLR leaves it: it moves relative_base, the one pointer there.
func slidTable(l layout, addr uint64, all []isf.Symbol, slide uint64) []byte {
	b := kallsymsTable(l, addr, all)
	base := le.AppendUint64(nil, linkedText)
	if i := bytes.LastIndex(b, base); i >= 0 && !l.relative {
		le.PutUint64(b[i:], linkedText+slide)
	}
	return b
}

// all is a profile as it is, byte for byte, but for what it is made of.
func all(t testing.TB, p *isf.Profile) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := p.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	out := bytes.ReplaceAll(b.Bytes(), []byte(fakeSource), []byte("x"))
	for _, from := range []string{fakeUUID, Dump} {
		out = bytes.Replace(out, []byte(`"captured":"`+from), []byte(`"captured":"`), 1)
	}
	for i := range p.NumSymbols() { // of those with one name the format has the first
		out = fmt.Appendln(out, p.SymbolAt(i))
	}
	return out
}

func TestFromGuest(t *testing.T) {
	ctx := context.Background()
	for _, l := range layouts {
		want, err := fromImage(ctx, elfFile(elf.EM_X86_64, guestSections(t, l, 0)...), "x", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, slide := range []uint64{0, 2 << 20, 0x1d400000} {
			g := newFakeGuest(slide, guestSections(t, l, slide)...).runs(fakeEntry + slide)
			got, err := FromGuest(ctx, g, domain(len(g.vcpus)))
			if err != nil {
				t.Errorf("%s, slide %#x: %v", l.name, slide, err)
				continue
			}
			if m := got.Meta(); m != (isf.Meta{Banner: testBanner, BuildID: "abcdef", Source: fakeSource, Captured: fakeUUID}) {
				t.Errorf("%s: %+v", l.name, m)
			}
			if !bytes.Equal(all(t, got), all(t, want)) {
				t.Errorf("%s, slide %#x: the profile is another than the image's", l.name, slide)
			}
			if g.paused != 0 || g.pauses != 1 {
				t.Errorf("it was paused %d times, and is %d", g.pauses, g.paused)
			}
		}
	}
}

// inUserMode has the first vCPU run a program under KPTI: its root is the odd one of two,
// and maps nothing here.
func (g *fakeGuest) inUserMode(t testing.TB) *fakeGuest {
	t.Helper()
	if g.root&xenevents.PageSize != 0 { // the kernel's is the even one
		t.Fatalf("the root is %v", g.root)
	}
	g.mem = append(g.mem, make([]byte, 16*xenevents.PageSize)...)
	// What is behind the root is the first table: that moves away.
	from, to := uint64(g.root+xenevents.PageSize), uint64(g.tables)
	copy(g.mem[to:to+xenevents.PageSize], g.mem[from:from+xenevents.PageSize])
	le.PutUint64(g.mem[uint64(g.root)+511*8:], to|pteP|pteW)
	clear(g.mem[from : from+xenevents.PageSize])
	g.vcpus[0].CR3 |= xenevents.PageSize
	return g
}

// TestFromGuestFindsTheKernel: with KPTI a vCPU in user mode shows a root that has
// only the entry code; others are not there, or not started.
func TestFromGuestFindsTheKernel(t *testing.T) {
	const slide = 6 << 20
	l := layouts[3]
	kernel := func() *fakeGuest { return newFakeGuest(slide, guestSections(t, l, slide)...).runs(fakeEntry + slide) }
	kpti := kernel().inUserMode(t)

	late := kernel()
	late.vcpus = []xenevents.Registers{{}, {CR0: 1}, late.vcpus[0]}

	sections := guestSections(t, l, slide)
	for i := range sections { // before mark_rodata_ro
		sections[i].flags |= uint32(elf.SHF_EXECINSTR)
	}
	early := newFakeGuest(slide, sections...).runs(fakeEntry + slide)

	ballooned := kernel() // a page of its data
	ballooned.absent = xenevents.GPA(fakeBase + dataAddr - linkedText).GFN()

	for name, g := range map[string]*fakeGuest{"KPTI": kpti, "the third vCPU": late, "early": early, "a page less": ballooned} {
		if p, err := FromGuest(context.Background(), g, domain(4)); err != nil || p.Meta().BuildID != "abcdef" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestFromGuestSaysWhatIsWrong(t *testing.T) {
	const slide = 6 << 20
	l := layouts[3]
	guest := func(change func(all []section) []section) *fakeGuest {
		sections := guestSections(t, l, slide)
		if change != nil {
			sections = change(sections)
		}
		return newFakeGuest(slide, sections...).runs(fakeEntry + slide)
	}
	vcpu := func(change func(*xenevents.Registers)) *fakeGuest {
		g := guest(nil)
		change(&g.vcpus[0])
		return g
	}
	same := guest(nil) // each page of 1 GiB, by one table
	for i := range uint64(512) {
		le.PutUint64(same.entry(kernelText+i<<21, 2), uint64(same.tables)|pteP)
	}
	for i := range uint64(512) {
		le.PutUint64(same.mem[uint64(same.tables)+8*i:], fakeBase|pteP)
	}
	striped := guest(nil)
	for i := range uint64(512) {
		le.PutUint64(striped.entry(kernelText+0x20000000+i<<12, 1), fakeBase|pteP|i&1<<63)
	}
	huge := guest(nil)
	huge.mapRange(kernelText+0x20000000, kernelText+0x3fe00000, 1<<30, pteNX)
	for name, c := range map[string]struct {
		g    *fakeGuest
		want string
	}{
		"no vCPU":           {newFakeGuest(0, guestSections(t, l, 0)...), "is it booted"},
		"no entry":          {vcpu(func(r *xenevents.Registers) { r.LSTAR = 0 }), "is it booted"},
		"another system":    {vcpu(func(r *xenevents.Registers) { r.LSTAR = 0xfffff80000001000 }), "where no x86-64 Linux is"},
		"no entry code":     {vcpu(func(r *xenevents.Registers) { r.LSTAR = kernelEnd - 8 }), "not mapped"},
		"another entry":     {vcpu(func(r *xenevents.Registers) { r.LSTAR += 16 }), "of another kernel"},
		"no root":           {vcpu(func(r *xenevents.Registers) { r.CR3 = 1 << 40 }), "only 0 bytes"},
		"5 levels":          {vcpu(func(r *xenevents.Registers) { r.CR4 |= xenevents.CR4LA57 }), "no5lvl"},
		"no paging":         {vcpu(func(r *xenevents.Registers) { r.CR0 = 1 }), "more entries"},
		"small":             {guest(func(all []section) []section { all[0].data = all[0].data[:4096]; return all }), "only "},
		"another slide":     {newFakeGuest(slide, guestSections(t, l, slide+4096)...).runs(fakeEntry + slide), "KASLR"},
		"a far slide":       {newFakeGuest(slide, guestSections(t, l, 1<<30)...).runs(fakeEntry + slide), "KASLR"},
		"no kallsyms":       {guest(func(all []section) []section { clear(all[1].data); return all }), "CONFIG_KALLSYMS"},
		"no BTF":            {guest(func(all []section) []section { clear(all[3].data); return all }), "BTF:"},
		"BTF elsewhere":     {guest(func(all []section) []section { all[3].addr += 1 << 20; return all }), "CONFIG_DEBUG_INFO_BTF"},
		"a banner's escape": {guest(func(all []section) []section { copy(all[1].data, "\x1b[2J"); return all }), `"\x1b[2J`},
		"the same pages":    {same, "more ranges"},
		"striped":           {striped, "more ranges"},
		"huge":              {huge, ""},
	} {
		_, err := FromGuest(context.Background(), c.g, domain(8))
		if err == nil && c.want != "" || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
		if c.g.paused != 0 {
			t.Errorf("%s: it is paused", name)
		}
		if c.g.reads > 2*maxRead {
			t.Errorf("%s: %d bytes were read", name, c.g.reads)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := FromGuest(ctx, guest(nil), domain(1)); !errors.Is(err, context.Canceled) {
		t.Errorf("a command that was interrupted: %v", err)
	}
	if _, err := FromGuest(context.Background(), newFakeGuest(0), domain(1)); !errors.Is(err, ErrNoKernel) {
		t.Errorf("%v", err)
	}
}

// TestFromGuestKernels: kernels of distributions, in memory as their own boot code puts
// them there at a slide, give the profiles that their images do, and so do dumps of it.
func TestFromGuestKernels(t *testing.T) {
	ctx := context.Background()
	for _, linux := range []string{"7.2", "5.10"} { // test/xen has those between, too
		path, _, err := lab.GuestKernel(ctx, linux)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		image, err := unpackImage(b)
		if err != nil {
			t.Fatal(err)
		}
		want, err := fromImage(ctx, image, "x", nil)
		if err != nil {
			t.Fatal(err)
		}
		const slide = 0x12600000
		g := boot(t, image, slide)
		entry, err := want.Address("entry_SYSCALL_64")
		if err != nil {
			t.Fatal(err)
		}
		g.runs(entry + slide).free = true
		// Whatever else a kernel has that looks like one.
		if banner, err := GuestBanner(ctx, g, 1); err != nil || banner != want.Meta().Banner || g.reads > 4<<20 {
			t.Errorf("%s: after %d bytes %q, %v, not %q", linux, g.reads, banner, err, want.Meta().Banner)
		}
		base, err := want.Address("phys_base")
		if err != nil {
			t.Fatal(err)
		}
		le.PutUint64(g.mem[fakeBase+base-linkedText:], fakePhysBase(slide))
		for name, capture := range map[string]func() (*isf.Profile, error){
			"guest": func() (*isf.Profile, error) { return FromGuest(ctx, g, domain(1)) },
			"dump":  func() (*isf.Profile, error) { return FromDump(ctx, g, "x") },
		} {
			g.reads = 0
			got, err := capture()
			if err != nil {
				t.Errorf("%s of %s: %v", name, linux, err)
				continue
			}
			if got.Meta().BuildID != want.Meta().BuildID || len(got.Meta().BuildID) != 40 || !bytes.Equal(all(t, got), all(t, want)) {
				t.Errorf("%s of %s: the profile is another than the image's: %+v, %+v", name, linux, got.Meta(), want.Meta())
			}
			t.Logf("%s of %s: %d symbols; %d bytes were read", name, linux, got.NumSymbols(), g.reads)
		}
	}
}

// boot puts an image into a guest's memory and relocates it, as the kernel's boot code
// does: arch/x86/boot/compressed/misc.c, handle_relocations. Behind the image are two or
// three lists, each before a 0, from the end on: addresses of 32-bit words, before Linux
// 6.15 those of words that count backwards, and of 64-bit words.
func boot(t testing.TB, image []byte, slide uint64) *fakeGuest {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		t.Fatal(err)
	}
	var sections []section
	for _, s := range f.Sections {
		if s.Flags&elf.SHF_ALLOC == 0 || s.Type == elf.SHT_NOBITS || s.Addr < kernelText {
			continue
		}
		data, err := s.Data()
		if err != nil {
			t.Fatal(err)
		}
		sections = append(sections, section{s.Name, uint32(s.Type), uint32(s.Flags), s.Addr, data})
	}
	// The kernel maps its read-only data as one.
	for i := range sections {
		if s := &sections[i]; s.addr >= f.Section(".rodata").Addr && s.addr < f.Section(".data").Addr {
			s.flags = uint32(elf.SHF_ALLOC)
		}
	}
	g := newFakeGuest(slide, sections...)
	var lists [][]uint64
	for at := len(image); len(lists) < 3; {
		var list []uint64
		for at -= 4; ; at -= 4 {
			v := int32(le.Uint32(image[at:]))
			if v == 0 {
				break
			}
			list = append(list, fakeBase+uint64(int64(v))-linkedText)
		}
		lists = append(lists, list)
		if next := le.Uint32(image[at-4:]); len(lists) == 2 && next>>24 != 0x81 && next>>28 != 8 {
			break // what is before the lists is no address
		}
	}
	last := lists[len(lists)-1]
	if len(lists[0]) < 1000 || len(last) < 10000 {
		t.Fatalf("%d lists of relocations, of %d … %d", len(lists), len(lists[0]), len(last))
	}
	add32 := func(at, v uint64) { le.PutUint32(g.mem[at:], le.Uint32(g.mem[at:])+uint32(v)) }
	for _, at := range lists[0] {
		add32(at, slide)
	}
	for _, at := range last {
		le.PutUint64(g.mem[at:], le.Uint64(g.mem[at:])+slide)
	}
	return g
}

// FuzzFromGuest damages a guest's memory and page tables.
func FuzzFromGuest(f *testing.F) {
	const slide = 6 << 20
	var guests []*fakeGuest
	for _, l := range layouts {
		guests = append(guests, newFakeGuest(slide, guestSections(f, l, slide)...).runs(fakeEntry+slide))
	}
	f.Add(uint8(0), uint64(0), []byte{})
	f.Add(uint8(5), uint64(fakeEntry), []byte{2, 8, 0, 0, 0, 0x80, 1, 16, 0, 0, 0xff})
	// Where the fuzzer writes: the page tables, the table of symbols, the types, notes.
	places := []uint64{uint64(guests[0].root), fakeBase + 8<<20, fakeBase + 0xffffffff84000000 - linkedText, fakeBase + 0xffffffff83000000 - linkedText}
	f.Fuzz(func(t *testing.T, which uint8, entry uint64, how []byte) {
		g := *guests[int(which)%len(guests)]
		g.reads, g.vcpus = 0, slices.Clone(g.vcpus)
		if entry != 0 {
			g.vcpus[0].LSTAR = entry
		}
		for h := how; len(h) >= 4; h = h[4:] {
			at := places[int(h[0])%len(places)] + uint64(h[1]) + uint64(h[2])<<8
			if at < uint64(len(g.mem)) {
				defer func(was byte) { g.mem[at] = was }(g.mem[at]) // a copy of all would take longer than the rest
				g.mem[at] = h[3]
			}
		}
		p, err := FromGuest(context.Background(), &g, domain(1))
		if len(how) == 0 && entry == 0 && err != nil {
			t.Error(err)
		}
		if err == nil && !strings.HasPrefix(p.Meta().Banner, "Linux version ") {
			t.Errorf("%q", p.Meta().Banner)
		}
		if g.paused != 0 || g.reads > 2*maxRead {
			t.Error(fmt.Sprint(g.paused, g.reads))
		}
	})
}
