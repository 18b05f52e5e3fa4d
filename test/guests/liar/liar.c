// SPDX-License-Identifier: GPL-2.0
/* A driver that lies to whoever reads the kernel's lists from outside: behind kthreadd in the list of processes, or behind
 * itself in that of modules, it puts what no kernel has there. What is written to its parameter lie, a list and a kind, takes
 * effect at once; "" takes the lie back. The kernel itself must not walk the list meanwhile: it does so seldom.
 *
 * For the lab only.
 */
#include <linux/list.h>
#include <linux/module.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/vmalloc.h>

/* Entries that have nothing but their links, so close together as these allow. */
#define MANY 1000000
#define AROUND 16384 /* bytes on either side: of an entry more is read than its links */

static char *memory;
static struct list_head *fakes;
static struct list_head *at, *was_next, *was_back; /* where the lie is, what was there and in the next one's way back */

static void truth(void)
{
	if (!at)
		return;
	WRITE_ONCE(was_next->prev, was_back);
	WRITE_ONCE(at->next, was_next);
	at = NULL;
}

static struct list_head *kthreadd(void)
{
	struct task_struct *p;

	for_each_process(p)
		if (p->pid == 2)
			return &p->tasks;
	return NULL;
}

static int lie(const char *list, const char *kind)
{
	struct list_head *to = !strcmp(list, "tasks") ? kthreadd() : !strcmp(list, "modules") ? &THIS_MODULE->list : NULL;
	int i;

	truth();
	if (!to)
		return -EINVAL;
	was_next = to->next;
	was_back = was_next->prev;
	if (!strcmp(kind, "circle")) { /* of two that point to each other */
		fakes[0].prev = to;
		fakes[0].next = &fakes[1];
		fakes[1].prev = &fakes[0];
		fakes[1].next = &fakes[0];
		to->next = &fakes[0];
	} else if (!strcmp(kind, "self")) {
		to->next = to;
	} else if (!strcmp(kind, "wild")) {
		to->next = (struct list_head *)0xffffc123456789a8;
	} else if (!strcmp(kind, "user")) {
		to->next = (struct list_head *)0x1000;
	} else if (!strcmp(kind, "back")) { /* only the way back is wrong */
		was_next->prev = (struct list_head *)0xdead000000000122;
	} else if (!strcmp(kind, "long")) { /* all of it fits together */
		for (i = 0; i < MANY; i++) {
			fakes[i].prev = i ? &fakes[i - 1] : to;
			fakes[i].next = i < MANY - 1 ? &fakes[i + 1] : was_next;
		}
		was_next->prev = &fakes[MANY - 1];
		to->next = &fakes[0];
	} else {
		return -EINVAL;
	}
	at = to;
	return 0;
}

static int set(const char *value, const struct kernel_param *unused)
{
	char list[16], kind[16];

	if (sscanf(value, "%15s %15s", list, kind) == 2)
		return lie(list, kind);
	truth();
	return 0;
}

static const struct kernel_param_ops ops = { .set = set };
module_param_cb(lie, &ops, NULL, 0200);

static int __init liar_init(void)
{
	memory = vzalloc(MANY * sizeof(*fakes) + 2 * AROUND);
	if (!memory)
		return -ENOMEM;
	fakes = (struct list_head *)(memory + AROUND);
	return 0;
}

static void __exit liar_exit(void)
{
	truth();
	vfree(memory);
}

module_init(liar_init);
module_exit(liar_exit);
MODULE_DESCRIPTION("lies about the kernel's lists for hprobe's lab");
MODULE_LICENSE("GPL");
