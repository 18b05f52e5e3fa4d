/* images WHAT N: calls of functions in a program and in libraries, so often as the caller says: a probe on one of them must
 * count exactly that. It prints what it did, and "ok" at the end.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define MUST(x) do { if (!(x)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #x, errno); exit(1); } } while (0)

long shared_sum(long a, long b);

__attribute__((noinline, noclone)) long program_sum(long a, long b) {
  __asm__ volatile("" : "+r"(a));
  return a + b;
}

static unsigned long tsc(void) {
  unsigned low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return low | (unsigned long) high << 32;
}

static void calls(long n) {
  for (long i = 0; i < n; i++) MUST(program_sum(i, 1000) == i + 1000 && shared_sum(i, 2000) == i + 2000);
}

static void waited(pid_t child) {
  int status;
  MUST(child > 0 && waitpid(child, &status, 0) == child && status == 0);
}

static void forked(long n) {
  calls(n);
  pid_t child = fork();
  if (child == 0) {
    calls(n);
    pid_t grandchild = fork();
    if (grandchild == 0) {
      calls(n);
      exit(0);
    }
    waited(grandchild);
    exit(0);
  }
  waited(child);
  calls(n);
}

static void await(const char *path) {
  while (access(path, F_OK) != 0) usleep(10000);
}

static void say(const char *path) {
  FILE *f = fopen(path, "w");
  MUST(f && fclose(f) == 0);
}

/* It calls when it is told, and says so. */
static void served(long n) {
  say("/tmp/images.ready");
  await("/tmp/images.go");
  calls(n);
  say("/tmp/images.done");
  await("/tmp/images.end");
}

#define MANY 100

/* Many processes at a time, which all call. */
static void many(long n) {
  pid_t all[MANY];
  int told[2], end[2];
  char byte = 0;
  MUST(pipe(told) == 0 && pipe(end) == 0);
  for (int i = 0; i < MANY; i++)
    if ((all[i] = fork()) == 0) {
      close(end[1]);
      calls(n);
      MUST(write(told[1], &byte, 1) == 1 && read(end[0], &byte, 1) == 0);
      exit(0);
    }
  for (int i = 0; i < MANY; i++) MUST(read(told[0], &byte, 1) == 1);
  say("/tmp/images.ready");
  await("/tmp/images.go");
  unsigned long start = tsc();
  calls(1000);
  printf("with %d others: a call of both: %lu ticks\n", MANY, (tsc() - start) / 1000);
  close(end[1]);
  for (int i = 0; i < MANY; i++) waited(all[i]);
}

static void cost(long n) {
  calls(n);
  for (int i = 0; i < 3; i++) {
    unsigned long start = tsc();
    calls(n);
    printf("a call of both: %lu ticks\n", (tsc() - start) / n);
  }
  unsigned long start = tsc();
  for (int i = 0; i < 20; i++) {
    pid_t child = fork();
    if (child == 0) _exit(0);
    waited(child);
  }
  printf("fork and exit: %lu ticks\n", (tsc() - start) / 20);
  start = tsc();
  for (int i = 0; i < 10; i++) {
    pid_t child = vfork();
    if (child == 0) {
      execl("/payload/images", "images", "once", "0", NULL);
      _exit(1);
    }
    waited(child);
  }
  printf("fork, exec and exit: %lu ticks\n", (tsc() - start) / 10);
}

#ifdef STATIC_ONLY
static void plugin(long n) { (void) n; }
#else
/* A library that comes and goes, and another one where it was. */
static void plugin(long n) {
  static const char *names[] = {"plugin", "other", "plugin", "other"};
  for (int i = 0; i < 4; i++) {
    char name[64];
    snprintf(name, sizeof name, "/payload/lib%s.so", names[i]);
    void *lib = dlopen(name, RTLD_NOW);
    MUST(lib);
    snprintf(name, sizeof name, "%s_sum", names[i]);
    long (*sum)(long, long) = (long (*)(long, long)) dlsym(lib, name);
    MUST(sum);
    for (long j = 0; j < n; j++) MUST(sum(j, 3000) == j + 3000);
    printf("%s at %p\n", names[i], (void *) sum);
    MUST(dlclose(lib) == 0);
  }
}
#endif

static void executed(long n, char *program) {
  char text[32];
  calls(n);
  snprintf(text, sizeof text, "%ld", n);
  fflush(stdout);
  execl(program, program, "once", text, NULL);
  MUST(!"exec");
}

static long thread_calls;

static void *thread(void *arg) {
  prctl(PR_SET_NAME, "another", 0, 0, 0);
  calls(thread_calls);
  return arg;
}

static void threads(long n) {
  pthread_t all[4];
  thread_calls = n;
  for (int i = 0; i < 4; i++) MUST(pthread_create(&all[i], NULL, thread, NULL) == 0);
  for (int i = 0; i < 4; i++) MUST(pthread_join(all[i], NULL) == 0);
}

int main(int argc, char **argv) {
  setvbuf(stdout, NULL, _IOLBF, 0);
  if (argc < 3) {
    fprintf(stderr, "usage: images WHAT N [PROGRAM]\n");
    return 2;
  }
  long n = atol(argv[2]);
  if (!strcmp(argv[1], "once")) calls(n);
  else if (!strcmp(argv[1], "fork")) forked(n);
  else if (!strcmp(argv[1], "serve")) served(n);
  else if (!strcmp(argv[1], "many")) many(n);
  else if (!strcmp(argv[1], "plugin")) plugin(n);
  else if (!strcmp(argv[1], "threads")) threads(n);
  else if (!strcmp(argv[1], "cost")) cost(n);
  else if (!strcmp(argv[1], "exec") && argc == 4) executed(n, argv[3]);
  else return 2;
  printf("ok\n");
  return 0;
}
