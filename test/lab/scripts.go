package lab

import (
	"fmt"
	"strings"
)

// What the host's two Linuxes run. The guest's console belongs to the agent: its
// kernel's messages go to Xen's log (earlyprintk=xen,keep), and so to the host's
// serial line, where they are even when the guest is dead. The lines that begin with "== " tell the
// server how far the boot is.

func insmods(modules []string) string {
	var b strings.Builder
	for _, m := range modules {
		fmt.Fprintf(&b, "insmod /modules/%s\n", m)
	}
	return b.String()
}

func guestInit(modules []string) string {
	return fmt.Sprintf(`#!/bin/sh
export PATH=/payload:/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
mount -t debugfs debug /sys/kernel/debug
%s(n=0; while :; do n=$((n+1)); echo $n > /tmp/heartbeat.new; mv /tmp/heartbeat.new /tmp/heartbeat; sleep 1; done) &
while :; do agent /dev/hvc0 < /dev/null > /dev/null 2>&1; sleep 1; done
`, insmods(modules))
}

func guestConfig(c Config, cmdline string) string {
	boot := `kernel="/root/grub"`
	if c.Direct {
		boot = fmt.Sprintf("kernel=\"/root/vmlinux\"\nramdisk=\"/root/guest.img\"\ncmdline=%q", cmdline)
	}
	pin := ""
	if c.Pinned {
		pin = fmt.Sprintf("cpus=\"1-%d\"\n", c.CPUs-1)
	}
	return fmt.Sprintf(`name="guest"
type="pvh"
%s
memory=%d
vcpus=%d
%saltp2m="external"
tsc_mode="native"
`, boot, c.MemoryMB, c.VCPUs, pin)
}

// guestCommand is dom0's own way to run something in the guest.
const guestCommand = `#!/bin/sh
# guest COMMAND...: run a shell command in the guest, with its output and exit status
exec agent -c "$(cat /tmp/guest.tty)" "$*"
`

func dom0Init(c Config, xenVersion string, modules []string) string {
	return fmt.Sprintf(`#!/bin/sh
export PATH=/payload:/bin:/usr/lib/%s/bin LD_LIBRARY_PATH=/lib64 HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mkdir -p /dev/pts; mount -t devpts pts /dev/pts
mount -t tmpfs tmp /tmp; mount -t tmpfs run /run; mkdir -p /run/xen /run/xenstored /run/lock
ip link set lo up
%smount -t xenfs xenfs /proc/xen
echo "== dom0 up"
xenstored --pid-file /run/xenstored.pid; sleep 1; xen-init-dom0 > /dev/null; xenconsoled --pid-file=/run/xenconsoled.pid --log=all
# Read the payload's pages into memory now: the fork server looks for them there.
cat /payload.img > /dev/null
xl create /root/guest.cfg > /tmp/create.log 2>&1 || { echo "== no guest"; cat /tmp/create.log; }
echo "== guest created"
n=0; until tty=$(xenstore-read /local/domain/1/console/tty 2> /dev/null) && [ -n "$tty" ] || [ $n -gt 100 ]; do n=$((n+1)); sleep 0.1; done
echo $tty > /tmp/guest.tty
up=$(guest 'grep -c ^processor /proc/cpuinfo')
[ "$up" = %d ] && echo "== guest up" || echo "== the guest has not all its vCPUs: $up"
echo "== serving"
agent /dev/ttyS1 $tty > /tmp/agent.log 2>&1
echo "== the agent ended"; cat /tmp/agent.log
sleep 1; poweroff -f
`, xenVersion, insmods(modules), c.VCPUs)
}
