// Package libvmi is the driver over LibVMI, for who has that installed. It is built
// with the tag libvmi, against LibVMI's headers; the library itself is looked for when
// the program runs, so that one without it says so and goes on with the native driver.
//
// LibVMI serves memory (mapped frames), registers, pauses, views, access rights and all
// events. Its functions are called by the one goroutine that owns a Domain. Its loop of
// events, which calls a function for each and sends what that returns, runs as a
// coroutine on a stack of its own (glue.c): Next switches into it and it comes back in
// the middle of the callback, with one event. So cgo is crossed once for an event, C
// never calls Go, and a panic of Go's finds LibVMI waiting as after any other event.
//
// Where LibVMI stops short of what hprobe needs, the native driver is asked:
//
//   - It knows no list of domains, no UUIDs, and what a domain can do only by failing.
//   - vmi_init lifts the domain's memory limit, and vmi_destroy sets it to 4,096 times too
//     much (libvmi/driver/xen/xen.c, original_max_mem, is in bytes and Xen takes KiB). And
//     for a domain that is not there it does so to domain 0. So a domain is looked for
//     before, and its limit is set back after each of the two.
//   - Spare frames: LibVMI finds none that the guest does not know, and keeps to no limit.
//   - A run of frames of which one is absent: LibVMI maps all or none.
//   - The page of the monitor's ring is not given back to the guest; here it is. And who
//     waits for an event looks at that page, in place of calling C again and again.
//   - Why an attach failed: it says "driver". The native driver attaches and detaches
//     before, so that a domain that has a monitor is told from other trouble.
//   - A reply out of order: LibVMI has reserved the response's place in the ring before it
//     calls back, so nobody else's reply can overtake it. An event whose reply is to come
//     later gets the empty reply as soon as another waits; the vCPU then does again what
//     it was stopped at, and the event that comes of it gets the reply, once that is
//     there: see held.go. That goes for int3s, violations and CPUID; others can't wait.
//   - Writes of registers that wait for their reply.
//   - MSRs: LibVMI calls libxenctrl's xc_monitor_mov_to_msr without its last argument, so
//     that it is chance whether writes of the same value are told of
//     (libvmi/driver/xen/libxc_wrapper.h has four parameters, xenctrl.h five).
//   - Access r_pw, which LibVMI has no name for, is an *UnsupportedError.
//
// LibVMI prints to standard error what it finds wrong. Registers of a vCPU that is down
// are such a case.
package libvmi
