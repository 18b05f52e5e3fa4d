package isf

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// manySymbols is a profile of several blocks.
func manySymbols(t *testing.T) (*Profile, []byte) {
	t.Helper()
	b := builder()
	for i := range 20_000 {
		b.Symbols = append(b.Symbols, Symbol{fmt.Sprintf("symbol_%d", i), 0x10000 + 16*uint64(i)})
	}
	p := profile(t, b)
	var out bytes.Buffer
	if err := p.WriteCompact(&out); err != nil {
		t.Fatal(err)
	}
	if out.Len() < 20*blockSize {
		t.Fatalf("%d bytes", out.Len())
	}
	return p, out.Bytes()
}

// open files of this process that have a name.
func openFiles(t *testing.T, name string) (n int) {
	t.Helper()
	all, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range all {
		if to, err := os.Readlink(fd); err == nil && strings.HasPrefix(to, name) {
			n++
		}
	}
	return n
}

// TestFileIsReplaced: a profile that is open is what it was when another one takes its
// place; and when nobody has it any more its file is closed.
func TestFileIsReplaced(t *testing.T) {
	want, data := manySymbols(t)
	path := filepath.Join(t.TempDir(), "x.hprofile")
	for range 5 {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		read := 0
		for i := range p.text.have {
			if p.text.have[i].Load() != nil {
				read++
			}
		}
		if read > 5 {
			t.Errorf("%d of %d blocks were read to open it", read, len(p.text.have))
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if openFiles(t, path) == 0 {
			t.Fatal("it was read as a whole")
		}
		same(t, "from its file", p, want)
		for _, i := range []int{0, 1, 5000, 19_999} {
			if a, err := p.Address(fmt.Sprintf("symbol_%d", i)); err != nil || a != 0x10000+16*uint64(i) {
				t.Errorf("symbol %d is at %#x, %v", i, a, err)
			}
			if s, ok := p.Symbolize(0x10000 + 16*uint64(i) + 3); !ok || s != fmt.Sprintf("symbol_%d+0x3", i) {
				t.Errorf("at symbol %d there is %q, %v", i, s, ok)
			}
		}
	}
	for range 100 {
		if runtime.GC(); openFiles(t, path) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d files are open that nobody has", openFiles(t, path))
}

// TestFileIsWrittenTo: what was looked up before holds, nothing is taken from what is
// there now, and it is said why.
func TestFileIsWrittenTo(t *testing.T) {
	_, data := manySymbols(t)
	for name, change := range map[string]func(path string) error{
		"cut off": func(path string) error { return os.Truncate(path, 100) },
		"of another": func(path string) error {
			return os.WriteFile(path, bytes.ReplaceAll(data, []byte("symbol_1"), []byte("symbol_2")), 0o600)
		},
		"only touched": func(path string) error { return os.Chtimes(path, time.Now(), time.Now().Add(time.Hour)) },
	} {
		path := filepath.Join(t.TempDir(), "x.hprofile")
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Now(), time.Now().Add(-time.Hour)); err != nil {
			t.Fatal(err)
		}
		p, err := ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := change(path); err != nil {
			t.Fatal(err)
		}
		if p.Meta().Banner == "" {
			t.Errorf("%s: no banner", name)
		}
		if _, err := p.Address("symbol_11"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := p.UserType("deep"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", name, err)
		}
		if s, ok := p.Symbolize(0x10000); ok {
			t.Errorf("%s: %q", name, s)
		}
		if p.WriteCompact(new(bytes.Buffer)) == nil || p.WriteJSON(new(bytes.Buffer)) == nil {
			t.Errorf("%s: it is written", name)
		}
	}
}
