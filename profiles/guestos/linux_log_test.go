package guestos

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
)

// A guest with a log of 8 records and 256 bytes.
const (
	logBase  = 0x2_0000_0000
	prbAt    = logBase + 0x100
	descsAt  = logBase + 0x200
	infosAt  = logBase + 0x400
	textAt   = logBase + 0x800
	logEnd   = logBase + 0x1000
	descSize = 24
	infoSize = 40
	firstID  = 1<<descriptorBits - 20 // soon after it the numbers begin anew
)

func logTypes(b *isf.Builder) {
	structs(b, map[string]uint64{
		"prb_desc_ring.count_bits": 0, "prb_desc_ring.descs": 8, "prb_desc_ring.infos": 16, "prb_desc_ring.head_id": 24, "prb_desc_ring.tail_id": 32,
		"prb_data_ring.size_bits": 0, "prb_data_ring.data": 8, "prb_data_blk_lpos.begin": 0, "prb_data_blk_lpos.next": 8, "prb_desc.state_var": 0, "prb_data_block.data": 8,
		"printk_info.seq": 8, "printk_info.ts_nsec": 0, "printk_info.text_len": 16, "printk_info.facility": 18,
	})
	inStruct(b, "printk_ringbuffer.desc_ring", "prb_desc_ring", 0)
	inStruct(b, "printk_ringbuffer.text_data_ring", "prb_data_ring", 48)
	inStruct(b, "prb_desc.text_blk_lpos", "prb_data_blk_lpos", 8)
	levelField(b, "printk_info.level", 19)
	for name, size := range map[string]uint64{"prb_desc": descSize, "printk_info": infoSize} {
		b.Users[name] = isf.UserType{Kind: isf.Struct, Size: size, Fields: b.Users[name].Fields}
	}
	b.Enums["desc_state"] = isf.EnumType{Base: "unsigned int", Size: 4, Constants: map[string]int64{"desc_finalized": 2}}
	b.Symbols = append(b.Symbols, isf.Symbol{Name: "prb", Addr: logBase})
}

func levelField(b *isf.Builder, path string, at uint64) {
	addField(b, path, isf.Field{Offset: at, Type: isf.Type{Kind: isf.Bitfield, BitLen: 3, BitPos: 5, BitsType: &isf.Type{Kind: isf.Base, Name: "unsigned char"}}})
}

// ring is such a log, and how far it is written.
type ring struct {
	*flat
	k    *Kernel
	id   uint64
	lpos uint64
}

func newRing(t testing.TB) *ring {
	f, k := flatGuest(t, logBase, logEnd-logBase, logTypes)
	f.put64(logBase, prbAt)
	f.put32(prbAt, 3)
	f.put64(prbAt+8, descsAt)
	f.put64(prbAt+16, infosAt)
	f.put32(prbAt+48, 8)
	f.put64(prbAt+56, textAt)
	return &ring{f, k, firstID, ^uint64(0xff)} // a lap before 0, as the kernel's
}

const idMask = 1<<descriptorBits - 1

func (g *ring) desc(id uint64) uint64 { return descsAt + id%8*descSize }

// print writes the next record, and makes the oldest one go, as the kernel does.
func (g *ring) print(seq uint64, text string) {
	id := g.id & idMask
	g.id++
	if old := (id - 3) & idMask; (id-firstID)&idMask >= 3 {
		g.put64(g.desc(old), old|3<<descriptorBits) // reusable
		g.put64(prbAt+32, (old+1)&idMask)
	} else {
		g.put64(prbAt+32, firstID)
	}
	g.put64(g.desc(id), id) // reserved
	size := uint64(8 + (len(text)+7)/8*8)
	begin := g.lpos
	if begin>>8 != (begin+size)>>8 {
		g.lpos = (begin>>8 + 1) << 8 // the record is at the beginning
	}
	at := textAt + g.lpos%256
	g.lpos += size
	g.put64(at, id)
	g.put(at+8, text)
	info := infosAt + id%8*infoSize
	g.put64(info, seq*1000)
	g.put64(info+8, seq)
	g.put32(info+16, uint32(len(text))|1<<16|(6<<5|2)<<24)
	g.put64(g.desc(id)+8, begin)
	g.put64(g.desc(id)+16, g.lpos)
	g.put64(prbAt+24, id)
	g.put64(g.desc(id), id|2<<descriptorBits)
}

