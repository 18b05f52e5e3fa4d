/* Functions of all sorts of arguments, for what DWARF says of them. */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include "inlined.h"

enum kind { FILE_KIND = 1, PIPE_KIND = 2 };
struct opaque;
struct point {
	int x, y;
};
struct request {
	char *path;
	struct request *next;
	enum kind kind;
	unsigned flags : 3, more : 5;
	char name[16];
	union {
		long number;
		struct point point;
	};
};
typedef struct request *request_ref;

struct large {
	long a[4];
};

__attribute__((noipa)) int serve(const request_ref req, const char *why, bool sure)
{
	return req->path[0] + why[0] + sure; /* serve's line */
}

static __attribute__((noipa)) char *hidden(struct request *req, size_t n)
{
	asm volatile("" : : "r"(n));
	return req->path;
}

__attribute__((noipa)) double mixed(int before, double ratio, float small, struct point by_value, struct large large, struct opaque *opaque, long double most, unsigned char after)
{
	asm volatile("" : : "r"(opaque), "r"(by_value.x), "r"(large.a[0]));
	return before + ratio + small + after + most;
}

__attribute__((noipa)) struct large makes(int a, long b, long c, long d, long e, long sixth, long seventh)
{
	return (struct large){{a, b, c, d + e + sixth + seventh}};
}

static inline __attribute__((always_inline)) int copied(int a)
{
	asm volatile("nop");
	return a * 3;
}

/* At -O2 the compiler makes count.constprop.0 or count.isra.0 of it. */
static __attribute__((noinline)) int count(struct request *req, int n, int unused)
{
	asm volatile("" : : "r"(n));
	return req->kind;
}

__attribute__((noipa)) void *nothing(void)
{
	asm volatile("");
	return NULL;
}

int main(int argc, char **argv)
{
	struct request req = {.path = argv[0], .kind = PIPE_KIND, .flags = 5, .name = "name"};
	struct large large = {{1, 2, 3, 4}};
	int sum = serve(&req, "why", true) + copied(argc) + copied(argc + 1) + in_header(argc);

	sum += hidden(&req, 7)[0] + count(&req, 5, 6) + mixed(1, 2.5, 3.5f, (struct point){4, 5}, large, NULL, 1.0L, 6);
	sum += makes(1, 2, 3, 4, 5, 6, 7).a[0] + (nothing() != NULL);
	printf("%d\n", sum);
	return 0;
}
