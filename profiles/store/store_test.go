package store

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
)

func profile(t *testing.T, banner string) *isf.Profile {
	t.Helper()
	b := isf.NewBuilder()
	b.Meta.Banner = banner
	b.Symbols = []isf.Symbol{{Name: "linux_banner", Addr: 0xffffffff82000000}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAddAndFind(t *testing.T) {
	s := Open(filepath.Join(t.TempDir(), "new", "folder"))
	if files, err := s.Files(); err != nil || len(files) != 0 {
		t.Fatalf("a folder that is not there has %v, %v", files, err)
	}
	path, err := s.Add(profile(t, "Linux version 6.12.1-amd64 (a) #1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(profile(t, "Linux version 6.12.1-amd64 (b) #2")); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Add(profile(t, "Linux version 6.12.1-amd64 (a) #1")); err != nil {
		t.Fatal(err)
	}
	files, err := s.Files()
	if err != nil || len(files) != 2 {
		t.Fatalf("two kernels of one release are %v, %v", files, err)
	}
	p, err := isf.ReadFile(path)
	if err != nil || p.Meta().Banner != "Linux version 6.12.1-amd64 (a) #1" {
		t.Errorf("%s: %v, %v", path, p, err)
	}
	all, err := os.ReadDir(s.Dir())
	if err != nil || len(all) != 2 {
		t.Errorf("left behind: %v, %v", all, err)
	}
}

func TestFileNameIsOne(t *testing.T) {
	for _, banner := range []string{"", "Linux version ../../../etc/passwd x", "Linux version " + strings.Repeat("9", 500) + " x"} {
		name := FileName(isf.Meta{Banner: banner})
		if filepath.Base(name) != name || len(name) > 100 || strings.HasPrefix(name, "..-") {
			t.Errorf("%q has the file name %q", banner, name)
		}
	}
}
