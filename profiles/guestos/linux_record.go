package guestos

import (
	"encoding/binary"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// maxRecord bounds how much of a struct is read: a profile may be hostile, too.
const maxRecord = 1 << 16

// part is so much of a struct as holds what is wanted of it: the offset of its first
// byte, and its length.
type part struct{ from, size uint64 }

// partOf is one that holds 8 bytes at each of some offsets.
func partOf(offsets ...uint64) (p part, err error) {
	p.from = noField
	var end uint64
	for _, o := range offsets {
		if o != noField {
			p.from, end = min(p.from, o), max(end, o+8)
		}
	}
	if p.size = end - p.from; end < p.from || p.size > maxRecord {
		return p, fmt.Errorf("the profile has a struct of %d bytes", end)
	}
	return p, nil
}

// record is a part of a struct of the guest as it was read, at once.
type record struct {
	from uint64
	b    []byte
}

// record reads a part of the struct that is at an address.
func (k *Kernel) record(p part, at uint64) (record, error) {
	r := record{p.from, make([]byte, p.size)}
	_, err := k.mem.ReadGVA(k.Space, r.b, xenevents.GVA(at+p.from))
	return r, err
}

func (r *record) u64(offset uint64) uint64 { return binary.LittleEndian.Uint64(r.b[offset-r.from:]) }
func (r *record) u32(offset uint64) uint32 { return binary.LittleEndian.Uint32(r.b[offset-r.from:]) }
func (r *record) u16(offset uint64) uint16 { return binary.LittleEndian.Uint16(r.b[offset-r.from:]) }
