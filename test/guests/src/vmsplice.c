/* vmsplice benign | malicious | exploit: gives a buffer to a pipe with vmsplice(2), and says how that ended.
 *
 * malicious asks for 2 GiB where the buffer has 64 KiB: the kind of length that CVE-2008-0600 was exploited with. A kernel
 * of today cuts it off and takes what is there; exploit passes the length of the original exploit, which it refuses.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static char buffer[64 << 10] __attribute__((aligned(4096)));

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "";
  struct iovec iov = {buffer, 4096};
  char got[4096];
  int ends[2];
  if (strcmp(what, "malicious") == 0) iov.iov_len = 0x80000000ul;
  else if (strcmp(what, "exploit") == 0) iov.iov_len = ~0ul;
  else if (strcmp(what, "benign") != 0) {
    fprintf(stderr, "usage: vmsplice benign | malicious | exploit\n");
    return 2;
  }
  memset(buffer, 'x', sizeof buffer);
  if (pipe(ends) < 0) {
    perror("pipe");
    return 1;
  }
  unsigned long asked = iov.iov_len;
  long n = vmsplice(ends[1], &iov, 1, SPLICE_F_NONBLOCK);
  if (n < 0) {
    printf("vmsplice(iov_len=%#lx): refused: %s\n", asked, strerrorname_np(errno));
    return 0;
  }
  if (read(ends[0], got, sizeof got) != sizeof got || memcmp(got, buffer, sizeof got) != 0) {
    printf("vmsplice(iov_len=%#lx): the pipe has other bytes\n", asked);
    return 1;
  }
  printf("vmsplice(iov_len=%#lx): accepted: %ld bytes\n", asked, n);
  return 0;
}
