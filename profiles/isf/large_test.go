package isf

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Of a large kernel: some more than dwarf2json has of Debian's.
const (
	largeStructs = 8_000
	largeFields  = 20 // of each
	largeSymbols = 180_000
)

// writeLarge writes some 60 MB of ISF, laid out as dwarf2json does. Of struct_0 to
// struct_5 each holds the next, as "inner".
func writeLarge(w io.Writer) error {
	out := bufio.NewWriterSize(w, 1<<20)
	out.WriteString(`{
  "metadata": {
    "linux": {"symbols": [{"kind": "symtab", "name": "vmlinux", "hash_type": "sha256", "hash_value": "00"}], "types": []},
    "producer": {"name": "dwarf2json", "version": "0.9.0"},
    "format": "6.2.0"
  },
  "base_types": {
    "int": {"size": 4, "signed": true, "kind": "int", "endian": "little"}
  },
  "user_types": {`)
	for i := range largeStructs {
		fmt.Fprintf(out, "%s\n    \"struct_%d\": {\n      \"size\": %d,\n      \"fields\": {", comma(i), i, 16*largeFields)
		fmt.Fprintf(out, "\n        \"inner\": {\n          \"type\": {\n            \"kind\": \"struct\",\n            \"name\": \"struct_%d\"\n          },\n          \"offset\": 8\n        }", i+1)
		for j := range largeFields - 1 {
			fmt.Fprintf(out, ",\n        \"field_%d_of_struct\": {\n          \"type\": {\n            \"kind\": \"pointer\",\n            \"subtype\": {\n              \"kind\": \"base\",\n              \"name\": \"int\"\n            }\n          },\n          \"offset\": %d\n        }", j, 16*j)
		}
		out.WriteString("\n      },\n      \"kind\": \"struct\"\n    }")
	}
	out.WriteString("\n  },\n  \"enums\": {},\n  \"symbols\": {")
	for i := range largeSymbols {
		kind := `"base",
        "name": "void"`
		if i%10 == 0 {
			kind = `"struct",
        "name": "struct_1"`
		}
		fmt.Fprintf(out, "%s\n    \"%s\": {\n      \"type\": {\n        \"kind\": %s\n      },\n      \"address\": %d\n    }", comma(i), largeSymbol(i), kind, largeAddr(i))
	}
	out.WriteString("\n  }\n}\n")
	return out.Flush()
}

func comma(i int) string { return ","[:min(i, 1)] }

func largeSymbol(i int) string { return fmt.Sprintf("subsystem_%d_symbol_%d", i*7919%largeSymbols, i) }

func largeAddr(i int) uint64 { return 0xffffffff81000000 + 64*uint64(i*104729%largeSymbols) }

// largeFile is it as a file.
func largeFile(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "large.json")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeLarge(f); err != nil {
		t.Fatal(err)
	}
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() < 60e6 || info.Size() > 70e6 {
		t.Fatalf("%d bytes", info.Size())
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// compactFile is a profile's compact form, as a file.
func compactFile(t testing.TB, p *Profile) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "large.hprofile")
	var out bytes.Buffer
	if err := p.WriteCompact(&out); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

const (
	plainBuild = "HPROBE_TEST_PLAIN" // set in a build of these tests without the race detector
	opens      = "HPROBE_TEST_OPENS" // the file that TestOpens opens
	mostMemory = 150 << 10           // KiB, that opening 60 MB of ISF may take
	mostTime   = 20 * time.Second    // of a busy machine; BenchmarkOpenISF says what it takes
)

