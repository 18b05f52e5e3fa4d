package condition

import (
	"errors"

	"github.com/hprobe/hprobe/detectors"
)

// syscallNames are what syscall.NAME means where several system calls are watched.
var syscallNames = map[string]source{
	"name":   {shape: aText, text: func(h detectors.Hit) (string, error) { c, err := syscallOf(h); return c.Name, err }},
	"nr":     {shape: anInt, number: func(h detectors.Hit) (uint64, error) { c, err := syscallOf(h); return uint64(c.Nr), err }},
	"compat": {shape: aFlag, number: isCompat},
}

// aFlag is a number that is true or false.
var aFlag = &shape{kind: boolean, cel: aBool.cel, size: 1}

func isCompat(h detectors.Hit) (uint64, error) {
	c, err := syscallOf(h)
	if err != nil || !c.Compat {
		return 0, err
	}
	return 1, nil
}

func syscallOf(h detectors.Hit) (c detectors.Syscall, err error) {
	s, ok := h.(detectors.SyscallHit)
	if !ok {
		return c, errors.New("this is no place of system calls")
	}
	return s.Syscall(), nil
}
