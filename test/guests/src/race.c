/* race CALLS: asks the driver with the planted bug (test/guests/module) to copy a buffer, again and again, while another
 * thread changes the length in the request between a good one and a bad one: who looks at the request before the kernel
 * copies it may see the good one. Prints how many calls were let pass and refused, and how often the canary died.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "vuln.h"

static struct vuln_request req;
static int stop;

static void *change(void *unused) {
  (void) unused;
  for (unsigned n = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); n++)
    __atomic_store_n(&req.len, n & 1 ? 0xfffffffdul : VULN_BUFFER, __ATOMIC_RELAXED);
  return NULL;
}

int main(int argc, char **argv) {
  long calls = argc > 1 ? atol(argv[1]) : 0, passed = 0, refused = 0, dead = 0, errors = 0;
  int fd = open("/dev/vuln", O_RDWR);
  pthread_t thread;
  if (calls <= 0) {
    fprintf(stderr, "usage: race CALLS\n");
    return 2;
  }
  if (fd < 0) {
    perror("/dev/vuln");
    return 1;
  }
  size_t size = 4 * 4096; /* see vuln.c */
  char *map = mmap((void *) 0x200000000, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (map == MAP_FAILED) {
    perror("mmap");
    return 1;
  }
  memset(map, 'A', size);
  req.base = map + size - VULN_BUFFER - VULN_CANARY_SIZE;
  req.len = VULN_BUFFER;
  if (pthread_create(&thread, NULL, change, NULL) != 0) return 1;
  for (long i = 0; i < calls; i++) {
    struct vuln_canary canary;
    if (ioctl(fd, VULN_COPY, &req) == 0) passed++;
    else if (errno == EINVAL) refused++;
    else if (errno == EFAULT) passed++; /* the driver ran to the end of the mapping */
    else errors++;
    if (ioctl(fd, VULN_CANARY, &canary) < 0) errors++;
    else if (canary.word[0] != VULN_CANARY_VALUE) {
      dead++;
      if (ioctl(fd, VULN_RESET) < 0) errors++;
    }
  }
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  pthread_join(thread, NULL);
  printf("calls %ld passed %ld refused %ld dead %ld errors %ld\n", calls, passed, refused, dead, errors);
  return 0;
}
