package audit

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/hprobe/hprobe/detectors/sinks/rotate"
)

// Verifier checks that each line of a log follows from the one before. Its files are read
// one after the other, the oldest first, and End says that there are no more.
type Verifier struct {
	// Noted is where the log ended once: the entry of that number must still be that one. The zero
	// Head: that does not matter.
	Noted Head

	Lines uint64
	First uint64 // the number of the first line; lines before it are not there
	Torn  uint64 // lines that a crash or a full disk cut, and that the log says it has
	Head  Head   // of the last line

	pending int    // torn lines since the last one
	number  uint64 // of the line in the file
}

// BrokenError says where a log is not what was written.
type BrokenError struct {
	Line uint64 // in the file, from 1
	Why  string
}

func (e *BrokenError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Why) }

// Verify checks a log that is one file.
func Verify(r io.Reader) (*Verifier, error) {
	v := new(Verifier)
	if err := v.Read(r); err != nil {
		return v, err
	}
	return v, v.End()
}

// Read checks a file. It fails with a *BrokenError where a line does not follow from the one before.
func (v *Verifier) Read(r io.Reader) error {
	v.number = 0
	for b := bufio.NewReaderSize(r, 64<<10); ; {
		text, err := readLine(b)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if len(text) == 0 && err != nil {
			return nil
		}
		v.number++
		one, ok := parse(text)
		if !ok {
			v.pending++
			continue
		}
		if why := v.follows(&one); why != "" {
			return &BrokenError{v.number, why}
		}
		if v.Lines == 0 {
			v.First = one.Seq
		}
		v.Torn += uint64(v.pending)
		v.pending = 0
		v.Lines++
		v.Head = one.after(text)
		if v.Head.Seq == v.Noted.Seq && v.Head != v.Noted {
			return &BrokenError{v.number, fmt.Sprintf("entry %d is not the one whose hash was noted: the log was written anew", v.Noted.Seq)}
		}
	}
}

// follows says why a line can't come after what there was; "": it can.
func (v *Verifier) follows(l *line) string {
	switch {
	case l.Torn != v.pending:
		return fmt.Sprintf("%d lines before it are no entries, and it says that %d were cut by a crash: lines were changed", v.pending, l.Torn)
	case v.Lines == 0 && l.Seq > 1:
		return "" // what was before is not there
	case l.Seq != v.Head.Seq+1:
		return fmt.Sprintf("it is entry %d, and the one before is %d: entries were removed, put in, or put elsewhere", l.Seq, v.Head.Seq)
	case l.Prev != v.Head.Hash && (v.Lines > 0 || l.Prev != none.Hash):
		return fmt.Sprintf("it follows from another entry %d than the one that is there: that was changed", v.Head.Seq)
	}
	return ""
}

// End fails with a *BrokenError if the last line of the last file is no entry, or the log
// has not the one that was noted.
func (v *Verifier) End() error {
	switch {
	case v.pending > 0:
		return &BrokenError{v.number, "it is no entry: somebody changed it, or hprobed died while it wrote it, and has not written since"}
	case v.Noted.Seq > v.Head.Seq:
		return &BrokenError{v.number, fmt.Sprintf("the log ends at entry %d, and entry %d was noted: entries were cut off", v.Head.Seq, v.Noted.Seq)}
	case v.Noted.Seq > 0 && v.Noted.Seq < v.First:
		return &BrokenError{1, fmt.Sprintf("the log begins at entry %d, and entry %d was noted: name the old files as well", v.First, v.Noted.Seq)}
	}
	return nil
}

// readLine reads a line of bounded length, with its end; at the end of the file it fails with
// io.EOF, and may return a line still. What is longer than an entry gets comes back cut.
func readLine(b *bufio.Reader) (text []byte, err error) {
	for {
		part, err := b.ReadSlice('\n')
		if len(text) < longestLine {
			text = append(text, part...)
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return text, err
		}
	}
}

// Files are the files of a log at a path, the oldest first: old ones and the one itself, if it is there.
func Files(path string) ([]string, error) {
	all, err := rotate.Old(path)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err == nil {
		all = append(all, path)
	}
	return all, nil
}

// First returns the number of the first entry of a file, compressed or not; 0 of one without any.
func First(path string) (uint64, error) {
	r, err := rotate.OpenOld(path)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	for b := bufio.NewReader(r); ; {
		text, err := readLine(b)
		if l, ok := parse(text); ok {
			return l.Seq, nil
		}
		if errors.Is(err, io.EOF) {
			return 0, nil
		}
		if err != nil {
			return 0, fmt.Errorf("%s: %w", path, err)
		}
	}
}

// find finds where the log ends: the last entry in the file, or else in the old ones, and how many lines
// after it are none. With mu held, or before others know of l.
func (l *Log) find() error {
	files, err := Files(l.path)
	if err != nil {
		return err
	}
	l.head, l.torn = none, 0
	for _, path := range slices.Backward(files) {
		head, torn, err := end(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		l.torn += torn
		if head.Seq > 0 {
			l.head = head
			break
		}
	}
	if l.head == none && l.torn > 0 {
		return fmt.Errorf("%s is no audit log: move it away", l.path)
	}
	l.known = true
	return nil
}

// end returns where a file ends, and how many lines after that are no entries.
func end(path string) (head Head, torn int, err error) {
	r, err := rotate.OpenOld(path)
	if err != nil {
		return Head{}, 0, err
	}
	defer r.Close()
	for b := bufio.NewReaderSize(r, 64<<10); ; {
		text, err := readLine(b)
		if err != nil && !errors.Is(err, io.EOF) {
			return Head{}, 0, err
		}
		switch one, ok := parse(text); {
		case ok:
			head, torn = one.after(text), 0
		case len(text) > 0:
			torn++
		}
		if err != nil {
			return head, torn, nil
		}
	}
}
