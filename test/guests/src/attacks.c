/* attacks NAME: does what one of the stock policies tells of, and says how that ended: "NAME: done" or "NAME: refused: EPERM".
 * attacks benign N: does what is like it and harmless, N times. To be run by root. On a kernel without the bugs it does no harm.
 *
 *   fsconfig        an option behind the end of the page of options (CVE-2022-0185)
 *   argv            a program without arguments (CVE-2021-4034)
 *   release_agent   set in another user name space (CVE-2022-0492)
 *   mount_agent     the same by a mount option
 *   setuid          a user runs a set-uid program
 *   creds           a user becomes root by the module creds
 *   ptrace          one process attaches to another
 *   vm_read         one process reads another one's memory
 *   bpf             a program is loaded
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

enum { FSOPEN = 430, FSCONFIG = 431, SET_FLAG = 0, SET_STRING = 1, PAGE = 4096, USER = 1000, RAN = 42 };

#define CGROUPS "/tmp/attacks.cgroups"
#define SUID "/tmp/attacks.suid"

static char text[256];

/* xs is n letters x. */
static const char *xs(int n) {
  memset(text, 'x', n);
  text[n] = 0;
  return text;
}

/* legacy opens a file system that leaves its options to the kernel, and gives it some, of size bytes in all. */
static int legacy(int size) {
  const char *names[] = {"devpts", "pstore", "binfmt_misc", NULL};
  for (const char **name = names; *name; name++) {
    int fd = syscall(FSOPEN, *name, 0), left = size + 1;
    if (fd < 0) continue;
    while (left > 0) { /* ",KEY=VALUE", and the first one without the comma */
      char key[256];
      int n = left > 514 ? 511 : left > 511 ? left / 2 : left;
      int value = n > 257 ? 255 : n - 3;
      strcpy(key, xs(n - 2 - value));
      if (syscall(FSCONFIG, fd, SET_STRING, key, xs(value), 0) < 0) break;
      left -= n;
    }
    if (left == 0) return fd;
    close(fd);
  }
  errno = ENOSYS; /* this kernel has none */
  return -1;
}

static int fsconfig_attack(void) {
  int fd = legacy(PAGE - 1);
  return fd < 0 ? -1 : syscall(FSCONFIG, fd, SET_FLAG, "behind", NULL, 0);
}

/* ran waits for a child, which ends with 0 or its errno. */
static int ran(pid_t child) {
  int status;
  if (child < 0 || waitpid(child, &status, 0) < 0) return -1;
  if (!WIFEXITED(status)) errno = EINTR;
  else errno = WEXITSTATUS(status);
  return errno ? -1 : 0;
}

static int argv_attack(char **argv) {
  pid_t child = fork();
  if (child == 0) {
    execve("/proc/self/exe", argv, NULL);
    _exit(errno);
  }
  int failed = ran(child);
  return failed && errno == RAN ? 0 : failed; /* what was run ends with RAN */
}

/* hierarchy mounts one of cgroup v1. */
static int hierarchy(void) {
  mkdir(CGROUPS, 0755);
  return mount("cgroup", CGROUPS, "cgroup", 0, "none,name=attacks");
}

static int set_agent(void) {
  int fd = open(CGROUPS "/release_agent", O_WRONLY);
  int failed = fd < 0 || write(fd, "/nothing", 8) < 0, err = errno;
  close(fd);
  errno = err;
  return failed ? -1 : 0;
}

static int agent_attack(int by_mount) {
  if (hierarchy() < 0) return -1;
  pid_t child = fork();
  if (child == 0) {
    if (unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWCGROUP) < 0) _exit(ENOSYS);
    int failed = by_mount ? mount("cgroup", CGROUPS, "cgroup", 0, "none,name=attacks,release_agent=/nothing") : set_agent();
    _exit(failed ? errno : 0);
  }
  int failed = ran(child), err = errno;
  umount(CGROUPS);
  errno = err;
  return failed;
}

/* suid makes a set-uid program of this one, and runs it as a user. */
static int suid(uid_t as) {
  int in = open("/proc/self/exe", O_RDONLY), out = open(SUID, O_CREAT | O_TRUNC | O_WRONLY, 0755);
  char buffer[8192];
  for (ssize_t n; (n = read(in, buffer, sizeof buffer)) > 0;)
    if (write(out, buffer, n) != n) return -1;
  close(in);
  if (fchmod(out, 04755) < 0 || close(out) < 0) return -1;
  pid_t child = fork();
  if (child == 0) {
    char *argv[] = {SUID, "am-i-root", NULL};
    if (setresuid(as, as, as) < 0) _exit(errno);
    execv(SUID, argv);
    _exit(errno);
  }
  return ran(child);
}

