/* returns WHAT N: calls of work() that end in every way that a call can end: a probe on its returns must see those that
 * there are, each with its value. It checks itself, and prints "ok" at the end.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(x) do { if (!(x)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #x, errno); fflush(stdout); _exit(1); } } while (0)
#define PAGE 4096

enum what { ADD, RECURSE, FORK, LEAP, QUIT, DROP, COPY, AWAY, SWAP, BACK };

long call(enum what what, long n);
static __thread jmp_buf out;

static void waited(pid_t child) {
  int status;
  MUST(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

/* The page that calls work, and nothing else. */
static char *caller(void) { return (char *) ((unsigned long) call & -PAGE); }

/* What becomes of it while work runs. */
static void happen(enum what what) {
  char *page = caller(), copy[PAGE];
  int file;
  switch (what) {
  case DROP: /* it is read from its file again */
    MUST(madvise(page, PAGE, MADV_DONTNEED) == 0);
    break;
  case COPY: /* it is written to: a copy of this process alone */
    MUST(mprotect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
    page[PAGE - 1] = 1;
    MUST(mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0);
    break;
  case SWAP: /* it goes, or not, if the kernel knows better */
    madvise(page, PAGE, 21 /* MADV_PAGEOUT */);
    break;
  case AWAY: /* its content comes from elsewhere, at the same address */
    memcpy(copy, page, PAGE);
    file = open("/tmp/returns.page", O_RDWR | O_CREAT | O_TRUNC, 0700);
    MUST(file >= 0 && write(file, copy, PAGE) == PAGE);
    MUST(mmap(page, PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, 0) == page);
    close(file);
    break;
  default:
    MUST(0);
  }
}

__attribute__((noinline, noclone)) long work(enum what what, long n) {
  __asm__ volatile("" : "+r"(n));
  switch (what) {
  case ADD:
    return n + 1000;
  case RECURSE:
    return n == 0 ? 1 : call(RECURSE, n - 1) + n;
  case FORK: /* it returns twice: in the child as well */
    return fork();
  case LEAP:
    longjmp(out, n);
  case QUIT:
    _exit(0);
  case BACK:
    usleep(1000);
    return n;
  default:
    happen(what);
    usleep(100000); /* longer than what a page has left, or is about to have, keeps an int3 */
    return n + 2000;
  }
}

/* On a page of its own, as what happens to that must happen to nothing else. */
__attribute__((noinline, noclone, section(".text.caller"), aligned(PAGE))) long call(enum what what, long n) {
  __asm__ volatile(".skip 64, 0x90");
  long v = work(what, n);
  __asm__ volatile(".skip 64, 0x90" : "+r"(v));
  return v;
}
__attribute__((used, section(".text.caller"), aligned(PAGE))) static void end(void) {}

static void *thread(void *arg) {
  long n = (long) arg;
  for (long i = 0; i < n; i++) MUST(call(RECURSE, 3) == 7 && call(BACK, i) == i);
  return NULL;
}

int main(int argc, char **argv) {
  const char *what = argc > 2 ? argv[1] : "";
  long n = argc > 2 ? atol(argv[2]) : 0;
  pthread_t ids[4];
  if (n < 1) {
    fprintf(stderr, "usage: returns add|set|recurse|fork|leap|quit|move|threads N\n");
    return 2;
  }
  if (strcmp(what, "threads") == 0) { /* 5 calls a round, of 4 threads */
    for (int i = 0; i < 4; i++) MUST(pthread_create(&ids[i], NULL, thread, (void *) n) == 0);
    for (int i = 0; i < 4; i++) MUST(pthread_join(ids[i], NULL) == 0);
    printf("ok\n");
    return 0;
  }
  for (long i = 0; i < n; i++) {
    if (strcmp(what, "add") == 0) {
      MUST(call(ADD, i) == i + 1000);
    } else if (strcmp(what, "set") == 0) { /* a rule says so */
      MUST(call(ADD, i) == 77);
    } else if (strcmp(what, "recurse") == 0) { /* 6 calls */
      MUST(call(RECURSE, 5) == 16);
    } else if (strcmp(what, "fork") == 0) { /* 2 calls, and one in the child */
      pid_t child = call(FORK, 0);
      MUST(call(ADD, i) == i + 1000);
      if (child == 0) _exit(0);
      waited(child);
    } else if (strcmp(what, "leap") == 0) { /* a call that does not return, and one that does */
      if (setjmp(out) == 0) call(LEAP, 1);
      MUST(call(ADD, i) == i + 1000);
    } else if (strcmp(what, "quit") == 0) { /* a call in the child, which does not return */
      pid_t child = fork();
      if (child == 0) call(QUIT, 0);
      waited(child);
    } else if (strcmp(what, "move") == 0) { /* 5 calls */
      MUST(call(DROP, i) == i + 2000 && call(SWAP, i) == i + 2000 && call(AWAY, i) == i + 2000 && call(DROP, i) == i + 2000 && call(COPY, i) == i + 2000);
    } else {
      MUST(0);
    }
  }
  printf("ok\n");
  return 0;
}
