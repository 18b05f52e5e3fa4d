/* procs [PID ...]: what the guest's own /proc says of all processes, for comparing it with what hprobe says: a line for each
 * thread, with a tab between the fields, and for the processes that are named their memory and their open files. Names are
 * in hexadecimal, as anything may be in them.
 */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char buffer[1 << 20];

/* The content of a file; "" where it is gone. */
static char *content(const char *path) {
  ssize_t n, all = 0;
  int fd = open(path, O_RDONLY);
  while (fd >= 0 && (n = read(fd, buffer + all, sizeof buffer - 1 - all)) > 0) all += n;
  if (fd >= 0) close(fd);
  buffer[all] = 0;
  return buffer;
}

static void hex(const char *s, size_t n) {
  for (size_t i = 0; i < n; i++) printf("%02x", (unsigned char) s[i]);
}

/* A line of a status file without its name, with spaces for tabs. */
static void field(char *status, const char *name) {
  char *at = strstr(status, name);
  putchar('\t');
  if (!at) return;
  for (at += strlen(name); *at && *at != '\n'; at++) {
    if (*at == '\t' && at[-1] == ':') continue;
    putchar(*at == '\t' ? ' ' : *at);
  }
}

static void space(int pid, int tid, const char *kind) {
  char path[64], link[64];
  snprintf(path, sizeof path, "/proc/%d/task/%d/ns/%s", pid, tid, kind);
  ssize_t n = readlink(path, link, sizeof link - 1);
  link[n < 0 ? 0 : n] = 0;
  char *number = strchr(link, '[');
  printf(" %ld", number ? atol(number + 1) : 0);
}

static void thread(int pid, int tid) {
  char path[64], start[32] = "";
  snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
  char *at = strrchr(content(path), ')');
  for (int i = 2; at && i < 22; i++) at = strchr(at + 1, ' ');
  if (!at) return;
  sscanf(at, " %31s", start);
  snprintf(path, sizeof path, "/proc/%d/task/%d/comm", pid, tid);
  char *comm = content(path);
  printf("P\t%d\t%d\t", pid, tid);
  hex(comm, strlen(comm) > 0 ? strlen(comm) - 1 : 0);
  printf("\t%s", start);
  snprintf(path, sizeof path, "/proc/%d/task/%d/status", pid, tid);
  char *status = strchr(content(path), '\n'); /* behind the name */
  if (!status) status = "";
  field(status, "\nState:");
  field(status, "\nPPid:");
  field(status, "\nUid:");
  field(status, "\nGid:");
  field(status, "\nNSpid:");
  field(status, "\nThreads:");
  field(status, "\nCapEff:");
  putchar('\t');
  const char *kinds[] = {"pid", "user", "mnt", "net", "uts", "ipc", "cgroup", "time"};
  for (int i = 0; i < 8; i++) space(pid, tid, kinds[i]);
  putchar('\n');
}

static void each(const char *dir, void (*f)(int pid, int n), int pid) {
  DIR *d = opendir(dir);
  struct dirent *e;
  while (d && (e = readdir(d)))
    if (isdigit(e->d_name[0])) f(pid, atoi(e->d_name));
  if (d) closedir(d);
}

static void process(int unused, int pid) {
  char path[64];
  (void) unused;
  snprintf(path, sizeof path, "/proc/%d/task", pid);
  each(path, thread, pid);
}

static long number(const char *text, const char *name, int base) {
  char *at = strstr(text, name);
  return at ? strtol(at + strlen(name), NULL, base) : 0;
}

static void file(int pid, int fd) {
  char path[64], link[5000];
  snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, fd);
  ssize_t n = readlink(path, link, sizeof link);
  snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", pid, fd);
  char *info = content(path);
  if (n < 0 || !*info) return;
  printf("F\t%d\t%d\t0%lo\t%ld\t", pid, fd, number(info, "flags:", 8), number(info, "pos:", 10));
  hex(link, n);
  putchar('\n');
}

int main(int argc, char **argv) {
  char path[64];
  each("/proc", process, 0);
  for (int i = 1; i < argc; i++) {
    snprintf(path, sizeof path, "/proc/%s/maps", argv[i]);
    for (char *line = strtok(content(path), "\n"); line; line = strtok(NULL, "\n")) printf("M\t%s\t%s\n", argv[i], line);
    snprintf(path, sizeof path, "/proc/%s/fd", argv[i]);
    each(path, file, atoi(argv[i]));
  }
  for (char *line = strtok(content("/proc/modules"), "\n"); line; line = strtok(NULL, "\n")) printf("O\t%s\n", line);
  return 0;
}
