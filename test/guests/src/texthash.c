/* texthash [ADDRESS]: hashes the kernel's own code as the guest sees it, through /proc/kcore: all, or the page at an address. */
#include <elf.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static unsigned long symbol(const char *want) {
  char line[512], name[256], type;
  unsigned long addr, found = 0;
  FILE *f = fopen("/proc/kallsyms", "r");
  if (f == NULL) return 0;
  while (found == 0 && fgets(line, sizeof line, f) != NULL)
    if (sscanf(line, "%lx %c %255s", &addr, &type, name) == 3 && strcmp(name, want) == 0) found = addr;
  fclose(f);
  return found;
}

int main(int argc, char **argv) {
  unsigned long from = argc > 1 ? strtoul(argv[1], NULL, 0) & -4096ul : symbol("_stext");
  unsigned long to = argc > 1 ? from + 4096 : symbol("_etext"), hash = 14695981039346656037ul, bytes = 0;
  int fd = open("/proc/kcore", O_RDONLY);
  Elf64_Ehdr head;
  Elf64_Phdr segment;
  static char page[4096];
  if (from == 0 || to <= from || fd < 0 || pread(fd, &head, sizeof head, 0) != sizeof head) {
    fprintf(stderr, "texthash: /proc/kallsyms or /proc/kcore does not tell (root only)\n");
    return 1;
  }
  for (int i = 0; i < head.e_phnum; i++) {
    if (pread(fd, &segment, sizeof segment, head.e_phoff + i * sizeof segment) != sizeof segment) return 1;
    if (segment.p_type != PT_LOAD || from < segment.p_vaddr || to > segment.p_vaddr + segment.p_memsz) continue;
    for (unsigned long at = from; at < to; at += sizeof page) {
      unsigned long n = to - at < sizeof page ? to - at : sizeof page;
      if (pread(fd, page, n, segment.p_offset + (at - segment.p_vaddr)) != (ssize_t) n) {
        perror("/proc/kcore");
        return 1;
      }
      for (unsigned long k = 0; k < n; k++) hash = (hash ^ (unsigned char) page[k]) * 1099511628211ul;
      bytes += n;
    }
    printf("text %016lx of %lu bytes\n", hash, bytes);
    return 0;
  }
  fprintf(stderr, "texthash: no segment of /proc/kcore has the kernel's code\n");
  return 1;
}