static int creds_attack(void) {
  pid_t child = fork();
  if (child == 0) {
    int fd = open("/dev/creds", O_WRONLY);
    if (fd < 0 || setresuid(USER, USER, USER) < 0) _exit(ENOSYS);
    if (write(fd, "x", 1) != 1) _exit(errno);
    _exit(getuid() == 0 ? 0 : EPERM);
  }
  return ran(child);
}

static int peek(int attach) {
  static int secret = 7;
  pid_t child = fork();
  if (child == 0) {
    for (;;) pause();
  }
  int got = 0;
  struct iovec mine = {&got, sizeof got}, its = {&secret, sizeof secret};
  int failed = attach ? ptrace(PTRACE_ATTACH, child, 0, 0) : process_vm_readv(child, &mine, 1, &its, 1, 0) < 0;
  int err = errno;
  if (attach && !failed) waitpid(child, NULL, 0);
  kill(child, SIGKILL);
  waitpid(child, NULL, 0);
  errno = err;
  return failed;
}

static int bpf_attack(void) {
  struct bpf_insn program[] = {{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0}, {.code = BPF_JMP | BPF_EXIT}};
  union bpf_attr attr;
  memset(&attr, 0, sizeof attr);
  attr.prog_type = BPF_PROG_TYPE_SOCKET_FILTER;
  attr.insns = (unsigned long) program;
  attr.insn_cnt = 2;
  attr.license = (unsigned long) "GPL";
  return syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr) < 0 ? -1 : 0;
}

/* benign is the like of all of them that nobody minds; the number of errors. */
static int benign(void) {
  int errors = 0;
  int fd = legacy(64);
  errors += fd < 0 && errno != ENOSYS;
  close(fd);
  char *argv[] = {"attacks", "ran", NULL};
  errors += argv_attack(argv) != 0;
  if (hierarchy() == 0) {
    errors += set_agent() != 0; /* root may */
    umount(CGROUPS);
  }
  errors += suid(0) != 0; /* root is root */
  char line[512];
  int stat = open("/proc/1/stat", O_RDONLY);
  errors += stat < 0 || read(stat, line, sizeof line) <= 0;
  close(stat);
  pid_t child = fork();
  if (child == 0) _exit(setresuid(USER, USER, USER) != 0); /* from root to a user */
  errors += ran(child) != 0;
  union bpf_attr attr;
  memset(&attr, 0, sizeof attr);
  attr.map_type = BPF_MAP_TYPE_ARRAY;
  attr.key_size = attr.value_size = 4;
  attr.max_entries = 1;
  int map = syscall(SYS_bpf, BPF_MAP_CREATE, &attr, sizeof attr);
  errors += map < 0;
  close(map);
  return errors;
}

static int attack(const char *what) {
  char *none[] = {NULL};
  if (strcmp(what, "fsconfig") == 0) return fsconfig_attack();
  if (strcmp(what, "argv") == 0) return argv_attack(none);
  if (strcmp(what, "release_agent") == 0) return agent_attack(0);
  if (strcmp(what, "mount_agent") == 0) return agent_attack(1);
  if (strcmp(what, "setuid") == 0) return suid(USER);
  if (strcmp(what, "creds") == 0) return creds_attack();
  if (strcmp(what, "ptrace") == 0) return peek(1);
  if (strcmp(what, "vm_read") == 0) return peek(0);
  if (strcmp(what, "bpf") == 0) return bpf_attack();
  errno = EINVAL;
  return -1;
}

int main(int argc, char **argv) {
  if (argc == 0 || argv[0][0] == 0 || (argc == 2 && strcmp(argv[1], "ran") == 0)) return RAN;
  if (argc == 2 && strcmp(argv[1], "am-i-root") == 0) return geteuid() == 0 ? 0 : EPERM;
  if (argc == 3 && strcmp(argv[1], "benign") == 0) {
    int errors = 0;
    for (int n = atoi(argv[2]); n > 0; n--) errors += benign();
    unlink(SUID);
    printf("benign: %d errors\n", errors);
    return errors != 0;
  }
  if (argc != 2) {
    fprintf(stderr, "usage: attacks fsconfig | argv | release_agent | mount_agent | setuid | creds | ptrace | vm_read | bpf | benign N\n");
    return 2;
  }
  int failed = attack(argv[1]), err = errno;
  unlink(SUID);
  if (failed) printf("%s: refused: %s\n", argv[1], strerrorname_np(err));
  else printf("%s: done\n", argv[1]);
  return 0;
}
