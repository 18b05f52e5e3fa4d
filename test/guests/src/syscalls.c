/* syscalls N: makes known numbers of system calls that nothing else in the guest makes, by the syscall instruction and by
 * int 0x80 (the way of 32-bit programs, with their numbers and registers), and says how many ended otherwise than they must.
 *
 *                  native   int 0x80   returns
 *   getpriority       7 N        5 N   -EINVAL, for a "which" of 1000, 1001, …
 *   munlockall        3 N        4 N   0; one function of the kernel for both
 *   umount2           6 N        3 N   -EFAULT; the kernel's function has another name
 *   chown32             -        2 N   -EFAULT; there is no native one
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>

static long wrong;

static long native(long nr, unsigned long a, unsigned long b) {
  long ret;
  __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b) : "rcx", "r11", "memory");
  return ret;
}

/* 32-bit arguments are the low halves: what is above them must not count. */
static long int80(long nr, unsigned long a, unsigned long b) {
  long ret;
  __asm__ volatile("int $0x80" : "=a"(ret) : "a"(nr), "b"(a | 0xab00000000000000), "c"(b) : "r8", "r9", "r10", "r11", "memory");
  return (int) ret;
}

static void check(const char *what, long got, long want) {
  if (got == want) return;
  if (wrong++ == 0) fprintf(stderr, "%s returned %ld, not %ld\n", what, got, want);
}

int main(int argc, char **argv) {
  long n = argc > 1 ? atol(argv[1]) : 0, which = 1000;
  if (n < 1) {
    fprintf(stderr, "usage: syscalls N\n");
    return 2;
  }
  for (long i = 0; i < n; i++) {
    for (int k = 0; k < 7; k++) check("getpriority", native(SYS_getpriority, which++, 0), -EINVAL);
    for (int k = 0; k < 5; k++) check("32-bit getpriority", int80(96, which++, 0), -EINVAL);
    for (int k = 0; k < 3; k++) check("munlockall", native(SYS_munlockall, 0, 0), 0);
    for (int k = 0; k < 4; k++) check("32-bit munlockall", int80(153, 0, 0), 0);
    for (int k = 0; k < 6; k++) check("umount2", native(SYS_umount2, 0, 0), -EFAULT);
    for (int k = 0; k < 3; k++) check("32-bit umount2", int80(52, 0, 0), -EFAULT);
    for (int k = 0; k < 2; k++) check("32-bit chown32", int80(212, 0, 0), -EFAULT);
  }
  printf("rounds %ld wrong %ld\n", n, wrong);
  return 0;
}