// TestOpens is not for itself: TestLargeISF runs it as a process of its own.
func TestOpens(t *testing.T) {
	path := os.Getenv(opens)
	if path == "" {
		return
	}
	start := time.Now()
	p, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	took := time.Since(start)
	if a, err := p.Address(largeSymbol(77)); err != nil || a != largeAddr(77) {
		t.Errorf("%#x, %v", a, err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, peak, _ := strings.Cut(string(status), "VmHWM:")
	var kib int
	if _, err := fmt.Sscan(peak, &kib); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("opened %d %d\n", kib, took)
}

// TestLargeISF: what it takes to open 60 MB of ISF, and its compact form. The race
// detector, which unit tests run with, takes several times that, so it is not there.
func TestLargeISF(t *testing.T) {
	if os.Getenv(plainBuild) == "" {
		cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-v", "-run=^TestLargeISF$", ".")
		cmd.Env = append(os.Environ(), plainBuild+"=1", "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("--- PASS: TestLargeISF")) {
			t.Errorf("%v: %s", err, out)
		} else {
			t.Logf("%s", out)
		}
		return
	}
	path := largeFile(t)
	open := func(path string) (kib int, took time.Duration) {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestOpens$", "-test.v")
		cmd.Env = append(os.Environ(), opens+"="+path)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		_, line, _ := strings.Cut(string(out), "opened ")
		if _, err := fmt.Sscan(line, &kib, &took); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		t.Logf("%s: %v, %d KiB at most", filepath.Base(path), took, kib)
		return kib, took
	}
	if kib, took := open(path); kib > mostMemory || took > mostTime {
		t.Errorf("ISF: %d KiB, %v", kib, took)
	}
	p, err := ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if n := p.NumSymbols(); n != largeSymbols {
		t.Errorf("%d symbols", n)
	}
	for _, i := range []int{0, 1, 99_999, largeSymbols - 1} {
		if a, err := p.Address(largeSymbol(i)); err != nil || a != largeAddr(i) {
			t.Errorf("%d: %#x, %v", i, a, err)
		}
		if s, ok := p.Nearest(largeAddr(i) + 63); !ok || s.Name != largeSymbol(i) {
			t.Errorf("%d: %v, %v", i, s, ok)
		}
	}
	if at, err := p.Field("struct_0", "inner.inner.inner.inner.field_3_of_struct"); err != nil || at.Offset != 4*8+3*16 {
		t.Errorf("%v, %v", at, err)
	}
	if v, err := p.Var(largeSymbol(10)); err != nil || v.String() != "struct struct_1" {
		t.Errorf("%v, %v", v, err)
	}
	if kib, took := open(compactFile(t, p)); kib > mostMemory/4 || took > mostTime/10 {
		t.Errorf("compact: %d KiB, %v", kib, took)
	}
}

func BenchmarkOpenISF(b *testing.B) { benchmarkOpen(b, largeFile(b)) }

func BenchmarkOpenCompact(b *testing.B) {
	p, err := ReadFile(largeFile(b))
	if err != nil {
		b.Fatal(err)
	}
	benchmarkOpen(b, compactFile(b, p))
}

func benchmarkOpen(b *testing.B, path string) {
	b.ReportAllocs()
	for b.Loop() {
		p, err := ReadFile(path)
		if err != nil || p.NumSymbols() != largeSymbols {
			b.Fatal(p, err)
		}
	}
}

func BenchmarkLookups(b *testing.B) {
	p, err := ReadFile(largeFile(b))
	if err != nil {
		b.Fatal(err)
	}
	if p, err = ReadFile(compactFile(b, p)); err != nil {
		b.Fatal(err)
	}
	names := make([]string, 1<<12)
	for i := range names {
		names[i] = largeSymbol(i * 2)
	}
	i := 0
	next := func() int { i = (i + 7919) % len(names); return i }
	for _, c := range []struct {
		name string
		once func() error
	}{
		{"symbol", func() error { _, err := p.Address(names[next()]); return err }},
		{"address", func() error {
			if s, ok := p.Nearest(largeAddr(next()) + 5); !ok {
				return fmt.Errorf("%v", s)
			}
			return nil
		}},
		{"path", func() error {
			_, err := p.Field("struct_0", "inner.inner.inner.inner.field_3_of_struct")
			return err
		}},
		{"struct", func() error { _, err := p.UserType("struct_5000"); return err }},
	} {
		b.Run(c.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := c.once(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
