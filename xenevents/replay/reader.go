package replay

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/hprobe/hprobe/xenevents"
)

// Recording is one that was read. It is not changed any more: it may be played several
// times, at once as well.
type Recording struct {
	Header Header
	// Took is how long the guest was recorded; Early, where not empty, why it ended early.
	Took  time.Duration
	Early string
	// Places are what it was made with probes at: see Recorder.Watches.
	Places []string

	moments []moment // each with its event, and one more for what came after the last
	first   map[xenevents.GFN]*change
	vcpus   map[xenevents.VCPU]*vcpu // as they were first seen
}

// Events is how many events it has.
func (r *Recording) Events() int { return len(r.moments) - 1 }

// moment is an event, and what was read since the one before and for it.
type moment struct {
	changes []change
	vcpus   []vcpu
	ticks   uint64
	event   xenevents.Event
}

// change is a frame that was read.
type change struct {
	gfn    xenevents.GFN
	absent bool
	mask   uint64 // of blocks that changed; 0: none
	blocks []byte // those
}

// on makes f what it was at that moment.
func (c *change) on(f *frame) {
	from := c.blocks
	for i := range blocks {
		if c.mask>>i&1 != 0 {
			from = from[copy(f.block(i)[:], from):]
		}
	}
}

type vcpu struct {
	id   xenevents.VCPU
	regs *xenevents.Registers // nil: it was down
}

// Read reads a recording as a whole: at most MaxSize bytes, which it keeps in memory. It
// fails with a *FormatError where it is none, or not whole.
func Read(from io.Reader) (*Recording, error) {
	head := make([]byte, len(magic))
	if n, err := io.ReadFull(from, head); err != nil || string(head) != magic {
		return nil, &FormatError{int64(n), errors.New("it does not begin as a recording does")}
	}
	z, err := zstd.NewReader(from, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(32<<20), zstd.WithDecoderLowmem(true))
	if err != nil {
		return nil, err
	}
	defer z.Close()
	return read(z)
}

// read reads what is packed.
func read(from io.Reader) (*Recording, error) {
	p := &parser{r: bufio.NewReaderSize(from, 64<<10), rec: &Recording{first: map[xenevents.GFN]*change{}, vcpus: map[xenevents.VCPU]*vcpu{}}}
	for !p.ended {
		at := p.at
		if err := p.next(); err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, &FormatError{at, err}
		}
	}
	if _, err := p.r.ReadByte(); !errors.Is(err, io.EOF) {
		return nil, &FormatError{p.at, errors.New("it goes on behind its end")}
	}
	return p.rec, nil
}

// parser makes a Recording of records.
type parser struct {
	r       *bufio.Reader
	at      int64
	records int64
	rec     *Recording
	begun   bool
	ended   bool
	now     moment
}

// ReadByte counts.
func (p *parser) ReadByte() (byte, error) {
	b, err := p.r.ReadByte()
	if err == nil {
		p.at++
	}
	return b, err
}

// maxRecord is what a record may have, in bytes: a frame, but for headers and ends.
const maxRecord = xenevents.PageSize + 64

func (p *parser) next() error {
	kind, err := p.ReadByte()
	if err != nil {
		return err
	}
	size, err := binary.ReadUvarint(p)
	if err != nil {
		return err
	}
	limit := uint64(maxRecord)
	if kind == recordHeader || kind == recordEnd {
		limit = maxText
	}
	switch {
	case size > limit:
		return fmt.Errorf("a record of %d bytes", size)
	case p.at+int64(size)+overhead*p.records > MaxSize:
		return fmt.Errorf("it has more than %d MB", MaxSize>>20)
	case (kind == recordHeader) == p.begun:
		return errors.New("a header is missing, or there are two")
	}
	b := make([]byte, size)
	n, err := io.ReadFull(p.r, b)
	p.at += int64(n)
	if err != nil {
		return err
	}
	p.begun = true
	p.records++
	return p.record(kind, b)
}

func (p *parser) record(kind byte, b []byte) error {
	switch kind {
	case recordHeader:
		return p.header(b)
	case recordFrame, recordSame, recordAbsent:
		return p.frame(kind, b)
	case recordRegisters:
		return p.registers(b)
	case recordEvent:
		ticks, e, err := eventOf(b)
		p.moment(ticks, e)
		return err
	case recordEnd:
		var e end
		if err := json.Unmarshal(b, &e); err != nil {
			return err
		}
		if e.Events != uint64(len(p.rec.moments)) {
			return fmt.Errorf("it has %d events, and says %d", len(p.rec.moments), e.Events)
		}
		p.moment(e.Ticks, xenevents.Event{})
		p.ended = true
		p.rec.Early, p.rec.Places, p.rec.Took = e.Early, e.Places, p.rec.Header.since(e.Ticks)
		return nil
	}
	return fmt.Errorf("a record of a kind that there is not: %q", kind)
}

// moment ends one with its event.
func (p *parser) moment(ticks uint64, e xenevents.Event) {
	p.now.ticks, p.now.event = ticks, e
	p.rec.moments = append(p.rec.moments, p.now)
	p.now = moment{}
}

func (p *parser) header(b []byte) error {
	h := &p.rec.Header
	if err := json.Unmarshal(b, h); err != nil {
		return err
	}
	switch {
	case h.Version != version:
		return fmt.Errorf("it is of version %d, and this hprobe reads %d", h.Version, version)
	case h.TicksPerSecond == 0, h.MaxGFN >= maxGFN, h.Domain.MaxVCPU >= maxVCPUs:
		return errors.New("the header makes no sense")
	}
	return nil
}

func (p *parser) frame(kind byte, b []byte) error {
	gfn, n := binary.Uvarint(b)
	if n <= 0 || gfn >= maxGFN {
		return errors.New("no frame number")
	}
	c := change{gfn: xenevents.GFN(gfn), absent: kind == recordAbsent}
	first := p.rec.first[c.gfn]
	if b = b[n:]; kind == recordFrame {
		if len(b) < 8 {
			return errors.New("a frame without content")
		}
		c.mask, c.blocks = binary.LittleEndian.Uint64(b), b[8:]
	}
	switch {
	case kind != recordFrame && len(b) != 0, kind == recordFrame && (c.mask == 0 || len(c.blocks) != blockSize*bits.OnesCount64(c.mask)):
		return errors.New("a frame of another size")
	case first == nil && kind == recordSame, (first == nil || first.absent) && kind == recordFrame && c.mask != ^uint64(0):
		return fmt.Errorf("a change of gfn %v, which is not known", c.gfn)
	case first == nil && len(p.rec.first) == MaxFrames:
		return fmt.Errorf("it has more than %d different frames", MaxFrames)
	}
	if first == nil || first.absent {
		p.rec.first[c.gfn] = &c
	}
	p.now.changes = append(p.now.changes, c)
	return nil
}

func (p *parser) registers(b []byte) error {
	id, n := binary.Uvarint(b)
	if n <= 0 || id >= maxVCPUs {
		return errors.New("no number of a vCPU")
	}
	v := vcpu{id: xenevents.VCPU(id)}
	switch b = b[n:]; len(b) {
	case 0:
	case registersSize:
		regs := registersOf(b)
		v.regs = &regs
	default:
		return errors.New("registers of another size")
	}
	if p.rec.vcpus[v.id] == nil {
		p.rec.vcpus[v.id] = &v
	}
	p.now.vcpus = append(p.now.vcpus, v)
	return nil
}
