package isf

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// sealed is how many profiles this process has mapped.
func sealed(t *testing.T) int {
	t.Helper()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(maps), "memfd:hprobe profile")
}

// TestOpenFileIsCutOff: what becomes of its file is nothing to a profile that is open;
// and when nobody has it any more its memory goes.
func TestOpenFileIsCutOff(t *testing.T) {
	want := profile(t, builder())
	var out bytes.Buffer
	if err := want.WriteCompact(&out); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "x.hprofile")
	for range 20 {
		if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		p, err := ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if sealed(t) == 0 {
			t.Fatal("it is not mapped")
		}
		if err := os.Truncate(path, 0); err != nil {
			t.Fatal(err)
		}
		same(t, "a file that was cut off", p, want)
	}
	for range 100 {
		if runtime.GC(); sealed(t) == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d profiles are mapped that nobody has", sealed(t))
}
