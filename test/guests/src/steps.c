/* steps TABLE: runs each instruction form of TABLE (test/xen/forms makes it) from fixed registers, flags and memory, and
 * keeps what comes out: twice as it is, then once for each way to step over that the monitor test/xen/steps arms, and once
 * more without. It prints what differs from the first time.
 *
 * A form is entered by sigreturn, with all registers from a signal's frame, and ends in an illegal instruction behind it,
 * or where its branch goes, or in a fault of its own. The signal's frame then has what it did.
 *
 * It tells the monitor of each pass by getpriority(2), whose argument "which" is no valid one, and asks again until that
 * is answered by other than EAGAIN: the monitor makes the kernel return its answer.
 */
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

enum {
  STATES = 5,
  CODE = 0x10000000,
  CODE_SIZE = 0x40000,
  PAD = 0x40,
  DATA = 0x1fff0000,
  DATA_SIZE = 0x20000,
  SEG_BASE = 0x1fff8000, /* of FS and GS */
  WINDOW = 0x20000e00,   /* what is compared of the data */
  WINDOW_SIZE = 0x800,
  WHICH = 0x57e9,
  MAX = 2000,
};

struct state {
  uint64_t regs[16], flags;
  struct {
    uint64_t at, value;
  } pokes[8];
};

static struct form {
  uint64_t at, length;
  uint8_t code[16];
  struct state states[STATES];
} *forms;

/* What a form did. */
struct result {
  uint64_t regs[16], rip, flags, signal, trap, error, address, selectors;
  uint8_t fpu[5], mxcsr[4], st[128], xmm[256], window[WINDOW_SIZE];
};

static uint64_t count;
static struct result *native, now;
static struct {
  unsigned states;
  int first, what;
  struct result got;
} *diffs;

static int pass;
static long form, state; /* what runs; state -1: nothing yet */
static gregset_t home;
static struct _libc_fpstate home_fpu;
static uint64_t home_fs;
static uint8_t pattern[STATES][WINDOW_SIZE], xmm[STATES][256], st[128];

/* In the numbers' order. */
static const int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                              REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static long call(long nr, long a, long b, long c) {
  long ret;
  __asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return ret;
}

static uint64_t seed = 1;

static uint8_t next_byte(void) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return seed >> 56;
}

static void patterns(void) {
  for (int s = 0; s < STATES; s++) {
    for (int i = 0; i < WINDOW_SIZE; i++) pattern[s][i] = next_byte();
    for (int i = 0; i < 256; i++) xmm[s][i] = next_byte();
  }
  for (int i = 0; i < 16; i++) { /* numbers that one can compute with */
    double d[2] = {1.25 * (i + 1), -3.0 / (i + 1)};
    float f[4] = {0.5f * (i + 1), 7.0f / (i + 2), -2.0f, 100.0f * i};
    memcpy(xmm[1] + 16 * i, d, 16);
    memcpy(xmm[2] + 16 * i, f, 16);
  }
  for (int i = 0; i < WINDOW_SIZE; i += 8) {
    double d = 1.5 * (i + 1);
    memcpy(pattern[1] + i, &d, 8);
  }
  for (int i = 0; i < 8; i++) {
    long double d = 1.0L + i;
    memcpy(st + 16 * i, &d, 10);
  }
}

static void leave(ucontext_t *u) {
  call(SYS_arch_prctl, ARCH_SET_FS, home_fs, 0);
  memcpy(u->uc_mcontext.gregs, home, sizeof home);
  memcpy(u->uc_mcontext.fpregs, &home_fpu, sizeof home_fpu);
}

static void enter(ucontext_t *u) {
  struct form *f = &forms[form];
  struct state *s = &f->states[state];
  greg_t *g = u->uc_mcontext.gregs;
  uint8_t *fpu = (uint8_t *) u->uc_mcontext.fpregs;
  memcpy((void *) WINDOW, pattern[state], WINDOW_SIZE);
  for (int i = 0; i < 8 && s->pokes[i].at != 0; i++) *(volatile uint64_t *) s->pokes[i].at = s->pokes[i].value;
  for (int i = 0; i < 16; i++) g[order[i]] = s->regs[i];
  g[REG_RIP] = f->at;
  g[REG_EFL] = s->flags;
  g[REG_CSGSFS] = home[REG_CSGSFS];
  memset(fpu, 0, 24); /* the legacy area of XSAVE: all of x87's registers are in use */
  fpu[0] = 0x7f;
  fpu[1] = 3;
  fpu[4] = 0xff;
  memcpy(fpu + 24, "\x80\x1f\0\0", 4);
  memcpy(fpu + 32, st, sizeof st);
  memcpy(fpu + 160, xmm[state], 256);
  fpu[512] |= 3; /* x87 and SSE are not in their initial states */
}

