/* poke WHAT INDEX VALUE COUNT [SIZE]: has the driver of test/guests/poke write registers or memory, and prints the result. WHAT
 * is cr0, cr4, wrmsr, rdmsr, write, add, read, look, fill.
 *
 * poke cpuid LEAF SUBLEAF COUNT: runs CPUID itself, and prints the last EAX, EBX, ECX and EDX.
 * poke switch COUNT: two processes on one CPU wake each other COUNT times: as many switches of address spaces each way.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "poke.h"

static unsigned long long number(char **argv, int argc, int i) {
  return i < argc ? strtoull(argv[i], NULL, 0) : 0;
}

static int cpuid(unsigned leaf, unsigned subleaf, unsigned long count) {
  unsigned a = 0, b = 0, c = 0, d = 0;
  while (count-- > 0) {
    a = leaf;
    c = subleaf;
    __asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  }
  printf("cpuid %#x %#x %#x %#x\n", a, b, c, d);
  return 0;
}

static int turns(unsigned long count) {
  int there[2], back[2];
  char c = 0;
  cpu_set_t first;
  CPU_ZERO(&first);
  CPU_SET(0, &first);
  if (sched_setaffinity(0, sizeof first, &first) < 0 || pipe(there) < 0 || pipe(back) < 0) return 1;
  pid_t child = fork();
  if (child < 0) return 1;
  for (unsigned long i = 0; i < count; i++) {
    int *in = child == 0 ? there : back, *out = child == 0 ? back : there;
    if (child != 0 && write(out[1], &c, 1) != 1) _exit(1);
    if (read(in[0], &c, 1) != 1) _exit(1);
    if (child == 0 && write(out[1], &c, 1) != 1) _exit(1);
  }
  if (child == 0) _exit(0);
  int status;
  while (waitpid(child, &status, 0) < 0) {}
  printf("switched %lu\n", count);
  return status != 0;
}

int main(int argc, char **argv) {
  static const char *const names[] = {"cr0", "cr4", "wrmsr", "rdmsr", "write", "add", "read", "look", "fill"};
  struct poke p = {.what = ~0ull};
  const char *what = argc > 1 ? argv[1] : "";
  if (strcmp(what, "cpuid") == 0) return cpuid(number(argv, argc, 2), number(argv, argc, 3), number(argv, argc, 4));
  if (strcmp(what, "switch") == 0) return turns(number(argv, argc, 2));
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
    if (strcmp(what, names[i]) == 0) p.what = i;
  }
  if (p.what == ~0ull) {
    fprintf(stderr, "usage: poke WHAT INDEX VALUE COUNT [SIZE]\n");
    return 2;
  }
  p.index = number(argv, argc, 2);
  p.value = number(argv, argc, 3);
  p.count = number(argv, argc, 4);
  p.size = argc > 5 ? number(argv, argc, 5) : 8;
  int fd = open("/dev/poke", O_RDWR);
  if (fd < 0 || ioctl(fd, POKE, &p) < 0) {
    perror("poke");
    return 1;
  }
  printf("%#llx\n", p.result);
  return 0;
}
