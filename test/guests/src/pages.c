/* pages WHAT: a function whose page comes, goes and moves, by each thing that makes a page of a process do so. A monitor
 * in dom0 (test/xen/user) is told of the function by a system call that nobody else makes, and is asked the same way how
 * often it saw it run: the program knows how often that was.
 *
 * It prints what it did, and "ok" at the end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/swap.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define HUGE (2ul << 20)
#define OFFSET 0x80 /* of the function in its page */

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE 101
#endif

/* What the monitor takes of getpriority(2). */
enum { WATCH = 0x7061676501, HITS = 0x7061676502, STATE = 0x7061676503 };
enum { ARMED, DISPLACED, FAILED, WAITING, ENDED };

/* push %rbp; mov %rsp,%rbp; lea (%rdi,%rsi),%rax; pop %rbp; ret */
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0x8d, 0x04, 0x37, 0x5d, 0xc3};

static char *page; /* that is watched */

static void fail(const char *format, ...) {
  va_list args;
  va_start(args, format);
  printf("wrong: ");
  vprintf(format, args);
  printf(" (errno %d)\n", errno);
  exit(1);
}

#define MUST(x) do { if (!(x)) fail("line %d: %s", __LINE__, #x); } while (0)

static long getpriority_raw(unsigned long which, unsigned long who) {
  long ret;
  __asm__ volatile("syscall" : "=a"(ret) : "a"(SYS_getpriority), "D"(which), "S"(who) : "rcx", "r11", "memory");
  return ret;
}

/* asked is the monitor's answer. It is asked again until it has one. */
static long asked(unsigned long what, char *page) {
  for (int i = 0; i < 2000; i++) {
    long answer = getpriority_raw(what, (unsigned long) page + OFFSET);
    if (answer != -EAGAIN) return answer;
    usleep(5000);
  }
  fail("the monitor does not answer");
  return 0;
}

static void watch(void) {
  long answer = asked(WATCH, page);
  if (answer != 0) fail("the monitor refuses: %ld", answer);
}

static void call(char *page, int n) {
  long (*f)(long, long) = (long (*)(long, long)) (page + OFFSET);
  for (int i = 0; i < n; i++)
    if (f(i, 1000) != i + 1000) fail("the function computes %ld", f(i, 1000));
}

static long hits;

/* run calls the function, all calls of which are hits. */
static void run(const char *when, int n) {
  call(page, n);
  long now = asked(HITS, page);
  if (now != hits + n) fail("%s: %ld hits of %d calls", when, now - hits, n);
  hits = now;
  printf("%s: %d calls, %d hits\n", when, n, n);
}

/* status: the monitor's state, how often the probe was armed in another frame, and how many runs it let pass. */
static void status(const char *when, int state, int moves, int passed) {
  long s = asked(STATE, page);
  int is = s & 0xff, moved = s >> 8 & 0xffff, past = s >> 24;
  if (is != state || (moves >= 0 && moved != moves) || (passed >= 0 && past != passed))
    fail("%s: state %d, armed %d times, passed %d", when, is, moved, past);
  printf("%s: state %d, armed %d times, passed %d\n", when, is, moved, past);
}

#define RX (PROT_READ | PROT_EXEC)
#define RW (PROT_READ | PROT_WRITE)
#define RWX (RW | PROT_EXEC)

