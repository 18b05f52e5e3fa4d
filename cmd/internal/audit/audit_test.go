package audit

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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

func opened(t *testing.T, c rotate.Config) *Log {
	t.Helper()
	l, err := Open(c, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func write(t *testing.T, l *Log, n int) {
	t.Helper()
	for i := range n {
		if _, err := l.Write(Entry{Time: time.Unix(int64(i), 0), UID: 1000, PID: 7, Command: "AddProbe", Domain: "web", Arguments: map[string]string{"at": "do_exit"}, Outcome: "done"}); err != nil {
			t.Fatal(err)
		}
	}
}

// verified checks all files of a log.
func verified(t *testing.T, path string) (*Verifier, error) {
	t.Helper()
	files, err := Files(path)
	if err != nil {
		t.Fatal(err)
	}
	v := new(Verifier)
	for _, f := range files {
		r, err := rotate.OpenOld(f)
		if err != nil {
			t.Fatal(err)
		}
		err = v.Read(r)
		r.Close()
		if err != nil {
			return v, err
		}
	}
	return v, v.End()
}

func TestTheChainGoesOnOverRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log", "audit.json")
	for i := range 3 {
		l := opened(t, rotate.Config{Path: path})
		if l.Head().Seq != uint64(10*i) {
			t.Fatalf("it goes on at %d", l.Head().Seq)
		}
		write(t, l, 10)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	v, err := verified(t, path)
	if err != nil || v.Lines != 30 || v.First != 1 || v.Head.Seq != 30 || v.Torn != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o640 {
		t.Errorf("%v, %v", st, err)
	}
}

func TestTheChainGoesOnOverRotation(t *testing.T) {
	for _, compress := range []string{"", "zstd"} {
		path := filepath.Join(t.TempDir(), "audit.json")
		c := rotate.Config{Path: path, MaxMiB: 1, Compress: compress}
		l := opened(t, c)
		big := Entry{Command: "x", Arguments: map[string]string{}}
		for i := range mostArguments {
			big.Arguments[fmt.Sprint(i)] = strings.Repeat("\x01", longestText)
		}
		for i := range 20 { // 200 KiB each
			if seq, err := l.Write(big); err != nil || seq != uint64(i+1) {
				t.Fatal(seq, err)
			}
			if i == 12 {
				l.Close()
				l = opened(t, c)
			}
		}
		// A restart right after it was moved away by hand.
		l.Close()
		if err := os.Rename(path, path+".20991231T235959.000000000Z"); err != nil {
			t.Fatal(err)
		}
		l = opened(t, c)
		write(t, l, 1)
		files, _ := Files(path)
		if v, err := verified(t, path); err != nil || v.Lines != 21 || len(files) < 4 {
			t.Errorf("%+v, %v, %v", v, err, files)
		}
	}
}

func TestWhatACrashCutIsSaid(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "audit.json")
	l := opened(t, rotate.Config{Path: path})
	write(t, l, 3)
	l.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for cut := 2; cut < len(whole)/3; cut += 17 {
		if err := os.WriteFile(path, whole[:len(whole)-cut], 0o640); err != nil {
			t.Fatal(err)
		}
		var broken *BrokenError
		if _, err := verified(t, path); !errors.As(err, &broken) || broken.Line != 3 {
			t.Errorf("%d bytes cut: %v", cut, err)
		}
		// Once into the same file, once into a new one.
		for _, every := range []string{"", "day"} {
			os.Chtimes(path, time.Time{}, time.Now().AddDate(0, 0, -2))
			l := opened(t, rotate.Config{Path: path, Every: every})
			write(t, l, 2)
			l.Close()
			if v, err := verified(t, path); err != nil || v.Torn != 1 || v.Head.Seq < 4 {
				t.Errorf("%d bytes cut, every %q: %+v, %v", cut, every, v, err)
			}
		}
		files, _ := rotate.Old(path)
		if len(files) != 1 {
			t.Errorf("old files: %v", files)
		}
		for _, f := range files {
			os.Remove(f)
		}
	}
	// Only the end of the line is missing: it is whole.
	os.WriteFile(path, whole[:len(whole)-1], 0o640)
	l = opened(t, rotate.Config{Path: path})
	write(t, l, 2)
	l.Close()
	if v, err := verified(t, path); err != nil || v.Torn != 0 || v.Lines != 5 {
		t.Errorf("%+v, %v", v, err)
	}
	// What is no log is not written to.
	os.WriteFile(path, []byte("hello\nworld"), 0o640)
	if _, err := Open(rotate.Config{Path: path}, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "is no audit log: move it away") {
		t.Error(err)
	}
}

func TestAFullDiskIsAnErrorAndNoHole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	l := opened(t, rotate.Config{Path: path})
	write(t, l, 1)
	// The folder goes away, as a disk may.
	gone := filepath.Dir(path) + ".gone"
	if err := os.Rename(filepath.Dir(path), gone); err != nil {
		t.Fatal(err)
	}
	l.file.Reopen()
	if _, err := l.Write(Entry{Command: "lost"}); err == nil {
		t.Error("it is written")
	}
	if err := os.Rename(gone, filepath.Dir(path)); err != nil {
		t.Fatal(err)
	}
	write(t, l, 2)
	if v, err := verified(t, path); err != nil || v.Lines != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	if ok, failed := l.Counts(); ok != 3 || failed != 1 {
		t.Errorf("%d, %d", ok, failed)
	}
}

