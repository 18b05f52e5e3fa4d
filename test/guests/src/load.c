/* load ROUNDS: what a busy machine does, all at once: processes come, run other programs and go, memory comes and goes,
 * pages are swapped out and in, files are opened, threads call a function. A monitor in dom0 (test/xen/load) has probes on the
 * kernel's functions for that, and on this program's function.
 *
 * It tells the monitor of itself by a system call that nobody else makes, marks the beginning and the end of the load the
 * same way, and prints how many files were opened, and how often its threads called the function.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
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
#define WORKERS 4
#define MARKS 10

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif

/* What the monitor takes of getpriority(2). */
enum { BEGIN = 0x6c6f616401, MARK = 0x6c6f616402 };

struct shared { unsigned long opens, calls; };

static struct shared *shared;
static int rounds;

#define MUST(x) do { if (!(x)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #x, errno); exit(1); } } while (0)

static long getpriority_raw(unsigned long which, unsigned long who) {
  long ret;
  __asm__ volatile("syscall" : "=a"(ret) : "a"(SYS_getpriority), "D"(which), "S"(who) : "rcx", "r11", "memory");
  return ret;
}

/* The probed function: as in a library, with a frame of its own. */
__attribute__((noinline, aligned(64))) static long user(long a, long b) {
  __asm__ volatile("" ::: "memory");
  return a * 3 + b;
}

static int opened(const char *path, int flags) {
  int fd = open(path, flags, 0600);
  __atomic_add_fetch(&shared->opens, 1, __ATOMIC_RELAXED);
  MUST(fd >= 0);
  return fd;
}

static void touch(char *p, int pages) {
  for (int i = 0; i < pages; i++) p[i * PAGE]++;
}

static void memory(void) {
  char *p = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(p != MAP_FAILED);
  touch(p, 16);
  MUST(mprotect(p, 16 * PAGE, PROT_READ) == 0 && mprotect(p, 16 * PAGE, PROT_READ | PROT_WRITE) == 0);
  touch(p, 16);
  MUST(munmap(p, 16 * PAGE) == 0);
}

/* A child that writes to its copy of the parent's memory, calls the function (which is not the parent's call), and runs
 * another program: this one again, which opens a file. */
static void child(void) {
  static char copied[8 * PAGE];
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) {
    touch(copied, 8);
    if (user(1, 2) != 5) _exit(3);
    execl("/proc/self/exe", "load", "child", NULL);
    _exit(4);
  }
  int status;
  MUST(waitpid(pid, &status, 0) == pid && status == 0);
  __atomic_add_fetch(&shared->opens, 1, __ATOMIC_RELAXED); /* of the program */
}

static void *worker(void *arg) {
  for (int i = 0; i < rounds; i++) {
    close(opened("/proc/self/stat", O_RDONLY));
    memory();
    for (int n = 0; n < 4; n++) {
      MUST(user(n, i) == n * 3 + i);
      __atomic_add_fetch(&shared->calls, 1, __ATOMIC_RELAXED);
    }
    child();
  }
  return arg;
}

#define SWAP_PAGES 512

/* A swap area on a loop device: its header is a page that says how long it is. */
static void swapping(void) {
  static uint32_t header[PAGE / 4];
  int back = opened("/tmp/load.swap", O_RDWR | O_CREAT | O_TRUNC), loop = opened("/dev/loop6", O_RDWR);
  header[1024 / 4] = 1;
  header[1024 / 4 + 1] = SWAP_PAGES - 1;
  memcpy((char *) header + PAGE - 10, "SWAPSPACE2", 10);
  MUST(ftruncate(back, SWAP_PAGES * PAGE) == 0 && pwrite(back, header, PAGE, 0) == PAGE);
  MUST(ioctl(loop, 0x4c00 /* LOOP_SET_FD */, back) == 0 && swapon("/dev/loop6", 0) == 0);
  char *p = mmap(NULL, 32 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  MUST(p != MAP_FAILED);
  for (int i = 0; i < rounds; i++) {
    touch(p, 32);
    MUST(madvise(p, 32 * PAGE, MADV_PAGEOUT) == 0);
    usleep(1000);
  }
  touch(p, 32);
  for (int i = 0; i < 32; i++) MUST(p[i * PAGE] == (char) (rounds + 1));
  MUST(swapoff("/dev/loop6") == 0);
  close(loop);
  close(back);
}

static void mark(void) {
  usleep(50000); /* whatever else goes on ends */
  for (int i = 0; i < MARKS; i++) {
    usleep(3000);
    MUST(getpriority_raw(MARK, 0) == 0);
  }
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "child") == 0) {
    int fd = open("/proc/self/stat", O_RDONLY);
    return fd < 0;
  }
  rounds = argc > 1 ? atoi(argv[1]) : 0;
  if (rounds < 1 || rounds > 100) {
    fprintf(stderr, "usage: load ROUNDS\n");
    return 2;
  }
  shared = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  MUST(shared != MAP_FAILED);
  long answer;
  for (int i = 0; (answer = getpriority_raw(BEGIN, (unsigned long) user)) == -EAGAIN && i < 2000; i++) usleep(5000);
  MUST(answer == 0);
  mark();
  pthread_t ids[WORKERS];
  for (int i = 0; i < WORKERS; i++) MUST(pthread_create(&ids[i], NULL, worker, NULL) == 0);
  swapping();
  for (int i = 0; i < WORKERS; i++) MUST(pthread_join(ids[i], NULL) == 0);
  mark();
  printf("load opens %lu calls %lu ok\n", shared->opens, shared->calls);
  return 0;
}
