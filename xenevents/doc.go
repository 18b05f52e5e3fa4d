// Package xenevents is the vocabulary that hprobe's rooms share: guest
// addresses, registers, events and replies, the small role interfaces that a
// driver serves, and the errors that they return. It imports nothing but the
// standard library and says nothing about how a hypervisor is reached.
//
// A driver (native, libvmi, sim, replay) implements Host and Domain; everything
// above a driver is written against the roles. Drivers know bytes, permissions
// and events; they know nothing of probes.
package xenevents
