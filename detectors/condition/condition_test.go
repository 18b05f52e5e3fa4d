package condition

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
)

func TestConditions(t *testing.T) {
	p := testProfile(t)
	s := newScope(t, p, "f")
	for text, want := range map[string]bool{
		// Numbers of their size and sign: above a register's low bits is dirt.
		"flags == 0x8241": true, "flags == 0x8241u": true, "type == -1": true, "type < 0": true, "flags > 0": true, "arg3 == flags": true, "arg.flags == arg3": true,
		"count == 0x8000000000000000u": true, "count > 0x7fffffff": true, "count > 0": true, "count == 5": false, "5 != count": true, "count + 1 > 1": true, "count - 1 == 0x7fffffffffffffff": true,
		"count == flags": false, "flags == count": false, "count in [1, 2]": false, "count in [1, 0x8000000000000000u]": true, "type in [-1, 5]": true, "flags in [count]": false,
		"mask(flags, 0x40) != 0": true, "mask(flags, 0x80) != 0": false, "mask(count, 0x10) == 0": true, "s32(count) == 0": true, "s64(count) < 0": true, "count > flags": true,
		// Strings, structs, pointers.
		`name == "/etc/shadow"`: true, `name.startsWith("/etc/")`: true, `name.matches("^/etc/(shadow|passwd)$")`: true, `file.f_path.dentry.d_name.name == "shadow"`: true,
		"file.f_path.dentry.d_name.len == 6": true, `file.f_path.dentry.d_iname == "inline"`: true, `file.name == "eightchr"`: true, "file.f_pos == -7": true, "file.f_count > 5": true,
		"file.f_path.dentry != null": true, "file.f_path.dentry.d_parent == null": true, "null == file.f_path.dentry.d_parent": true, "file == null": false,
		"file.ok": true, "!file.ok": false, "file.low == 5": true, "file.neg == -3": true, "file.ids[1] == -1": true, "file.ids[2] == 3": true, "size(file.ids) == 4": true,
		"file.ids.exists(i, i == 3)": true, "file.ids.all(i, i > 0)": false, "3 in file.ids": true, "pos[0] == 17 && pos[1] == 18": true, "file.mode16 == 0x41ff": true,
		"file.private == 0xffffffff81000000u": true, "file.hook == file.private": true, "file.opaque == file.private": true, "addr(file) == 0xffff888000001000u": true, "addr(file.f_path) == addr(file) + 16": true,
		"file.kind == pid_type.PIDTYPE_TGID": true, "file.kind != pid_type.PIDTYPE_PID": true, "file.`as` == 0": true,
		// Memory by address, and structs at one.
		"u8(addr(file) + 56) == 1": true, "u64(addr(file) + 40) == count": true, "u32(pos) == 17": true, "u16(addr(file) + 88) == 0x41ff": true, `str(addr(file) + 80).startsWith("eightchr")`: true,
		"dentry(addr(file.f_path.dentry)).d_name.len == 6": true, "iovec(pos).iov_len == 18": true, "iovec(pos, 0).iov_len == 18": true, `dentry(0) == null`: true,
		// The process.
		"pid == 42": true, "tid == 43": true, "uid == 1000": true, "start_time == 5000000000": true, `comm.startsWith("evil")`: true, "process.pid == pid": true, "vcpu == 3": true,
		// What can't be read does not matter where it is not needed.
		"true || u8(1) == 1": true, "u8(1) == 1 || true": true, "false && u8(1) == 1": false,
	} {
		c, err := s.Condition(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		s.At(newCall(t, p))
		if got, err := c.Holds(); err != nil || got != want {
			t.Errorf("%s is %v, %v", text, got, err)
		}
		if err := c.both(); err != nil {
			t.Error(err)
		}
	}
}

func TestWhatIsWrongIsSaidAtLoad(t *testing.T) {
	p := testProfile(t)
	f, kill, untyped := newScope(t, p, "f"), newScope(t, p, "kill"), newScope(t, p, "nosuch")
	for _, c := range []struct {
		s          *Scope
		text, want string
	}{
		{f, "", "nothing in it"}, {f, "flag == 1", "did you mean 'flags'"}, {f, "file.f_mod == 1", "did you mean 'f_mode'"}, {f, "file.f_path.dentri == null", "did you mean 'dentry'"},
		{f, "xyzzy == 1", "the arguments file, name, count"}, {f, "process.pidd == 1", "process.pid"}, {f, "flags", "is of type int: a condition is true or false"}, {f, "flags == ", "mismatched input"},
		{f, "flags == 1 &&", "mismatched input"}, {f, `name == 5`, "no matching overload"}, {f, "file == 5", "compared with null"}, {f, "count + type > 1", "say uint() or int()"},
		{f, "file.ids[4] == 1", "no element 4 in a int[4]"}, {f, "file.ids[-1] == 1", "no element"}, {f, "pos[4096] == 1", "no element"}, {f, "u8(name) == 1", "takes an address"}, {f, "iovec(true).iov_len == 1u", "takes an address"},
		{f, "has(file.f_mode)", "has() says nothing"}, {f, "ret == 0", "ret is not there"}, {f, strings.Repeat("a", maxText+1), "size"}, {f, strings.Repeat("(", 200) + "true" + strings.Repeat(")", 200), "recursion"},
		{f, "file{f_mode: 1} == file", "can't be made"}, {f, "nosuch(file)", "undeclared reference to 'nosuch'"}, {f, `name.matches("(")`, ""},
		{kill, "pid == 1", "arg.pid or process.pid"}, {untyped, "file == null", "no argument file here; file(address) is the struct"}, {untyped, "file", "no argument file"}, {kill, "pid", "arg.pid or process.pid"}, {f, "[1].exists(iovec, iovec == 2) && iovec", ""}, {untyped, "fileno == null", "there are pid"}, {untyped, "arg6 == 1", "arg"},
	} {
		_, err := c.s.Condition(c.text)
		var said *Error
		if err == nil || !errors.As(err, &said) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%.40s: %v", c.text, err)
		} else if strings.Contains(err.Error(), "\n") {
			t.Errorf("%.40s: more than a line: %v", c.text, err)
		}
	}
	for _, text := range []string{"[1].exists(iovec, iovec == 2)", "arg.pid == 1 && process.pid != 1", "arg.`in` == 1 || arg2 == 1", "arg3 == pid_type.PIDTYPE_MAX", "type == 1", "arg4", "sig == 9"} {
		if _, err := kill.Condition(text); err != nil {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, err := untyped.Condition("arg0 == 5 && arg5 > 1 && iovec(arg1).iov_len > 0x1000"); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotThereIsAnError(t *testing.T) {
	p := testProfile(t)
	s := newScope(t, p, "f")
	for text, want := range map[string]error{
		"u8(1) == 1": xenevents.ErrNotMapped, "file.f_path.dentry.d_parent.d_flags == 1": errNull, "iovec(0).iov_len == 1u": errNull, "str(5) == \"\"": xenevents.ErrNotMapped,
		"dentry(8).d_name.len == 1": xenevents.ErrNotMapped, "count + count == 1u": nil, "file.ids.map(i, i)[7] == 1": nil, "pos.all(x, x != 5)": nil, "5 in pos": xenevents.ErrNotMapped,
		"file.ids[pid] == 1": nil,
	} {
		c, err := s.Condition(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		s.At(newCall(t, p))
		if got, err := c.Holds(); err == nil || got || want != nil && !errors.Is(err, want) {
			t.Errorf("%s is %v, %v", text, got, err)
		}
	}
}

func TestOnlyWhatIsNamedIsRead(t *testing.T) {
	p := testProfile(t)
	s := newScope(t, p, "f")
	for text, want := range map[string][]string{"flags == 1": nil, "flags == 1 && pid == 1": nil, "pid == 42 && pid == 42": {"pid"}, `comm == "x" || uid == 5`: {"comm", "uid"}} {
		c, err := s.Condition(text)
		if err != nil {
			t.Fatal(err)
		}
		h := newCall(t, p)
		s.At(h)
		if _, err := c.Holds(); err != nil || !slices.Equal(h.task.asked, want) || h.reads != 0 {
			t.Errorf("%s: %v, asked for %v, %d reads", text, err, h.task.asked, h.reads)
		}
	}
}

func TestEvaluationIsBounded(t *testing.T) {
	p := testProfile(t)
	s := newScope(t, p, "f")
	endless := newCall(t, p)
	for at := range uint64(2 * maxBytes) {
		endless.mem[pathAt+at] = 'a' // a string, and an array, without end
	}
	endless.regs.R9 = pathAt
	for _, text := range []string{"pos.all(a, pos.all(b, a == b))", "pos.map(x, x + 0).size() > 5", "pos.exists(x, x == 5)"} {
		c, err := s.Condition(text)
		if err != nil {
			t.Fatal(err)
		}
		s.At(endless)
		if got, err := c.Holds(); err == nil || got {
			t.Errorf("%s: %v, %v", text, got, err)
		}
		if endless.reads > maxReads || s.hit.bytes > maxBytes+8 {
			t.Errorf("%s: %d reads, %d bytes", text, endless.reads, s.hit.bytes)
		}
		endless.reads = 0
	}
	c, err := s.Condition("size(name) == 4096")
	if err != nil {
		t.Fatal(err)
	}
	s.At(endless)
	if got, err := c.Holds(); err != nil || !got {
		t.Errorf("a string without end: %v, %v", got, err)
	}
}
