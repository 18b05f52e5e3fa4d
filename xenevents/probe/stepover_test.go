package probe_test

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/probe"
	"github.com/hprobe/hprobe/xenevents/sim"
)

// A function begins with the instruction that is stepped over.
var steppedOver = []struct {
	name    string
	code    []byte
	emulate bool
}{
	{"endbr64", []byte{0xf3, 0x0f, 0x1e, 0xfa, 0xc3}, true},
	{"nop", []byte{0x90, 0xc3}, true},
	{"nopl", []byte{0x0f, 0x1f, 0x44, 0, 0, 0xc3}, true},
	{"push", []byte{0x55, 0x5d, 0xc3}, true},
	{"mov from a register", []byte{0x48, 0x89, 0xf8, 0xc3}, true},
	{"mov of a constant", []byte{0x48, 0xc7, 0xc0, 9, 0, 0, 0, 0xc3}, true},
	{"sub", []byte{0x48, 0x83, 0xec, 8, 0x58, 0xc3}, true},
	{"lea", []byte{0x48, 0x8d, 0x44, 0x37, 4, 0xc3}, true},
	{"lea by rip", []byte{0x48, 0x8d, 5, 0x10, 0, 0, 0, 0xc3}, true},
	{"xor", []byte{0x31, 0xc0, 0xc3}, true},
	{"and", []byte{0x48, 0x21, 0xf0, 0xc3}, true},
	{"or", []byte{0x48, 0x09, 0xf0, 0xc3}, true},
	{"add", []byte{0x48, 0x01, 0xf0, 0xc3}, true},
	{"cmp", []byte{0x48, 0x39, 0xf0, 0xc3}, true},
	{"test", []byte{0x48, 0x85, 0xf0, 0xc3}, true},
	{"load", []byte{0x48, 0x8b, 0x07, 0xc3}, false},
	{"store", []byte{0x48, 0x89, 0x37, 0xc3}, false},
	{"call", []byte{0xe8, 1, 0, 0, 0, 0xc3, 0x31, 0xc0, 0xc3}, true},
	{"jmp", []byte{0xeb, 1, 0x90, 0xc3}, true},
	{"ret", []byte{0xc3}, true},
}

// TestStepOver: all instructions in all ways do what they do without a probe.
func TestStepOver(t *testing.T) {
	for _, c := range steppedOver {
		for _, step := range []probe.StepOver{probe.Auto, probe.Emulate, probe.FastStep, probe.SingleStep} {
			t.Run(fmt.Sprintf("%s, %v", c.name, step), func(t *testing.T) { stepOver(t, c.code, c.emulate, step) })
		}
	}
}

func stepOver(t *testing.T, code []byte, emulate bool, step probe.StepOver) {
	r := newRig(t, sim.Config{})
	r.poke(free, code...)
	run := func() (xenevents.Registers, []byte) {
		t.Helper()
		r.poke(dataAt, 1, 2, 3, 4, 5, 6, 7, 8)
		r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RAX, regs.RBP = 0xa0a0_a0a0_a0a0_a0a0, 0xb0 })
		r.run(0, sim.Call(free, uint64(dataAt), 0x1122_3344_5566_7788))
		return r.cpu(0).Registers(), r.peek(dataAt, 8)
	}
	wantRegs, wantData := run()
	id, err := r.try(free, step, nil)
	if step == probe.Emulate && !emulate {
		if err == nil || r.stats().Shadows != 0 {
			t.Errorf("it is emulated: %v", err)
		}
		return
	}
	r.must(err)
	want := step
	if step == probe.Auto {
		want = map[bool]probe.StepOver{true: probe.Emulate, false: probe.FastStep}[emulate]
	}
	if regs, data := run(); regs != wantRegs || !bytes.Equal(data, wantData) {
		t.Errorf("with a probe: %+v and % x\nwithout: %+v and % x", regs, data, wantRegs, wantData)
	}
	if s := r.status(id); s.Hits != 1 || s.Step != want {
		t.Errorf("%+v", s)
	}
	ends := uint64(0)
	if want == probe.SingleStep {
		ends = 1
	}
	if s := r.stats(); s.Events["int3"] != 1 || s.Events["singlestep"] != ends || len(s.Events) != int(1+ends) {
		t.Errorf("%+v", s)
	}
	if r.cpu(0).View() == xenevents.HostView {
		t.Error("the vCPU stays in view 0")
	}
	if got := r.peek(free, len(code)); !bytes.Equal(got, code) {
		t.Errorf("the guest's memory is % x", got)
	}
}

