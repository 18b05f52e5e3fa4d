package guestos

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// LogRecord is a message of the kernel's log. Text is the guest's, and may have several
// lines: quote it.
type LogRecord struct {
	Seq      uint64 // its number; they are in a row
	Time     uint64 // in nanoseconds of the guest's own clock since its boot
	Level    uint8  // 0, an emergency, to 7, for debugging
	Facility uint8  // 0 is the kernel, 1 what programs wrote to /dev/kmsg
	Text     string
}

// The kernel's log is the guest's: its bounds.
const (
	maxLogRecords  = 1 << 20
	maxLogText     = 64 << 20 // bytes of text in one answer
	maxLogBits     = 31       // of the text ring's size
	maxRecordBits  = 24       // of the number of records
	descriptorBits = 62       // of a descriptor's word for its number; the state is above
)

// logLayout is where the kernel keeps its log.
type logLayout struct {
	err error

	old *oldLogLayout // up to 5.9

	prb uint64 // the pointer to the ring
	// In a struct printk_ringbuffer.
	countBits, descs, infos, head, tail, sizeBits, data uint64
	// In a struct prb_desc.
	state, begin, next, descSize uint64
	finalized                    uint64 // the state of a record that is all there
	blockText                    uint64 // in a struct prb_data_block
	infoSize                     uint64
	info                         infoLayout
}

// infoLayout is where a record's header has what is told of it.
type infoLayout struct {
	part                      part
	seq, time, size, facility uint64
	level                     uint64
	levelBits, levelAt        uint8 // of the byte or bytes at level
}

func (k *Kernel) logs() (*logLayout, error) {
	k.logOnce.Do(func() { k.log.err = k.findLogLayout(&k.log) })
	return &k.log, k.log.err
}

func (k *Kernel) findLogLayout(l *logLayout) error {
	at, err := k.Address("prb")
	if errors.Is(err, isf.ErrNotFound) {
		l.old, err = k.findOldLogLayout()
		return err
	}
	if err != nil {
		return err
	}
	l.prb = uint64(at)
	const ring = "printk_ringbuffer"
	if err := k.locate(want(&l.countBits, ring, "desc_ring.count_bits"), want(&l.descs, ring, "desc_ring.descs"), want(&l.infos, ring, "desc_ring.infos"),
		want(&l.head, ring, "desc_ring.head_id"), want(&l.tail, ring, "desc_ring.tail_id"),
		want(&l.sizeBits, ring, "text_data_ring.size_bits"), want(&l.data, ring, "text_data_ring.data"),
		want(&l.state, "prb_desc", "state_var"), want(&l.begin, "prb_desc", "text_blk_lpos.begin"), want(&l.next, "prb_desc", "text_blk_lpos.next"),
		want(&l.blockText, "prb_data_block", "data")); err != nil {
		return err
	}
	finalized, err := k.constant("desc_state", "desc_finalized")
	if err != nil {
		return err
	}
	l.finalized = uint64(finalized)
	for of, to := range map[string]*uint64{"prb_desc": &l.descSize, "printk_info": &l.infoSize} {
		if *to, err = k.Profile.SizeOf(isf.Type{Kind: isf.Struct, Name: of}); err != nil {
			return err
		}
	}
	return k.findInfoLayout(&l.info, "printk_info")
}

func (k *Kernel) findInfoLayout(l *infoLayout, of string) (err error) {
	if err := k.locate(want(&l.seq, of, "seq", "ts_nsec"), want(&l.time, of, "ts_nsec"), want(&l.size, of, "text_len"), want(&l.facility, of, "facility")); err != nil {
		return err
	}
	level, err := k.Profile.Field(of, "level")
	if err != nil {
		return err
	}
	l.level, l.levelBits, l.levelAt = level.Offset, level.Type.BitLen, level.Type.BitPos
	if level.Type.Kind != isf.Bitfield || l.levelBits == 0 || l.levelBits > 8 || l.levelAt > 31 {
		return fmt.Errorf("%s.level is no field of some bits", of)
	}
	l.part, err = partOf(l.seq, l.time, l.size, l.facility, l.level)
	return err
}

// decode takes a header apart; its text is of so many bytes.
func (l *infoLayout) decode(b *record) (r LogRecord, text uint16) {
	r.Seq, r.Time, r.Facility = b.u64(l.seq), b.u64(l.time), b.b[l.facility-b.from]
	r.Level = uint8(b.u32(l.level) >> l.levelAt & (1<<l.levelBits - 1))
	return r, b.u16(l.size)
}

// Log reads the kernel's log, oldest first, as far as the kernel has it; what is printed
// while it is read may be missing, and so may the oldest that is overwritten meanwhile. With a *PartialError comes what was found; a context's deadline makes one.
func (k *Kernel) Log(ctx context.Context) ([]LogRecord, error) {
	l, err := k.logs()
	if err != nil {
		return nil, err
	}
	var r reasons
	var all []LogRecord
	bytes := 0
	keep := func(one *LogRecord) bool {
		if bytes += len(one.Text); bytes > maxLogText || len(all) >= maxLogRecords {
			r.add("the log is too long: %d records of it are here", len(all))
			return false
		}
		all = append(all, *one)
		return true
	}
	if l.old != nil {
		err = k.readOldLog(ctx, l.old, &r, keep)
	} else {
		err = k.readLog(ctx, l, &r, keep)
		slices.Reverse(all)
	}
	if err != nil {
		return nil, err
	}
	return all, r.err()
}

