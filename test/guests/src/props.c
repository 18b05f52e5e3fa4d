/* props MORE: processes of all kinds, for hprobe to list: with users, name spaces, threads, odd names, memory and open files of
 * all kinds, stopped, ended; and MORE that only sleep. It prints their numbers when all are as they will stay, and waits.
 *
 * props load: processes that come and go, memory that is mapped and unmapped, records in the kernel's log, until there is a
 * file /tmp/stop. It prints the numbers of all processes that it made, as ranges. "props gap SECONDS" prints the longest time, in ticks, in which
 * nothing of it ran.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define MUST(x) do { if (!(x)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #x, errno); fflush(stdout); exit(1); } } while (0)

static int ready[2]; /* a pipe: each that is as it will stay writes a byte */

static void wait_for_ever(void) {
  MUST(write(ready[1], "", 1) == 1);
  for (;;) pause();
}

static void *thread(void *name) {
  MUST(prctl(PR_SET_NAME, name) == 0);
  for (;;) pause();
}

static void threads(void) {
  pthread_t id;
  MUST(pthread_create(&id, NULL, thread, "second") == 0 && pthread_create(&id, NULL, thread, "third \"\\") == 0);
  usleep(200000);
}

static void user(void) {
  MUST(setresgid(2001, 2002, 2003) == 0 && setresuid(1001, 1002, 1003) == 0);
}

static void name(void) { MUST(prctl(PR_SET_NAME, "a\x1b[2J\n\xff\\\"b") == 0); }

static void zombie(void) {
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) _exit(0);
  siginfo_t info;
  MUST(waitid(P_PID, pid, &info, WEXITED | WNOWAIT) == 0);
}

static void stopped(void) {
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) for (;;) raise(SIGSTOP);
  MUST(waitpid(pid, NULL, WUNTRACED) == pid);
}

/* Two levels of PID name spaces: the innermost process has three numbers. */
static void spaces(void) {
  MUST(unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWCGROUP) == 0);
  unshare(0x80 /* CLONE_NEWTIME, since Linux 5.6 */);
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) {
    MUST(unshare(CLONE_NEWUSER | CLONE_NEWPID) == 0);
    pid = fork();
    MUST(pid >= 0);
    wait_for_ever();
  }
}

static int opened(const char *path, int flags) {
  int fd = open(path, flags, 0600);
  MUST(fd >= 0);
  return fd;
}

static void *mapped(int fd, unsigned long pages, int prot, int flags, long offset) {
  void *p = mmap(NULL, pages * PAGE, prot, flags, fd, offset);
  MUST(p != MAP_FAILED);
  return p;
}

