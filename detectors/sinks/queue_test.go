package sinks

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// dropped counts what a queue loses.
type dropped map[error]int

func (d dropped) add(n int, err error) { d[err] += n }

func queueIn(t *testing.T, dir string, max int64) (*queue, dropped) {
	t.Helper()
	d := dropped{}
	q, err := openQueue(dir, max, d.add)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { q.close() })
	return q, d
}

func push(t *testing.T, q *queue, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		if err := q.push(fmt.Appendf(nil, "{\"n\":%d}\n", i)); err != nil {
			t.Fatal(err)
		}
	}
}

// pull takes what there is, n at a time, and returns the numbers.
func pull(t *testing.T, q *queue, n int) (all []int) {
	t.Helper()
	for {
		b, err := q.peek(n)
		if err != nil {
			t.Fatal(err)
		}
		if len(b.lines) == 0 {
			return all
		}
		all = append(all, numbers(t, b)...)
		if err := q.done(b); err != nil {
			t.Fatal(err)
		}
	}
}

func numbers(t *testing.T, b batch) (all []int) {
	t.Helper()
	for _, l := range b.lines {
		var i int
		if _, err := fmt.Sscanf(string(l), `{"n":%d}`, &i); err != nil {
			t.Fatalf("%q: %v", l, err)
		}
		all = append(all, i)
	}
	return all
}

func wantNumbers(t *testing.T, got []int, from, to int) {
	t.Helper()
	if len(got) != to-from {
		t.Fatalf("%d numbers, not %d: %v", len(got), to-from, got)
	}
	for i, n := range got {
		if n != from+i {
			t.Fatalf("%v is not %d to %d", got, from, to-1)
		}
	}
}

func TestAQueueOutlivesItsProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "q")
	q, d := queueIn(t, dir, 1<<20)
	push(t, q, 0, 100)
	b, err := q.peek(30)
	if err != nil || q.waiting() != 100 {
		t.Fatal(err, q.waiting())
	}
	wantNumbers(t, numbers(t, b), 0, 30)
	if err := q.done(b); err != nil {
		t.Fatal(err)
	}
	if _, err := openQueue(dir, 1<<20, d.add); err == nil || !strings.Contains(err.Error(), "another hprobed") {
		t.Errorf("two have it: %v", err)
	}
	if err := q.close(); err != nil {
		t.Fatal(err)
	}
	// A crash cut the last line; and it is of no use where somebody wrote into the folder.
	last := filepath.Join(dir, fmt.Sprintf("%020d", 1))
	f, err := os.OpenFile(last, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString(`{"n":10`)
	}
	if err := errors.Join(err, f.Close(), os.WriteFile(filepath.Join(dir, "7"), []byte("x"), 0o600), os.WriteFile(filepath.Join(dir, "notes"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	q, d = queueIn(t, dir, 1<<20)
	if q.waiting() != 70 {
		t.Errorf("%d wait", q.waiting())
	}
	push(t, q, 100, 110)
	wantNumbers(t, pull(t, q, 7), 30, 110)
	if q.waiting() != 0 || len(d) != 0 {
		t.Errorf("%d wait, %v", q.waiting(), d)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "000*"))
	if len(left) != 0 {
		t.Errorf("%v are left", left)
	}
}

func TestAPositionThatIsWrongSendsTwice(t *testing.T) {
	for _, position := range []string{"", "1", "2 8", "1 -1", "1 9999", "1 3", "x y", "1 99999999999999999999"} {
		dir := t.TempDir()
		q, _ := queueIn(t, dir, 1<<20)
		push(t, q, 0, 10)
		q.close()
		if err := os.WriteFile(filepath.Join(dir, "position"), []byte(position), 0o600); err != nil {
			t.Fatal(err)
		}
		q, _ = queueIn(t, dir, 1<<20)
		wantNumbers(t, pull(t, q, 100), 0, 10)
	}
}

func TestAFullQueueLosesTheOldest(t *testing.T) {
	dir := t.TempDir()
	q, d := queueIn(t, dir, 1600) // segments of 100 bytes
	push(t, q, 0, 10)
	old, err := q.peek(5)
	if err != nil {
		t.Fatal(err)
	}
	push(t, q, 10, 1000)
	lost := d[errQueueFull]
	if lost == 0 || lost+q.waiting() != 1000 {
		t.Fatalf("%d lost, %d wait", lost, q.waiting())
	}
	if err := q.done(old); err != nil || lost+q.waiting() != 1000 { // its segment is gone
		t.Fatal(err, q.waiting())
	}
	entries, err := os.ReadDir(dir)
	var size int64
	for _, e := range entries {
		st, _ := e.Info()
		size += st.Size()
	}
	if err != nil || size > 1700 {
		t.Errorf("%d bytes, %v", size, err)
	}
	wantNumbers(t, pull(t, q, 3), lost, 1000)
}

func TestWhatIsNoFindingIsLostAndCounted(t *testing.T) {
	dir := t.TempDir()
	long := strings.Repeat("x", longestLine+5)
	write := func(n int, text string) {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d", n)), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(1, "{\"n\":0}\nbroken\n\n{\"n\":1}\n")
	write(2, "broken\n")
	write(3, long+"\n{\"n\":9}\n")
	write(4, "\x00\x00\x00")
	write(5, "{\"n\":2}\n")
	q, d := queueIn(t, dir, 1<<30)
	wantNumbers(t, pull(t, q, 10), 0, 3)
	if d[errQueueCorrupt] != 5 || q.waiting() != 0 {
		t.Errorf("%v, %d wait", d, q.waiting())
	}
	if err := q.push([]byte(long)); err == nil {
		t.Error("a line that is too long is taken")
	}
	push(t, q, 3, 4)
	wantNumbers(t, pull(t, q, 1), 3, 4)
}

func FuzzQueue(f *testing.F) {
	f.Add([]byte("{\"n\":0}\nbroken\n{}"), []byte("1 8"))
	f.Fuzz(func(t *testing.T, segment, position []byte) {
		dir := t.TempDir()
		if err := errors.Join(os.WriteFile(filepath.Join(dir, fmt.Sprintf("%020d", 1)), segment, 0o600), os.WriteFile(filepath.Join(dir, "position"), position, 0o600)); err != nil {
			t.Fatal(err)
		}
		q, err := openQueue(dir, 1<<20, func(int, error) {})
		if err != nil {
			t.Fatal(err)
		}
		defer q.close()
		for i := 0; ; i++ {
			b, err := q.peek(2)
			if err != nil {
				t.Fatal(err)
			}
			if len(b.lines) == 0 {
				break
			}
			if i > len(segment) {
				t.Fatal("it does not end")
			}
			if err := q.done(b); err != nil {
				t.Fatal(err)
			}
		}
		if q.waiting() != 0 {
			t.Errorf("%d wait", q.waiting())
		}
	})
}
