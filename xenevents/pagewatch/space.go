package pagewatch

import (
	"encoding/binary"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// Bits of a page-table entry (Intel SDM vol. 3, 4.5).
const (
	present   = 1 << 0
	accessed  = 1 << 5
	large     = 1 << 7
	addrMask  = 0x000f_ffff_ffff_f000
	noExecute = 1 << 63
)

// userEntries are those of a root that map user memory: the lower half.
const userEntries = 256

type userHalf [userEntries]uint64

func (h *userHalf) empty() bool {
	for _, e := range h {
		if e&present != 0 {
			return false
		}
	}
	return true
}

// readUserHalf reads the lower half of a root of 64-bit paging.
func readUserHalf(mem guestmem.Memory, root xenevents.GPA) (h userHalf, err error) {
	var b [8 * userEntries]byte
	if _, err := mem.ReadGPA(b[:], root); err != nil {
		return h, err
	}
	for i := range h {
		h[i] = binary.LittleEndian.Uint64(b[8*i:])
	}
	return h, nil
}

func wide(s xenevents.AddressSpace) bool {
	return s.Mode == xenevents.Paging4Level || s.Mode == xenevents.Paging5Level
}

// ended says whether the root of a user address's walk, which it is the only table
// of, maps no user memory at all any more. A process that runs has some; when it
// exits its kernel empties the root before it frees it.
func (s *Set) ended(w *Watch) bool {
	if !wide(w.Space) || w.Page>>63 != 0 {
		return false
	}
	h, err := readUserHalf(s.mem, w.Space.Root)
	return err == nil && h.empty()
}

// Roots returns the address spaces of a process, of which space is one: with KPTI
// it has two, in neighbouring frames, whose lower halves lead to the same tables.
// user is the one that user code runs in, and the right one to watch: in the other
// one, user memory is not to be run. kernel is the other one, zero where there is
// one only. (Linux: arch/x86/mm/pti.c, PTI_USER_PGTABLE_BIT.)
//
// It goes by what the tables hold: without KPTI the neighbour of a root is
// anything else.
func Roots(mem guestmem.Memory, space xenevents.AddressSpace) (user, kernel xenevents.AddressSpace) {
	if !wide(space) {
		return space, kernel
	}
	lower, upper := space, space
	lower.Root &^= xenevents.PageSize
	upper.Root |= xenevents.PageSize
	a, errA := readUserHalf(mem, lower.Root)
	b, errB := readUserHalf(mem, upper.Root)
	if errA != nil || errB != nil || a.empty() {
		return space, kernel
	}
	const same = present | addrMask
	for i := range a {
		if a[i]&present != b[i]&present || a[i]&present != 0 && a[i]&same != b[i]&same {
			return space, kernel
		}
	}
	return upper, lower
}

// Accessed says what the processor's walk wants to write when it faults at a
// protected table: the entry's accessed bit, and then it returns the entry with
// that bit set; or something else, and then false.
func Accessed(mode xenevents.PagingMode, entry uint64) (uint64, bool) {
	if mode != xenevents.Paging4Level && mode != xenevents.Paging5Level || entry&present == 0 || entry&accessed != 0 {
		return entry, false
	}
	return entry | accessed, true
}
