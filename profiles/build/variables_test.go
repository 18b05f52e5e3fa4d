package build

import (
	"bytes"
	"testing"

	"github.com/cilium/ebpf/btf"

	"github.com/hprobe/hprobe/profiles/isf"
)

func converted(t *testing.T, types ...btf.Type) *isf.Builder {
	t.Helper()
	builder, err := btf.NewBuilder(types, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := builder.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	out := isf.NewBuilder()
	m := &memory{left: 1 << 20, pieces: []*piece{{name: ".BTF", size: uint64(len(raw)), data: bytes.NewReader(raw)}}}
	if _, err := addBTF(m, nil, out); err != nil {
		t.Fatal(err)
	}
	return out
}

// TestNamesByTypedefs: what has a name by a typedef only has that one, once, and if
// nothing else has it.
func TestNamesByTypedefs(t *testing.T) {
	word := &btf.Int{Name: "unsigned int", Size: 4}
	one := func(size uint32) *btf.Struct {
		return &btf.Struct{Size: size, Members: []btf.Member{{Name: "val", Type: word}}}
	}
	caps := one(8)
	out := converted(t,
		&btf.Typedef{Name: "kernel_cap_t", Type: caps}, &btf.Typedef{Name: "second_name_t", Type: caps},
		&btf.Struct{Name: "cred", Size: 8, Members: []btf.Member{{Name: "cap", Type: &btf.Typedef{Name: "kernel_cap_t", Type: caps}}}},
		&btf.Typedef{Name: "both", Type: one(16)}, &btf.Struct{Name: "both", Size: 24},
		&btf.Typedef{Name: "choice_t", Type: &btf.Enum{Size: 4, Values: []btf.EnumValue{{Name: "A"}}}},
	)
	if u := out.Users["kernel_cap_t"]; u.Size != 8 {
		t.Errorf("%+v", out.Users)
	}
	if of := out.Users["cred"].Fields["cap"].Type; of != aStruct("kernel_cap_t") {
		t.Errorf("cred.cap is a %v", of)
	}
	if _, ok := out.Users["second_name_t"]; ok || out.Users["both"].Size != 24 || len(out.Users) != 4 {
		t.Errorf("%+v", out.Users)
	}
	if len(out.Enums["choice_t"].Constants) != 1 {
		t.Errorf("%+v", out.Enums)
	}
}

// TestVariables: those of BTF, and those that every kernel has, with the types that this one has.
func TestVariables(t *testing.T) {
	task, word := &btf.Struct{Name: "task_struct", Size: 64}, &btf.Int{Name: "unsigned int", Size: 4}
	out := converted(t, task, &btf.Struct{Name: "kset", Size: 8}, &btf.Struct{Name: "gate_struct", Size: 16},
		&btf.Datasec{Name: ".data..percpu", Size: 12, Vars: []btf.VarSecinfo{
			{Type: &btf.Var{Name: "current_task", Type: &btf.Pointer{Target: task}, Linkage: btf.GlobalVar}, Size: 8},
			{Type: &btf.Var{Name: "log_buf_len", Type: task, Linkage: btf.GlobalVar}, Offset: 8, Size: 4},
		}}, word)
	for _, name := range []string{"init_task", "module_kset", "idt_table", "init_mm", "log_buf_len", "current_task", "do_exit"} {
		out.Symbols = append(out.Symbols, isf.Symbol{Name: name})
	}
	addVariables(out)
	want := map[string]string{
		"init_task": "struct task_struct", "module_kset": "struct kset *", "idt_table": "struct gate_struct[256]",
		"current_task": "struct task_struct *", "log_buf_len": "struct task_struct", // BTF knows better
	}
	for name, of := range out.Vars {
		if of.String() != want[name] {
			t.Errorf("%s is a %s", name, of)
		}
	}
	if len(out.Vars) != len(want) {
		t.Errorf("%+v", out.Vars)
	}
}
