package stopgap

import (
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

// call is a hit: arguments, and the words of the caller's memory.
type call struct {
	detectors.Hit // what a rule does not use panics
	args          []uint64
	words         map[xenevents.GVA]uint64
	reads         int
	canDeny       error
	tid           uint32
}

func (c *call) CanDeny() error { return c.canDeny }

func (c *call) Running() detectors.Running { return running{tid: c.tid} }

// Field has the members of a struct iov_iter one after the other.
func (c *call) Field(n int) uint64 { return 8 * uint64(n) }

type running struct {
	detectors.Running // what a rule does not use panics
	tid               uint32
}

func (r running) TID() (uint32, error) { return r.tid, nil }

var errArg = errors.New("there is no such argument")

func (c *call) Arg(n int) (uint64, error) {
	if n >= len(c.args) {
		return 0, errArg
	}
	return c.args[n], nil
}

func (c *call) ReadUint64(at xenevents.GVA) (uint64, error) {
	c.reads++
	if v, ok := c.words[at]; ok {
		return v, nil
	}
	return 0, xenevents.ErrNotMapped
}

func TestOperand(t *testing.T) {
	h := &call{args: []uint64{0x1000, 0x2000, 3, 4, 5, 6}, words: map[xenevents.GVA]uint64{
		0x1000: 0x5000, 0x1008: 77, 0x5000: 0x6000, 0x5010: 88, 0x6004: 99, 0x2000 + 0xffffffff: 11, 0x0: 1}}
	for text, want := range map[string]uint64{
		"arg0": 0x1000, "arg5": 6, "[arg0]": 0x5000, "[arg0+8]": 77, "[arg0+0x8]": 77, "[arg0+0]": 0x5000, "[ arg0 + 8 ]": 77,
		"[[arg0]+0x10]": 88, "[[arg0]]": 0x6000, "[[[arg0]]+4]": 99, "[arg1+0xffffffff]": 11,
	} {
		o, err := ParseOperand(text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if got, err := o.Eval(h); err != nil || got != want || o.String() != text {
			t.Errorf("%q (%v) is %#x, %v", text, o, got, err)
		}
	}
	for _, bad := range []string{"", "arg", "arg6", "arg9", "arg-1", "arg00", "arg10", "arg0+8", "[arg0", "arg0]", "[arg0+8", "[arg0]]", "[[arg0]", "[arg0-8]", "[arg0+-8]",
		"[arg0++8]", "[arg0 8]", "[arg0+]", "[arg0+x]", "[arg0+0x100000000]", "[arg0+8]x", "rdi", "[]", "[", "[0x1000]", "[arg0+8][arg1]", "[arg0\x1b]",
		strings.Repeat("[", 9) + "arg0" + strings.Repeat("]", 9)} {
		o, err := ParseOperand(bad)
		if err == nil {
			t.Errorf("%q is %+v", bad, o)
		} else if !strings.Contains(err.Error(), "[arg0+8]") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q: %v", bad, err)
		}
	}
	for text, want := range map[string]error{"[arg2]": xenevents.ErrNotMapped, "[[arg2]+8]": xenevents.ErrNotMapped} {
		o, _ := ParseOperand(text)
		h.reads = 0
		if got, err := o.Eval(h); !errors.Is(err, want) || h.reads != 1 {
			t.Errorf("%q is %#x, %v after %d reads", text, got, err, h.reads)
		}
	}
	o, _ := ParseOperand("[arg5]")
	if _, err := o.Eval(&call{}); !errors.Is(err, errArg) {
		t.Errorf("%v", err)
	}
}

func FuzzParseOperand(f *testing.F) {
	for _, s := range []string{"arg1", "[arg0+8]", "[[arg0]+0x10]", "[[[arg5+1]+0x2]+3]"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		o, err := ParseOperand(text)
		if err != nil {
			return
		}
		h := &call{args: []uint64{1, 2, 3, 4, 5, 6}}
		_, _ = o.Eval(h)
		if h.reads > 1 || len(o.offsets) > maxReads || len(o.offsets) != strings.Count(text, "[") {
			t.Errorf("%q reads %d times", text, len(o.offsets))
		}
	})
}

func TestErrno(t *testing.T) {
	for name, want := range map[string]Errno{"EFAULT": 14, "efault": 14, "EINVAL": 22, "EPERM": 1, "ENOMEM": 12, "EACCES": 13, "ENOSYS": 38} {
		if got, err := ParseErrno(name); err != nil || got != want || got.String() != strings.ToUpper(name) {
			t.Errorf("%s is %d (%v), %v", name, int(got), got, err)
		}
	}
	for _, bad := range []string{"", "14", "FAULT", "EFAULT ", "E\x1b[2J"} {
		if got, err := ParseErrno(bad); err == nil || !strings.Contains(err.Error(), "EACCES, EFAULT, EINVAL") || strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%q is %v, %v", bad, got, err)
		}
	}
	if got := Errno(99).String(); got != "errno 99" {
		t.Errorf("%q", got)
	}
}

