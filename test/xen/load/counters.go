package main

import (
	"encoding/binary"
	"fmt"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
)

var le = binary.LittleEndian

// counters are what the guest's kernel counts itself, for each CPU.
type counters struct {
	scheduled, faulted []xenevents.GVA
}

func newCounters(k *guestos.Kernel, cpus int) (*counters, error) {
	offsets, err := k.Address("__per_cpu_offset")
	if err != nil {
		return nil, err
	}
	runqueues, err := k.Profile.Address("runqueues") // an offset
	if err != nil {
		return nil, err
	}
	events, err := k.Profile.Address("vm_event_states")
	if err != nil {
		return nil, err
	}
	count, err := k.Profile.Field("rq", "sched_count")
	if err != nil {
		return nil, err
	}
	items, err := k.Profile.EnumType("vm_event_item")
	if err != nil {
		return nil, err
	}
	fault, ok := items.Constants["PGFAULT"]
	if !ok {
		return nil, fmt.Errorf("the profile has no PGFAULT in enum vm_event_item")
	}
	c := &counters{}
	for cpu := range cpus {
		var b [8]byte
		if _, err := k.Read(b[:], offsets+xenevents.GVA(cpu*8)); err != nil {
			return nil, err
		}
		base := le.Uint64(b[:])
		c.scheduled = append(c.scheduled, xenevents.GVA(base+runqueues+count.Offset))
		c.faulted = append(c.faulted, xenevents.GVA(base+events+uint64(fault)*8))
	}
	return c, nil
}

// read adds them up.
func (c *counters) read(h *probe.Hit) (scheduled, faulted uint64, err error) {
	for cpu := range c.scheduled {
		n, err := h.ReadUint64(c.scheduled[cpu])
		if err != nil {
			return 0, 0, err
		}
		scheduled += n & 0xffffffff // unsigned int
		if n, err = h.ReadUint64(c.faulted[cpu]); err != nil {
			return 0, 0, err
		}
		faulted += n
	}
	return scheduled, faulted, nil
}
