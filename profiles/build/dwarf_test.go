package build

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
)

// compiled is testdata's kernel, with debug information in a form.
func compiled(t testing.TB, flags ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vmlinux")
	args := append([]string{"-O1", "-no-pie", "-fno-stack-protector", "-o", path, "testdata/kernel.c"}, flags...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v: %s", err, out)
	}
	return path
}

// TestDWARF: types are as the compiler lays them out, which the program says itself.
func TestDWARF(t *testing.T) {
	for _, flags := range []string{"-gdwarf-5", "-gdwarf-4", "-gdwarf-4 -gstrict-dwarf", "-gdwarf-3 -gstrict-dwarf", "-gdwarf-5 -gz"} {
		path := compiled(t, strings.Fields(flags)...)
		p, err := FromFile(context.Background(), path)
		if err != nil {
			t.Errorf("%s: %v", flags, err)
			continue
		}
		said, err := exec.Command(path).Output()
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for line := range strings.Lines(string(said)) {
			var name, field, want string
			if _, err := fmt.Sscan(line, &name, &field, &want); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			if n++; field == "-" {
				if u, err := p.UserType(name); err != nil || fmt.Sprint(u.Size) != want {
					t.Errorf("%s: %s has %d bytes, not %s: %v", flags, name, u.Size, want, err)
				}
				continue
			}
			at, err := p.Field(name, field)
			got := fmt.Sprint(8 * at.Offset)
			if at.Type.Kind == isf.Bitfield {
				got = fmt.Sprintf("%d:%d", 8*at.Offset+uint64(at.Type.BitPos), at.Type.BitLen)
				if size, err := p.SizeOf(at.Type); err != nil || uint64(at.Type.BitPos)+uint64(at.Type.BitLen) > 8*size && name != "packed" {
					t.Errorf("%s: %s.%s is %+v, and its place has %d bytes: %v", flags, name, field, at.Type, size, err)
				}
			}
			if err != nil || got != want {
				t.Errorf("%s: %s.%s is at bit %s, not %s: %v", flags, name, field, got, want, err)
			}
		}
		if n < 25 {
			t.Errorf("the program says %q", said)
		}
		dwarfTypes(t, p)
	}
}

func dwarfTypes(t *testing.T, p *isf.Profile) {
	t.Helper()
	if err := p.Check(); err != nil {
		t.Error(err)
	}
	if m := p.Meta(); m.Banner != "Linux version 6.12.1-dwarf (a@b) (gcc) #1 SMP" || len(m.BuildID) != 40 {
		t.Errorf("%+v", m)
	}
	if at, err := p.Address("do_it"); err != nil || at == 0 {
		t.Errorf("%#x, %v", at, err)
	}
	for path, want := range map[string]string{"pid": "int", "comm": "char[16]", "state": "enum state", "name": "char *", "list": "struct list_head", "unknown": "struct unknown *", "last": "int[0]", "call": "function *", "d": "double"} {
		if at, err := p.Field("task", path); err != nil || at.Type.String() != want {
			t.Errorf("%s is a %q, not a %q: %v", path, at.Type, want, err)
		}
	}
	if of, err := p.Var("the_task"); err != nil || of.String() != "struct task *" {
		t.Errorf("the_task is a %q: %v", of, err)
	}
	f, err := p.Func("do_it")
	var params []string
	for _, a := range f.Params {
		params = append(params, a.Type.String()+" "+a.Name)
	}
	if want := []string{"struct task * task", "_Bool how", "void * arg"}; err != nil || !reflect.DeepEqual(params, want) || f.Return.Name != "long int" {
		t.Errorf("%q, %v, %v", params, f.Return, err)
	}
	if f, err := p.Func("nothing"); err != nil || len(f.Params) != 0 || f.Return.Name != "void" {
		t.Errorf("%+v, %v", f, err)
	}
	if e, err := p.EnumType("state"); err != nil || e.Size != 4 || e.Constants["DEAD"] != -1 || e.Constants["FAR"] != 0x7ffffff0 || e.Base != "int" {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestWithoutDWARF(t *testing.T) {
	for flags, want := range map[string]string{"-g0": "a vmlinux that was not stripped", "-g -s": "CONFIG_KALLSYMS"} {
		if _, err := FromFile(context.Background(), compiled(t, strings.Fields(flags)...)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", flags, err)
		}
	}
}

// FuzzDWARF damages debug information.
func FuzzDWARF(f *testing.F) {
	image, err := os.ReadFile(compiled(f, "-g"))
	if err != nil {
		f.Fatal(err)
	}
	file, err := elf.NewFile(bytes.NewReader(image))
	if err != nil {
		f.Fatal(err)
	}
	var places []int // where the fuzzer writes
	for _, name := range []string{".debug_info", ".debug_abbrev", ".debug_str", ".symtab"} {
		places = append(places, int(file.Section(name).Offset))
	}
	f.Add([]byte{})
	f.Add([]byte{0, 20, 0, 0xff, 1, 3, 0, 2})
	f.Fuzz(func(t *testing.T, how []byte) {
		b := bytes.Clone(image)
		for ; len(how) >= 4; how = how[4:] {
			if at := places[int(how[0])%len(places)] + int(how[1]) + int(how[2])<<8; at < len(b) {
				b[at] = how[3]
			}
		}
		p, err := fromImage(context.Background(), b, "x", nil)
		if err == nil && p.Meta().Banner == "" {
			t.Error("no banner")
		}
	})
}
