// Command truth makes sums of all symbols and all structs of a kernel: in a guest, of what
// the running kernel says itself, /proc/kallsyms and /sys/kernel/btf/vmlinux, which it
// reads by its own code; elsewhere of a profile. They must be the same.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"os"
)

// Report is what it prints. The names of one kind are sorted into buckets by their hash,
// and each bucket has the sum of the hashes of what is said of them: so much the console's
// line can carry, and it says where a difference is.
type Report struct {
	Symbols, Structs       sums
	NumSymbols, NumStructs int
	// Unclear are hashes of the names of structs of which the kernel has several.
	Unclear []uint32
}

type sums [64]uint64

// MarshalText is for a short line.
func (s *sums) MarshalText() ([]byte, error) {
	var out []byte
	for _, v := range s {
		out = fmt.Appendf(out, "%016x", v)
	}
	return out, nil
}

func (s *sums) add(name, what string) {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s", name, what)
	s[nameHash(name)%uint32(len(s))] += h.Sum64()
}

func nameHash(name string) uint32 {
	h := fnv.New32a()
	h.Write([]byte(name))
	return h.Sum32()
}

func main() {
	var r Report
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "guest":
		err = r.guest()
	case len(os.Args) == 4 && os.Args[1] == "profile":
		err = r.profile(os.Args[2], os.Args[3])
	default:
		err = errors.New("usage: truth guest | truth profile FILE GUEST'S-REPORT")
	}
	if err == nil {
		err = json.NewEncoder(os.Stdout).Encode(&r)
	}
	if err != nil {
		fmt.Println("truth:", err)
		os.Exit(1)
	}
}
