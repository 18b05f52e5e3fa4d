/* vuln benign | malicious: asks the driver with the planted bug (test/guests/module) to copy a buffer, then looks at the
 * canary that the driver keeps behind its own.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vuln.h"

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  int fd = open("/dev/vuln", O_RDWR);
  struct vuln_request req = {0};
  struct vuln_canary canary;
  if (strcmp(what, "benign") != 0 && strcmp(what, "malicious") != 0) {
    fprintf(stderr, "usage: vuln benign | malicious\n");
    return 2;
  }
  if (fd < 0) {
    perror("/dev/vuln");
    return 1;
  }
  /* The mapping ends right behind the canary: what the driver would read next faults, and the guest lives. It is low, as
   * base + len must be an address of user space. */
  size_t size = 4 * 4096;
  char *map = mmap((void *) 0x200000000, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (map == MAP_FAILED) {
    perror("mmap");
    return 1;
  }
  memset(map, 'A', size);
  req.base = map + size - VULN_BUFFER - VULN_CANARY_SIZE;
  req.len = strcmp(what, "benign") == 0 ? VULN_BUFFER : 0xfffffffdul;
  int ret = ioctl(fd, VULN_COPY, &req);
  printf("ioctl(len=%#zx): %s; ", req.len, ret < 0 ? strerrorname_np(errno) : "copied");
  if (ioctl(fd, VULN_CANARY, &canary) < 0) {
    perror("canary");
    return 1;
  }
  for (unsigned i = 0; i < VULN_CANARY_SIZE / 8; i++) {
    if (canary.word[i] == VULN_CANARY_VALUE) continue;
    printf("canary OVERWRITTEN: %#lx\n", canary.word[i]);
    return 0;
  }
  printf("canary intact\n");
  return 0;
}
