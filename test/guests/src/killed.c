/* killed N: N times a thread is killed while it is in pause(2): by a signal to its process, and by another thread
 * that ends the process. Nothing else in the guest calls pause.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int ready[2];

static void *sleeper(void *arg) {
  (void) arg;
  if (write(ready[1], "", 1) != 1) _exit(99);
  syscall(SYS_pause);
  _exit(98); /* it came back */
}

static void child(int threads) {
  pthread_t id;
  char c;
  if (!threads) sleeper(NULL);
  if (pthread_create(&id, NULL, sleeper, NULL) != 0 || read(ready[0], &c, 1) != 1) _exit(97);
  usleep(20000); /* it is in pause by then */
  _exit(42);
}

int main(int argc, char **argv) {
  int n = argc > 1 ? atoi(argv[1]) : 0, wrong = 0;
  if (n < 1 || pipe(ready) < 0) {
    fprintf(stderr, "usage: killed N\n");
    return 2;
  }
  for (int i = 0; i < n; i++) {
    int status, threads = i & 1;
    char c;
    pid_t pid = fork();
    if (pid == 0) child(threads);
    if (!threads) {
      if (read(ready[0], &c, 1) != 1) return 1;
      usleep(20000);
      kill(pid, SIGKILL);
    }
    while (waitpid(pid, &status, 0) < 0) {}
    int right = threads ? WIFEXITED(status) && WEXITSTATUS(status) == 42 : WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
    if (!right) wrong++;
  }
  printf("killed %d wrong %d\n", n, wrong);
  return wrong != 0;
}
