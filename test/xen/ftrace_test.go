package xen

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/test/lab"
)

// tracer turns the guest's own function tracer on and off, for the function that is
// probed as well: the kernel writes over its own code for that.
const (
	tracerOn  = "cd /sys/kernel/tracing && echo > trace && echo __x64_sys_getpriority > set_ftrace_filter && echo function > current_tracer; "
	tracerOff = "cd /sys/kernel/tracing && echo nop > current_tracer; "
)

// TestOwnTracer: the guest traces the function that hprobe probes, and writes into the
// probed page while its vCPUs run there. Both see every call; and an instruction that the
// guest writes over is displaced until it is back.
func TestOwnTracer(t *testing.T) {
	t.Parallel()
	for _, cfg := range []lab.Config{plain, smp} {
		t.Run(cfg.String(), func(t *testing.T) {
			t.Parallel()
			h := lab.Copy(t, cfg, monitorFiles(t, cfg, "calls", "texthash")...)
			h.Guest.MustRun(t, "mount -t tracefs tracefs /sys/kernel/tracing; echo 8000 > /sys/kernel/tracing/buffer_size_kb")
			traced := func() (n uint64) {
				t.Helper()
				if _, err := fmt.Sscan(h.Guest.MustRun(t, "grep -c ' __x64_sys_getpriority <-' /sys/kernel/tracing/trace"), &n); err != nil {
					t.Fatal(err)
				}
				return n
			}
			before := h.Guest.MustRun(t, "texthash")

			// At the function's first instruction: the tracer's is the one behind it.
			m := arm(t, h, "")
			all := call(t, h, 50, cfg.VCPUs)
			add := func(c calls) { all.calls, all.sum = all.calls+c.calls, all.sum+c.sum }
			h.Guest.MustRun(t, tracerOn)
			c := call(t, h, 50, cfg.VCPUs)
			add(c)
			if n := traced(); n != c.calls {
				t.Errorf("the guest's tracer saw %d of %d calls", n, c.calls)
			}
			h.Guest.MustRun(t, tracerOff)
			// And while it is called.
			h.Guest.MustRun(t, fmt.Sprintf("(calls 1500 %d > /tmp/calls.out 2>&1) & n=0; while [ $n -lt 6 ]; do %s %s n=$((n+1)); done > /dev/null 2>&1", cfg.VCPUs, tracerOn, tracerOff))
			c = parseCalls(t, h.Guest.MustRun(t, "while ! grep -q calls /tmp/calls.out; do sleep 0.1; done; cat /tmp/calls.out"))
			if c.wrong != 0 {
				t.Errorf("%d calls had a wrong result", c.wrong)
			}
			add(c)
			r := m.stop()
			r.sees(t, all)
			if r.Stats.Writes == 0 || r.Probe.State != 0 {
				t.Errorf("the guest wrote %d times to the probed page; state %d", r.Stats.Writes, r.Probe.State)
			}

			// At the very instruction.
			m = arm(t, h, "-symbol "+tracedInsn(t, h))
			all = call(t, h, 50, cfg.VCPUs)
			h.Guest.MustRun(t, tracerOn)
			c = call(t, h, 50, cfg.VCPUs)
			if n := traced(); n != c.calls {
				t.Errorf("the guest's tracer saw %d of %d calls", n, c.calls)
			}
			h.Guest.MustRun(t, tracerOff)
			add(call(t, h, 50, cfg.VCPUs))
			r = m.stop()
			r.sees(t, all)
			if r.Probe.State != 0 {
				t.Errorf("it is in state %d in the end", r.Probe.State)
			}
			if after := h.MustRun(t, "texthash guest /payload/profiles/guest.hprofile"); after != before {
				t.Errorf("dom0 sees %q after removal, the guest saw %q before", after, before)
			}
			if warnings := h.Guest.MustRun(t, "dmesg | grep -E 'WARNING|BUG|Oops|ftrace bug' || true"); strings.TrimSpace(warnings) != "" {
				t.Errorf("the guest says %q", warnings)
			}
			alive(t, h)
		})
	}
}

// tracedInsn is where the guest's tracer writes: at the function, or behind its endbr64.
func tracedInsn(t *testing.T, h *lab.Host) string {
	t.Helper()
	m := arm(t, h, "")
	if insn := m.stop().Probe.Insn; strings.Contains(insn, "(%rax,%rax") { // the NOP of 5 bytes
		return "__x64_sys_getpriority"
	}
	return "__x64_sys_getpriority+0x4"
}
