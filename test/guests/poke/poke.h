/* What the driver that pokes registers and memory shares with its user. */
#ifndef POKE_H
#define POKE_H

#ifdef __KERNEL__
#include <linux/ioctl.h>
#include <linux/types.h>
#else
#include <sys/ioctl.h>
#endif

enum poke_what {
  POKE_CR0,   /* count times: write CR0 with the bits of value changed, read it, write what it was; result: what was read last */
  POKE_CR4,   /* the same of CR4 */
  POKE_WRMSR, /* count times: write value to MSR index */
  POKE_RDMSR, /* result: MSR index */
  POKE_WRITE, /* count times: write value, value+1 ... of size bytes to index in the driver's area */
  POKE_ADD,   /* count times: add value to 8 bytes at index there */
  POKE_READ,  /* count times: read size bytes there; result: what was read last */
  POKE_LOOK,  /* the same at an address of the kernel */
  POKE_FILL,  /* rep stosb of count bytes of value to index in the area */
};

struct poke {
  unsigned long long what, index, value, count, size, result;
};

#define POKE_AREA 8192
#define POKE _IOWR('p', 1, struct poke)

#endif
