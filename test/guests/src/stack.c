/* stack N: N times a system call, and a call of leaf, four functions deep, with frame pointers. It says where each returns
 * to, the innermost first.
 */
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define DEEP __attribute__((noinline, noclone))
/* Who asks for its frame has one. */
#define FRAME __asm__ volatile("" ::"r"(__builtin_frame_address(0)))

static void *to[3];

DEEP long leaf(long n) {
  __asm__ volatile("" : "+r"(n));
  return n + 1;
}

DEEP long third(long n) {
  long ret;
  FRAME;
  to[0] = __builtin_return_address(0);
  __asm__ volatile("syscall" : "=a"(ret) : "a"(SYS_getpriority), "D"(1000 + n), "S"(0) : "rcx", "r11", "memory");
  return leaf(n) + ret;
}

DEEP long second(long n) {
  FRAME;
  to[1] = __builtin_return_address(0);
  return third(n) + 1;
}

DEEP long first(long n) {
  FRAME;
  to[2] = __builtin_return_address(0);
  return second(n) + 1;
}

int main(int argc, char **argv) {
  FRAME;
  long n = argc > 1 ? atol(argv[1]) : 1, wrong = 0;
  for (long i = 0; i < n; i++) wrong += first(i) != i + 3 - 22;
  printf("%p %p %p wrong %ld\n", to[0], to[1], to[2], wrong);
  return wrong != 0;
}