static void memory(void) {
  int odd = opened("/tmp/a name\nof \xc3\xa4 file", O_RDWR | O_CREAT), gone = opened("/tmp/gone", O_RDWR | O_CREAT), mem = syscall(SYS_memfd_create, "of memory", 0);
  MUST(mem >= 0 && ftruncate(odd, 8 * PAGE) == 0 && ftruncate(gone, 8 * PAGE) == 0 && ftruncate(mem, 8 * PAGE) == 0);
  MUST(unlink("/tmp/gone") == 0);
  mapped(odd, 2, PROT_READ, MAP_SHARED, PAGE);
  mapped(odd, 2, PROT_READ | PROT_EXEC, MAP_PRIVATE, 3 * PAGE);
  mapped(gone, 1, PROT_READ | PROT_WRITE, MAP_SHARED, 0);
  mapped(mem, 3, PROT_READ | PROT_WRITE, MAP_SHARED, 2 * PAGE);
  mapped(-1, 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, 0);
  mapped(-1, 4, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
  int shm = shmget(IPC_PRIVATE, 2 * PAGE, IPC_CREAT | 0600);
  if (shm >= 0) MUST(shmat(shm, NULL, 0) != (void *) -1);
  MUST(sbrk(5 * PAGE) != (void *) -1);
  char *many = mapped(-1, 800, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, 0); /* a tree of some levels */
  for (int i = 0; i < 800; i += 2) MUST(mprotect(many + i * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
}

static void files(void) {
  int fd = opened("/tmp/some file", O_RDWR | O_CREAT | O_APPEND), pair[2], folder = opened("/tmp", O_RDONLY | O_DIRECTORY), gone = opened("/tmp/deleted", O_RDWR | O_CREAT);
  MUST(ftruncate(fd, 1000) == 0 && lseek(fd, 123, SEEK_SET) == 123 && folder >= 0 && gone >= 0 && unlink("/tmp/deleted") == 0);
  MUST(pipe2(pair, O_CLOEXEC | O_NONBLOCK) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
  sigset_t none;
  sigemptyset(&none);
  MUST(eventfd(0, EFD_CLOEXEC) >= 0 && epoll_create1(0) >= 0 && timerfd_create(CLOCK_MONOTONIC, 0) >= 0 && signalfd(-1, &none, 0) >= 0 && inotify_init() >= 0);
  MUST(syscall(SYS_memfd_create, "memfd", 0) >= 0);
  syscall(434 /* pidfd_open */, getpid(), 0);
  opened("/proc/self/ns/mnt", O_RDONLY);
  opened("/proc/self/ns/pid", O_RDONLY);
  opened("/proc/self/status", O_RDONLY);
  opened("/dev/null", O_WRONLY | O_NONBLOCK);
  opened("/sys/kernel/notes", O_RDONLY);
  MUST(dup2(fd, 300) == 300); /* the table has to grow */
}

static void nothing(void) {}

static pid_t start(void (*be)(void)) {
  pid_t pid = fork();
  MUST(pid >= 0);
  if (pid == 0) {
    be();
    wait_for_ever();
  }
  char b;
  MUST(read(ready[0], &b, 1) == 1);
  return pid;
}

static void stand(int more) {
  MUST(pipe(ready) == 0);
  pid_t m = start(memory), f = start(files);
  start(threads);
  start(user);
  start(name);
  start(zombie);
  start(stopped);
  start(spaces);
  char b[2]; /* the two in name spaces of their own */
  MUST(read(ready[0], b, 1) == 1 && read(ready[0], b, 1) == 1);
  for (int i = 0; i < more; i++) start(nothing);
  printf("%d %d\n", m, f);
  fflush(stdout);
  fclose(stdout);
  for (;;) pause();
}

static time_t now(void) {
  struct timespec t;
  MUST(clock_gettime(CLOCK_MONOTONIC, &t) == 0);
  return t.tv_sec;
}

/* The numbers of processes that were made, which mostly are in a row. */
static pid_t from, to;

static void made(pid_t pid) {
  if (pid == 0 || pid != to + 1) {
    if (from) printf("%d-%d\n", from, to);
    from = pid;
  }
  to = pid;
}

static void churn(void) {
  int fd = opened("/bin/busybox", O_RDONLY);
  for (unsigned i = 0;; i++) {
    void *p = mapped(fd, 1 + i % 3, PROT_READ, MAP_PRIVATE, 0), *q = mapped(-1, 1 + i % 7, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, 0);
    int extra = dup(fd);
    MUST(munmap(p, (1 + i % 3) * PAGE) == 0 && extra >= 0);
    MUST(mprotect(q, PAGE, PROT_READ) == 0 && munmap(q, (1 + i % 7) * PAGE) == 0 && close(extra) == 0);
    if (i % 16 == 0) usleep(1000);
  }
}

static void load(void) {
  static char dots[310];
  memset(dots, '.', sizeof dots);
  MUST(prctl(PR_SET_NAME, "load") == 0);
  int log = opened("/dev/kmsg", O_WRONLY);
  pid_t main = getpid();
  if (fork() == 0) { /* the one whose memory and files change */
    prctl(PR_SET_NAME, "churn");
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != main) _exit(1);
    churn();
  }
  for (unsigned i = 0; access("/tmp/stop", F_OK) != 0; i++) {
    pid_t some[4];
    for (int n = 0; n < 4; n++) {
      some[n] = fork();
      MUST(some[n] >= 0);
      if (some[n] == 0) {
        if ((i + n) % 2) {
          usleep(100 * (i % 50));
          _exit(0);
        }
        execl("/proc/self/exe", "props", "child", NULL);
        _exit(4);
      }
      made(some[n]);
      char text[400];
      int length = snprintf(text, sizeof text, "props %u %.*s\n", 4 * i + n, 10 + (int) (i * 7 + n) % 300, dots);
      MUST(write(log, text, length) == length);
    }
    for (int n = 0; n < 4; n++) MUST(waitpid(some[n], NULL, 0) == some[n]);
    usleep(2000);
  }
  made(0);
  printf("end\n");
}

static uint64_t ticks(void) {
  uint32_t low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return low | (uint64_t) high << 32;
}

static void gap(time_t seconds) {
  uint64_t longest = 0, at = ticks();
  for (time_t end = now() + seconds; now() < end;) {
    for (int i = 0; i < 10000; i++) {
      uint64_t next = ticks();
      if (next - at > longest) longest = next - at;
      at = next;
    }
  }
  printf("%lu\n", longest);
}

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "child") == 0) return 0;
  if (argc > 1 && strcmp(argv[1], "load") == 0) load();
  else if (argc > 2 && strcmp(argv[1], "gap") == 0) gap(atoi(argv[2]));
  else if (argc > 1) stand(atoi(argv[1]));
  else return 2;
  return 0;
}