// TestAWriteThatWasCutIsSaid: after an error the log looks at what is in the file.
func TestAWriteThatWasCutIsSaid(t *testing.T) {
	signal.Ignore(syscall.SIGXFSZ)
	path := filepath.Join(t.TempDir(), "audit.json")
	l := opened(t, rotate.Config{Path: path})
	write(t, l, 1)
	var old syscall.Rlimit
	if err := errors.Join(syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old), syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 100, Max: old.Max})); err != nil {
		t.Fatal(err)
	}
	_, err := l.Write(Entry{Command: "lost"})
	if e := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); e != nil {
		t.Fatal(e)
	}
	if !errors.Is(err, syscall.EFBIG) {
		t.Errorf("the error is %v", err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0) // a part that could not be taken out again
	if err == nil {
		_, err = f.WriteString(`{"seq":2,"pr`)
	}
	if err := errors.Join(err, f.Close(), l.Reopen()); err != nil {
		t.Fatal(err)
	}
	write(t, l, 2)
	if v, err := verified(t, path); err != nil || v.Lines != 3 || v.Torn != 1 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestManyWriteAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	l := opened(t, rotate.Config{Path: path})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { write(t, l, 20) })
	}
	wg.Wait()
	if v, err := verified(t, path); err != nil || v.Lines != 160 {
		t.Errorf("%+v, %v", v, err)
	}
}

// lines is a log of n entries.
func lines(t testing.TB, n int) [][]byte { return linesOf(t, n, "c") }

