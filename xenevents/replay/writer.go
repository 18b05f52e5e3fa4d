package replay

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/hprobe/hprobe/xenevents"
)

// What waits to be packed: chunks of so many bytes. The guest never waits for it.
const (
	chunkSize = 256 << 10
	maxChunks = 64
)

// writer packs records in the background. Its methods belong to one goroutine.
type writer struct {
	chunk  []byte
	chunks chan []byte
	free   chan []byte
	size   int64         // of all records so far, with their overhead
	packed chan struct{} // closed when all is written
	err    error         // how that went; after packed
	record []byte        // room for one
}

func newWriter(to io.Writer) (*writer, error) {
	if _, err := io.WriteString(to, magic); err != nil {
		return nil, err
	}
	z, err := zstd.NewWriter(to, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	w := &writer{chunks: make(chan []byte, maxChunks), free: make(chan []byte, maxChunks), packed: make(chan struct{})}
	go w.pack(z) // until close
	return w, nil
}

func (w *writer) pack(z *zstd.Encoder) {
	defer close(w.packed)
	for c := range w.chunks {
		if w.err == nil { // else they are thrown away
			_, w.err = z.Write(c)
		}
		select {
		case w.free <- c[:0]:
		default:
		}
	}
	w.err = errors.Join(w.err, z.Close())
}

// put writes one record. It is false where the background does not keep up, or the
// recording is as large as it may be: the record is not in it then.
func (w *writer) put(kind byte, content []byte) bool {
	size := 1 + binary.MaxVarintLen32 + len(content)
	if w.size+int64(size)+overhead > MaxSize-2*maxText { // room for the end
		return false
	}
	if len(w.chunk)+size > chunkSize && !w.send() {
		return false
	}
	w.add(kind, content)
	return true
}

func (w *writer) add(kind byte, content []byte) {
	before := len(w.chunk)
	w.chunk = binary.AppendUvarint(append(w.chunk, kind), uint64(len(content)))
	w.chunk = append(w.chunk, content...)
	w.size += int64(len(w.chunk)-before) + overhead
}

// send hands a chunk on, if there is room for it.
func (w *writer) send() bool {
	select {
	case w.chunks <- w.chunk:
	default:
		return false
	}
	select {
	case w.chunk = <-w.free:
	default:
		w.chunk = make([]byte, 0, chunkSize)
	}
	return true
}

// putJSON writes a header or an end. There is room for those.
func (w *writer) putJSON(kind byte, v any) error {
	b, err := json.Marshal(v)
	if err == nil && len(b) > maxText {
		err = fmt.Errorf("a recording's text has %d bytes, and may have %d", len(b), maxText)
	}
	if err == nil {
		w.add(kind, b)
	}
	return err
}

// close waits until all is packed.
func (w *writer) close() error {
	w.chunks <- w.chunk
	close(w.chunks)
	<-w.packed
	return w.err
}

func (w *writer) gfn(kind byte, gfn xenevents.GFN) bool {
	w.record = binary.AppendUvarint(w.record[:0], uint64(gfn))
	return w.put(kind, w.record)
}

// frame writes the blocks of a frame that mask has a bit for.
func (w *writer) frame(gfn xenevents.GFN, f *frame, mask uint64) bool {
	b := binary.LittleEndian.AppendUint64(binary.AppendUvarint(w.record[:0], uint64(gfn)), mask)
	for i := range blocks {
		if mask>>i&1 != 0 {
			b = append(b, f.block(i)[:]...)
		}
	}
	w.record = b
	return w.put(recordFrame, b)
}

func (w *writer) registers(v xenevents.VCPU, r *xenevents.Registers) bool {
	w.record = binary.AppendUvarint(w.record[:0], uint64(v))
	if r != nil {
		w.record = appendRegisters(w.record, r)
	}
	return w.put(recordRegisters, w.record)
}

func (w *writer) event(ticks uint64, e *xenevents.Event) bool {
	w.record = appendEvent(w.record[:0], ticks, e)
	return w.put(recordEvent, w.record)
}
