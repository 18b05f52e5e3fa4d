// SPDX-License-Identifier: GPL-2.0
/* What a kernel exploit ends in: who writes to /dev/creds becomes root.
 *
 * For the lab only.
 */
#include <linux/cred.h>
#include <linux/fs.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/sched/task.h>

static ssize_t creds_write(struct file *file, const char __user *buf, size_t count, loff_t *pos)
{
	struct cred *cred = prepare_kernel_cred(&init_task);

	if (!cred)
		return -ENOMEM;
	commit_creds(cred);
	return count;
}

static const struct file_operations creds_fops = {
	.owner = THIS_MODULE,
	.write = creds_write,
};

static struct miscdevice creds_device = {
	.minor = MISC_DYNAMIC_MINOR,
	.name = "creds",
	.mode = 0666,
	.fops = &creds_fops,
};

module_misc_device(creds_device);
MODULE_DESCRIPTION("the end of an exploit, for hprobe's lab");
MODULE_LICENSE("GPL");
