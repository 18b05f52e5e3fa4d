// SPDX-License-Identifier: GPL-2.0
/* A driver that writes control registers, MSRs and memory of the kernel so often as it is told: what hprobe counts of it must
 * be exact. It writes with instructions of its own, not by the kernel's functions, some of which pin bits.
 *
 * For the lab only.
 */
#include <linux/fs.h>
#include <linux/irqflags.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "poke.h"

/* Not static, so that there is a symbol. */
extern u8 poke_area[POKE_AREA];
u8 poke_area[POKE_AREA] __aligned(4096);

#define CHANGE(cr) \
	static u64 change_##cr(u64 bits) \
	{ \
		unsigned long was, is, flags; \
		local_irq_save(flags); \
		asm volatile("mov %%" #cr ",%0" : "=r"(was) : : "memory"); \
		asm volatile("mov %0,%%" #cr : : "r"(was ^ bits) : "memory"); \
		asm volatile("mov %%" #cr ",%0" : "=r"(is) : : "memory"); \
		asm volatile("mov %0,%%" #cr : : "r"(was) : "memory"); \
		local_irq_restore(flags); \
		return is; \
	}

CHANGE(cr0)
CHANGE(cr4)

static void write_msr(u32 msr, u64 value)
{
	asm volatile("wrmsr" : : "c"(msr), "a"((u32)value), "d"((u32)(value >> 32)) : "memory");
}

static u64 read_msr(u32 msr)
{
	u32 low, high;

	asm volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(msr));
	return low | (u64)high << 32;
}

static void write_area(void *to, u64 value, u64 size)
{
	switch (size) {
	case 1: asm volatile("movb %b1,%0" : "=m"(*(u8 *)to) : "q"(value)); break;
	case 2: asm volatile("movw %w1,%0" : "=m"(*(u16 *)to) : "r"(value)); break;
	case 4: asm volatile("movl %k1,%0" : "=m"(*(u32 *)to) : "r"(value)); break;
	default: asm volatile("movq %1,%0" : "=m"(*(u64 *)to) : "r"(value)); break;
	}
}

static u64 read_area(const void *from, u64 size)
{
	u64 value = 0;

	switch (size) {
	case 1: asm volatile("movzbl %1,%k0" : "=r"(value) : "m"(*(const u8 *)from)); break;
	case 2: asm volatile("movzwl %1,%k0" : "=r"(value) : "m"(*(const u16 *)from)); break;
	case 4: asm volatile("movl %1,%k0" : "=r"(value) : "m"(*(const u32 *)from)); break;
	default: asm volatile("movq %1,%0" : "=r"(value) : "m"(*(const u64 *)from)); break;
	}
	return value;
}

static long poke(struct poke *p)
{
	void *at = poke_area + p->index;
	u64 i, n = p->count;

	if (p->what >= POKE_WRITE && p->what != POKE_LOOK && (p->index > POKE_AREA - 8 || (p->what == POKE_FILL && n > POKE_AREA - p->index)))
		return -EINVAL;
	switch (p->what) {
	case POKE_FILL:
		asm volatile("rep stosb" : "+D"(at), "+c"(n) : "a"((u8)p->value) : "memory");
		return 0;
	case POKE_LOOK:
		at = (void *)p->index;
		break;
	}
	for (i = 0; i < n; i++) {
		switch (p->what) {
		case POKE_CR0: p->result = change_cr0(p->value); break;
		case POKE_CR4: p->result = change_cr4(p->value); break;
		case POKE_WRMSR: write_msr(p->index, p->value); break;
		case POKE_RDMSR: p->result = read_msr(p->index); break;
		case POKE_WRITE: write_area(at, p->value + i, p->size); break;
		case POKE_ADD: asm volatile("addq %1,%0" : "+m"(*(u64 *)at) : "r"(p->value)); break;
		case POKE_READ:
		case POKE_LOOK: p->result = read_area(at, p->size); break;
		default: return -EINVAL;
		}
	}
	return 0;
}

static long poke_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct poke p;
	long err;

	if (cmd != POKE)
		return -ENOTTY;
	if (copy_from_user(&p, (void __user *)arg, sizeof(p)))
		return -EFAULT;
	err = poke(&p);
	if (!err && copy_to_user((void __user *)arg, &p, sizeof(p)))
		err = -EFAULT;
	return err;
}

static const struct file_operations poke_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = poke_ioctl,
};

static struct miscdevice poke_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "poke",
	.fops = &poke_fops,
};

module_misc_device(poke_device);
MODULE_DESCRIPTION("writes registers and memory for hprobe's lab");
MODULE_LICENSE("GPL");