// logRing is the kernel's log of records: a ring of descriptors, whose numbers count up, and
// one of bytes, whose positions do (kernel/printk/printk_ringbuffer.c). A descriptor's word
// has its number and its state: where that is the same before and after the rest was read,
// it was of this record.
type logRing struct {
	k                   *Kernel
	l                   *logLayout
	descs, infos, data  uint64
	countBits, sizeBits uint32
}

func (k *Kernel) readLog(ctx context.Context, l *logLayout, r *reasons, keep func(*LogRecord) bool) error {
	ring, head, tail, err := k.logRing(l)
	if err != nil {
		return fmt.Errorf("the guest's log: %w", err)
	}
	const mask = 1<<descriptorBits - 1
	if n := (head - tail) & mask; n >= 1<<ring.countBits {
		r.add("the log says of itself that it has %d records in %d places", n+1, 1<<ring.countBits)
		tail = head - 1<<ring.countBits + 1
	}
	var bad error
	wrong := 0
	for id := head & mask; ; id = (id - 1) & mask { // the newest first: the guest overwrites the oldest
		if stop, err := r.ended(ctx, "the log"); stop || err != nil {
			return err
		}
		one, err := ring.record(id)
		switch {
		case err == nil && one != nil && !keep(one):
			return nil
		case err != nil:
			wrong, bad = wrong+1, err
		}
		if id == tail&mask {
			break
		}
	}
	if wrong > 0 {
		r.add("%d records of the log make no sense: %v", wrong, bad)
	}
	return nil
}

func (k *Kernel) logRing(l *logLayout) (ring *logRing, head, tail uint64, err error) {
	at, err := k.read64(l.prb)
	if err != nil {
		return nil, 0, 0, err
	}
	ring = &logRing{k: k, l: l}
	if ring.countBits, err = k.read32(at + l.countBits); err != nil {
		return nil, 0, 0, err
	}
	if ring.sizeBits, err = k.read32(at + l.sizeBits); err != nil {
		return nil, 0, 0, err
	}
	if ring.countBits > maxRecordBits || ring.sizeBits > maxLogBits {
		return nil, 0, 0, fmt.Errorf("it is for 2^%d records and 2^%d bytes", ring.countBits, ring.sizeBits)
	}
	var again uint64
	for range tries { // until both are of one moment
		for _, f := range []struct {
			at uint64
			to *uint64
		}{{l.descs, &ring.descs}, {l.infos, &ring.infos}, {l.data, &ring.data}, {l.tail, &tail}, {l.head, &head}, {l.tail, &again}} {
			if *f.to, err = k.read64(at + f.at); err != nil {
				return nil, 0, 0, err
			}
		}
		if tail == again {
			break
		}
	}
	return ring, head, tail, nil
}

// record reads one; nil where it is not there: not finished, or overwritten already.
func (g *logRing) record(id uint64) (*LogRecord, error) {
	i := id & (1<<g.countBits - 1)
	desc, info := g.descs+i*g.l.descSize, g.infos+i*g.l.infoSize
	state, err := g.k.read64(desc + g.l.state)
	if err != nil {
		return nil, err
	}
	if s := state >> descriptorBits; state&(1<<descriptorBits-1) != id || s != g.l.finalized {
		return nil, nil
	}
	one, err := g.content(id, desc, info)
	after, stateErr := g.k.read64(desc + g.l.state)
	if stateErr != nil || after != state {
		return nil, stateErr
	}
	return one, err
}

func (g *logRing) content(id, desc, info uint64) (*LogRecord, error) {
	b, err := g.k.record(g.l.info.part, info)
	if err != nil {
		return nil, err
	}
	one, size := g.l.info.decode(&b)
	begin, err := g.k.read64(desc + g.l.begin)
	if err != nil {
		return nil, err
	}
	next, err := g.k.read64(desc + g.l.next)
	if err != nil {
		return nil, err
	}
	if begin&1 != 0 { // it has no text, or its text is lost
		return &one, nil
	}
	at, room, ok := g.block(begin, next)
	if !ok || room < g.l.blockText {
		return nil, fmt.Errorf("record %d is from %#x to %#x", one.Seq, begin, next)
	}
	text := make([]byte, min(uint64(size), room-g.l.blockText))
	if owner, err := g.k.read64(g.data + at); err != nil {
		return nil, err
	} else if owner != id {
		return nil, fmt.Errorf("record %d, from %#x to %#x, is that of %#x and not of %#x", one.Seq, begin, next, owner, id)
	}
	if _, err := g.k.mem.ReadGVA(g.k.Space, text, xenevents.GVA(g.data+at+g.l.blockText)); err != nil {
		return nil, err
	}
	one.Text = string(text)
	return &one, nil
}

// block is where in the ring of bytes a record's are: from one position to before another.
// They are in one piece: those that would go beyond the ring's end are at its beginning.
func (g *logRing) block(begin, next uint64) (at, room uint64, ok bool) {
	size := uint64(1) << g.sizeBits
	from, to := begin&(size-1), next&(size-1)
	lap := func(position uint64) uint64 { return position >> g.sizeBits }
	switch {
	case lap(begin) == lap(next) && from < to:
		return from, to - from, true
	case lap(begin+size) != lap(next): // not the next lap: positions begin anew behind the last one
	case to == 0:
		return from, size - from, true
	default:
		return 0, to, true
	}
	return 0, 0, false
}
