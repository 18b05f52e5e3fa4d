// Package build makes the profile of a Linux kernel from the kernel itself:
// symbols from its kallsyms tables, types and prototypes from its BTF, the
// arguments of system calls from its tracing metadata. No System.map, no debug
// package. Each distribution's kernel carries what is needed in its vmlinuz.
//
// Everything works on an Image: bytes at kernel addresses. FromFile takes them
// from a file; the memory of a running guest is another source. Neither is
// trusted: each table, string and count has a bound.
package build
