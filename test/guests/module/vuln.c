// SPDX-License-Identifier: GPL-2.0
/* A driver with a planted bug of the kind of CVE-2008-0600: it rounds a length from user space up in 32 bits, checks the
 * rounded one, and copies as much as the unrounded one says. A length just below 4 GiB rounds to 0, passes, and overwrites
 * what stands behind the buffer: here a canary. The copy ends where the user's mapping ends, so the guest lives.
 *
 * For the lab only.
 */
#include <linux/miscdevice.h>
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/uaccess.h>

#include "vuln.h"

#define PIECE 64

static struct {
	char buffer[VULN_BUFFER];
	struct vuln_canary canary;
	char room[2 * VULN_BUFFER]; /* for whoever gives a longer mapping */
} area;

static void reset(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(area.canary.word); i++)
		area.canary.word[i] = VULN_CANARY_VALUE;
}

/* Not inlined, so that there is a function to probe. */
noinline long vuln_copy(const struct vuln_request *req);
noinline long vuln_copy(const struct vuln_request *req)
{
	u32 rounded = ((u32)req->len + 7) & ~7u; /* the bug */
	size_t done;

	if (rounded > sizeof(area.buffer))
		return -EINVAL;
	for (done = 0; done < req->len && done < sizeof(area); done += PIECE) {
		/* raw: the usual one would clear what it could not copy */
		if (raw_copy_from_user((char *)&area + done, (const char __user *)req->base + done, PIECE))
			return -EFAULT;
	}
	return 0;
}

static long vuln_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct vuln_request req;

	switch (cmd) {
	case VULN_COPY:
		if (copy_from_user(&req, (void __user *)arg, sizeof(req)))
			return -EFAULT;
		if (!access_ok((void __user *)req.base, req.len))
			return -EFAULT;
		return vuln_copy(&req);
	case VULN_CANARY:
		return copy_to_user((void __user *)arg, &area.canary, sizeof(area.canary)) ? -EFAULT : 0;
	case VULN_RESET:
		reset();
		return 0;
	}
	return -ENOTTY;
}

static const struct file_operations vuln_fops = {
	.owner = THIS_MODULE,
	.unlocked_ioctl = vuln_ioctl,
};

static struct miscdevice vuln_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "vuln",
	.fops = &vuln_fops,
};

/* A parameter with a setter of its own: code of the module that runs before its init does. */
noinline int vuln_set(const char *value, const struct kernel_param *kp);
noinline int vuln_set(const char *value, const struct kernel_param *kp)
{
	return *value == 'x' ? -EINVAL : 0;
}

static const struct kernel_param_ops vuln_ops = { .set = vuln_set };
module_param_cb(word, &vuln_ops, NULL, 0);

static int __init vuln_init(void)
{
	reset();
	return misc_register(&vuln_device);
}

static void __exit vuln_exit(void)
{
	misc_deregister(&vuln_device);
}

module_init(vuln_init);
module_exit(vuln_exit);
MODULE_DESCRIPTION("a planted bug for hprobe's lab");
MODULE_LICENSE("GPL");
