package isf

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// The files in testdata are made by hand. In each there is what the producers and
// versions of ISF have that others have not.

func testdata(t *testing.T, name string) *Profile {
	t.Helper()
	p, err := ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// want is what is in a form.
type want struct {
	meta    Meta
	symbols map[string]uint64
	fields  map[string]uint64 // "struct.path": offset
	types   map[string]string // of fields and symbols
	sizes   map[string]uint64 // of fields
}

func (w *want) check(t *testing.T, p *Profile) {
	t.Helper()
	if p.Meta() != w.meta {
		t.Errorf("%+v\nnot\n%+v", p.Meta(), w.meta)
	}
	if p.NumSymbols() != len(w.symbols) {
		t.Errorf("%d symbols", p.NumSymbols())
	}
	for name, at := range w.symbols {
		if got, err := p.Address(name); err != nil || got != at {
			t.Errorf("%s is at %#x, %v", name, got, err)
		}
	}
	field := func(path string) Location {
		of, path, _ := strings.Cut(path, ".")
		at, err := p.Field(of, path)
		if err != nil {
			t.Error(err)
		}
		return at
	}
	for path, offset := range w.fields {
		if at := field(path); at.Offset != offset {
			t.Errorf("%s is at %d", path, at.Offset)
		}
	}
	for path, size := range w.sizes {
		if got, err := p.SizeOf(field(path).Type); err != nil || got != size {
			t.Errorf("%s has %d bytes, %v", path, got, err)
		}
	}
	for name, text := range w.types {
		if strings.Contains(name, ".") {
			if of := field(name).Type; of.String() != text {
				t.Errorf("%s is a %s", name, of)
			}
		} else if of, err := p.Var(name); err != nil || of.String() != text {
			t.Errorf("%s is a %s, %v", name, of, err)
		}
	}
}

// checkAll checks it, and what is read of it when it was written.
func (w *want) checkAll(t *testing.T, p *Profile) {
	t.Helper()
	w.check(t, p)
	var json, packed, compact bytes.Buffer
	if err := errors.Join(p.WriteJSON(&json), p.WriteJSONXZ(&packed), p.WriteCompact(&compact)); err != nil {
		t.Fatal(err)
	}
	for _, b := range [][]byte{json.Bytes(), packed.Bytes(), compact.Bytes()} {
		again, err := Read(b)
		if err != nil {
			t.Fatalf("%s: %v", json.Bytes(), err)
		}
		w.check(t, again)
	}
}

func TestDwarf2json(t *testing.T) {
	w := want{
		meta:    Meta{Banner: "Linux version 6.12 (builder@host) #1 SMP", Source: "dwarf2json 0.9.0"},
		symbols: map[string]uint64{"do_exit": 0xffffffff81095000, "init_task": 0xffffffff829a4800, "linux_banner": 0xffffffff81f580a0},
		fields:  map[string]uint64{"task_struct.pid": 16, "task_struct.rcu_users": 68, "task_struct.comm": 32},
		types: map[string]string{
			"init_task": "struct task_struct", "linux_banner": "char[0]", "task_struct.comm": "char[16]", "task_struct.stack": "void *",
			"task_struct.exit": "function *", "task_struct.type": "enum pid_type",
		},
		sizes: map[string]uint64{"task_struct.comm": 16, "task_struct.stack": 8, "task_struct.sched_contributes_to_load": 4, "task_struct.type": 4},
	}
	p := testdata(t, "dwarf2json.json")
	w.checkAll(t, p)
	if of, err := p.Var("do_exit"); !errors.Is(err, ErrNotFound) {
		t.Errorf("do_exit, a void, is a %q, %v", of, err)
	}
	if e, err := p.EnumType("pid_type"); err != nil || e.Constants["PIDTYPE_NONE"] != -1 || len(e.Constants) != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	at, err := p.Field("task_struct", "sched_contributes_to_load")
	if b := at.Type; err != nil || b.Kind != Bitfield || b.BitLen != 1 || b.BitPos != 1 || b.BitsType.Name != "unsigned int" {
		t.Errorf("%+v, %v", b, err)
	}
}

func TestPdbconv(t *testing.T) {
	w := want{
		meta: Meta{Source: "ntkrnlmp.pdb", BuildID: "3844dbb920174967be7aa4a2c20430fa-2",
			PDB: PDB{Database: "ntkrnlmp.pdb", GUID: "3844DBB920174967BE7AA4A2C20430FA", Age: 2, Machine: 34404}},
		symbols: map[string]uint64{"KeServiceDescriptorTable": 13637632, "?Fault@Wer@@QEAAXXZ": 4096, "PsActiveProcessHead": 12845056},
		fields:  map[string]uint64{"_EPROCESS.ActiveProcessLinks.Blink": 16, "_EPROCESS.Lock.held": 68},
		types: map[string]string{
			"PsActiveProcessHead": "struct _LIST_ENTRY", "_EPROCESS.Lock": "class Wer::Lock", "_EPROCESS.Callback": "function *",
			"_EPROCESS.Wow64": "struct nt_symbols!_PEB32 *", "_EPROCESS.Pool": "enum _POOL_TYPE",
		},
		sizes: map[string]uint64{"_EPROCESS.Wow64": 4, "_EPROCESS.Callback": 8, "_EPROCESS.Lock": 8, "_EPROCESS.ImageFileName": 15},
	}
	p := testdata(t, "pdbconv.json")
	w.checkAll(t, p)
	if e, err := p.EnumType("_POOL_TYPE"); err != nil || e.Constants["Top"] != -1 {
		t.Errorf("%+v, %v", e, err)
	}
	if u, err := p.UserType("Wer::Lock"); err != nil || u.Kind != Class {
		t.Errorf("%+v, %v", u, err)
	}
	var out bytes.Buffer
	if err := p.WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	if pdb := `"windows":{"pdb":{"database":"ntkrnlmp.pdb","GUID":"3844DBB920174967BE7AA4A2C20430FA","age":2,"machine_type":34404}}`; !bytes.Contains(out.Bytes(), []byte(pdb)) {
		t.Errorf("%s has not %s", out.Bytes(), pdb)
	}
}

// TestISF4: of a 32-bit kernel, without a sign of what is anonymous, and with numbers as
// JSON also has them.
func TestISF4(t *testing.T) {
	w := want{
		meta:    Meta{Source: "by hand 0.0.1"},
		symbols: map[string]uint64{"linux_banner": 0xffffffff, "init_task": 0xffffffff81c7e000},
		fields:  map[string]uint64{"task_struct.flags": 12, "task_struct.unnamed_field_8": 8},
		types:   map[string]string{"init_task": "struct task_struct", "task_struct.next": "struct task_struct *"},
		sizes:   map[string]uint64{"task_struct.next": 4},
	}
	for _, name := range []string{"isf4.json", "isf4.json.bz2"} {
		w.checkAll(t, testdata(t, name))
	}
}

// TestVersions: one file by the name of each version that there is, and of some that there may be.
func TestVersions(t *testing.T) {
	for version, ok := range map[string]bool{"4.0.0": true, "4.1.0": true, "5.0.0": true, "6.0.0": true, "6.1.0": true, "6.2.0": true, "6.3.0": true, "3.0.0": false, "7.0.0": false, "x": false, "": false, "44": false} {
		_, err := Read([]byte(`{"metadata":{"format":"` + version + `"},"base_types":{},"user_types":{},"enums":{},"symbols":{}}`))
		if (err == nil) != ok {
			t.Errorf("%q: %v", version, err)
		}
	}
}
