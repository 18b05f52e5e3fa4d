package sys

import (
	"sync/atomic"
	"unsafe"
)

// Load32 reads a word of memory that somebody else writes. b must be aligned.
func Load32(b []byte) uint32 { return atomic.LoadUint32((*uint32)(unsafe.Pointer(&b[:4][0]))) }

// Store32 writes a word of memory that somebody else reads. b must be aligned.
func Store32(b []byte, v uint32) { atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[:4][0])), v) }

// Load64 is Load32 for 8 bytes: a page-table entry read by it is never torn.
func Load64(b []byte) uint64 { return atomic.LoadUint64((*uint64)(unsafe.Pointer(&b[:8][0]))) }

// Store64 is Store32 for 8 bytes.
func Store64(b []byte, v uint64) { atomic.StoreUint64((*uint64)(unsafe.Pointer(&b[:8][0])), v) }

// CompareAndSwap64 writes v if old is there, and says whether it was.
func CompareAndSwap64(b []byte, old, v uint64) bool {
	return atomic.CompareAndSwapUint64((*uint64)(unsafe.Pointer(&b[:8][0])), old, v)
}
