package condition

import (
	"fmt"
	"testing"

	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/xenevents"
)

// seeds are rules that say a bit of everything.
var seeds = []string{
	"flags == 0x8241 && pid != 1", `file.f_path.dentry.d_name.name == "shadow"`, "file.ids[3] > 1", "pos.exists(x, x == 5)", "iovec(arg1, 2).iov_len > 0x1000", "u64(addr(file) + 8) == count",
	"type in [1, 2, count]", "file.kind == pid_type.PIDTYPE_TGID", `str(arg2).matches("a+")`, "file{}", "has(file.ok)", "x[", "{{{comm}}} {name}", "file.f_mode=1", "mem(pos)=b\"a\"", "rdi=count", "a=b=c", "-1u", "dyn(1)", "type(file)",
	"[file][0].ok", "{1: file}[1].ok", "file.f_path.dentry.d_parent.d_parent.d_iname", "comm.split(',')", "timestamp(5) > duration('1s')", "optional.of(file).value()", "file.?ok", "1.5 == flags", "cel.bind(x, 1, x)",
}

// FuzzCompile: whatever somebody writes, there is a rule or an error, and at a hit no
// panic, no matter what the registers say.
func FuzzCompile(f *testing.F) {
	for _, s := range seeds {
		f.Add(s)
	}
	p := testProfile(f)
	args, err := guestos.Args(p, "f")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		h := newCall(t, p)
		for _, r := range []Rule{{When: text}, {Capture: []string{text}}, {Key: text, Threshold: 2}, {Message: text}, {Set: []string{text}, Enforce: true}} {
			prog, err := Compile(p, Place{Entry: true, Args: args}, r)
			if err != nil {
				continue
			}
			prog.Judge(h)
			prog.Captured()
			if h.reads > 2*maxReads {
				t.Errorf("%q reads %d times", text, h.reads)
			}
			h.reads = 0
		}
	})
}

// both evaluates by CEL and directly; they must say the same.
func (c *Condition) both() error {
	byCEL, errCEL := c.interpret()
	if c.direct == nil {
		return nil
	}
	got, err := c.direct(c.scope.hit)
	if got != byCEL || (err == nil) != (errCEL == nil) {
		return fmt.Errorf("%q is %v (%w) for CEL, and %v (%w) directly", c.Text, byCEL, errCEL, got, err)
	}
	return nil
}

// FuzzDirect: what is evaluated without CEL is as CEL would have it, errors included.
func FuzzDirect(f *testing.F) {
	for _, s := range append(seeds, "u8(1) == 1 || true", "file.f_path.dentry.d_parent.d_flags == 1 || flags > 1", "file.neg < 0 && !(file.ok || count <= 5)", "count == flags || type != count",
		"file.f_path.dentry.d_parent == null", "null != file", "mask(file.f_count, 1) > -1", "-1 < count", "file.f_path.dentry.d_name.len == 6", "arg0 == file && vcpu >= 3 && uid != 1", "file.ok", "true && false", "pid_type.PIDTYPE_TGID == file.kind") {
		f.Add(s, uint64(fileAt), uint64(5))
		f.Add(s, uint64(0), ^uint64(0))
	}
	p := testProfile(f)
	args, err := guestos.Args(p, "f")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string, a, b uint64) {
		s, err := NewScope(p, Place{Args: args})
		if err != nil {
			t.Fatal(err)
		}
		c, err := s.Condition(text)
		if err != nil {
			return
		}
		h := newCall(t, p)
		h.regs.RDI, h.regs.RDX, h.regs.RCX = a, b, a^b
		s.At(h)
		if err := c.both(); err != nil {
			t.Error(err)
		}
	})
}

// FuzzHostileMemory: whatever the guest's registers and memory hold, decoding ends
// within bounds and what is shown is harmless.
func FuzzHostileMemory(f *testing.F) {
	f.Add(uint64(fileAt), uint64(pathAt), []byte("\x00\x00\xff\x1b"))
	f.Add(uint64(0), ^uint64(0), []byte{})
	f.Add(^uint64(7), uint64(1), []byte("a"))
	p := testProfile(f)
	args, err := guestos.Args(p, "f")
	if err != nil {
		f.Fatal(err)
	}
	prog, err := Compile(p, Place{Entry: true, Args: args}, Rule{
		When: `name != "" || file.f_path.dentry.d_name.name == comm || pos.exists(x, x == 5)`, Key: "comm", Threshold: 2, Message: "{file.name} {name}", Set: []string{"file.f_mode=1", "u64(pos)=1"}, Enforce: true,
		Capture: []string{"file", "name", "count", "flags", "type", "pos", "file.ids", "file.f_path.dentry.d_parent.d_parent.d_parent.d_iname", "file.kind", "file.perm", "file.neg", "file.low", "file.ok", "iovec(count, 3).iov_base", "str(count)", "comm"},
	})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, a, b uint64, memory []byte) {
		h := &call{args: args, mem: map[uint64]byte{}, task: task{comm: string(memory)}}
		h.regs = xenevents.Registers{RDI: a, RSI: b, RDX: a ^ b, RCX: a + b, R8: b - a, R9: a}
		if len(memory) > 0 {
			for i := range uint64(2048) {
				h.mem[a+i], h.mem[b+i] = memory[i%uint64(len(memory))], memory[(i*7)%uint64(len(memory))]
			}
		}
		r := prog.Judge(h)
		for _, v := range prog.Captured() {
			harmless(t, v.Text)
		}
		if r.Finding != nil {
			harmless(t, r.Finding.Message)
		}
		if h.reads > maxReads+16 {
			t.Errorf("%d reads", h.reads)
		}
	})
}

func harmless(t *testing.T, text string) {
	t.Helper()
	if len(text) > 2*maxMessage {
		t.Errorf("%d bytes to be shown", len(text))
	}
	for _, c := range []byte(text) {
		if c < ' ' || c == 0x7f {
			t.Fatalf("a terminal would obey %q", text)
		}
	}
}
