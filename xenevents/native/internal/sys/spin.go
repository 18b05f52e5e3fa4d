package sys

import "unsafe"

// Spin looks at a word of memory that somebody else writes until it is no longer
// old, and says so; or, after n looks, says false. b must be aligned. Between two
// looks the processor pauses: that spares power and a sibling thread.
func Spin(b []byte, old uint32, n int) bool {
	return spin((*uint32)(unsafe.Pointer(&b[:4][0])), old, n)
}

//go:noescape
func spin(word *uint32, old uint32, n int) bool
