package condition

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/detectors"
)

// TestSharedCounter: one rule counts, another one sets back, a third one acts.
func TestSharedCounter(t *testing.T) {
	c := NewCounter()
	count := compiled(t, "f", Rule{Counter: c, Key: "tid"})
	clear := compiled(t, "f", Rule{Counter: c, Key: "tid", Clear: true, When: "flags == 9"})
	act := compiled(t, "f", Rule{Counter: c, Key: "tid", Threshold: 3, Sparse: true, Pause: true, Enforce: true})
	h := newCall(t, testProfile(t))
	flags := h.regs.RCX
	judge := func(p *Program, tid uint32) Result {
		h.task.tid = tid
		return p.Judge(h)
	}
	if r := judge(count, 1); !r.Matched || r.Count != 1 || r.Finding != nil || r.Verdict != (detectors.Verdict{}) {
		t.Errorf("%+v", r)
	}
	judge(count, 2)
	if r := judge(act, 1); r.Count != 2 || r.Verdict.Pause {
		t.Errorf("%+v", r)
	}
	if r := judge(clear, 1); r.Matched { // flags are others
		t.Errorf("%+v", r)
	}
	// Each match from the third on has the verdict, few of them a finding.
	var told []uint64
	for range 22 {
		r := judge(act, 1)
		if !r.Verdict.Pause || r.Done == "" {
			t.Errorf("%+v", r)
		}
		if r.Finding != nil {
			told = append(told, r.Count)
		}
	}
	if want := []uint64{3, 6, 12, 24}; !slices.Equal(told, want) {
		t.Errorf("findings at %d", told)
	}
	h.regs.RCX = 9
	if r := judge(clear, 1); !r.Matched || r.Count != 0 || r.Finding != nil {
		t.Errorf("%+v", r)
	}
	h.regs.RCX = flags
	if r := judge(act, 1); r.Count != 1 || r.Verdict.Pause {
		t.Errorf("%+v", r)
	}
	if r := judge(act, 2); r.Count != 2 {
		t.Errorf("%+v", r)
	}
	if s := act.Stats(); s.Acted != 22 || s.Keys != 2 {
		t.Errorf("%+v", s)
	}
	for want, r := range map[string]Rule{"does not count": {Clear: true}, "has no threshold": {Clear: true, Counter: c, Threshold: 2}} {
		if err := r.Check(Place{Entry: true}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v", err)
		}
	}
}

// TestFindingsOfRules: what a rule says of its findings.
func TestFindingsOfRules(t *testing.T) {
	info := detectors.Informational
	for _, c := range []struct {
		rule Rule
		want string
	}{
		{Rule{}, "none"}, {Rule{Report: true, Tags: []string{"a", "b"}}, "medium a call [a b]"}, {Rule{Report: true, Severity: &info, Message: "m {pid}"}, "info m 42 []"},
		{Rule{Deny: "EPERM"}, "high a call; would be denied with EPERM in enforce mode []"}, {Rule{Deny: "EPERM", Severity: &info}, "info a call; would be denied with EPERM in enforce mode []"},
	} {
		r := compiled(t, "f", c.rule).Judge(newCall(t, testProfile(t)))
		got := "none"
		if f := r.Finding; f != nil {
			got = fmt.Sprintf("%v %s %v", f.Severity, f.Message, f.Tags)
		}
		if got != c.want {
			t.Errorf("%+v: %s", c.rule, got)
		}
	}
}

// TestCurrentAndRegisters: what is not the function's.
func TestCurrentAndRegisters(t *testing.T) {
	h := newCall(t, testProfile(t))
	h.put64(taskAt, 0x40)
	h.put64(taskAt+8, taskAt+64)
	h.put64(taskAt+64, 7)
	h.regs.R15, h.regs.RSP = 1<<63, 8
	for _, when := range []string{"current.flags == 64", "current.real_parent.flags == 7", "reg.r15 == 0x8000000000000000u && reg.rsp == 8", "addr(current) == " + fmt.Sprintf("%#xu", uint64(taskAt)), "current != null"} {
		p := compiled(t, "f", Rule{When: when})
		if r := p.Judge(h); !r.Matched {
			t.Errorf("%s: %+v", when, p.Stats())
		}
	}
	for when, want := range map[string]string{"current.flag == 1": "did you mean 'flags'", "reg.rxx == 1": "did you mean 'reg.rax'"} {
		if _, err := newScope(t, testProfile(t), "f").Condition(when); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", when, err)
		}
	}
}

// TestCountingAllocatesNothing: a loop's body may be hit often.
func TestCountingAllocatesNothing(t *testing.T) {
	h := newCall(t, testProfile(t))
	for _, key := range []string{"tid", "flags", "reg.rdi", "file.f_count", "current.flags", ""} {
		h.put64(taskAt, 0x40)
		p := compiled(t, "f", Rule{When: "pid == 42", Counter: NewCounter(), Key: key, Threshold: 1 << 40, Sparse: true})
		run := func() {
			h.task.asked = h.task.asked[:0]
			p.Judge(h)
		}
		run()
		if n := testing.AllocsPerRun(100, run); n != 0 {
			t.Errorf("key %q: %v allocations a hit", key, n)
		}
		if s := p.Stats(); s.Matched < 100 || s.Errors != 0 || s.Keys != 1 {
			t.Errorf("key %q: %+v", key, s)
		}
	}
}

func TestSyntax(t *testing.T) {
	s, err := NewSyntax()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		check func(string) error
		good  []string
		bad   []string
	}{
		{s.Expression, []string{"a == 1", "no_such.field > x && str(y).startsWith('z')", "arg.`in` == 1"}, []string{"", " ", "a ==", "a b", strings.Repeat("(", 100), strings.Repeat("x", 5000)}},
		{s.Capture, []string{"a", "n=a.b", "a == b"}, []string{"n=", "a=b=", "n = )"}},
		{s.Assignment, []string{"rdi=1", "file.f = x + 1", "mem(addr(x))='a'"}, []string{"rdi", "=1", "rdi=", "(=1"}},
		{s.Message, []string{"", "a", "{a} {{b}} {n=c}"}, []string{"{", "}", "{a", "{}", "{a ==}"}},
	} {
		for _, text := range c.good {
			if err := c.check(text); err != nil {
				t.Errorf("%q: %v", text, err)
			}
		}
		for _, text := range c.bad {
			if err := c.check(text); err == nil {
				t.Errorf("%q: no error", text)
			}
		}
	}
}