static int differ(struct result *a, struct result *b) {
  if (a->signal != b->signal || a->trap != b->trap || a->error != b->error || a->address != b->address) return 's';
  if (a->rip != b->rip) return 'i';
  if (memcmp(a->regs, b->regs, sizeof a->regs) != 0) return 'r';
  if (a->flags != b->flags) return 'f';
  if (a->selectors != b->selectors) return 'S';
  if (memcmp(a->xmm, b->xmm, sizeof a->xmm) != 0) return 'x';
  if (memcmp(a->mxcsr, b->mxcsr, 4) != 0 || memcmp(a->fpu, b->fpu, 5) != 0 || memcmp(a->st, b->st, sizeof a->st) != 0) return 'p';
  return memcmp(a->window, b->window, WINDOW_SIZE) != 0 ? 'm' : 0;
}

static void collect(int sig, siginfo_t *info, ucontext_t *u) {
  struct form *f = &forms[form];
  greg_t *g = u->uc_mcontext.gregs;
  uint8_t *fpu = (uint8_t *) u->uc_mcontext.fpregs;
  struct result *was = &native[form * STATES + state];
  memset(&now, 0, sizeof now);
  for (int i = 0; i < 16; i++) now.regs[i] = g[order[i]];
  now.rip = g[REG_RIP] - f->at;
  now.flags = g[REG_EFL];
  if (sig == SIGTRAP) now.flags &= ~0x10000ul; /* RF: whether an interrupt came first */
  now.signal = sig;
  now.trap = g[REG_TRAPNO];
  now.error = g[REG_ERR];
  now.address = sig == SIGSEGV || sig == SIGBUS ? (uint64_t) info->si_addr : 0;
  now.selectors = g[REG_CSGSFS];
  memcpy(now.fpu, fpu, 5);
  memcpy(now.mxcsr, fpu + 24, 4);
  for (int i = 0; i < 8; i++) memcpy(now.st + 16 * i, fpu + 32 + 16 * i, 10);
  memcpy(now.xmm, fpu + 160, 256);
  memcpy(now.window, (void *) WINDOW, WINDOW_SIZE);
  if (pass == 0) {
    *was = now;
    return;
  }
  int what = differ(was, &now);
  if (what == 0) return;
  if (diffs[form].states == 0) {
    diffs[form].first = state;
    diffs[form].what = what;
    diffs[form].got = now;
  }
  diffs[form].states |= 1 << state;
}

static void handler(int sig, siginfo_t *info, void *context) {
  ucontext_t *u = context;
  if (state < 0) { /* main's own illegal instruction */
    memcpy(home, u->uc_mcontext.gregs, sizeof home);
    memcpy(&home_fpu, u->uc_mcontext.fpregs, sizeof home_fpu);
    home[REG_RIP] += 2;
    call(SYS_arch_prctl, ARCH_SET_FS, SEG_BASE, 0);
    state = 0;
  } else {
    collect(sig, info, u);
    if (++state == STATES) {
      state = 0;
      form++;
    }
    call(SYS_arch_prctl, ARCH_SET_FS, SEG_BASE, 0);
    call(SYS_arch_prctl, ARCH_SET_GS, SEG_BASE, 0);
  }
  if (form == (long) count)
    leave(u);
  else
    enter(u);
}

static void run(void) {
  form = 0;
  state = -1;
  memset(diffs, 0, count * sizeof *diffs);
  __asm__ volatile("ud2" ::: "memory");
}

static void show(const char *what, uint64_t was, uint64_t got) {
  if (was != got) printf(" %s %lx/%lx", what, was, got);
}

