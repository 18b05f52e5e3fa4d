package condition

import (
	"strings"
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/xenevents"
)

// sight is what a source saw.
type sight struct {
	call
	seen detectors.Seen
}

func (s *sight) Seen() (detectors.Seen, bool) { return s.seen, true }

func newSight() *sight {
	s := &sight{seen: detectors.Seen{Old: 0x3606f0, New: 0x2606f0, Leaf: 0x40000000, Subleaf: 1, Access: xenevents.AccessRW, At: 0xffff888000001000, Size: 4}}
	s.regs = xenevents.Registers{RIP: 0xffffffff81000000, RAX: 1, RBX: 0xffffffff00000002, RCX: 3, RDX: 4}
	s.task = task{pid: 42, tid: 43, comm: "evil"}
	return s
}

func TestRulesOfSources(t *testing.T) {
	p := testProfile(t)
	for _, c := range []struct {
		of   Of
		when string
		want bool
	}{
		{Register, "mask(old, 0x100000) != 0 && mask(new, 0x100000) == 0", true}, {Register, "new == 0x2606f0 && old > new", true}, {Register, "new == old", false},
		{Register, `comm == "evil" && pid == 42 && cpl == 0 && rip > 0xffffffff80000000u`, true},
		{CPUID, "leaf == 0x40000000 && subleaf == 1 && ebx == 2 && edx == 4", true}, {CPUID, "eax != 1", false},
		{Memory, `access == "rw" && address == 0xffff888000001000u && length == 4 && new != 0`, true}, {Memory, `access.contains("x")`, false},
	} {
		prog, err := Compile(p, Place{Of: c.of}, Rule{When: c.when})
		if err != nil {
			t.Errorf("%s: %v", c.when, err)
			continue
		}
		if r := prog.Judge(newSight()); r.Matched != c.want || prog.Stats().Errors != 0 {
			t.Errorf("%s: %+v, %+v", c.when, r, prog.Stats())
		}
	}
	for when, want := range map[string]string{"arg0 == 1": "and old, new, rip, cpl", "leaf == 1": "leaf", "ret == 1": "ret"} {
		if _, err := Compile(p, Place{Of: Register}, Rule{When: when}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", when, err)
		}
	}
}

func TestCapturesOfSources(t *testing.T) {
	p := testProfile(t)
	for of, want := range map[Of]string{
		Register: "old=0x3606f0 new=0x2606f0 rip=0xffffffff81000000",
		CPUID:    "leaf=0x40000000 subleaf=0x1 eax=0x1 ebx=0x2 ecx=0x3 edx=0x4 rip=0xffffffff81000000",
		Memory:   `access="rw" address=0xffff888000001000 length=0x4 old=0x3606f0 new=0x2606f0 rip=0xffffffff81000000`,
	} {
		prog, err := Compile(p, Place{Of: of}, Rule{})
		if err != nil {
			t.Fatal(err)
		}
		prog.Judge(newSight())
		var all []string
		for _, v := range prog.Captured() {
			all = append(all, v.Name+"="+v.Text)
		}
		if got := strings.Join(all, " "); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
	prog, err := Compile(p, Place{Of: Memory}, Rule{When: "new == 1"})
	if err != nil {
		t.Fatal(err)
	}
	s := newSight()
	s.seen.Unknown = true
	if r := prog.Judge(s); r.Matched || !strings.Contains(prog.Stats().LastError, "not known") {
		t.Errorf("%+v, %+v", r, prog.Stats())
	}
}

func TestVerdictsOfSources(t *testing.T) {
	p := testProfile(t)
	for _, c := range []struct {
		at   Place
		rule Rule
		want string // of the error
	}{
		{Place{Of: Register, Deniable: true}, Rule{Deny: "write"}, ""}, {Place{Of: Register, Deniable: true}, Rule{Deny: "EPERM"}, "deny write"},
		{Place{Of: Register}, Rule{Deny: "write"}, "can't be denied"}, {Place{Of: CPUID}, Rule{Set: []string{"rax=1"}}, "set"}, {Place{Of: Register, Async: true}, Rule{Pause: true}, "async"},
		{Place{Entry: true}, Rule{Deny: "write"}, "deny"},
	} {
		if _, err := Compile(p, c.at, c.rule); (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v, %+v: %v", c.at, c.rule, err)
		}
	}
	prog, err := Compile(p, Place{Of: Register, Deniable: true}, Rule{When: "mask(new, 0x100000) == 0", Deny: "write", Enforce: true})
	if err != nil {
		t.Fatal(err)
	}
	s := newSight()
	r := prog.Judge(s)
	if !r.Verdict.Deny || r.Done != "denied" || !strings.HasPrefix(r.Finding.Message, "a write matched ") {
		t.Errorf("%+v, %+v", r, r.Finding)
	}
	s.canDeny = detectors.ErrDenied
	if r := prog.Judge(s); !strings.Contains(r.Done, "another detector") {
		t.Errorf("%+v", r)
	}
}
