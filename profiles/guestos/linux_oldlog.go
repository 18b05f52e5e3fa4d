package guestos

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// oldLogLayout is where Linux up to 5.9 keeps its log: records of any length one after
// another in one piece of memory; one of the length 0 says that the next is at its
// beginning (kernel/printk/printk.c there).
type oldLogLayout struct {
	buffer, size, first, firstSeq, nextSeq uint64 // symbols
	length, header                         uint64 // in a struct printk_log, and how long that is
	info                                   infoLayout
}

func (k *Kernel) findOldLogLayout() (*oldLogLayout, error) {
	l := &oldLogLayout{}
	for _, s := range []struct {
		name string
		to   *uint64
	}{{"log_buf", &l.buffer}, {"log_buf_len", &l.size}, {"log_first_idx", &l.first}, {"log_first_seq", &l.firstSeq}, {"log_next_seq", &l.nextSeq}} {
		at, err := k.Address(s.name)
		if err != nil {
			return nil, err
		}
		*s.to = uint64(at)
	}
	var err error
	if l.header, err = k.Profile.SizeOf(isf.Type{Kind: isf.Struct, Name: "printk_log"}); err != nil {
		return nil, err
	}
	if err := k.locate(want(&l.length, "printk_log", "len")); err != nil {
		return nil, err
	}
	if err := k.findInfoLayout(&l.info, "printk_log"); err != nil {
		return nil, err
	}
	// All of it is in the header, but for the word that some bits are read by.
	if p := l.info.part; l.header > maxRecord || max(l.length+2, p.from+p.size) > l.header+recordTail {
		return nil, fmt.Errorf("the profile's printk_log has %d bytes", l.header)
	}
	return l, nil
}

// recordTail is how far a word that is read of a struct may go beyond it.
const recordTail = 8

// oldLog is the log of such a kernel: its records from one number to before another.
type oldLog struct {
	first    uint32 // where the first of them is
	from, to uint64
	text     []byte // and recordTail more
}

func (k *Kernel) readOldLog(ctx context.Context, l *oldLogLayout, r *reasons, keep func(*LogRecord) bool) error {
	log, err := again(ctx, r, func() (oldLog, error) { return k.copyOldLog(l) }, func(a, b oldLog) bool {
		return a.first == b.first && a.from == b.from && a.to == b.to // else some were overwritten
	})
	switch {
	case errors.Is(err, errChanged):
		r.add("the log: %v", err)
	case err != nil:
		return fmt.Errorf("the guest's log: %w", err)
	}
	size := uint64(len(log.text) - recordTail)
	if n := log.to - log.from; n > size/l.header {
		r.add("the log says of itself that it has %d records in %d bytes", n, size)
		return nil
	}
	at := uint64(log.first)
	for seq := log.from; seq < log.to; seq++ {
		if stop, err := r.ended(ctx, "the log"); stop || err != nil {
			return err
		}
		if at+l.header <= size && l.lengthAt(&log, at) == 0 {
			at = 0
		}
		if at+l.header > size {
			r.add("the log ends in the middle: %d records are left out", log.to-seq)
			return nil
		}
		b := record{0, log.text[at:]}
		length := l.lengthAt(&log, at)
		one, text := l.info.decode(&b)
		if l.header+uint64(text) > length || at+length > size {
			r.add("the log makes no sense: its last %d records are left out", log.to-seq)
			return nil
		}
		one.Seq, one.Text = seq, string(b.b[l.header:][:text])
		if !keep(&one) {
			return nil
		}
		at += length
	}
	return nil
}

func (l *oldLogLayout) lengthAt(log *oldLog, at uint64) uint64 {
	return uint64(binary.LittleEndian.Uint16(log.text[at+l.length:]))
}

func (k *Kernel) copyOldLog(l *oldLogLayout) (o oldLog, err error) {
	if o.first, err = k.read32(l.first); err != nil {
		return o, err
	}
	if o.from, err = k.read64(l.firstSeq); err != nil {
		return o, err
	}
	if o.to, err = k.read64(l.nextSeq); err != nil {
		return o, err
	}
	size, err := k.read32(l.size)
	if err != nil {
		return o, err
	}
	if size > maxLogText {
		return o, fmt.Errorf("it has %d bytes", size)
	}
	at, err := k.read64(l.buffer)
	if err != nil {
		return o, err
	}
	o.text = make([]byte, size+recordTail)
	_, err = k.mem.ReadGVA(k.Space, o.text[:size], xenevents.GVA(at))
	return o, err
}