static char *anonymous(size_t size, int prot) {
  char *p = mmap(NULL, size, prot, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(p != MAP_FAILED);
  return p;
}

static int file(void) {
  int fd = open("/tmp/pages.code", O_RDWR | O_CREAT | O_TRUNC, 0700);
  MUST(fd >= 0 && ftruncate(fd, PAGE) == 0 && pwrite(fd, code, sizeof code, OFFSET) == sizeof code);
  return fd;
}

static void write_code(char *page) { memcpy(page + OFFSET, code, sizeof code); }

/* made is an anonymous page with the function. */
static char *made(void) {
  char *p = anonymous(PAGE, RW);
  write_code(p);
  MUST(mprotect(p, PAGE, RX) == 0);
  return p;
}

static uint64_t pagemap(char *page) {
  uint64_t entry;
  int fd = open("/proc/self/pagemap", O_RDONLY);
  MUST(fd >= 0 && pread(fd, &entry, 8, (uintptr_t) page / PAGE * 8) == 8);
  close(fd);
  return entry;
}

#define PRESENT (1ull << 63)
#define SWAPPED (1ull << 62)
#define FRAME ((1ull << 55) - 1)

static void set(const char *path, const char *value) {
  int fd = open(path, O_WRONLY);
  if (fd < 0 || write(fd, value, strlen(value)) < 0) fail("%s", path);
  close(fd);
}

/* A page of a file that was never touched. */
static void of_file(void) {
  page = mmap(NULL, PAGE, RX, MAP_PRIVATE, file(), 0);
  MUST(page != MAP_FAILED);
  watch();
  status("before", WAITING, 0, 0);
  run("touched", 5);
  status("after", ARMED, 1, 0);
}

/* A page that code is written to when it is watched already, in two ways. */
static void fresh(void) {
  page = anonymous(PAGE, RWX);
  watch();
  status("before", WAITING, 0, 0);
  write_code(page);
  run("written, by who may run it", 5);
  page = anonymous(PAGE, RW);
  hits = 0;
  watch();
  write_code(page);
  status("not to be run", WAITING, 0, 0);
  MUST(mprotect(page, PAGE, RX) == 0);
  run("to be run", 5);
  status("after", ARMED, 1, 0);
}

static void waited(pid_t child) {
  int s;
  MUST(child > 0 && waitpid(child, &s, 0) == child);
  if (!WIFEXITED(s) || WEXITSTATUS(s) != 0) fail("the child ended with %#x", s);
}

/* fork, and copy-on-write by the child and then by the parent. */
static void cow(void) {
  page = mmap(NULL, PAGE, RX, MAP_PRIVATE, file(), 0);
  MUST(page != MAP_FAILED);
  watch();
  run("before", 3);
  pid_t child = fork();
  if (child == 0) {
    call(page, 4); /* of the same frame */
    MUST(mprotect(page, PAGE, RWX) == 0);
    page[0] = 1;
    call(page, 5); /* of its own */
    exit(0);
  }
  waited(child);
  status("the child's", ARMED, 1, 4);
  run("after the child", 3);
  uint64_t frame = pagemap(page) & FRAME;
  MUST(mprotect(page, PAGE, RWX) == 0);
  page[0] = 1;
  MUST((pagemap(page) & FRAME) != frame);
  run("after its own copy", 3);
  MUST(mprotect(page, PAGE, RX) == 0);
  run("after mprotect", 3);
  status("after", ARMED, 2, 4);
}

static void unmapped(void) {
  int fd = file();
  page = mmap(NULL, PAGE, RX, MAP_SHARED, fd, 0);
  MUST(page != MAP_FAILED);
  watch();
  run("before", 3);
  for (int i = 0; i < 3; i++) {
    MUST(munmap(page, PAGE) == 0);
    status("gone", WAITING, -1, 0);
    if (i == 0) usleep(100000);
    MUST(mmap(page, PAGE, RX, (i % 2 ? MAP_SHARED : MAP_PRIVATE) | MAP_FIXED, fd, 0) == page);
    run("mapped again", 3);
  }
  /* What is not the same code is not armed. */
  MUST(munmap(page, PAGE) == 0);
  MUST(mmap(page, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == page);
  memcpy(page + OFFSET, "\x48\x89\xf8\x48\x29\xf0\xc3", 7); /* mov %rdi,%rax; sub %rsi,%rax; ret */
  MUST(mprotect(page, PAGE, RX) == 0);
  MUST(((long (*)(long, long)) (page + OFFSET))(7, 4) == 3);
  status("other code", DISPLACED, -1, 0);
}

static void remapped(void) {
  page = made();
  watch();
  run("before", 3);
  char *was = page, *to = anonymous(PAGE, PROT_NONE);
  MUST(mremap(page, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
  status("elsewhere", WAITING, 1, 0);
  call(to, 5);
  MUST(mremap(to, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, was) == was);
  run("back", 3);
}

/* A process exits, and its root becomes that of others. */
static void ended(void) {
  page = made();
  pid_t child = fork();
  if (child == 0) {
    watch();
    run("the first child", 3);
    fflush(stdout);
    exit(0);
  }
  waited(child);
  int again = 0;
  for (int i = 0; i < 300 && again < 3; i++) {
    child = fork();
    if (child == 0) {
      long before = asked(HITS, page);
      call(page, 5);
      /* -ENOENT: nobody was ever watched with this root. */
      _exit(before == -ENOENT ? 0 : asked(HITS, page) == before ? 10 : 11);
    }
    int s;
    MUST(child > 0 && waitpid(child, &s, 0) == child && WIFEXITED(s));
    MUST(WEXITSTATUS(s) == 0 || WEXITSTATUS(s) == 10);
    again += WEXITSTATUS(s) == 10;
  }
  printf("the root was used again %d times\n", again);
  MUST(again > 0);
}

static long huge(char *p) {
  char line[256];
  unsigned long from;
  long kb = -1;
  int here = 0;
  FILE *f = fopen("/proc/self/smaps", "r");
  MUST(f != NULL);
  while (fgets(line, sizeof line, f)) {
    char dash;
    if (sscanf(line, "%lx%c", &from, &dash) == 2 && dash == '-') here = from == (unsigned long) p;
    if (here && sscanf(line, "AnonHugePages: %ld", &kb) == 1) break;
  }
  fclose(f);
  return kb;
}

static void thp(void) {
  char *area = anonymous(2 * HUGE, RWX), *p = (char *) (((uintptr_t) area + HUGE - 1) & ~(HUGE - 1));
  munmap(area, p - area); /* so that smaps has a line for it */
  munmap(p + HUGE, area + 2 * HUGE - (p + HUGE));
  MUST(madvise(p, HUGE, MADV_HUGEPAGE) == 0);
  page = p + 5 * PAGE;
  watch();
  status("before", WAITING, 0, 0);
  p[0] = 1;
  MUST(huge(p) == 2048);
  write_code(page);
  run("one page of 2 MB", 3);
  MUST(madvise(p + 100 * PAGE, PAGE, MADV_DONTNEED) == 0);
  MUST(huge(p) == 0);
  run("split", 3);
  status("split", ARMED, 1, 0);
  if (madvise(p, HUGE, MADV_COLLAPSE) != 0) {
    printf("no MADV_COLLAPSE here (errno %d)\n", errno);
    return;
  }
  MUST(huge(p) == 2048);
  run("collapsed", 3);
  status("collapsed", ARMED, 2, 0);
}

static void ksm(void) {
  const char *dir = "/sys/kernel/mm/ksm/run";
  if (access(dir, W_OK) != 0) {
    printf("no KSM here\n");
    return;
  }
  char *two = anonymous(2 * PAGE, RWX);
  for (int i = 0; i < 2; i++) {
    memset(two + i * PAGE, 0x90, PAGE);
    write_code(two + i * PAGE);
  }
  page = two;
  watch();
  run("before", 3);
  MUST(madvise(two, 2 * PAGE, MADV_MERGEABLE) == 0);
  set("/sys/kernel/mm/ksm/sleep_millisecs", "5");
  set(dir, "1");
  for (int i = 0; i < 2000 && (pagemap(two) & FRAME) != (pagemap(two + PAGE) & FRAME); i++) usleep(10000);
  MUST((pagemap(two) & FRAME) == (pagemap(two + PAGE) & FRAME));
  set(dir, "0");
  run("merged", 3);
  call(two + PAGE, 4); /* the same frame by another address */
  status("merged", ARMED, -1, 4);
  page[0] = 1;
  MUST((pagemap(two) & FRAME) != (pagemap(two + PAGE) & FRAME));
  run("its own again", 3);
  call(two + PAGE, 4);
  status("its own again", ARMED, -1, 4);
}

static void migrated(void) {
  page = made();
  watch();
  run("before", 3);
  for (int i = 0; i < 5; i++) {
    uint64_t frame = pagemap(page) & FRAME;
    if (madvise(page, PAGE, MADV_SOFT_OFFLINE) != 0) {
      printf("no soft offlining here (errno %d)\n", errno);
      break;
    }
    MUST((pagemap(page) & PRESENT) == 0 || (pagemap(page) & FRAME) != frame);
    run("migrated", 3);
    MUST((pagemap(page) & FRAME) != frame);
    status("migrated", ARMED, 2 + i, 0);
  }
  set("/proc/sys/vm/compact_memory", "1");
  run("compacted", 3);
}

#define SWAP_PAGES 1024

static void swapped(void) {
  /* A swap area on a loop device: its header is a page that says how long it is. */
  static uint32_t header[PAGE / 4];
  int back = open("/tmp/pages.swap", O_RDWR | O_CREAT | O_TRUNC, 0600), loop = open("/dev/loop5", O_RDWR);
  if (loop < 0) {
    printf("no loop device here (errno %d)\n", errno);
    return;
  }
  header[1024 / 4] = 1;
  header[1024 / 4 + 1] = SWAP_PAGES - 1;
  memcpy((char *) header + PAGE - 10, "SWAPSPACE2", 10);
  MUST(back >= 0 && ftruncate(back, SWAP_PAGES * PAGE) == 0 && pwrite(back, header, PAGE, 0) == PAGE);
  MUST(ioctl(loop, 0x4c00 /* LOOP_SET_FD */, back) == 0);
  if (swapon("/dev/loop5", 0) != 0) {
    printf("no swap here (errno %d)\n", errno);
    return;
  }
  page = made();
  watch();
  run("before", 3);
  for (int i = 0; i < 3; i++) {
    for (int n = 0; n < 100 && (pagemap(page) & SWAPPED) == 0; n++) {
      MUST(madvise(page, PAGE, MADV_PAGEOUT) == 0);
      usleep(10000);
    }
    MUST((pagemap(page) & SWAPPED) != 0);
    status("out", WAITING, -1, 0);
    run("in", 3);
  }
  MUST(swapoff("/dev/loop5") == 0);
  run("after", 3);
}

static volatile int stop;
static unsigned long ran;

static void *runner(void *arg) {
  while (!stop) {
    call(page, 1);
    ran++;
  }
  return arg;
}

/* One thread runs the function while the other changes its page's entry. */
static void threads(void) {
  pthread_t id;
  page = made();
  watch();
  run("before", 3);
  MUST(pthread_create(&id, NULL, runner, NULL) == 0);
  for (int i = 0; i < 40; i++) {
    MUST(mprotect(page, PAGE, i % 2 ? RX : RWX) == 0);
    if (i % 8 == 7) usleep(20000);
  }
  int moved = 0;
  for (int i = 0; i < 10; i++) moved += madvise(page, PAGE, MADV_SOFT_OFFLINE) == 0;
  stop = 1;
  MUST(pthread_join(id, NULL) == 0);
  long now = asked(HITS, page);
  printf("%lu calls, %ld hits, migrated %d times\n", ran, now - hits, moved);
  if (now - hits != (long) ran) fail("%ld hits of %lu calls", now - hits, ran);
  hits = now;
  run("after", 3);
}

static void say(const char *path) { close(open(path, O_WRONLY | O_CREAT, 0600)); }

static unsigned long tsc(void) {
  unsigned low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return low | (unsigned long) high << 32;
}

#define NEAR 200 /* pages of the watched page's table */

/* costs prints what things cost, in ticks. */
static void costs(const char *when, char *near) {
  unsigned long start = tsc();
  call(page, 100);
  printf("%s: a call %lu, ", when, (tsc() - start) / 100);
  MUST(madvise(near, NEAR * PAGE, MADV_DONTNEED) == 0);
  start = tsc();
  for (int i = 0; i < NEAR; i++) near[i * PAGE] = 1;
  printf("a new page %lu, ", (tsc() - start) / NEAR);
  start = tsc();
  MUST(madvise(near, NEAR * PAGE, MADV_DONTNEED) == 0);
  printf("one given back %lu, ", (tsc() - start) / NEAR);
  start = tsc();
  pid_t child = fork();
  if (child == 0) _exit(0);
  waited(child);
  printf("fork and exit %lu\n", tsc() - start);
}

static void cost(void) {
  /* Aligned, so that all is in one table. */
  char *area = anonymous(2 * HUGE, RW), *p = (char *) (((uintptr_t) area + HUGE - 1) & ~(HUGE - 1));
  page = p;
  p[0] = 1;
  write_code(page);
  MUST(mprotect(page, PAGE, RX) == 0);
  costs("free", p + PAGE);
  costs("free", p + PAGE);
  watch();
  costs("watched", p + PAGE);
  hits = asked(HITS, page);
  run("after", 3);
}

/* The processor's own walks write accessed and dirty bits to the tables. */
static void walked(void) {
  char *two = anonymous(2 * PAGE, RW); /* mostly of one table; if not there is less to see */
  page = two;
  write_code(page);
  two[PAGE] = 1;
  MUST(mprotect(page, PAGE, RX) == 0);
  watch();
  for (int i = 0; i < 10; i++) {
    set("/proc/self/clear_refs", "1"); /* accessed bits */
    run("not accessed", 1);
    MUST(madvise(two + PAGE, PAGE, MADV_FREE) == 0); /* dirty bits, too */
    two[PAGE] = i;
    MUST(two[PAGE] == i);
  }
}

/* Everything at once, for a monitor that ends in the middle. */
static void storm(void) {
  char *area = anonymous(2 * HUGE, RW), *p = (char *) (((uintptr_t) area + HUGE - 1) & ~(HUGE - 1)), *near = p + PAGE;
  page = p;
  write_code(page);
  MUST(mprotect(page, PAGE, RX) == 0);
  watch();
  say("/tmp/pages.ready");
  for (int i = 0; i < 200; i++) {
    MUST(madvise(near, 20 * PAGE, MADV_DONTNEED) == 0);
    for (int n = 0; n < 20; n++) near[n * PAGE] = i;
    call(page, 10);
    MUST(mprotect(page, PAGE, RWX) == 0);
    page[i % OFFSET] = i;
    call(page, 10);
    MUST(mprotect(page, PAGE, RX) == 0);
    for (int n = 0; n < 20; n++) MUST(near[n * PAGE] == (char) i);
    if (i % 10 == 9) {
      pid_t child = fork();
      if (child == 0) {
        call(page, 10);
        _exit(0);
      }
      waited(child);
      MUST(madvise(page, PAGE, MADV_PAGEOUT) == 0); /* in vain, where there is no swap */
    }
  }
}

#define SERVED ((char *) 0x20000000)

static void await(const char *path) {
  while (access(path, F_OK) != 0) usleep(10000);
}

/* For who knows no more than its number and an address: it waits for files, and tells by files. */
static void served(void) {
  say("/tmp/pages.ready");
  await("/tmp/pages.map");
  page = mmap(SERVED, PAGE, RWX, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  MUST(page == SERVED);
  write_code(page);
  call(page, 100);
  say("/tmp/pages.mapped");
  await("/tmp/pages.go");
  call(page, 100);
  say("/tmp/pages.done");
  await("/tmp/pages.end");
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    void (*f)(void);
  } all[] = {{"file", of_file}, {"fresh", fresh}, {"cow", cow}, {"munmap", unmapped}, {"mremap", remapped}, {"exit", ended},
             {"thp", thp}, {"ksm", ksm}, {"migrate", migrated}, {"swap", swapped}, {"threads", threads}, {"serve", served}, {"cost", cost},
             {"walk", walked}, {"storm", storm}};
  setvbuf(stdout, NULL, _IOLBF, 0);
  for (size_t i = 0; i < sizeof all / sizeof *all; i++)
    if (argc == 2 && strcmp(argv[1], all[i].name) == 0) {
      all[i].f();
      printf("ok\n");
      return 0;
    }
  fprintf(stderr, "usage: pages WHAT\n");
  return 2;
}
