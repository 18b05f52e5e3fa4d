/* work ROUNDS: work with a known outcome, of what a kernel does all day: processes, pipes, signals, files, memory, and
 * computing. It prints a checksum that depends on nothing but ROUNDS.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void count(int n) {
  (void) n;
  signals++;
}

static unsigned long mix(unsigned long h, const void *p, size_t n) {
  const unsigned char *b = p;
  for (size_t i = 0; i < n; i++) h = (h ^ b[i]) * 1099511628211ul;
  return h;
}

int main(int argc, char **argv) {
  int rounds = argc > 1 ? atoi(argv[1]) : 10;
  unsigned long hash = 14695981039346656037ul;
  signal(SIGUSR1, count);
  for (int r = 0; r < rounds; r++) {
    int ends[2], status;
    char text[64];
    unsigned long got[64];
    if (pipe(ends) < 0) return 1;
    pid_t child = fork();
    if (child < 0) return 1;
    if (child == 0) { /* touches its own copies of pages, and sends what it found in them */
      unsigned long out[64];
      unsigned long *map = mmap(NULL, 64 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (map == MAP_FAILED) _exit(1);
      for (int i = 0; i < 64; i++) map[i * 512] = (unsigned long) r * 64 + i;
      for (int i = 0; i < 64; i++) out[i] = map[i * 512] * 3;
      _exit(write(ends[1], out, sizeof out) == sizeof out ? r & 63 : 99);
    }
    close(ends[1]);
    size_t have = 0;
    for (ssize_t n; have < sizeof got && (n = read(ends[0], (char *) got + have, sizeof got - have)) != 0;) {
      if (n > 0) have += n;
    }
    close(ends[0]);
    while (waitpid(child, &status, 0) < 0) {}
    hash = mix(hash, got, have);
    hash = mix(hash, &status, sizeof status);
    raise(SIGUSR1);
    int f = open("/tmp/work", O_CREAT | O_RDWR | O_TRUNC, 0600);
    int n = snprintf(text, sizeof text, "round %d signals %d", r, (int) signals);
    if (f < 0 || write(f, text, n) != n || pread(f, text, n, 0) != n) return 1;
    close(f);
    hash = mix(hash, text, n);
  }
  unlink("/tmp/work");
  printf("work %d checksum %016lx\n", rounds, hash);
  return 0;
}
