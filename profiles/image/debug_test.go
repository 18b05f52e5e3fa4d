package image

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/debuginfo"
	"github.com/hprobe/hprobe/profiles/isf"
)

// compiled is testdata's program, with debug information in a form.
func compiled(t testing.TB, flags ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "typed")
	tool(t, "gcc", append([]string{"-Wl,--build-id", "-o", path, "testdata/typed.c"}, flags...)...)
	return path
}

func tool(t testing.TB, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %q: %v: %s", name, args, err, out)
	}
}

func opened(t testing.TB, path string) *File {
	t.Helper()
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// prototype writes a function's as C does.
func prototype(t *testing.T, f *File, name string) string {
	t.Helper()
	found, err := f.Find(name, 0)
	if err != nil {
		return err.Error()
	}
	if found.Types == nil {
		return found.Untyped
	}
	p, err := found.Types.Func(name)
	if err != nil {
		t.Fatal(err)
	}
	var params []string
	for _, a := range p.Params {
		params = append(params, strings.TrimSpace(a.Type.String()+" "+a.Name))
	}
	return fmt.Sprintf("%s(%s)", p.Return, strings.Join(params, ", "))
}

var prototypes = map[string]string{
	"serve":   "int(struct request * req, char * why, _Bool sure)",
	"hidden":  "char *(struct request * req, long unsigned int n)",
	"mixed":   "double(int before, double ratio, float small, struct point by_value, struct large large, struct opaque * opaque, long double most, unsigned char after)",
	"makes":   "struct large(int a, long int b, long int c, long int d, long int e, long int sixth, long int seventh)",
	"nothing": "void *()",
	"main":    "int(int argc, char ** argv)",
}

// TestPrototypes: what the program's source says is found, in all forms that DWARF has.
func TestPrototypes(t *testing.T) {
	for _, flags := range []string{"-O0 -g", "-O2 -g", "-O1 -gdwarf-4", "-gdwarf-3 -gstrict-dwarf", "-O2 -gdwarf-2 -gstrict-dwarf", "-O2 -g -gz", "-g -gz=zlib-gnu", "-g -static -no-pie", "-O2 -g -flto", "-g -ffunction-sections -Wl,--gc-sections"} {
		f := opened(t, compiled(t, strings.Fields(flags)...))
		for name, want := range prototypes {
			if strings.Contains(flags, "-flto") && name == "serve" { // which it puts into main
				continue
			}
			if got := prototype(t, f, name); got != want {
				t.Errorf("%s: %s is %q, not %q", flags, name, got, want)
			}
		}
		found, err := f.Find("serve", 0)
		if err != nil || found.Types == nil {
			continue
		}
		for path, want := range map[string]string{"path": "0 char *", "next": "8 struct request *", "kind": "16 enum kind", "flags": "20 ", "name": "21 char[16]", "number": "40 long int", "point.y": "44 int"} {
			at, err := found.Types.Field("request", path)
			if got := fmt.Sprintf("%d %s", at.Offset, at.Type); err != nil || got != want {
				t.Errorf("%s: request.%s is at %q, not %q: %v", flags, path, got, want, err)
			}
		}
		if e, err := found.Types.EnumType("kind"); err != nil || e.Constants["PIPE_KIND"] != 2 {
			t.Errorf("%s: %+v, %v", flags, e, err)
		}
		if _, err := found.Types.UserType("large"); !errors.Is(err, isf.ErrNotFound) {
			t.Errorf("%s: serve's types have what it does not lead to: %v", flags, err)
		}
	}
}

// TestStripped: a program without symbols, and its debug file.
func TestStripped(t *testing.T) {
	for _, id := range []string{"sha1", "none"} {
		whole := compiled(t, "-O2", "-g", "-Wl,--build-id="+id)
		dir := filepath.Dir(whole)
		debug, bare, other := filepath.Join(dir, "typed.debug"), filepath.Join(dir, "bare"), filepath.Join(dir, "other")
		tool(t, "objcopy", "--only-keep-debug", whole, debug)
		tool(t, "objcopy", "--strip-all", "--add-gnu-debuglink="+debug, whole, bare)
		tool(t, "objcopy", "--only-keep-debug", compiled(t, "-O1", "-g", "-Wl,--build-id="+id), other)
		f := opened(t, bare)
		_, err := f.Find("hidden", 0)
		if !errors.Is(err, ErrNoSymbol) || !strings.Contains(err.Error(), `"typed.debug": give that one, too (--debug-file)`) {
			t.Errorf("%s: %v", id, err)
		}
		if _, err := f.FindLine("typed.c", 31); err == nil || !strings.Contains(err.Error(), "--debug-file") {
			t.Errorf("%s: %v", id, err)
		}
		if err := f.Debug(other); err == nil || !strings.Contains(err.Error(), "another build") {
			t.Errorf("%s: %v", id, err)
		}
		if err := f.Debug("testdata/typed.c"); err == nil || !strings.Contains(err.Error(), "no file with debug information") {
			t.Errorf("%s: %v", id, err)
		}
		if err := f.Debug(debug); err != nil {
			t.Errorf("%s: %v", id, err)
			continue
		}
		for name, want := range prototypes {
			if got := prototype(t, f, name); got != want {
				t.Errorf("%s: %s is %q, not %q", id, name, got, want)
			}
		}
		got, err := f.Find("hidden", 0)
		want, errToo := opened(t, whole).Find("hidden", 0)
		if err != nil || errToo != nil || got.Offset != want.Offset || !bytes.Equal(got.Code, want.Code) || len(want.Code) != CodeLen {
			t.Errorf("%s: %+v, not %+v: %v, %v", id, got.Place, want.Place, err, errToo)
		}
		if _, err := Open(debug); err == nil || !strings.Contains(err.Error(), "--debug-file") {
			t.Errorf("%s: %v", id, err)
		}
		if id == "none" {
			tool(t, "objcopy", "--strip-all", whole, bare)
			if err := opened(t, bare).Debug(debug); err == nil || !strings.Contains(err.Error(), "nothing tells") {
				t.Error(err)
			}
		}
	}
}

// TestOnlyDWARF: of a program that lost its symbols and kept its DWARF, functions are
// found by that.
func TestOnlyDWARF(t *testing.T) {
	whole := compiled(t, "-O2", "-g")
	bare := whole + ".bare"
	tool(t, "objcopy", "--strip-all", "--keep-section=.debug_*", whole, bare)
	f := opened(t, bare)
	if names, err := f.functions(); err != nil || slices.ContainsFunc(names, func(one function) bool { return one.name == "hidden" }) {
		t.Fatalf("its symbols are there: %v", err)
	}
	got, err := f.Find("hidden", 0)
	want, errToo := opened(t, whole).Find("hidden", 0)
	if err != nil || errToo != nil || got.Offset != want.Offset || got.Types == nil {
		t.Errorf("%+v, not %+v: %v, %v", got.Place, want.Place, err, errToo)
	}
	if got, err := f.Find("hidden", 4); err != nil || got.Offset != want.Offset+4 || got.Types != nil {
		t.Errorf("%+v, %v", got.Place, err)
	}
	if _, err := f.Find("hiden", 0); !errors.Is(err, ErrNoSymbol) {
		t.Error(err)
	}
}

// TestCopies: what the compiler put into others, or changed.
func TestCopies(t *testing.T) {
	f := opened(t, compiled(t, "-O2", "-g"))
	_, err := f.Find("copied", 0)
	if !errors.Is(err, ErrNoSymbol) || !strings.Contains(err.Error(), "into others, 2 times") || strings.Count(err.Error(), "0x") != 2 {
		t.Error(err)
	}
	if _, err := f.Find("in_header", 0); !errors.Is(err, ErrNoSymbol) || !strings.Contains(err.Error(), "1 times") {
		t.Error(err)
	}
	found, err := f.Find("count", 0)
	if err != nil || found.Types != nil || !strings.Contains(found.Untyped, "other arguments") {
		t.Errorf("%+v, %v", found, err)
	}
	// Not inlined where there is code of its own as well.
	path := filepath.Join(t.TempDir(), "both")
	source := path + ".c"
	if err := os.WriteFile(source, []byte("volatile int v;\nint both(int a) { v++; return a + v; }\nint main(int argc, char **argv) { return both(argc) + both(argc + 1); }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other.c") // with another one of that name
	if err := os.WriteFile(other, []byte("\n\n\nstatic inline __attribute__((always_inline)) int both(int a) { asm volatile(\"nop\"); return a; }\nint more(int a) { return both(a) + both(a + 1) + both(a + 2); }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "gcc", "-O2", "-g", "-o", path, source, other)
	if found, err := opened(t, path).Find("both", 0); err != nil || found.Copied != 2 || found.Types == nil {
		t.Errorf("%+v, %v", found, err)
	}
}

// TestChanged: which symbols say that a function has other arguments than its source.
func TestChanged(t *testing.T) {
	for _, c := range []struct {
		symbols []string
		want    bool
	}{
		{[]string{"f"}, false}, {nil, false}, {[]string{"f.lto_priv.0"}, false}, {[]string{"g.isra.0"}, false}, {[]string{"f", "f.part.0"}, false},
		{[]string{"f.isra.0"}, true}, {[]string{"f.lto_priv.0.constprop.1"}, true}, {[]string{"_Z1fi.part.2"}, true}, {[]string{"other", "f.argelim"}, true},
	} {
		if got := changed(c.symbols, &debuginfo.Function{Name: "f", Symbol: "_Z1fi"}); got != c.want {
			t.Errorf("%q: %t", c.symbols, got)
		}
	}
}

// TestLines: a line's code is where addr2line says.
func TestLines(t *testing.T) {
	text, err := os.ReadFile("testdata/typed.c")
	if err != nil {
		t.Fatal(err)
	}
	line := 1 + strings.Count(string(text[:bytes.Index(text, []byte("serve's line"))]), "\n")
	for _, flags := range []string{"-O0 -g", "-O2 -g", "-O0 -gdwarf-4", "-O0 -gdwarf-2 -gstrict-dwarf"} {
		path := compiled(t, append(strings.Fields(flags), "-no-pie")...)
		f := opened(t, path)
		found, err := f.FindLine("typed.c", line)
		if err != nil {
			t.Errorf("%s: %v", flags, err)
			continue
		}
		addr, _ := address(f.segments, found.Offset)
		out, err := exec.Command("addr2line", "-f", "-e", path, fmt.Sprintf("%#x", addr)).Output()
		if err != nil || !strings.HasPrefix(string(out), "serve\n") || !strings.Contains(string(out), fmt.Sprintf("typed.c:%d", line)) || found.Code == nil {
			t.Errorf("%s: at %#x there is %q: %v", flags, addr, out, err)
		}
		if same, err := f.FindLine("testdata/typed.c", line); err != nil || same.Offset != found.Offset {
			t.Errorf("%s: %+v, %v", flags, same, err)
		}
		for want, line := range map[string]int{"the next one with code is": 12, "nor of one behind it": 10000} {
			if _, err := f.FindLine("typed.c", line); !errors.Is(err, ErrNoLine) || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: line %d: %v", flags, line, err)
			}
		}
		if _, err := f.FindLine("ped.c", line); !errors.Is(err, ErrNoLine) {
			t.Errorf("%s: %v", flags, err)
		}
		if flags == "-O2 -g" {
			if found, err := f.FindLine("inlined.h", 3); err != nil || found.Code == nil {
				t.Errorf("%+v, %v", found, err)
			}
		}
	}
	if _, err := opened(t, compiled(t, "-g0")).FindLine("typed.c", line); err == nil || !strings.Contains(err.Error(), "-g") {
		t.Error(err)
	}
}

// TestSameNames: of two functions, two structs or two files of one name none is guessed.
func TestSameNames(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"a/x.c":  "struct s { int a; };\nstatic __attribute__((noinline)) int twice(struct s *p)\n{\n\treturn p->a;\n}\nint one(void *p) { return twice(p); }\n",
		"b/x.c":  "struct s { char c; long b; };\nstatic __attribute__((noinline)) int twice(struct s *p)\n{\n\treturn p->b;\n}\nint two(void *p) { return twice(p); }\n",
		"main.c": "int one(void *), two(void *);\nint scopes(void) {\n\tstruct t { int a; } x;\n\t{ struct t { long b; } y; return sizeof x + sizeof y; }\n}\nint main(int argc, char **argv) { return one(argv) + two(argv); }\n",
	} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "names")
	tool(t, "gcc", "-O1", "-g", "-o", path, filepath.Join(dir, "a/x.c"), filepath.Join(dir, "b/x.c"), filepath.Join(dir, "main.c"))
	for _, strip := range []bool{false, true} {
		if strip {
			tool(t, "objcopy", "--strip-all", "--keep-section=.debug_*", path)
		}
		f := opened(t, path)
		if _, err := f.Find("twice", 0); err == nil || strings.Count(err.Error(), "0x") < 2 {
			t.Errorf("stripped %t: %v", strip, err)
		}
		if _, err := f.FindLine("x.c", 4); err == nil || !strings.Contains(err.Error(), "several source files") || !strings.Contains(err.Error(), "b/x.c") {
			t.Errorf("stripped %t: %v", strip, err)
		}
		a, err := f.FindLine("a/x.c", 4)
		b, errToo := f.FindLine("b/x.c", 4)
		if err != nil || errToo != nil || a.Offset == b.Offset {
			t.Errorf("stripped %t: %+v, %+v, %v, %v", strip, a, b, err, errToo)
		}
	}
}

// TestOtherLanguages: where hprobe does not know how arguments are passed it says so.
func TestOtherLanguages(t *testing.T) {
	dir := t.TempDir()
	source := filepath.Join(dir, "x.cc")
	if err := os.WriteFile(source, []byte(`
namespace a { struct S { int first; }; }
namespace b { struct S { long pad, second; }; struct D : S { char third; }; }
struct Owner { ~Owner(); int n; };
__attribute__((noinline)) Owner::~Owner() { n = 0; }
namespace b { __attribute__((noinline)) long both(const a::S &x, D *y, int &&z) { asm volatile(""); return x.first + y->second + z; } }
struct Method { int field; __attribute__((noinline)) int get(int by) const; };
int Method::get(int by) const { asm volatile(""); return field + by; }
__attribute__((noinline)) int takes(Owner o, int n) { asm volatile(""); return o.n + n; }
int main(int argc, char **argv) { a::S s{1}; b::D d; Method m{2}; return b::both(s, &d, 3) + m.get(4) + takes(Owner{1}, 2); }
`), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "cc")
	if out, err := exec.Command("g++", "-O1", "-g", "-o", path, source).CombinedOutput(); err != nil {
		t.Fatalf("g++ (make packages installs it): %v: %s", err, out)
	}
	f := opened(t, path)
	for name, want := range map[string]string{
		"_ZN1b4bothERKN1a1SEPNS_1DEOi": "long int(struct S * x, struct D * y, int * z)",
		"both":                         "long int(struct S * x, struct D * y, int * z)",
		"_ZNK6Method3getEi":            "int(struct Method * this, int by)",
		"_Z5takes5Owneri":              "it takes or returns a class of C++ by value, which may be in registers or not",
	} {
		if got := prototype(t, f, name); got != want {
			t.Errorf("%s: %q, not %q", name, got, want)
		}
	}
	found, err := f.Find("both", 0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := found.Types.Func("both")
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"first 0", "second 8"} {
		field, _, _ := strings.Cut(want, " ")
		at, err := found.Types.Field(p.Params[i].Type.Subtype.Name, field)
		if got := fmt.Sprintf("%s %d", field, at.Offset); err != nil || got != want {
			t.Errorf("%q, not %q: %v", got, want, err)
		}
	}
	ofGo := filepath.Join(dir, "main.go")
	if err := os.WriteFile(ofGo, []byte("package main\n\nfunc main() { println() }\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "go", "build", "-o", path, ofGo)
	if found, err := opened(t, path).Find("main.main", 0); err != nil || found.Types != nil || !strings.Contains(found.Untyped, "not of C") {
		t.Errorf("%+v, %v", found, err)
	}
}

// FuzzDebug damages debug information: whatever a file says, looking through it ends, and
// the types that come of it can be read.
func FuzzDebug(f *testing.F) {
	file, err := os.ReadFile(compiled(f, "-O2", "-g"))
	if err != nil {
		f.Fatal(err)
	}
	whole, err := elf.NewFile(bytes.NewReader(file))
	if err != nil {
		f.Fatal(err)
	}
	var places []*elf.Section // where the fuzzer writes
	for _, name := range []string{".debug_info", ".debug_abbrev", ".debug_line", ".debug_str", ".debug_line_str", ".debug_rnglists"} {
		places = append(places, whole.Section(name))
	}
	f.Add([]byte{})
	f.Add([]byte{0, 20, 0, 0xff, 1, 3, 0, 2, 2, 30, 0, 0xff})
	f.Fuzz(func(t *testing.T, how []byte) {
		b := bytes.Clone(file)
		for ; len(how) >= 4; how = how[4:] {
			s := places[int(how[0])%len(places)]
			b[s.Offset+(uint64(how[1])+uint64(how[2])<<8)%s.Size] = how[3]
		}
		in, err := elf.NewFile(bytes.NewReader(b))
		if err != nil {
			return
		}
		x, err := fileOf(in)
		if err != nil {
			return
		}
		for _, name := range []string{"serve", "hidden", "copied"} {
			found, err := x.Find(name, 0)
			if err != nil || found.Types == nil {
				continue
			}
			var packed bytes.Buffer
			if err := found.Types.WriteCompact(&packed); err != nil {
				t.Fatal(err)
			}
			if packed.Len() > 4<<20 {
				t.Errorf("%d bytes of types", packed.Len())
			}
			if _, err := found.Types.Func(name); err != nil {
				t.Error(err)
			}
		}
		if found, err := x.FindLine("typed.c", 31); err == nil && found.Code == nil {
			t.Error("a line without code")
		}
	})
}