func TestNew(t *testing.T) {
	length := &Operand{}
	good := Rule{Name: "x", At: "f", Limit: 1, Errno: EINVAL, Length: length}
	if _, err := New(good, true); err != nil {
		t.Error(err)
	}
	for what, change := range map[string]func(*Rule){
		"name": func(r *Rule) { r.Name = "" }, "place": func(r *Rule) { r.At = "" }, "limit": func(r *Rule) { r.Limit = 0 },
		"no errno is 0": func(r *Rule) { r.Errno = 0 }, "no errno is 4096": func(r *Rule) { r.Errno = 4096 }, "no errno is -14": func(r *Rule) { r.Errno = -14 },
		"where the length is": func(r *Rule) { r.Length = nil },
	} {
		r := good
		change(&r)
		if _, err := New(r, false); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := Known("nosuch"); err == nil || !strings.Contains(err.Error(), "vmsplice") {
		t.Errorf("%v", err)
	}
	for _, r := range Rules() {
		if got, err := Known(r.Name); err != nil || got.At != r.At {
			t.Errorf("%s: %v", r.Name, err)
		}
		if _, err := New(r, true); err != nil {
			t.Errorf("%s: %v", r.Name, err)
		}
	}
	Rules()[0].Name = "changed"
	if _, err := Known("vmsplice"); err != nil {
		t.Error("a caller changed the rules")
	}
}

// iovec puts struct iovecs into the caller's memory.
func iovec(at xenevents.GVA, lengths ...uint64) map[xenevents.GVA]uint64 {
	words := map[xenevents.GVA]uint64{}
	for i, n := range lengths {
		words[at+xenevents.GVA(16*i)], words[at+xenevents.GVA(16*i+8)] = ^uint64(0), n // a huge base is no length
	}
	return words
}

func TestVmsplice(t *testing.T) {
	const at = 0x7ffd_0000_1000
	for name, c := range map[string]struct {
		segments uint64
		lengths  []uint64
		fact     string // of the attempt; "" for none
		reads    int
	}{
		"honest":                     {2, []uint64{4096, 0x7ffffffe}, "", 2},
		"the exploit's":              {1, []uint64{^uint64(0)}, "iov[0].iov_len", 1},
		"just too long":              {1, []uint64{0x7fffffff}, "iov[0].iov_len", 1},
		"the third":                  {4, []uint64{1, 2, 1 << 63, 1 << 62}, "iov[2].iov_len", 3},
		"behind the last":            {1, []uint64{1, 1 << 63}, "", 1},
		"none":                       {0, nil, "", 0},
		"swapped out":                {2, []uint64{1}, "", 2}, // the copy is looked at
		"swapped out behind it":      {3, []uint64{1 << 63}, "iov[0].iov_len", 1},
		"more segments than allowed": {^uint64(0), make([]uint64, 2000), "", 1024},
	} {
		for _, fix := range []bool{false, true} {
			rule, err := Known("vmsplice")
			if err != nil {
				t.Fatal(err)
			}
			d, err := New(rule, fix)
			if err != nil {
				t.Fatal(err)
			}
			h := &call{args: []uint64{5, at, c.segments, 0}, words: iovec(at, c.lengths...)}
			out := d.Probes()[0].Handle(h)
			attempt := c.fact != ""
			if h.reads != c.reads || d.Attempts() != uint64(map[bool]int{true: 1}[attempt]) {
				t.Errorf("%s: %d reads, %d attempts", name, h.reads, d.Attempts())
			}
			wantVerdict := detectors.Verdict{}
			if attempt && fix {
				wantVerdict = detectors.Verdict{Deny: true, Return: -14}
			}
			if out.Verdict != wantVerdict {
				t.Errorf("%s, fix %v: %+v", name, fix, out.Verdict)
			}
			switch f := out.Finding; {
			case !attempt:
				if f != nil {
					t.Errorf("%s: %+v", name, f)
				}
			case f == nil:
				t.Errorf("%s: no finding", name)
			default:
				if f.Severity != detectors.High || len(f.Facts) != 2 || f.Facts[0].Name != c.fact || f.Facts[1] != (detectors.Fact{Name: "limit", Value: 0x7fffffff}) {
					t.Errorf("%s: %+v", name, f)
				}
				if strings.Contains(f.Message, "refused with EFAULT") != fix || strings.Contains(f.Message, "reported only") == fix {
					t.Errorf("%s: %q", name, f.Message)
				}
			}
		}
	}
}

func TestARuleOfOnesOwn(t *testing.T) {
	length, err := ParseOperand("[arg0+8]")
	if err != nil {
		t.Fatal(err)
	}
	d, err := New(Rule{Name: "vuln", At: "vuln!vuln_copy", Limit: 0x1001, Errno: EINVAL, Length: length}, true)
	if err != nil {
		t.Fatal(err)
	}
	if p := d.Probes(); len(p) != 1 || !p[0].Vital || p[0].At != "vuln!vuln_copy" || p[0].Name != "stopgap/vuln" || d.Name() != "stopgap/vuln" || !d.Fix() {
		t.Errorf("%+v", p)
	}
	if got := d.Rule().Title; got != "vuln!vuln_copy() with too large a length" {
		t.Errorf("it is called %q", got)
	}
	for n, deny := range map[uint64]bool{0: false, 0x1000: false, 0x1001: true, 1 << 63: true} {
		out := d.Probes()[0].Handle(&call{args: []uint64{0x100}, words: map[xenevents.GVA]uint64{0x108: n}})
		if out.Verdict.Deny != deny || deny && (out.Verdict.Return != -22 || out.Finding.Facts[0] != (detectors.Fact{Name: "[arg0+8]", Value: n})) {
			t.Errorf("%#x: %+v", n, out)
		}
	}
}

func TestTheMessageClaimsNoRefusalThatWasNone(t *testing.T) {
	rule, _ := Known("vmsplice")
	d, err := New(rule, true)
	if err != nil {
		t.Fatal(err)
	}
	for want, canDeny := range map[string]error{
		"; refused with EFAULT":                     nil,
		"; refused by another detector":             detectors.ErrDenied,
		"; could not be refused: " + errArg.Error(): errArg,
	} {
		out := d.Probes()[0].Handle(&call{args: []uint64{5, 0x1000, 1}, words: iovec(0x1000, 1<<63), canDeny: canDeny})
		if out.Finding == nil || !strings.HasSuffix(out.Finding.Message, want) {
			t.Errorf("%v: %+v", canDeny, out.Finding)
		}
	}
}