func textOf(seq uint64) string { return fmt.Sprint("record ", seq, strings.Repeat(".", int(seq*7%20))) }

func TestLog(t *testing.T) {
	g := newRing(t)
	if all, err := g.k.Log(t.Context()); len(all) != 0 || err != nil {
		t.Errorf("an empty log: %+v, %v", all, err)
	}
	for seq := range uint64(60) {
		g.print(seq, textOf(seq))
		all, err := g.k.Log(t.Context())
		want := min(seq, 2)
		if err != nil || uint64(len(all)) != want+1 {
			t.Fatalf("%d: %+v, %v", seq, all, err)
		}
		for i, r := range all {
			n := seq - want + uint64(i)
			if r != (LogRecord{Seq: n, Time: n * 1000, Level: 6, Facility: 1, Text: textOf(n)}) {
				t.Errorf("%d: %+v", seq, r)
			}
		}
	}
	// One without a text, one that is not finished, and one of another number.
	id := (g.id - 1) & idMask
	g.put64(g.desc(id)+8, 1)
	g.put64(g.desc(id)+16, 1)
	g.put64(g.desc(id-1), (id-1)|1<<descriptorBits)
	g.put64(g.desc(id-2), (id-10)|2<<descriptorBits)
	all, err := g.k.Log(t.Context())
	if err != nil || len(all) != 1 || all[0].Text != "" || all[0].Seq != 59 {
		t.Errorf("%+v, %v", all, err)
	}
}

// TestLogChanges: all records are written over, at any moment of a reading; none is torn.
func TestLogChanges(t *testing.T) {
	found := 0
	for n, reads := 1, 2; n < reads; n++ {
		g := newRing(t)
		seq := uint64(0)
		more := func(count int) {
			for range count {
				g.print(seq, textOf(seq))
				seq++
			}
		}
		more(8)
		at := 0
		g.change = func() {
			if at++; at == n {
				more(9)
			}
		}
		all, err := g.k.Log(t.Context())
		if err != nil {
			t.Fatalf("a change at read %d: %v", n, err)
		}
		for i, r := range all {
			if found++; r.Text != textOf(r.Seq) || r.Time != r.Seq*1000 || i > 0 && r.Seq <= all[i-1].Seq {
				t.Fatalf("a change at read %d: %+v", n, all)
			}
		}
		reads = at
	}
	if found == 0 {
		t.Error("nothing was found")
	}
}

