/* A program with so much of a kernel that a profile can be made of it: what it has of types
 * it prints, as the compiler lays them out. */
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

const char linux_banner[] = "Linux version 6.12.1-dwarf (a@b) (gcc) #1 SMP\n";

typedef int pid_type;
enum state { RUN, DEAD = -1, FAR = 0x7ffffff0 };
struct list_head {
	struct list_head *next, *prev;
};
union both {
	long whole;
	char bytes[8];
};
struct task {
	pid_type pid;
	char comm[16];
	struct {
		int deep;
		unsigned short deeper;
	};
	struct {
		long inner;
	} named;
	struct list_head list;
	unsigned one : 1;
	unsigned three : 3, : 5, seven : 7;
	unsigned long far : 40;
	unsigned char small : 5, full : 8;
	bool flag : 1;
	volatile enum state state;
	const char *const name;
	union both both;
	int (*call)(struct task *, bool);
	struct unknown *unknown;
	double d;
	int last[];
};
struct packed {
	char c;
	unsigned bits : 20;
	long l;
} __attribute__((packed));

struct task *the_task;
struct packed the_packed;

__attribute__((noinline)) long do_it(struct task *task, bool how, const void *arg)
{
	return task->pid + how + (arg != 0);
}

__attribute__((noinline)) void nothing(void) { the_task = 0; }

#define FIELD(type, path) printf("%s %s %zu\n", #type, #path, 8 * offsetof(struct type, path))
/* Where the bits of a field are, by setting it. */
#define BITS(type, field) do { \
	union { struct type s; unsigned char b[sizeof(struct type)]; } u; \
	int first = -1, n = 0; \
	memset(&u, 0, sizeof(u)); \
	u.s.field = ~0; \
	for (int i = 0; i < 8 * (int)sizeof(u.b); i++) \
		if (u.b[i / 8] >> i % 8 & 1) { if (first < 0) first = i; n++; } \
	printf("%s %s %d:%d\n", #type, #field, first, n); \
} while (0)
#define SIZE(type) printf("%s - %zu\n", #type, sizeof(struct type))

int main(int argc, char **argv)
{
	struct task t = { .pid = argc, .name = argv[0] };

	SIZE(task);
	SIZE(packed);
	SIZE(list_head);
	FIELD(task, pid);
	FIELD(task, comm);
	FIELD(task, deep);
	FIELD(task, deeper);
	FIELD(task, named.inner);
	FIELD(task, list.prev);
	BITS(task, one);
	BITS(task, three);
	BITS(task, seven);
	BITS(task, far);
	BITS(task, small);
	BITS(task, full);
	BITS(task, flag);
	FIELD(task, state);
	FIELD(task, name);
	FIELD(task, both.bytes);
	FIELD(task, call);
	FIELD(task, unknown);
	FIELD(task, d);
	FIELD(task, last);
	FIELD(packed, c);
	BITS(packed, bits);
	FIELD(packed, l);
	the_packed.l = do_it(&t, true, linux_banner);
	nothing();
	return 0;
}
