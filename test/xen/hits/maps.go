package main

import (
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

func maps(dom xenevents.Domain, s xenevents.AddressSpace, at xenevents.GVA) bool {
	_, err := guestmem.NewReader(dom).Translate(s, at)
	return err == nil
}