func TestLogLies(t *testing.T) {
	for name, c := range map[string]struct {
		at, value uint64
		why       string
	}{
		"many records":       {prbAt + 24, firstID + 1<<40, "records in 8 places"},
		"a wild text":        {descsAt + (firstID+1)%8*descSize + 8, 1 << 40, "1 records of the log make no sense"},
		"a text of another":  {textAt + 8 + 16, 7, "1 records of the log make no sense"},
		"no room for a head": {descsAt + (firstID+1)%8*descSize + 16, ^uint64(0xff) + 16 + 4, "1 records of the log make no sense"},
	} {
		g := newRing(t)
		for seq := range uint64(4) {
			g.print(seq, "12345678")
		}
		if name == "a text of another" {
			c.at = textAt + 16
		}
		g.put64(c.at, c.value)
		if _, err := g.k.Log(t.Context()); !partial(err, c.why) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, at := range map[string]uint64{"the ring": logBase, "its size": prbAt, "its text's size": prbAt + 48} {
		g := newRing(t)
		g.put64(at, 60)
		if _, err := g.k.Log(t.Context()); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A guest with an older kernel's log, of 128 bytes.
const (
	oldText   = logBase + 0x100
	oldHeader = 16
)

func oldLogTypes(b *isf.Builder) {
	structs(b, map[string]uint64{"printk_log.ts_nsec": 0, "printk_log.len": 8, "printk_log.text_len": 10, "printk_log.facility": 14})
	levelField(b, "printk_log.level", 15)
	b.Users["printk_log"] = isf.UserType{Kind: isf.Struct, Size: oldHeader, Fields: b.Users["printk_log"].Fields}
	for i, name := range []string{"log_buf", "log_buf_len", "log_first_idx", "log_first_seq", "log_next_seq"} {
		b.Symbols = append(b.Symbols, isf.Symbol{Name: name, Addr: logBase + 8*uint64(i)})
	}
}

func newOldLog(t testing.TB) (*flat, *Kernel) {
	f, k := flatGuest(t, logBase, 0x180, oldLogTypes)
	f.put64(logBase, oldText)
	f.put64(logBase+8, 0x80)
	// Two at the end, the mark that the rest is at the beginning, and one there.
	f.put64(logBase+16, 0x38)
	f.put64(logBase+24, 7)
	f.put64(logBase+32, 10)
	for seq, at := range map[uint64]uint64{7: 0x38, 8: 0x50, 9: 0} {
		f.put64(oldText+at, seq*1000)
		f.put64(oldText+at+8, 24|6<<16|uint64(1)<<48|uint64(5<<5)<<56)
		f.put(oldText+at+oldHeader, fmt.Sprint("text ", seq))
	}
	return f, k
}

func TestOldLog(t *testing.T) {
	f, k := newOldLog(t)
	all, err := k.Log(t.Context())
	if len(all) != 3 || err != nil {
		t.Fatalf("%+v, %v", all, err)
	}
	for i, r := range all {
		if seq := uint64(i + 7); r != (LogRecord{Seq: seq, Time: seq * 1000, Level: 5, Facility: 1, Text: fmt.Sprint("text ", seq)}) {
			t.Errorf("%+v", r)
		}
	}
	for name, c := range map[string]struct {
		at, value uint64
		why       string
		found     int
	}{
		"a long one":       {oldText + 0x38 + 8, 0xffff, "its last 3 records", 0},
		"a long text":      {oldText + 0x50 + 8, 24 | 99<<16, "its last 2 records", 1},
		"many":             {logBase + 32, 1 << 60, "records in 128 bytes", 0},
		"behind its end":   {logBase + 16, 0x79, "ends in the middle", 0},
		"fewer than none":  {logBase + 24, 99, "records in 128 bytes", 0},
		"a size too large": {logBase + 8, 1 << 31, "", 0},
	} {
		f, k := newOldLog(t)
		f.put64(c.at, c.value)
		all, err := k.Log(t.Context())
		if c.why != "" && (!partial(err, c.why) || len(all) != c.found) || name == "a size too large" && err == nil {
			t.Errorf("%s: %d, %v", name, len(all), err)
		}
	}
	// It is written to all the time.
	f.change = func() { f.put64(logBase+32, le.Uint64(f.b[32:])+1) }
	if _, err := k.Log(t.Context()); !partial(err, "changes faster") {
		t.Error(err)
	}
}

// FuzzLog has the guest write its log, in either form.
func FuzzLog(f *testing.F) {
	g := newRing(f)
	for seq := range uint64(20) {
		g.print(seq, textOf(seq))
	}
	f.Add(slices.Clone(g.b), false)
	mem, old := newOldLog(f)
	f.Add(slices.Clone(mem.b), true)
	f.Fuzz(func(t *testing.T, b []byte, isOld bool) {
		m, k := g.flat, g.k
		if isOld {
			m, k = mem, old
		}
		clear(m.b)
		copy(m.b, b)
		m.reads = 0
		all, err := k.Log(t.Context())
		if p := (*PartialError)(nil); errors.As(err, &p) && len(p.Why) == 0 {
			t.Error(err)
		}
		if m.reads > 1000 || len(all) > 1000 {
			t.Errorf("%d records by %d reads", len(all), m.reads)
		}
	})
}
