package rotate

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// clock is a time that tests set.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func opened(t *testing.T, c Config, now func() time.Time) (*File, *bytes.Buffer) {
	t.Helper()
	var logged bytes.Buffer
	f, err := open(c, slog.New(slog.NewTextHandler(&logged, nil)), now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f, &logged
}

func write(t *testing.T, f *File, lines ...string) {
	t.Helper()
	for _, l := range lines {
		if err := f.WriteLine([]byte(l + "\n")); err != nil {
			t.Fatal(err)
		}
	}
}

// all returns what is in the old files and in the file, unpacked, a string a file.
func all(t *testing.T, path string) []string {
	t.Helper()
	names, err := Old(path)
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for _, n := range append(names, path) {
		r, err := OpenOld(n)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(b))
	}
	return texts
}

func TestItBeginsAnewBySize(t *testing.T) {
	for _, compress := range []string{"", "zstd", "gzip"} {
		path := filepath.Join(t.TempDir(), "folder", "f[1]*.json")
		c := &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
		f, _ := opened(t, Config{Path: path, MaxMiB: 1, Keep: 2, Compress: compress, Sync: true}, c.now)
		half := strings.Repeat("x", 1<<19-1)
		for i := range 7 { // two a file: three old ones, of which two stay
			if i == 4 {
				c.Time = c.Add(-time.Hour) // the clock is set back
			}
			write(t, f, fmt.Sprint(i)+half[1:])
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		got := all(t, path)
		if len(got) == 4 { // Close came before the last old file was seen to
			opened(t, Config{Path: path, Keep: 2, Compress: compress}, c.now)
			for range 1000 {
				if got = all(t, path); len(got) == 3 && len(uncompressed(t, path, compress)) == 0 {
					break
				}
				time.Sleep(5 * time.Millisecond)
			}
		}
		var first []string
		for _, s := range got {
			first = append(first, s[:1])
		}
		if !slices.Equal(first, []string{"2", "4", "6"}) {
			t.Errorf("%s: the files begin with %v", compress, first)
		}
		names, _ := os.ReadDir(filepath.Dir(path))
		for _, n := range names {
			if st, _ := n.Info(); st.Mode() != mode {
				t.Errorf("%s has mode %v", n.Name(), st.Mode())
			}
			if strings.HasSuffix(n.Name(), ".part") {
				t.Errorf("%s is left", n.Name())
			}
		}
	}
}

// TestOneThatIsCompressedMeanwhileIsRead: between Old and OpenOld its name may change.
func TestOneThatIsCompressedMeanwhileIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	old := path + ".20260102T030405.000000000Z"
	if err := os.WriteFile(old, []byte("a\n"), mode); err != nil {
		t.Fatal(err)
	}
	f, _ := opened(t, Config{Path: path, Compress: "gzip"}, time.Now)
	for range 1000 {
		if _, err := os.Stat(old); errors.Is(err, os.ErrNotExist) {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	f.Close()
	r, err := OpenOld(old)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if b, err := io.ReadAll(r); err != nil || string(b) != "a\n" {
		t.Errorf("%q, %v", b, err)
	}
}

func uncompressed(t *testing.T, path, compress string) []string {
	names, err := Old(path)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(names, func(n string) bool { return strings.HasSuffix(n, suffixes[compress]) })
}

func TestItBeginsAnewByTime(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	c := &clock{time.Date(2026, 1, 2, 22, 59, 59, 0, time.UTC)}
	f, _ := opened(t, Config{Path: path, Every: "day"}, c.now)
	write(t, f, "a")
	c.Time = c.Add(30 * time.Minute)
	write(t, f, "b")
	c.Time = c.Add(time.Hour) // tomorrow
	write(t, f, "c")
	f.Close()
	// Also where it was closed meanwhile: by the time when it was written last.
	if err := os.Chtimes(path, c.Time, c.Time); err != nil {
		t.Fatal(err)
	}
	c.Time = c.Add(time.Hour)
	f, _ = opened(t, Config{Path: path, Every: "hour"}, c.now)
	write(t, f, "d", "e")
	if got := all(t, path); !slices.Equal(got, []string{"a\nb\n", "c\n", "d\ne\n"}) {
		t.Errorf("the files are %q", got)
	}
}

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	f, _ := opened(t, Config{Path: path}, time.Now)
	write(t, f, "a")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	write(t, f, "b")
	if err := f.Reopen(); err != nil {
		t.Fatal(err)
	}
	write(t, f, "c")
	if b, err := os.ReadFile(path + ".1"); err != nil || string(b) != "a\nb\n" {
		t.Errorf("%q, %v", b, err)
	}
	if got := all(t, path); !slices.Equal(got, []string{"c\n"}) { // .1 is none of ours
		t.Errorf("%q", got)
	}
	f.Close()
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	if !errors.Is(f.WriteLine([]byte("d\n")), ErrClosed) || !errors.Is(f.Reopen(), ErrClosed) {
		t.Error("it is not closed")
	}
}

// TestAFullDisk has the kernel cut a write short.
func TestAFullDisk(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, []byte("torn"), 0o600); err != nil { // by a crash
		t.Fatal(err)
	}
	f, _ := opened(t, Config{Path: path}, time.Now)
	write(t, f, "a")
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	limit := func(n uint64) {
		t.Helper()
		if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: n, Max: old.Max}); err != nil {
			t.Fatal(err)
		}
	}
	limit(10)
	for range 2 {
		if err := f.WriteLine([]byte("too long for the disk\n")); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("the error is %v", err)
		}
	}
	limit(old.Cur)
	write(t, f, "b")
	if got := all(t, path); !slices.Equal(got, []string{"torn\na\nb\n"}) {
		t.Errorf("%q", got)
	}
}

func TestWhatCantBeginAnewGoesOn(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("f", 250)) // no room for a time in its name
	c := &clock{time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	f, logged := opened(t, Config{Path: path, MaxMiB: 1}, c.now)
	big := strings.Repeat("a", 1<<20)
	write(t, f, big, "b", "c")
	if n := strings.Count(logged.String(), "can't begin anew"); n != 1 {
		t.Errorf("logged %d times: %s", n, logged)
	}
	c.Time = c.Add(time.Hour)
	write(t, f, "d")
	if n := strings.Count(logged.String(), "can't begin anew"); n != 2 {
		t.Errorf("logged %d times: %s", n, logged)
	}
	if got := all(t, path); !slices.Equal(got, []string{big + "\nb\nc\nd\n"}) {
		t.Errorf("%.100q", got)
	}
}

func TestCheck(t *testing.T) {
	good := Config{Path: "/var/log/f", MaxMiB: 1, Every: "day", Keep: 3, Compress: "zstd", Sync: true}
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	for want, c := range map[string]Config{
		"path: ":                         {},
		`path: "log/f" is not the whole`: {Path: "log/f"},
		`path: "/log/../f"`:              {Path: "/log/../f"},
		"max_mib: -1":                    {Path: "/f", MaxMiB: -1},
		`write hour or day`:              {Path: "/f", Every: "week"},
		"keep: -2":                       {Path: "/f", Keep: -2},
		"write zstd or gzip":             {Path: "/f", Compress: "xz"},
	} {
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", c, err)
		}
		if _, err := Open(c, slog.Default()); err == nil {
			t.Errorf("%+v is opened", c)
		}
	}
}