// TestRepeats: a string instruction with rep is one hit, however often it repeats.
func TestRepeats(t *testing.T) {
	for _, step := range []probe.StepOver{probe.Auto, probe.SingleStep} {
		for _, set := range []bool{false, true} {
			r := newRig(t, sim.Config{})
			r.poke(free, 0xf3, 0xaa, 0xc3) // rep stosb; ret
			for _, no := range []probe.StepOver{probe.Emulate, probe.FastStep} {
				if _, err := r.try(free, no, nil); err == nil {
					t.Errorf("it is stepped over by %v", no)
				}
			}
			id, err := r.try(free, step, func(h *probe.Hit) probe.Verdict {
				if !set {
					return probe.Verdict{}
				}
				regs := *h.Regs
				regs.RAX++
				return probe.Verdict{Action: probe.SetRegs, Regs: &regs}
			})
			r.must(err)
			for i, n := range []uint64{5, 0, 1} {
				r.poke(dataAt, 9, 9, 9, 9, 9, 9)
				r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RAX, regs.RCX = 3, n })
				r.run(0, sim.Call(free, uint64(dataAt)))
				want := bytes.Repeat([]byte{9}, 6)
				for k := range n {
					want[k] = map[bool]byte{false: 3, true: 4}[set]
				}
				if got := r.peek(dataAt, 6); !bytes.Equal(got, want) {
					t.Errorf("%v, %d times: % x", step, n, got)
				}
				if s := r.status(id); s.Hits != uint64(i+1) || s.Step != probe.SingleStep {
					t.Errorf("%v, %d times: %+v", step, n, s)
				}
			}
			// Steps: 5, 1 and 1; then the way is free.
			if s := r.stats(); s.Events["int3"] != 3 || s.Events["singlestep"] != 7 || r.cpu(0).View() == xenevents.HostView {
				t.Errorf("%+v", s)
			}
		}
	}
}

// TestTrapFlag: the guest steps itself. What is stepped has a second step behind
// it, in the view, and what is hit in that one is answered like any other.
func TestTrapFlag(t *testing.T) {
	const trapFlag = 0x100
	for _, step := range []probe.StepOver{probe.FastStep, probe.SingleStep} {
		for _, second := range []probe.StepOver{probe.Emulate, probe.FastStep, probe.SingleStep} {
			r := newRig(t, sim.Config{})
			r.poke(free, 0x31, 0xc0, 0x48, 0x01, 0xf8, 0x48, 0x01, 0xf0, 0xc3) // xor eax,eax; add rax,rdi; add rax,rsi; ret
			a, err := r.try(free, step, nil)
			r.must(err)
			b, err := r.try(free+2, second, nil)
			r.must(err)
			r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RFLAGS |= trapFlag })
			for i := range uint64(3) {
				if got := r.call(free, 40, 2); got != 42 {
					t.Errorf("%v, %v: %d", step, second, got)
				}
				if r.status(a).Hits != i+1 || r.status(b).Hits != i+1 {
					t.Errorf("%v, %v: %d and %d hits after %d calls", step, second, r.status(a).Hits, r.status(b).Hits, i+1)
				}
			}
			r.cpu(0).Set(func(regs *xenevents.Registers) { regs.RFLAGS &^= trapFlag })
			before := r.stats().Events["singlestep"]
			r.run(0, sim.Write(free+0x40, 1))
			if got := r.call(sum, 1, 2); got != 3 || r.stats().Events["singlestep"] != before+1 || r.cpu(0).View() == xenevents.HostView {
				t.Errorf("%v, %v: %d; it steps on: %+v", step, second, got, r.stats())
			}
		}
	}
}

