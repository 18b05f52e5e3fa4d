/* calls N THREADS: each thread makes N system calls whose result is known, and says how many were wrong.
 *
 * getpriority(2) refuses a "which" that it does not know with EINVAL, and nothing else in the guest calls it:
 * a probe on __x64_sys_getpriority must count exactly N times THREADS hits, with these arguments.
 */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

static long calls;
static pthread_barrier_t start;

struct result {
  unsigned long wrong, sum, ticks;
  long bad_call, bad_result; /* the first wrong one */
};

static unsigned long tsc(void) {
  unsigned low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return low | (unsigned long) high << 32;
}

static long getpriority_raw(unsigned long which) {
  long ret;
  __asm__ volatile("syscall" : "=a"(ret) : "a"(SYS_getpriority), "D"(which), "S"(0) : "rcx", "r11", "memory");
  return ret;
}

static void *caller(void *arg) {
  struct result *r = arg;
  pthread_barrier_wait(&start);
  unsigned long began = tsc();
  for (long i = 0; i < calls; i++) {
    unsigned long which = 1000 + i;
    long result = getpriority_raw(which);
    if (result != -EINVAL && r->wrong++ == 0) {
      r->bad_call = i;
      r->bad_result = result;
    }
    r->sum += which;
  }
  r->ticks = tsc() - began;
  return NULL;
}

int main(int argc, char **argv) {
  int threads = argc > 2 ? atoi(argv[2]) : 1;
  struct result results[16] = {{0}}, all = {0};
  pthread_t ids[16];
  calls = argc > 1 ? atol(argv[1]) : 0;
  if (calls < 1 || threads < 1 || threads > 16) {
    fprintf(stderr, "usage: calls N [THREADS]\n");
    return 2;
  }
  pthread_barrier_init(&start, NULL, threads);
  for (int i = 0; i < threads; i++) pthread_create(&ids[i], NULL, caller, &results[i]);
  for (int i = 0; i < threads; i++) {
    pthread_join(ids[i], NULL);
    if (results[i].wrong > 0) fprintf(stderr, "thread %d: call %ld returned %ld\n", i, results[i].bad_call, results[i].bad_result);
    all.wrong += results[i].wrong;
    all.sum += results[i].sum;
    all.ticks += results[i].ticks;
  }
  printf("calls %ld wrong %lu sum %lu ticks/call %lu\n", calls * threads, all.wrong, all.sum, all.ticks / (calls * threads));
  return all.wrong != 0;
}
