package condition

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/guestos"
	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

func compiled(t testing.TB, function string, r Rule) *Program {
	t.Helper()
	p := testProfile(t)
	args, err := guestos.Args(p, function)
	if err != nil {
		t.Fatal(err)
	}
	prog, err := Compile(p, Place{Entry: true, Args: args}, r)
	if err != nil {
		t.Fatal(err)
	}
	return prog
}

func TestCapture(t *testing.T) {
	p := compiled(t, "f", Rule{Capture: []string{"file", "name", "count", "flags", "n=type", "file.f_path.dentry.d_name.name", "file.neg", "file.ok", "file.kind", "file.perm", "file.ids", "pos",
		"file.f_path.dentry.d_parent", "comm", "pid == 42", "file.f_path", "u8(1)", "file.hook", "count + 1", "x = mask(flags, 0x40)", "file.name == 'eightchr'", "b'\\x00a'", "file.f_path.dentry.d_parent.d_flags"}})
	h := newCall(t, testProfile(t))
	h.put(fileAt+60, 3)
	p.Judge(h)
	var got []string
	for _, v := range p.Captured() {
		text := v.Text
		if v.Err != nil {
			text = "?"
		}
		got = append(got, v.Name+"="+text)
	}
	want := []string{"file=struct file at 0xffff888000001000", `name="/etc/shadow"`, "count=0x8000000000000000", "flags=0x8241", "n=-1", `file.f_path.dentry.d_name.name="shadow"`, "file.neg=0", "file.ok=true",
		"file.kind=PIDTYPE_TGID(1)", "file.perm=READ|WRITE(3)", "file.ids=[1, -1, 3, 0]", "pos=0xffffc90000001000", "file.f_path.dentry.d_parent=null", `comm="evil\x1b[2J"`, "pid == 42=true",
		"file.f_path=struct path at 0xffff888000001010", "u8(1)=?", "file.hook=0xffffffff81000000", "count + 1=0x8000000000000001", "x=64", "file.name == 'eightchr'=true", `b'\x00a'="\x00a"`, "file.f_path.dentry.d_parent.d_flags=?"}
	if !slices.Equal(got, want) {
		t.Errorf("%q\nnot\n%q", got, want)
	}
	// Without a word all arguments, those that are no number in their type's form.
	p = compiled(t, "kill", Rule{})
	args, _ := guestos.Args(testProfile(t), "kill")
	h.args, h.regs = args, xenevents.Registers{RDI: ^uint64(0), RSI: 9, RDX: 1, RCX: 2, R8: 0xff00, R9: 7}
	p.Judge(h)
	got = nil
	for _, v := range p.Captured() {
		got = append(got, v.Name+" "+v.Type+" "+v.Text)
	}
	if want := []string{"pid int -1", "sig int 9", "in int 1", "type enum pid_type PIDTYPE_MAX(2)", "ok _Bool false", "v struct iovec "}; !slices.Equal(got, want) {
		t.Errorf("%q\nnot\n%q", got, want)
	}
}

