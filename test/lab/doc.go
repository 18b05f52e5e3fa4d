// Package lab boots a real Xen host in software and gives each test a copy of it.
//
// The host is Xen, a Linux dom0 and a PVH guest inside the Bochs CPU emulator,
// which has Intel VMX with EPT, altp2m's view switching and the monitor trap
// flag: nothing of the hypervisor is mocked. A lab server boots a host once for
// each Config and keeps it as a fork server; a copy of the running host, guest
// and all, with fresh files in it, is there in milliseconds.
//
// In a test:
//
//	host := lab.Copy(t, lab.Config{}, lab.File{Name: "hprobed", Source: binary})
//	out := host.MustRun(t, "/payload/hprobed --version")
//	host.Guest.MustRun(t, "ls /payload")
//
// Everything is made from Debian's packages, verified by apt's signatures, into
// a cache folder ($HPROBE_LAB_CACHE, or hprobe/lab in the user's cache folder);
// later boots need no network. Nothing needs root where user namespaces are
// allowed; where they are not, only the first unpacking of packages does.
package lab
