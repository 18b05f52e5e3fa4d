package abi

import "fmt"

// Versions is what the running Xen speaks, found out by trying.
type Versions struct {
	Major, Minor int
	Extra        string // ".2-pre", say
	Domctl       uint32
	Sysctl       uint32
	VMEvent      uint32
}

func (v Versions) String() string {
	return fmt.Sprintf("Xen %d.%d%s (domctl %#x, sysctl %#x, vm_event %d)", v.Major, v.Minor, v.Extra, v.Domctl, v.Sysctl, v.VMEvent)
}

// The interface versions to try: 4.14 has domctl 0x12 and sysctl 0x13, 4.22 has
// 0x18 and 0x16. The rest is room for Xens to come: their vm_event version
// decides whether the layouts still fit.
const (
	FirstInterface = 0x10
	LastInterface  = 0x23
)

// Vm_event versions whose layouts are known.
const (
	VMEvent6 = 6 // Xen 4.14
	VMEvent7 = 7 // Xen 4.15 to 4.22
)

// InfoSize is the size of getdomaininfo: Xen 4.16 (domctl 0x14) appended
// gpaddr_bits.
func (v Versions) InfoSize() int {
	if v.Domctl < 0x14 {
		return 104
	}
	return 112
}
