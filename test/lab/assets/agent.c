/* The lab's agent: runs shell scripts that come over a serial line and sends back what they print. One source, three uses:
 *
 *   agent TTY [PTY]        serve on TTY; in dom0 also pass on what is meant for the guest, whose agent is behind PTY
 *   agent -c PTY SCRIPT    ask the agent behind PTY, print the output, exit with the script's status
 *
 * The wire, both ways: a header line, then as many bytes as it says.
 *   R LEN | G LEN          run this script here | in the guest
 *   M 0 | N 0              mount what a copy was given at /payload, here | in the guest: without a shell, as it is done in every copy
 *   O LEN                  a piece of output
 *   X STATUS START END     the end: exit status, and the TSC before and after
 * Background processes of a script must have their output redirected: the agent stops listening when the script's shell ends.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/loop.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#define MAX_SCRIPT (1 << 20)

static unsigned long long tsc(void) {
  unsigned low, high;
  __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
  return low | (unsigned long long) high << 32;
}

static void die(const char *what) {
  perror(what);
  exit(125);
}

static int open_tty(const char *path) {
  struct termios t;
  int fd = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
  if (fd < 0) die(path);
  if (tcgetattr(fd, &t) == 0) {
    cfmakeraw(&t);
    cfsetspeed(&t, B115200);
    tcsetattr(fd, TCSANOW, &t);
  }
  return fd;
}

static void write_all(int fd, const char *p, size_t n) {
  while (n > 0) {
    ssize_t w = write(fd, p, n);
    if (w < 0 && errno == EINTR) continue;
    if (w <= 0) die("write");
    p += w;
    n -= w;
  }
}

static void read_all(int fd, char *p, size_t n) {
  while (n > 0) {
    ssize_t r = read(fd, p, n);
    if (r < 0 && errno == EINTR) continue;
    if (r <= 0) exit(0); /* the line is gone: so is whoever asked */
    p += r;
    n -= r;
  }
}

/* A header line: short, so byte by byte will do. */
static void read_line(int fd, char *line, size_t size) {
  size_t n = 0;
  for (;;) {
    char c;
    read_all(fd, &c, 1);
    if (c == '\n') break;
    if (n + 1 < size) line[n++] = c;
  }
  line[n] = 0;
}

static void send_output(int fd, const char *p, size_t n) {
  char head[32];
  int h = snprintf(head, sizeof head, "O %zu\n", n);
  write_all(fd, head, h);
  write_all(fd, p, n);
}

static void run(int fd, const char *script) {
  char buffer[4096], end[96];
  int out[2], status = 125 << 8;
  unsigned long long start;
  if (pipe2(out, O_CLOEXEC) < 0) die("pipe");
  start = tsc();
  int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
  pid_t child = vfork(); /* nothing of this process is copied */
  if (child == 0) {
    setsid();
    dup2(null, 0);
    dup2(out[1], 1);
    dup2(out[1], 2);
    execl("/bin/sh", "sh", "-c", script, (char *) NULL);
    _exit(127);
  }
  close(out[1]);
  close(null);
  int done = syscall(SYS_pidfd_open, child, 0);
  struct pollfd fds[2] = {{out[0], POLLIN, 0}, {done, POLLIN, 0}};
  fcntl(out[0], F_SETFL, O_NONBLOCK);
  for (int ended = 0; !ended;) {
    poll(fds, 2, -1);
    ended = fds[1].revents != 0;
    for (ssize_t n; (n = read(out[0], buffer, sizeof buffer)) > 0;) send_output(fd, buffer, n);
    if (fds[0].revents & POLLHUP) fds[0].fd = -1;
  }
  waitpid(child, &status, 0);
  close(done);
  close(out[0]);
  int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
  int n = snprintf(end, sizeof end, "X %d %llu %llu\n", code, start, tsc());
  write_all(fd, end, n);
}

static void mount_payload(int fd) {
  char end[96];
  unsigned long long start = tsc();
  int loop = open("/dev/loop0", O_RDWR | O_CLOEXEC), image = open("/payload.img", O_RDONLY | O_CLOEXEC);
  const char *failed = loop < 0 || image < 0 || ioctl(loop, LOOP_SET_FD, image) < 0      ? "loop device: "
                       : mount("/dev/loop0", "/payload", "squashfs", MS_RDONLY, NULL) < 0 ? "mount: "
                                                                                          : NULL;
  if (failed != NULL) {
    const char *why = strerror(errno);
    send_output(fd, failed, strlen(failed));
    send_output(fd, why, strlen(why));
  }
  close(loop);
  close(image);
  int n = snprintf(end, sizeof end, "X %d %llu %llu\n", failed != NULL, start, tsc());
  write_all(fd, end, n);
}

/* Hands a command to the agent behind `peer` and passes its output on, as frames or plain; the end line's text is in `end`. */
static void ask(int peer, char kind, const char *script, size_t n, int to, int frames, char *end, size_t size) {
  char head[96], buffer[4096];
  int h = snprintf(head, sizeof head, "%c %zu\n", kind, n);
  flock(peer, LOCK_EX); /* dom0's own `guest` command uses the same line */
  write_all(peer, head, h);
  write_all(peer, script, n);
  for (;;) {
    unsigned long left;
    read_line(peer, end, size);
    if (end[0] == 'X') break;
    if (sscanf(end, "O %lu", &left) != 1) continue; /* "ready": it was started */
    while (left > 0) {
      size_t part = left < sizeof buffer ? left : sizeof buffer;
      read_all(peer, buffer, part);
      if (frames) send_output(to, buffer, part);
      else write_all(to, buffer, part);
      left -= part;
    }
  }
  flock(peer, LOCK_UN);
}

int main(int argc, char **argv) {
  char line[96];
  signal(SIGPIPE, SIG_IGN);
  if (argc == 4 && strcmp(argv[1], "-c") == 0) {
    int status = 125;
    ask(open_tty(argv[2]), 'R', argv[3], strlen(argv[3]), 1, 0, line, sizeof line);
    sscanf(line, "X %d", &status);
    return status;
  }
  if (argc < 2) return 125;
  int fd = open_tty(argv[1]), peer = argc > 2 ? open_tty(argv[2]) : -1;
  /* A copy's first command is one of many for the emulator, which has decoded this code then. */
  int null = open("/dev/null", O_WRONLY | O_CLOEXEC);
  for (int i = 0; i < 3; i++) run(null, "true");
  close(null);
  write_all(fd, "ready\n", 6);
  for (;;) {
    char kind;
    unsigned long n;
    read_line(fd, line, sizeof line);
    if (sscanf(line, "%c %lu", &kind, &n) != 2 || n > MAX_SCRIPT) continue;
    char *script = malloc(n + 1);
    if (script == NULL) die("malloc");
    read_all(fd, script, n);
    script[n] = 0;
    if (kind == 'M') {
      mount_payload(fd);
    } else if ((kind == 'G' || kind == 'N') && peer >= 0) {
      ask(peer, kind == 'G' ? 'R' : 'M', script, n, fd, 1, line, sizeof line);
      write_all(fd, line, strlen(line));
      write_all(fd, "\n", 1);
    } else {
      signal(SIGPIPE, SIG_DFL); /* for the script */
      run(fd, script);
      signal(SIGPIPE, SIG_IGN);
    }
    free(script);
  }
}