func linesOf(t testing.TB, n int, command string) [][]byte {
	path := filepath.Join(t.TempDir(), "audit.json")
	l, err := Open(rotate.Config{Path: path}, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for i := range n {
		if _, err := l.Write(Entry{Command: fmt.Sprint(command, i), Outcome: "done"}); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.SplitAfter(bytes.TrimSuffix(b, []byte("\n")), []byte("\n"))
}

func TestWhatWasDoneToALogShows(t *testing.T) {
	whole := lines(t, 6)
	whole[5] = append(whole[5], '\n')
	if v, err := Verify(bytes.NewReader(bytes.Join(whole, nil))); err != nil || v.Lines != 6 {
		t.Fatalf("%+v, %v", v, err)
	}
	for name, change := range map[string]func([][]byte) [][]byte{
		"changed":                  func(l [][]byte) [][]byte { l[2] = bytes.Replace(l[2], []byte("c2"), []byte("cX"), 1); return l },
		"a space put in":           func(l [][]byte) [][]byte { l[2] = bytes.Replace(l[2], []byte(":"), []byte(": "), 1); return l },
		"removed":                  func(l [][]byte) [][]byte { return slices.Delete(l, 3, 4) },
		"two changed places":       func(l [][]byte) [][]byte { l[1], l[2] = l[2], l[1]; return l },
		"made unreadable":          func(l [][]byte) [][]byte { l[2] = []byte("x\n"); return l },
		"the last made unreadable": func(l [][]byte) [][]byte { l[5] = []byte("x\n"); return l },
		"an empty line put in":     func(l [][]byte) [][]byte { return slices.Insert(l, 2, []byte("\n")) },
		"a line twice":             func(l [][]byte) [][]byte { return slices.Insert(l, 2, l[2]) },
		"two made one":             func(l [][]byte) [][]byte { l[2] = bytes.TrimSpace(l[2]); return l },
		"the first changed":        func(l [][]byte) [][]byte { l[0] = bytes.Replace(l[0], []byte("c0"), []byte("cX"), 1); return l },
		"the first of another log": func(l [][]byte) [][]byte {
			return [][]byte{bytes.Replace(l[0], []byte(none.Hash), []byte(strings.Repeat("1", 64)), 1)}
		},
		"a number left out": func(l [][]byte) [][]byte {
			return [][]byte{l[0], bytes.Replace(l[1], []byte(`"seq":2`), []byte(`"seq":3`), 1)}
		},
		"torn, but not so": func(l [][]byte) [][]byte {
			l[2] = bytes.Replace(l[2], []byte("}\n"), []byte(",\"torn\":1}\n"), 1)
			return l
		},
	} {
		changed := change(slices.Clone(whole))
		var broken *BrokenError
		if v, err := Verify(bytes.NewReader(bytes.Join(changed, nil))); !errors.As(err, &broken) || broken.Line == 0 {
			t.Errorf("%s: %+v, %v", name, v, err)
		}
	}
	// What is before it may be gone.
	if v, err := Verify(bytes.NewReader(bytes.Join(whole[3:], nil))); err != nil || v.First != 4 || v.Lines != 3 {
		t.Errorf("%+v, %v", v, err)
	}
	if v, err := Verify(strings.NewReader("")); err != nil || v.Lines != 0 {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := Verify(io.LimitReader(zeros{}, 5*longestLine)); err == nil {
		t.Error("a line without end is an entry")
	}
}

func TestWhatWasNotedShows(t *testing.T) {
	whole := lines(t, 6)
	whole[5] = append(whole[5], '\n')
	read := func(noted Head, l [][]byte) error {
		v := Verifier{Noted: noted}
		return errors.Join(v.Read(bytes.NewReader(bytes.Join(l, nil))), v.End())
	}
	v, err := Verify(bytes.NewReader(bytes.Join(whole[:4], nil)))
	if err != nil {
		t.Fatal(err)
	}
	noted, err := ParseHead(v.Head.String())
	if err != nil || noted.Seq != 4 {
		t.Fatal(noted, err)
	}
	if err := errors.Join(read(noted, whole), read(noted, whole[:4]), read(noted, whole[2:])); err != nil {
		t.Error(err)
	}
	for want, l := range map[string][][]byte{"cut off": whole[:3], "name the old files": whole[4:], "written anew": linesOf(t, 5, "d")} {
		if err := read(noted, l); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	for _, s := range []string{"", "4", "4:", "0:" + noted.Hash, "x:" + noted.Hash, "4:" + noted.Hash[1:], "4:" + noted.Hash + "00", "-4:" + noted.Hash} {
		if h, err := ParseHead(s); err == nil {
			t.Errorf("%q is %v", s, h)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestStringsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.json")
	l := opened(t, rotate.Config{Path: path})
	e := Entry{Command: strings.Repeat("x", 1<<20), Domain: "\x1b[2J\u202e\xff", Outcome: strings.Repeat("\x00", 1<<20), Arguments: map[string]string{}}
	for i := range 1000 {
		e.Arguments[fmt.Sprint(i, strings.Repeat("\x01", 1<<12))] = strings.Repeat("\x02", 1<<12)
	}
	if _, err := l.Write(e); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) > longestLine || slices.ContainsFunc(b[:len(b)-1], func(c byte) bool { return c < ' ' || c > '~' }) {
		t.Errorf("%d bytes, %v: %.100q", len(b), err, b)
	}
	if v, err := Verify(bytes.NewReader(b)); err != nil || v.Lines != 1 {
		t.Errorf("%+v, %v", v, err)
	}
}

func FuzzVerify(f *testing.F) {
	whole := bytes.Join(lines(f, 4), nil)
	f.Add(append(whole, '\n'))
	f.Add([]byte("{}\n\nnull\n{\"seq\":1}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := Verify(bytes.NewReader(b))
		if err == nil && v.Lines > 0 && v.Head.Seq != v.First+v.Lines-1 {
			t.Errorf("%+v", v)
		}
	})
}