static void report(const char *name) {
  static const char *const names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"};
  unsigned n = 0;
  for (uint64_t i = 0; i < count; i++) {
    if (diffs[i].states == 0) continue;
    n++;
    struct result *was = &native[i * STATES + diffs[i].first], *got = &diffs[i].got;
    printf("differs %lu states %x first %c", i, diffs[i].states, diffs[i].what);
    show("signal", was->signal, got->signal);
    show("error", was->error, got->error);
    show("address", was->address, got->address);
    show("rip", was->rip, got->rip);
    for (int r = 0; r < 16; r++) show(names[r], was->regs[r], got->regs[r]);
    show("flags", was->flags, got->flags);
    show("selectors", was->selectors, got->selectors);
    for (int k = 0; k < WINDOW_SIZE; k += 8)
      if (memcmp(was->window + k, got->window + k, 8) != 0) {
        printf(" memory +%x", k);
        break;
      }
    printf("\n");
  }
  printf("pass %s forms %lu differ %u\n", name, count, n);
  fflush(stdout);
}

static void load(const char *path) {
  static struct form all[MAX];
  int fd = open(path, O_RDONLY);
  if (fd < 0 || read(fd, &count, sizeof count) != sizeof count || count > MAX || read(fd, all, count * sizeof *all) != (ssize_t) (count * sizeof *all)) {
    fprintf(stderr, "steps: %s is no table of forms\n", path);
    exit(2);
  }
  forms = all;
  uint8_t *code = mmap((void *) CODE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  void *data = mmap((void *) DATA, DATA_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  if (code != (void *) CODE || data != (void *) DATA) {
    perror("steps: mmap");
    exit(1);
  }
  madvise(code, CODE_SIZE, MADV_NOHUGEPAGE);
  memset(code, 6, CODE_SIZE); /* no instruction in 64-bit mode */
  for (uint64_t i = 0; i < count; i++) {
    uint8_t *to = (uint8_t *) all[i].at;
    if (all[i].length > 15 || to + PAD + 2 > code + CODE_SIZE) exit(3);
    memcpy(to, all[i].code, all[i].length);
    memcpy(to + all[i].length, "\x90\x0f\x0b", 3); /* nop, which a trap flag traps at; ud2 */
    memcpy(to + PAD, "\x0f\x0b", 2);
  }
  if (mlockall(MCL_CURRENT | MCL_FUTURE) != 0) {
    perror("steps: mlockall");
    exit(1);
  }
  native = calloc(count * STATES, sizeof *native);
  diffs = calloc(count, sizeof *diffs);
}

/* What runs natively to nothing but a fault tests nothing. */
static void faults(void) {
  for (uint64_t i = 0; i < count; i++) {
    unsigned n = 0;
    struct result *r = &native[i * STATES];
    for (int s = 0; s < STATES; s++) n += r[s].rip == 0;
    if (n == STATES) printf("faults %lu signal %lu\n", i, r->signal);
  }
}

int main(int argc, char **argv) {
  if (argc != 2) {
    fprintf(stderr, "usage: steps TABLE\n");
    return 2;
  }
  cpu_set_t one; /* cpuid tells which it is */
  CPU_ZERO(&one);
  CPU_SET(0, &one);
  sched_setaffinity(0, sizeof one, &one);
  load(argv[1]);
  patterns();
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
  stack_t alt = {.ss_size = 1 << 16};
  alt.ss_sp = mmap(NULL, alt.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  sigaltstack(&alt, NULL);
  for (int i = 0; i < 5; i++) sigaction((int[]){SIGILL, SIGSEGV, SIGBUS, SIGTRAP, SIGFPE}[i], &action, NULL);
  call(SYS_arch_prctl, ARCH_GET_FS, (long) &home_fs, 0);
  run();
  faults();
  pass = 1;
  run();
  report("native");
  for (;; pass++) {
    long answer;
    while ((answer = call(SYS_getpriority, WHICH, pass, 0)) == -EAGAIN) nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    if (answer != 0) break; /* 1: the end, -EINVAL: no monitor */
    run();
    char name[16];
    sprintf(name, "%d", pass);
    report(name);
  }
  run();
  report("again");
  return 0;
}
