/* costs: what it costs a program that one of its functions is probed, in ticks of the TSC, without the probe and with it.
 * The monitor in dom0 is test/xen/user: see pages.c.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define OFFSET 0x80 /* of the function in its page */
#define N 100
#define TIMES 3 /* the least of which counts */

enum { WATCH = 0x7061676501, HITS = 0x7061676502 };

/* push %rbp; mov %rsp,%rbp; lea (%rdi,%rsi),%rax; pop %rbp; ret */
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x04, 0x37, 0x5d, 0xc3};

static volatile char *page, *beside; /* two pages with one page table */

#define MUST(x) do { if (!(x)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #x, errno); exit(1); } } while (0)

static long getpriority_raw(unsigned long which, unsigned long who) {
  long ret;
  __asm__ volatile("syscall" : "=a"(ret) : "a"(SYS_getpriority), "D"(which), "S"(who) : "rcx", "r11", "memory");
  return ret;
}

static unsigned long tsc(void) {
  unsigned low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return low | (unsigned long) high << 32;
}

static void hit(void) { ((long (*)(long, long)) (page + OFFSET))(1, 2); }
static void reads(void) { (void) page[0x800]; }
static void writes(void) { page[0x800]++; }
static void other(void) { (void) beside[0]; }

/* Four stores to the table of both pages. */
static void protects(void) {
  MUST(mprotect((void *) beside, PAGE, PROT_READ) == 0 && mprotect((void *) beside, PAGE, PROT_READ | PROT_WRITE) == 0);
  beside[0]++; /* the page is written to, so that the walker has no dirty bit to set */
}

static int clear_refs;

/* The accessed bits go, and the next use of the page sets one anew. */
static void forgets(void) {
  MUST(write(clear_refs, "1", 1) == 1);
  (void) beside[0];
}

static unsigned long cost(void (*what)(void)) {
  unsigned long least = ~0ul;
  for (int i = 0; i < TIMES; i++) {
    unsigned long began = tsc();
    for (int n = 0; n < N; n++) what();
    unsigned long took = (tsc() - began) / N;
    if (took < least) least = took;
  }
  return least;
}

static const struct { const char *name; void (*what)(void); } all[] = {
  {"hit", hit}, {"read", reads}, {"write", writes}, {"elsewhere", other}, {"mprotect", protects}, {"accessed", forgets},
};

int main(void) {
  enum { ROWS = sizeof all / sizeof *all };
  unsigned long without[ROWS + 1], with[ROWS + 1];
  /* Shared, so that a child has the same frame. */
  page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  MUST(page != MAP_FAILED);
  beside = page + PAGE;
  memcpy((void *) (page + OFFSET), code, sizeof code);
  beside[0] = 1;
  clear_refs = open("/proc/self/clear_refs", O_WRONLY);
  MUST(clear_refs >= 0);
  for (int i = 0; i < ROWS; i++) without[i] = cost(all[i].what);
  long answer;
  for (int i = 0; (answer = getpriority_raw(WATCH, (unsigned long) page + OFFSET)) == -EAGAIN && i < 2000; i++) usleep(5000);
  MUST(answer == 0);
  for (int i = 0; i < ROWS; i++) with[i] = cost(all[i].what);
  long hits = getpriority_raw(HITS, (unsigned long) page + OFFSET);
  if (hits != N * TIMES) printf("wrong: %ld hits\n", hits);
  without[ROWS] = without[0];
  int pipes[2];
  MUST(pipe(pipes) == 0);
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) {
    unsigned long passed = cost(hit);
    _exit(write(pipes[1], &passed, sizeof passed) != sizeof passed);
  }
  MUST(read(pipes[0], &with[ROWS], sizeof *with) == sizeof *with && waitpid(pid, NULL, 0) == pid);
  for (int i = 0; i <= ROWS; i++) printf("%s %lu %lu\n", i < ROWS ? all[i].name : "passed", without[i], with[i]);
  return 0;
}
