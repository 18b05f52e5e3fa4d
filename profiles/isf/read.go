package isf

import (
	"bufio"
	"bytes"
	"cmp"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"

	bounded "github.com/mikelolasagasti/xz"
)

// Read opens a profile that is in memory. It keeps b.
func Read(b []byte) (*Profile, error) {
	if !isCompact(b) {
		return readISF(bytes.NewReader(b))
	}
	return ReadCompact(b)
}

// ReadCompact opens a profile in the compact form that is in memory. It keeps b, and takes
// no memory for what nobody looks up.
func ReadCompact(b []byte) (*Profile, error) {
	if !isCompact(b) {
		return nil, errors.New("it is not in the compact form")
	}
	return open(newBlocks(int64(len(b)), func(p []byte, at int64) error {
		copy(p, b[at:])
		return nil
	}))
}

// readISF reads ISF, packed in whatever way Volatility knows. Of the text no more than
// some KiB is in memory at a time.
func readISF(r io.Reader) (*Profile, error) {
	in := bufio.NewReaderSize(r, 64<<10)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	plain, err := unpacked(in, head)
	if err != nil {
		return nil, fmt.Errorf("unpack: %w", err)
	}
	from := &source{from: plain, packed: plain != io.Reader(in)}
	json := newScanner(from)
	from.used = json.json.InputOffset
	p, err := decode(json)
	if from.err != nil {
		return nil, from.err // of which the decoder has its own idea
	}
	return p, err
}

// unpacked is what a packed file has in it.
func unpacked(in io.Reader, head []byte) (io.Reader, error) {
	switch {
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		// This one bounds the dictionary, which the file's head sizes.
		return bounded.NewReader(in, bounded.DefaultDictMax)
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return gzip.NewReader(in)
	case bytes.HasPrefix(head, []byte("BZh")):
		return bzip2.NewReader(in), nil
	}
	return in, nil
}

// maxValue is how long a string may be, in bytes: one that is longer is no name.
const maxValue = 1 << 20

// source ends with an error after MaxSize bytes, or maxValue that nobody has used, and
// keeps the error that it ended with.
type source struct {
	from   io.Reader
	packed bool
	used   func() int64
	n      int64
	err    error
}

func (s *source) Read(b []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.from.Read(b)
	s.n += int64(n)
	switch {
	case s.n > MaxSize:
		s.err = fmt.Errorf("more than %d bytes", MaxSize)
	case s.n-s.used() > maxValue+int64(len(b)):
		s.err = fmt.Errorf("no ISF: a string of more than %d bytes, at byte %d", maxValue, s.used())
	case err != nil && !errors.Is(err, io.EOF):
		if s.err = err; s.packed {
			s.err = fmt.Errorf("unpack: %w", err)
		}
	}
	return n, cmp.Or(s.err, err)
}
