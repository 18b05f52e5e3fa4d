package profiler

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	callers    = 16
	sampleSize = 32 + 8*callers
	noExit     = ^uint32(0)
)

// Sample is one record that the emulator left.
type Sample struct {
	Tick uint64 // TSC
	RIP  uint64
	CR3  uint64
	// Exit is the reason of a VM exit (Intel SDM vol. 3, appendix C), or -1
	// for a sample taken by time.
	Exit  int
	CPU   int
	Guest bool // VMX non-root operation
	CPL   int
	// Callers are the words on Xen's stack that look like return addresses
	// into Xen, innermost first: a conservative backtrace.
	Callers []uint64
}

// Read reads all samples of a profile. A record that was cut off at the end,
// by a host that was killed, is left out.
func Read(r io.Reader) ([]Sample, error) {
	in := bufio.NewReaderSize(r, 1<<20)
	var all []Sample
	buf := make([]byte, sampleSize)
	for {
		if _, err := io.ReadFull(in, buf); errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return all, nil
		} else if err != nil {
			return nil, fmt.Errorf("read profile: %w", err)
		}
		all = append(all, decode(buf))
	}
}

func decode(b []byte) Sample {
	s := Sample{
		Tick: binary.LittleEndian.Uint64(b), RIP: binary.LittleEndian.Uint64(b[8:]), CR3: binary.LittleEndian.Uint64(b[16:]),
		Exit: -1, CPU: int(b[28]), Guest: b[29] != 0, CPL: int(b[30]),
	}
	if reason := binary.LittleEndian.Uint32(b[24:]); reason != noExit {
		s.Exit = int(reason)
	}
	for i := range callers {
		if a := binary.LittleEndian.Uint64(b[32+8*i:]); a != 0 {
			s.Callers = append(s.Callers, a)
		}
	}
	return s
}
