/* typed N: calls of functions with arguments of all sorts, N times. It prints each call as a probe must show it, by name
 * and type, and "ok" at the end.
 */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum kind { FILE_KIND = 1, PIPE_KIND };

struct owner {
  int uid;
  char name[16];
};

struct request {
  char *path;
  struct owner *owner;
  enum kind kind;
  unsigned urgent : 1, level : 4;
  long count;
};

#define KEPT __attribute__((noipa))

KEPT int serve(struct request *req, const char *why, double ratio, bool sure) {
  return sure ? (int) (req->count * ratio) - why[0] : -1;
}

/* Its symbol goes with strip: only the debug information has it. */
static KEPT const char *hidden(const struct request *req, unsigned long number) {
  return number % 2 ? req->owner->name : req->path;
}

static KEPT long lined(long a) {
  long sum = a * 3;
  sum ^= 5; /* the line */
  return sum;
}

int main(int argc, char **argv) {
  long n = argc > 1 ? atol(argv[1]) : 1;
  for (long i = 0; i < n; i++) {
    struct owner owner = {.uid = 1000 + i};
    char path[32], why[32];
    struct request req = {path, &owner, i % 2 ? PIPE_KIND : FILE_KIND, i % 2, i % 16, i - 2};

    snprintf(owner.name, sizeof owner.name, "owner%ld", i);
    snprintf(path, sizeof path, i % 3 ? "/tmp/%ld" : "/etc/shadow", i);
    snprintf(why, sizeof why, "because %ld", i);
    int served = serve(&req, why, 1.5, i % 4);
    const char *text = hidden(&req, i);
    printf("serve(path=\"%s\", uid=%d, name=\"%s\", kind=%s, urgent=0x%x, level=0x%x, count=%ld, why=\"%s\", sure=%s) served=%d\n", path, owner.uid, owner.name,
           i % 2 ? "PIPE_KIND(2)" : "FILE_KIND(1)", req.urgent, req.level, req.count, why, i % 4 ? "true" : "false", served);
    printf("hidden(number=0x%lx) text=\"%s\" lined=%ld\n", i, text, lined(i));
  }
  printf("ok\n");
  return 0;
}