// TestAcrossPages: the instruction goes on in a page that is no neighbour in
// memory, and that the guest may change without being seen.
func TestAcrossPages(t *testing.T) {
	const at = codeAt + xenevents.PageSize - 3
	for _, step := range []probe.StepOver{probe.Auto, probe.FastStep, probe.SingleStep} {
		r := newRig(t, sim.Config{})
		r.poke(at, 0xb8, 1, 2, 3, 4, 0xc3) // mov eax,0x04030201; ret
		if _, err := r.try(at, probe.Emulate, nil); err == nil {
			t.Error("it is emulated")
		}
		id, err := r.try(at, step, nil)
		r.must(err)
		if got := r.call(at); got != 0x04030201 {
			t.Errorf("%v: %#x", step, got)
		}
		r.run(0, sim.Write(at+3, 5))
		if got := r.call(at); got != 0x04050201 {
			t.Errorf("%v: %#x after a write", step, got)
		}
		if s := r.status(id); s.Hits != 2 || r.stats().Shadows != 1 || r.stats().Writes != 0 {
			t.Errorf("%+v", s)
		}
	}
}

func TestAddFails(t *testing.T) {
	r := newRig(t, sim.Config{})
	end := otherAt + xenevents.PageSize // behind it nothing is mapped
	r.poke(end-3, 0x90, 0xe8, 0)
	r.poke(free, 0x0f, 0x1e, 0xfa) // a hint that x86asm does not have
	r.poke(free+8, 0x66, 0x0f, 0x1e, 0xfa)
	for _, c := range []struct {
		name string
		at   xenevents.GVA
		is   error
		says string
	}{
		{"not mapped", 0x1000, xenevents.ErrNotMapped, `"name"`},
		{"not canonical", 0x8000_0000_0000_0000, xenevents.ErrNotMapped, "canonical"},
		{"an int3 of the guest's", own, nil, "int3 of its own"},
		{"cut off", end - 2, nil, "no instruction"},
		{"unknown", free, nil, "no instruction"},
		{"unknown, with a prefix", free + 8, nil, "no instruction"},
	} {
		_, err := r.try(c.at, probe.Auto, nil)
		if err == nil || c.is != nil && !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	r.space.Map(0x5000, r.gpa(dataAt).GFN()+5000)
	if _, err := r.try(0x5000, probe.Auto, nil); !errors.Is(err, xenevents.ErrAbsent) {
		t.Errorf("mapped to nothing: %v", err)
	}
	if s := r.stats(); s.Shadows != 0 {
		t.Errorf("%+v", s)
	}
	r.add(end-3, nil) // the last that is whole
}

// TestWithoutSteps: a CPU without the monitor trap flag.
func TestWithoutSteps(t *testing.T) {
	r := newRig(t, sim.Config{Without: []xenevents.Kind{xenevents.KindSingleStep}})
	for _, c := range []struct {
		at   xenevents.GVA
		step probe.StepOver
	}{{load, probe.Auto}, {load, probe.FastStep}, {sum, probe.FastStep}, {sum, probe.SingleStep}} {
		if _, err := r.try(c.at, c.step, nil); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%v at %v: %v", c.step, c.at, err)
		}
	}
	if !r.log.has("no single-step") {
		t.Error("the log does not tell")
	}
	id := r.add(sum, nil)
	if got := r.call(sum, 1, 2); got != 3 || r.status(id).Hits != 1 {
		t.Errorf("it returned %d; %+v", got, r.status(id))
	}
}

func TestStepOverNames(t *testing.T) {
	for _, s := range []probe.StepOver{probe.Auto, probe.Emulate, probe.FastStep, probe.SingleStep} {
		if got, err := probe.ParseStepOver(s.String()); got != s || err != nil {
			t.Errorf("%v becomes %v, %v", s, got, err)
		}
	}
	if _, err := probe.ParseStepOver("fast"); err == nil || !strings.Contains(err.Error(), "fast-singlestep") {
		t.Error(err)
	}
	if got := probe.StepOver(9).String(); got != "StepOver(9)" {
		t.Error(got)
	}
	if got := fmt.Sprint(probe.Continue, probe.Deny, probe.SetRegs, probe.Armed, probe.Displaced, probe.Failed); got != "continue deny set registers armed displaced failed" {
		t.Error(got)
	}
}
