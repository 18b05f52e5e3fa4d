/* splicerace to|from CALLS SEGMENTS [compat]: gives memory to a pipe by vmsplice(2), or takes it from one, again and again,
 * while another thread changes the length of the last of so many segments between an honest one and 2 GiB: who looks at
 * the iovec before the kernel copies it may see the honest one. With compat there is no such thread; every second call is
 * huge, and all are those of a 32-bit program. Prints how many calls were honest in the end, how many passed with the huge
 * length, how many were refused with EFAULT, and how many failed otherwise.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define HONEST 4096
#define HUGE_LENGTH 0x80000000u
#define MAX_SEGMENTS 64
#define SIZE (64 << 10)

struct iovec32 {
  uint32_t base, len;
};

static char *buffer; /* below 4 GiB, as is what follows it */
static struct iovec32 *iov32;
static struct iovec iov[MAX_SEGMENTS];
static struct iovec *last;
static int stop;

static void *change(void *unused) {
  (void) unused;
  for (unsigned n = 0; !__atomic_load_n(&stop, __ATOMIC_RELAXED); n++)
    __atomic_store_n(&last->iov_len, n & 1 ? HUGE_LENGTH : HONEST, __ATOMIC_RELAXED);
  return NULL;
}

static long vmsplice32(int fd, long segments, int huge) {
  const long nr = 316; /* i386's */
  long ret;
  for (long i = 0; i < segments; i++) iov32[i] = (struct iovec32){(uint32_t) (uintptr_t) buffer, 1};
  iov32[segments - 1].len = huge ? HUGE_LENGTH - 1 : HONEST; /* 2 GiB are negative there, and refused in any case */
  __asm__ volatile("int $0x80" : "=a"(ret) : "a"(nr), "b"((long) fd), "c"(iov32), "d"(segments), "S"(0l) : "r8", "r9", "r10", "r11", "memory");
  if ((int) ret >= 0) return (int) ret;
  errno = -(int) ret;
  return -1;
}

int main(int argc, char **argv) {
  long calls = argc > 3 ? atol(argv[2]) : 0, segments = argc > 3 ? atol(argv[3]) : 0, honest = 0, huge = 0, refused = 0, errors = 0;
  int to = argc > 1 && strcmp(argv[1], "to") == 0, compat = argc > 4 && strcmp(argv[4], "compat") == 0, ends[2];
  pthread_t thread;
  if (calls <= 0 || segments <= 0 || segments > MAX_SEGMENTS || (!to && strcmp(argv[1], "from") != 0)) {
    fprintf(stderr, "usage: splicerace to|from CALLS SEGMENTS [compat]\n");
    return 2;
  }
  buffer = mmap(NULL, SIZE + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
  if (buffer == MAP_FAILED) {
    perror("mmap");
    return 1;
  }
  iov32 = (struct iovec32 *) (buffer + SIZE);
  memset(buffer, 'x', SIZE);
  for (long i = 0; i < segments; i++) iov[i] = (struct iovec){buffer, 1};
  last = &iov[segments - 1];
  last->iov_len = HONEST;
  if (pipe2(ends, O_NONBLOCK) < 0) {
    perror("pipe");
    return 1;
  }
  if (!compat && pthread_create(&thread, NULL, change, NULL) != 0) return 1;
  long most = HONEST + segments - 1; /* bytes that an honest call moves */
  for (long i = 0; i < calls; i++) {
    char drain[SIZE];
    if (!to && write(ends[1], buffer, 2 * HONEST) != 2 * HONEST) errors++;
    int fd = ends[to];
    long n = compat ? vmsplice32(fd, segments, i & 1) : vmsplice(fd, iov, segments, 0);
    if (n < 0 && errno == EFAULT) refused++;
    else if (n <= 0) errors++;
    else if (n > most) huge++;
    else honest++;
    while (read(ends[0], drain, sizeof drain) > 0) {}
  }
  __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
  if (!compat) pthread_join(thread, NULL);
  printf("calls %ld honest %ld huge %ld refused %ld errors %ld\n", calls, honest, huge, refused, errors);
  return 0;
}
