package store

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hprobe/hprobe/profiles/isf"
)

const (
	bannerA = "Linux version 6.12.1-amd64 (a) #1"
	bannerB = "Linux version 6.12.1-amd64 (b) #2"
)

// profile is one of the kernel that newGuest's guests run, if the banner is theirs.
func profile(t testing.TB, m isf.Meta) *isf.Profile {
	t.Helper()
	b := isf.NewBuilder()
	b.Meta = m
	b.Symbols = []isf.Symbol{{Name: "linux_banner", Addr: bannerAt}, {Name: "entry_SYSCALL_64", Addr: entryAt}, {Name: "init_top_pgt", Addr: rootAt},
		{Name: "__start_notes", Addr: notesAt}, {Name: "__stop_notes", Addr: notesAt + 20}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestAddAndList(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "new", "folder")
	s := Open(dir)
	if all, err := s.List(t.Context()); err != nil || len(all) != 0 {
		t.Fatalf("a folder that is not there has %v, %v", all, err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("to list a folder makes it")
	}
	path, err := s.Add(profile(t, isf.Meta{Banner: bannerA}))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range []isf.Meta{{Banner: bannerB}, {Banner: bannerA}, {Banner: bannerA, Captured: "u-1"}, {Banner: bannerB, Captured: "u-1"}, {Banner: bannerA, Captured: "../u"}} {
		if _, err := s.Add(profile(t, m)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != 4 {
		t.Fatalf("two kernels of one release, and two guests, are %v, %v", all, err)
	}
	// Of a guest there is the last one only.
	if p := all[3]; p.Banner != bannerB || p.Captured != "u-1" || p.Name() != filepath.Join(dir, "captured", "u-1.hprofile") {
		t.Errorf("%+v", p)
	}
	if p, err := isf.ReadFile(path); err != nil || p.Meta().Banner != bannerA {
		t.Errorf("%s: %v, %v", path, p, err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 4 { // with captured and the index
		t.Errorf("left behind: %v, %v", entries, err)
	}
}

func TestFileNameIsOne(t *testing.T) {
	for _, banner := range []string{"", "Linux version ../../../etc/passwd x", "Linux version " + strings.Repeat("9", 500) + " x"} {
		name := fileName(&isf.Meta{Banner: banner})
		if filepath.Base(name) != name || len(name) > 100 || strings.HasPrefix(name, "..-") {
			t.Errorf("%q has the file name %q", banner, name)
		}
	}
}

// TestCapturedAreBounded: guests come and go, and the profiles of the first ones go, too.
func TestCapturedAreBounded(t *testing.T) {
	s := Open(t.TempDir())
	for i := range maxKept + 3 {
		path, err := s.Add(profile(t, isf.Meta{Banner: bannerA, Captured: fmt.Sprintf("u-%03d", i)}))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, time.Time{}, time.Unix(int64(1_000_000+i), 0)); err != nil {
			t.Fatal(err)
		}
	}
	all, err := s.List(t.Context())
	if err != nil || len(all) != maxKept || all[0].Captured != "u-003" {
		t.Errorf("%d, %v", len(all), err)
	}
}

// TestAddFromMany: several processes use one folder.
func TestAddFromMany(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			s := Open(dir)
			for i := range 20 {
				if _, err := s.Add(profile(t, isf.Meta{Banner: bannerA, Captured: fmt.Sprintf("u-%d", i)})); err != nil {
					t.Error(err)
				}
				all, err := s.List(t.Context())
				if err != nil {
					t.Error(err)
				}
				for _, p := range all {
					if p.Error != "" || p.Banner != bannerA {
						t.Errorf("%+v", p)
					}
				}
			}
		})
	}
	wg.Wait()
	if all, err := Open(dir).List(t.Context()); err != nil || len(all) != 20 {
		t.Errorf("%d, %v", len(all), err)
	}
}

// written is a profile in one of its forms.
func written(t testing.TB, p *isf.Profile, write func(*isf.Profile, *bytes.Buffer) error) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(p, &b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func put(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
