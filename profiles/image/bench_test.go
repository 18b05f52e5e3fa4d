package image

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// large is a program of so many functions and of 2,000 structs, each of which leads to others.
func large(t testing.TB, functions int) string {
	t.Helper()
	const structs = 2000
	var text bytes.Buffer
	for i := range structs {
		fmt.Fprintf(&text, "struct s%d { struct s%d *one; struct s%d *other; int numbers[4]; unsigned flag : 1; char name[16]; };\n", i, (i*7+1)%structs, (i*13+5)%structs)
	}
	text.WriteString("static inline __attribute__((always_inline)) int copied(int a) { asm volatile(\"nop\"); return a; }\n")
	for i := range functions {
		fmt.Fprintf(&text, "int function%d(struct s%d *p, const char *name, long n) { int a = n; long b = a + p->flag; return b + name[0] + copied(n); }\n", i, i%structs)
	}
	text.WriteString("int main(void) { return 0; }\n")
	dir := t.TempDir()
	source := filepath.Join(dir, "large.c")
	if err := os.WriteFile(source, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "large")
	tool(t, "gcc", "-O0", "-g", "-o", path, source)
	return path
}

// BenchmarkFind opens a program and finds a function with its prototype, or a line.
// HPROBE_BENCH_PROGRAM and HPROBE_BENCH_FUNCTION name another one.
func BenchmarkFind(b *testing.B) {
	path, function := os.Getenv("HPROBE_BENCH_PROGRAM"), os.Getenv("HPROBE_BENCH_FUNCTION")
	if path == "" {
		path, function = large(b, 5000), "function1234"
	}
	size, err := os.Stat(path)
	if err != nil {
		b.Fatal(err)
	}
	in := func(f func(*File) (Found, error)) func(b *testing.B) {
		return func(b *testing.B) {
			b.SetBytes(size.Size())
			for b.Loop() {
				x, err := Open(path)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := f(x); err != nil && !strings.Contains(err.Error(), ErrNoLine.Error()) {
					b.Fatal(err)
				}
				if err := x.Close(); err != nil {
					b.Fatal(err)
				}
			}
		}
	}
	b.Run("function", in(func(x *File) (Found, error) { return x.Find(function, 0) }))
	b.Run("line", in(func(x *File) (Found, error) { return x.FindLine("large.c", 5000) }))
}

// TestClipped: a prototype that leads to very many types brings along those that are near.
func TestClipped(t *testing.T) {
	found, err := opened(t, large(t, 8)).Find("function7", 0)
	if err != nil || !found.Clipped {
		t.Fatalf("%+v, %v", found, err)
	}
	var packed bytes.Buffer
	if err := found.Types.WriteCompact(&packed); err != nil || packed.Len() > 1<<20 {
		t.Errorf("%d bytes: %v", packed.Len(), err)
	}
	for _, path := range []string{"s7 one", "s50 other", "s96 numbers"} {
		of, field, _ := strings.Cut(path, " ")
		if _, err := found.Types.Field(of, field); err != nil {
			t.Error(err)
		}
	}
	if found.Copied != 0 {
		t.Errorf("%d copies", found.Copied)
	}
}
