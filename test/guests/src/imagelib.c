/* A library with one function, NAME_sum, and one that only its own symbol table has. */
#define JOIN(a, b) a##b
#define SUM(name) JOIN(name, _sum)
#define HIDDEN(name) JOIN(name, _hidden)

static __attribute__((noinline, noclone)) long HIDDEN(NAME)(long a, long b) {
  __asm__ volatile("" : "+r"(a));
  return a + b;
}

long SUM(NAME)(long a, long b) { return HIDDEN(NAME)(a, b) + 0 * b; }

#ifdef NEWER
long JOIN(NAME, _more)(long a) { return a; }
#endif
