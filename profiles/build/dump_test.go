package build

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// newDump is the memory of a guest that runs a kernel at a slide, which nothing points to.
func newDump(t testing.TB, l layout, slide uint64) *fakeGuest {
	return newFakeGuest(slide, guestSections(t, l, slide)...)
}

func TestFromDump(t *testing.T) {
	ctx := context.Background()
	for _, l := range layouts {
		want, err := fromImage(ctx, elfFile(elf.EM_X86_64, guestSections(t, l, 0)...), "x", nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, slide := range []uint64{0, 2 << 20, 0x1d400000} {
			got, err := FromDump(ctx, newDump(t, l, slide), "x")
			if err != nil {
				t.Errorf("%s, slide %#x: %v", l.name, slide, err)
			} else if !bytes.Equal(all(t, got), all(t, want)) {
				t.Errorf("%s, slide %#x: the profile is another than the image's", l.name, slide)
			}
		}
	}
}

// link puts an entry into a table that points to another one.
func (g *fakeGuest) link(table xenevents.GPA, index int, to xenevents.GPA) {
	le.PutUint64(g.mem[int(table)+8*index:], uint64(to)|pteP|pteW)
}

// TestFromDumpFindsTheRoot among pages before it that look like one.
func TestFromDumpFindsTheRoot(t *testing.T) {
	const slide = 6 << 20
	for name, change := range map[string]func(*fakeGuest){
		"five levels": func(g *fakeGuest) {
			g.link(0, 511, g.root)
			g.link(g.root, 510, 0x1000)
			g.link(0x1000, 5, 0x2000)
		},
		"KPTI's other root": func(g *fakeGuest) {
			g.link(0, 511, 0x1000)
			g.link(0x1000, 510, 0x2000)
			g.link(0x2000, 8, 0x3000)
			le.PutUint64(g.mem[0x3000:], fakeBase|pteP)
		},
		"large pages": func(g *fakeGuest) { // more than kernels are tried
			for page := xenevents.GPA(0); page < 32<<12; page += 2 << 12 {
				g.link(page, 511, page+xenevents.PageSize)
				g.link(page+xenevents.PageSize, 510, ptePS)
			}
		},
		"itself":                 func(g *fakeGuest) { g.link(0, 511, 0); g.link(0, 510, 0) },
		"what maps other memory": func(g *fakeGuest) { g.link(0, 511, 0x1000); g.link(0x1000, 510, 0x2000); fill(g, 0x2000, 8<<20) },
		"a page less":            func(g *fakeGuest) { g.absent = 3 },
		"twice": func(g *fakeGuest) {
			from := g.entry(kernelText, 4)
			g.link(0, 511, xenevents.GPA(le.Uint64(from)&entryAddress))
		},
	} {
		g := newDump(t, layouts[3], slide)
		change(g)
		if p, err := FromDump(context.Background(), g, "x"); err != nil || p.Meta().BuildID != "abcdef" {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// fill has each entry of a table map large pages that follow each other.
func fill(g *fakeGuest, table xenevents.GPA, to uint64) {
	for i := range uint64(512) {
		le.PutUint64(g.mem[uint64(table)+8*i:], to+i<<21|pteP|ptePS)
	}
}

func TestFromDumpSaysWhatIsWrong(t *testing.T) {
	const slide = 6 << 20
	l := layouts[3]
	dump := func(change func(g *fakeGuest)) *fakeGuest {
		g := newDump(t, l, slide)
		change(g)
		return g
	}
	at := func(g *fakeGuest, addr uint64) []byte { return g.mem[fakeBase+addr-linkedText:] }
	for name, c := range map[string]struct {
		g    *fakeGuest
		none bool
		want string
	}{
		"nothing":            {&fakeGuest{mem: make([]byte, 1<<20)}, true, "none of its 256 pages"},
		"a part of a page":   {&fakeGuest{mem: make([]byte, 5)}, true, "none of its 1 pages"},
		"an ELF file":        {dump(func(g *fakeGuest) { copy(g.mem, elf.ELFMAG) }), true, "xl dump-core"},
		"no root":            {dump(func(g *fakeGuest) { clear(g.mem[g.root : g.root+xenevents.PageSize]) }), true, "without headers"},
		"no tables":          {dump(func(g *fakeGuest) { g.mem = g.mem[:g.root+xenevents.PageSize] }), true, "nothing left out"},
		"no kernel":          {dump(func(g *fakeGuest) { clear(g.entry(kernelText, 2)[:4096]) }), true, "only 0 bytes"},
		"half a kernel":      {dump(func(g *fakeGuest) { g.absent = xenevents.GPA(fakeBase + rodataAddr - linkedText).GFN() }), false, "no guest memory there"},
		"another kernel":     {dump(func(g *fakeGuest) { le.PutUint64(at(g, dataAddr+16), fakePhysBase(slide)+4096) }), false, "of another kernel"},
		"no phys_base":       {dump(func(g *fakeGuest) { clear(g.entry(dataAddr+slide, 1)[:8]) }), false, "phys_base"},
		"no BTF":             {dump(func(g *fakeGuest) { clear(at(g, 0xffffffff84000000)[:64]) }), false, "BTF:"},
		"no kallsyms":        {dump(func(g *fakeGuest) { clear(at(g, rodataAddr)[:1<<16]) }), false, "CONFIG_KALLSYMS"},
		"a banner's escape":  {dump(func(g *fakeGuest) { copy(at(g, rodataAddr), "\x1b[2J") }), false, `"\x1b[2J`},
		"many that are none": {many(64, true), true, "more page tables"},
		"many of one table": {dump(func(g *fakeGuest) {
			*g = *many(64, true)
			for i := range 64 {
				g.link(xenevents.GPA(2*i)<<12, 511, 0x1000)
			}
		}), true, "more entries than a kernel"},
	} {
		_, err := FromDump(context.Background(), c.g, "x")
		if err == nil || !strings.Contains(err.Error(), c.want) || errors.Is(err, ErrNoKernel) != c.none {
			t.Errorf("%s: %v", name, err)
		}
		if c.g.reads > maxKernels*maxRead {
			t.Errorf("%s: %d bytes were read", name, c.g.reads)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := FromDump(ctx, newDump(t, l, slide), "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("a command that was interrupted: %v", err)
	}
}

// many is a dump with so many roots, each with a table of its own. They map pages of 4 KiB,
// more than a kernel has, or what is there, as large ones.
func many(n int, small bool) *fakeGuest {
	g := &fakeGuest{mem: make([]byte, manySize)}
	pages, last := xenevents.GPA(2*n)<<12, xenevents.GPA(2*n+1)<<12
	for i := range 510 { // they look like no root themselves
		switch {
		case small:
			g.link(pages, i, last)
			g.link(last, i, xenevents.GPA(i)<<12)
		case i<<21 < manySize:
			g.link(pages, i, xenevents.GPA(i<<21|ptePS))
		}
	}
	for i := range n {
		root := xenevents.GPA(2*i) << 12
		g.link(root, 511, root+xenevents.PageSize)
		g.link(root+xenevents.PageSize, 510, pages)
	}
	return g
}

const manySize = 8 << 20

// TestFromDumpGivesUp on a dump with more kernels than there can be, none of which is one.
func TestFromDumpGivesUp(t *testing.T) {
	g := many(64, false)
	_, err := FromDump(context.Background(), g, "x")
	if !errors.Is(err, errNoKallsyms) || g.reads < maxKernels*manySize || g.reads > (maxKernels+1)*manySize {
		t.Errorf("%d bytes were read, %v", g.reads, err)
	}
}

// TestIsRoot: what points out of the dump costs no walk.
func TestIsRoot(t *testing.T) {
	for _, c := range []struct {
		root, kernel xenevents.GPA
		want         bool
	}{{0x1000, 0x1000, true}, {0x1000, 0x3000, true}, {0x1000, 0x4000, false}, {0x4000, 0x1000, false}, {0x1000, 0x1000 | ptePS, false}, {0x1000 | ptePS, 0x1000, false}, {0x1000, 1 << 51, false}} {
		g := &fakeGuest{mem: make([]byte, 4<<12)}
		g.link(0, 511, c.root)
		g.link(0x1000, 510, c.kernel)
		s := dumpSearch{dump: g, read: guestmem.NewReader(g), top: 3, seen: map[xenevents.GPA]bool{}}
		if got := s.isRoot(0); got != c.want {
			t.Errorf("%v, %v: %v", c.root, c.kernel, got)
		}
		if s.isRoot(0) {
			t.Errorf("%v, %v: a second time", c.root, c.kernel)
		}
	}
}

// FuzzFromDump damages a dump, its page tables above all.
func FuzzFromDump(f *testing.F) {
	const slide = 6 << 20
	var dumps []*fakeGuest
	for _, l := range layouts {
		dumps = append(dumps, newDump(f, l, slide))
	}
	f.Add(uint8(0), uint32(0), []byte{})
	f.Add(uint8(5), uint32(0), []byte{0xf8, 15, 0, 3, 0xf9, 15, 0, 0x10, 0xf0, 31, 0, 3, 0xf1, 31, 0, 0x20})
	f.Add(uint8(2), uint32(1<<20), []byte{0, 0, 1, 0xe7})
	f.Fuzz(func(t *testing.T, which uint8, cut uint32, how []byte) {
		g := *dumps[int(which)%len(dumps)]
		g.reads = 0
		for h := how; len(h) >= 4; h = h[4:] {
			at := uint64(h[0]) + uint64(h[1])<<8 // among the first pages, or the page tables
			if h[2]&1 != 0 {
				at += uint64(g.root)
			}
			if at < uint64(len(g.mem)) {
				defer func(was byte) { g.mem[at] = was }(g.mem[at]) // a copy of all would take longer than the rest
				g.mem[at] = h[3]
			}
		}
		whole := g.mem
		defer func() { g.mem = whole }()
		g.mem = g.mem[:len(g.mem)-int(cut)%len(g.mem)]
		p, err := FromDump(context.Background(), &g, "x")
		if len(how) == 0 && cut == 0 && err != nil {
			t.Error(err)
		}
		if err == nil && !strings.HasPrefix(p.Meta().Banner, "Linux version ") {
			t.Errorf("%q", p.Meta().Banner)
		}
		if g.reads > maxKernels*maxRead {
			t.Error(g.reads)
		}
	})
}
