//go:build libvmi

package libvmi

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
)

// TestDump: what is in the file is in the memory, page by page, and nothing behind it.
func TestDump(t *testing.T) {
	if err := load(); err != nil {
		t.Skip("libvmi: ", err)
	}
	path := filepath.Join(t.TempDir(), "dump")
	content := make([]byte, 3*xenevents.PageSize)
	for i := range content {
		content[i] = byte(i * 31 >> 3)
	}
	if err := os.WriteFile(path, content, 0o400); err != nil {
		t.Fatal(err)
	}
	d, err := OpenDump(path)
	if err != nil {
		t.Fatal(err)
	}
	var _ xenevents.Memory = d
	if top, err := d.MaxGFN(); top != 2 || err != nil || d.Size() != uint64(len(content)) {
		t.Errorf("highest frame %v, %v, %d bytes", top, err, d.Size())
	}
	for _, c := range []struct{ at, n, want int }{{0, 8, 8}, {4090, 12, 12}, {0, len(content), len(content)}, {5, 2 * xenevents.PageSize, 2 * xenevents.PageSize}, {len(content) - 3, 8, 3}, {2*xenevents.PageSize + 1, 2 * xenevents.PageSize, xenevents.PageSize - 1}, {1 << 40, 1, 0}} {
		p := make([]byte, c.n)
		n, err := d.ReadGPA(p, xenevents.GPA(c.at))
		if n != c.want || (n < c.n) != errors.Is(err, xenevents.ErrAbsent) || n > 0 && !bytes.Equal(p[:n], content[c.at:c.at+n]) {
			t.Errorf("%d bytes at %#x: %d, %v", c.n, c.at, n, err)
		}
	}
	if _, err := d.WriteGPA([]byte{1}, 0); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("a dump was written to: %v", err)
	}
	if err := errors.Join(d.Close(), d.Close()); err != nil {
		t.Error(err)
	}
	if _, err := d.ReadGPA(make([]byte, 1), 0); !errors.Is(err, xenevents.ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}

func TestNoDump(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, empty, filepath.Join(dir, "none")} {
		if d, err := OpenDump(path); err == nil {
			t.Errorf("%s was opened: %v", path, d.Close())
		}
	}
}
