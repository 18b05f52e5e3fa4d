/* What the driver with the planted bug and its user share. */
#ifndef VULN_H
#define VULN_H

#ifdef __KERNEL__
#include <linux/ioctl.h>
#include <linux/types.h>
#else
#include <stddef.h>
#include <sys/ioctl.h>
#endif

#define VULN_BUFFER 4096
#define VULN_CANARY_SIZE 64
#define VULN_CANARY_VALUE 0x5afe5afe5afe5afeul

struct vuln_request {
  void *base;
  size_t len;
};

struct vuln_canary {
  unsigned long word[VULN_CANARY_SIZE / 8];
};

#define VULN_COPY _IOW('v', 1, struct vuln_request)
#define VULN_CANARY _IOR('v', 2, struct vuln_canary)
#define VULN_RESET _IO('v', 3)

#endif