func TestRulesThatMakeNoSense(t *testing.T) {
	p := testProfile(t)
	args, _ := guestos.Args(p, "f")
	for want, r := range map[string]Rule{
		"a key without a threshold": {Key: "pid"}, "a reset without a threshold": {Reset: "true"}, "without a verdict": {Enforce: true}, "exclude each other": {Deny: "EPERM", Set: []string{"rdi=1"}},
		"condition \"x\"": {When: "x"}, "reset \"pid\"": {Reset: "pid", Threshold: 1}, "capture \"x\"": {Capture: []string{"x"}}, "key \"pos\"": {Key: "pos", Threshold: 1}, "message \"a {x\"": {Message: "a {x"},
		"message \"x\"": {Message: "{x}"}, "without a {": {Message: "}"}, "no error of Linux": {Deny: "EBAD"}, "PLACE=VALUE": {Set: []string{"rdi"}}, "33 captures": {Capture: make([]string, 33)}, "17 things": {Set: make([]string, 17)},
		"is no place": {Set: []string{"1=2"}}, "the process's": {Set: []string{"pid=1"}}, "no field": {Set: []string{"file.nosuch=1"}}, "only numbers": {Set: []string{"file.name=1"}}, "set to a number": {Set: []string{`rdi="x"`}},
		"text or bytes": {Set: []string{"mem(pos)=1"}}, "by its index": {Set: []string{"file.ids[0]=1"}}, "has no fields": {Set: []string{"count.x=1"}}, "is no place: ": {Set: []string{"rsp=1 + 1"}},
	} {
		if _, err := Compile(p, Place{Entry: true, Args: args}, r); err == nil || !strings.Contains(err.Error(), want) && want != "is no place: " {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := Compile(p, Place{}, Rule{Deny: "EPERM"}); err == nil || !strings.Contains(err.Error(), "entry") {
		t.Errorf("%v", err)
	}
}

func TestCounts(t *testing.T) {
	p := compiled(t, "f", Rule{When: "type < 100", Key: "type", Threshold: 3, Reset: "flags == 7", Deny: "EPERM", Enforce: true})
	h := newCall(t, testProfile(t))
	judge := func(key, flags uint64) string {
		h.regs.R8, h.regs.RCX = key, flags
		r := p.Judge(h)
		return fmt.Sprintf("%v %d %v", r.Matched, r.Count, r.Verdict.Deny)
	}
	for i, c := range []struct {
		key, flags uint64
		want       string
	}{
		{1, 0, "true 1 false"}, {1, 0, "true 2 false"}, {2, 0, "true 1 false"}, {1, 0, "true 3 true"}, {1, 0, "true 4 true"}, {1, 7, "true 1 false"}, {1, 0, "true 2 false"}, {100, 0, "false 0 false"},
		{2, 7, "true 1 false"}, {1, 0, "true 3 true"},
	} {
		if got := judge(c.key, c.flags); got != c.want {
			t.Errorf("%d: %s, not %s", i, got, c.want)
		}
	}
	if s := p.Stats(); s.Matched != 9 || s.Acted != 3 || s.Errors != 0 || s.Keys != 2 {
		t.Errorf("%+v", s)
	}
	// An attacker who makes keys up costs no memory, and it shows.
	for i := range uint64(3 * maxKeys) {
		judge(uint64(int64(-1)-int64(i))&0xffffffff, 0)
	}
	if s := p.Stats(); s.Keys != maxKeys || s.Dropped != 2*maxKeys+2 || len(p.counts.entries) != maxKeys || p.counts.order.Len() != maxKeys {
		t.Errorf("%+v", s)
	}
	c := newCounter(2)
	for _, n := range []uint64{1, 2, 1, 3, 1, 2} { // 2 goes for 3, then 3 for 2
		c.add(key{n: n})
	}
	if c.dropped != 2 || c.entries[key{n: 1}].Value.(*entry).count != 3 || c.entries[key{n: 2}].Value.(*entry).count != 1 || len(c.entries) != 2 {
		t.Errorf("%+v", c)
	}
	c.reset(key{n: 9})
	c.reset(key{n: 1})
	if len(c.entries) != 1 || c.order.Len() != 1 {
		t.Errorf("%+v", c)
	}
}

func TestVerdicts(t *testing.T) {
	run := func(r Rule, change func(*call)) (*call, Result, *Program) {
		p := compiled(t, "f", r)
		h := newCall(t, testProfile(t))
		if change != nil {
			change(h)
		}
		return h, p.Judge(h), p
	}
	// Observe mode says what would be, and does nothing.
	h, r, _ := run(Rule{When: "flags > 1", Set: []string{"rdi=1", "file.f_mode=1"}, Pause: true}, nil)
	if r.Verdict != (detectors.Verdict{}) || h.mem[fileAt] != 0 || r.Finding == nil || !strings.HasSuffix(r.Finding.Message, "a call matched flags > 1; would be changed (rdi=1), changed (file.f_mode=1), paused in enforce mode") {
		t.Errorf("%+v, %+v", r, r.Finding)
	}
	_, r, _ = run(Rule{Deny: "ENOENT", Enforce: true, Message: "{{{comm}}} {name} {u8(1)}: {flags}"}, nil)
	if !r.Verdict.Deny || r.Verdict.Return != -2 || r.Finding.Severity != detectors.High || r.Finding.Message != `{"evil\x1b[2J"} "/etc/shadow" ?: 0x8241; denied with ENOENT` {
		t.Errorf("%+v, %+v", r, r.Finding)
	}
	for want, err := range map[string]error{"; denied by another detector": detectors.ErrDenied, "; could not be denied: there is no such argument": errArg} {
		if _, r, _ := run(Rule{Deny: "0", Enforce: true}, func(c *call) { c.canDeny = err }); !strings.HasSuffix(r.Finding.Message, want) {
			t.Errorf("%+v", r.Finding)
		}
	}
	h, r, p := run(Rule{Enforce: true, Pause: true, Set: []string{"R15 = count", "type=-5", "arg3=flags", "file.f_mode=0x12345678", "file.mode16=7", "file.ok=false", "u16(addr(file) + 2)=1", "u64(pos)=count", `mem(addr(file) + 80)="ab"`, "rax=true"}}, nil)
	regs := r.Verdict.Registers
	if regs == nil || !r.Verdict.Pause || r.Verdict.Deny || regs.R15 != 1<<63 || regs.R8 != ^uint64(4) || regs.RCX != 0x8241 || regs.RAX != 1 || regs.RDI != fileAt || h.regs.R15 != 0 {
		t.Errorf("%+v, %+v", r, regs)
	}
	v := &view{}
	v.at(h)
	for at, want := range map[uint64]uint64{fileAt: 0x15678, fileAt + 56: 0, fileAt + 80: 0x7268637468676261, posAt: 1 << 63, fileAt + 88: 7} {
		size := map[uint64]uint64{fileAt: 4, fileAt + 56: 1, fileAt + 88: 2}[at]
		if size == 0 {
			size = 8
		}
		if got, err := v.number(at, size); err != nil || got != want {
			t.Errorf("%#x is %#x, not %#x (%v)", at, got, want, err)
		}
	}
	if s := p.Stats(); s.Errors != 0 || s.Acted != 1 {
		t.Errorf("%+v", s)
	}
	h, _, p = run(Rule{Enforce: true, Set: []string{"file.f_mode=5"}, Capture: []string{"file.f_mode"}}, nil)
	if got := p.Captured()[0].Text; got != "0x0" || h.mem[fileAt] != 5 {
		t.Errorf("captured %s, set to %d", got, h.mem[fileAt])
	}
	// What can't be set is left, and said.
	refused := errors.New("read-only")
	_, r, p = run(Rule{Enforce: true, Set: []string{"file.f_mode=1", "rdi=u64(8)", "rsi=1", "file.f_path.dentry.d_parent.d_flags=1"}}, func(c *call) { c.writeErr = refused })
	if regs := r.Verdict.Registers; regs == nil || regs.RDI != fileAt || regs.RSI != 1 || p.Stats().Errors != 3 || strings.Count(r.Finding.Message, "could not set") != 3 {
		t.Errorf("%+v, %+v, %+v", r, r.Finding, p.Stats())
	}
}

func TestWhatFailsMatchesNothing(t *testing.T) {
	p := compiled(t, "f", Rule{When: "u64(addr(file) - 4096) == 1", Deny: "EPERM", Enforce: true})
	h := newCall(t, testProfile(t))
	told := 0
	for range 9 {
		r := p.Judge(h)
		if r.Matched || r.Verdict != (detectors.Verdict{}) {
			t.Errorf("%+v", r)
		}
		if f := r.Finding; f != nil {
			told++
			if f.Severity != detectors.Medium || !strings.Contains(f.Message, "could not be judged") {
				t.Errorf("%+v", f)
			}
		}
	}
	if s := p.Stats(); told != 4 || s.Errors != 9 || s.Matched != 0 || !strings.Contains(s.LastError, "not mapped") {
		t.Errorf("%+v", s)
	}
	p = compiled(t, "f", Rule{Key: "file.f_path.dentry.d_parent.d_flags", Threshold: 1, Deny: "EPERM", Enforce: true})
	if r := p.Judge(h); r.Verdict.Deny || p.Stats().Errors != 1 {
		t.Errorf("%+v, %+v", r, p.Stats())
	}
	// Without a verdict nobody relies on it: it is counted.
	p = compiled(t, "f", Rule{When: "u8(8) == 1", Message: "m"})
	if r := p.Judge(h); r.Finding != nil || p.Stats().Errors != 1 {
		t.Errorf("%+v", r)
	}
	// A rule that does no more than show needs no finding.
	p = compiled(t, "f", Rule{When: "flags == 0x8241"})
	if r := p.Judge(h); !r.Matched || r.Finding != nil || r.Done != "" {
		t.Errorf("%+v", r)
	}
}

// TestEnds: a rule on the end of calls has what they returned, as the function's type
// says, and no arguments.
func TestEnds(t *testing.T) {
	p := testProfile(t)
	args, _ := guestos.Args(p, "f")
	typed := func(name string) isf.Type { return isf.Type{Kind: isf.Base, Name: name} }
	file := isf.Type{Kind: isf.Struct, Name: "file"}
	for _, c := range []struct {
		result isf.Type
		value  uint64
		rule   Rule
		want   string
	}{
		{typed("int"), 0xffffffea, Rule{When: "ret == -22 && pid == 42"}, "ret=-22"},
		{typed("int"), 0x5_00000016, Rule{When: "ret > 0"}, "ret=22"},
		{typed("long unsigned int"), ^uint64(0), Rule{When: "ret > 22"}, "ret=0xffffffffffffffff"},
		{typed("_Bool"), 0xff00, Rule{When: "!ret"}, "ret=false"},
		{isf.Type{Kind: isf.Pointer, Subtype: &file}, fileAt, Rule{When: "ret.ok && ret != null"}, "ret=struct file at 0xffff888000001000"},
		{typed("void"), ^uint64(21), Rule{When: "ret == -22"}, "ret=-22"},
		{isf.Type{}, ^uint64(21), Rule{When: "ret < 0", Threshold: 1, Key: "ret"}, "ret=-22"},
		{typed("int"), 1, Rule{When: "ret == 0"}, ""},
	} {
		c.rule.Capture, c.rule.Set, c.rule.Enforce = []string{"ret"}, []string{"ret=7"}, true
		prog, err := Compile(p, Place{Ends: true, Args: args, Result: c.result}, c.rule)
		if err != nil {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		h := newCall(t, p)
		h.result = &detectors.Return{Value: c.value}
		h.regs.RAX = c.value
		r := prog.Judge(h)
		switch {
		case r.Matched != (c.want != ""):
			t.Errorf("%+v: %+v, %+v", c, r, prog.Stats())
		case r.Matched:
			if v := prog.Captured()[0]; v.Name+"="+v.Text != c.want || r.Verdict.Registers == nil || r.Verdict.Registers.RAX != 7 {
				t.Errorf("%+v: %+v, %+v", c, v, r)
			}
		}
	}
	for want, r := range map[string]Rule{"its arguments are gone": {When: "count > 1"}, "can't be refused": {Deny: "EPERM"}, "are gone; ask": {When: "nothing"}, "ret: it is a struct by value": {When: "ret == 1"}, "struct by value": {Set: []string{"ret=1"}, Enforce: true}} {
		if _, err := Compile(p, Place{Ends: true, Args: args, Result: file, Hint: "ask"}, r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	prog, err := Compile(p, Place{Ends: true}, Rule{When: "ret == 0"})
	if err != nil {
		t.Fatal(err)
	}
	if r := prog.Judge(newCall(t, p)); r.Matched || prog.Stats().Errors != 1 { // at an entry
		t.Errorf("%+v, %+v", r, prog.Stats())
	}
}
