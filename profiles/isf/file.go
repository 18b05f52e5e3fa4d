package isf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
)

// ReadFile opens a profile: the compact form, or ISF as .json, .json.xz, .json.gz or
// .json.bz2. The content decides, not the name. The compact form is not read but for
// what is looked up, when it is: of some 20 MB that is little. The file stays open as
// long as the profile is used; to replace it, put another one in its place (rename), as
// a Store does. One that is written to is of no more use. ISF is read once, from its
// begin to its end, and kept in the compact form, in memory.
func ReadFile(path string) (*Profile, error) {
	p, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", path, err)
	}
	return p, nil
}

func readFile(path string) (_ *Profile, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	compact := false
	defer func() {
		if err != nil || !compact {
			err = errors.Join(err, f.Close())
		}
	}()
	head := make([]byte, len(magic))
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if compact = isCompact(head[:n]); compact {
		return openFile(f)
	}
	return readISF(io.MultiReader(bytes.NewReader(head[:n]), f))
}

func openFile(f *os.File) (*Profile, error) {
	was, err := f.Stat()
	if err != nil {
		return nil, err
	}
	return open(newBlocks(was.Size(), func(p []byte, at int64) error {
		_, err := f.ReadAt(p, at)
		if is, statErr := f.Stat(); statErr != nil {
			err = statErr
		} else if !is.ModTime().Equal(was.ModTime()) || is.Size() != was.Size() {
			err = errors.New("it was written to since it was opened: put new ones in place by renaming, and start hprobed anew")
		}
		if err != nil {
			return fmt.Errorf("profile %s: %w", f.Name(), err)
		}
		return nil
	}))
}

// blockSize is how much of a file is read at a time, in bytes.
const blockSize = 16 << 10

type block = [blockSize]byte

// blocks are bytes of a profile: of its file as it was when it was opened, as far as
// somebody asked for them; or all of them, in memory. A block that is there is found
// without a lock.
type blocks struct {
	size int64
	have []atomic.Pointer[block]

	mu   sync.Mutex // of read
	read func(p []byte, at int64) error
	err  atomic.Pointer[error] // the first of read
}

func newBlocks(size int64, read func(p []byte, at int64) error) *blocks {
	return &blocks{size: size, have: make([]atomic.Pointer[block], (size+blockSize-1)/blockSize), read: read}
}

// block returns one, which it reads if it is not there; nil after an error. What was
// written meanwhile may be of another kernel: a probe at its addresses would change the
// guest into something else.
func (b *blocks) block(i int64) *block {
	if got := b.have[i].Load(); got != nil {
		return got
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if got := b.have[i].Load(); got != nil || b.err.Load() != nil {
		return got
	}
	got := new(block)
	if err := b.read(got[:min(blockSize, b.size-i*blockSize)], i*blockSize); err != nil {
		b.err.Store(&err)
		return nil
	}
	b.have[i].Store(got)
	return got
}

// bytes are some of them, all of which must be there to read; nil after an error.
func (b *blocks) bytes(at int64, n int) []byte {
	i, off := at/blockSize, int(at%blockSize)
	if n == 0 {
		return []byte{}
	}
	if off+n <= blockSize {
		got := b.block(i)
		if got == nil {
			return nil
		}
		return got[off : off+n : off+n]
	}
	all := make([]byte, 0, n)
	for len(all) < n {
		got := b.block(i)
		if got == nil {
			return nil
		}
		all = append(all, got[off:min(off+n-len(all), blockSize)]...)
		i, off = i+1, 0
	}
	return all
}

// part is some bytes of a profile.
type part struct {
	*blocks
	at, n int64 // in the blocks
}

func (p *part) len() int { return int(p.n) }

// bytes are n bytes of it, not to be changed; nil where there are not so many, or the
// file can't be read: see Profile.failed.
func (p *part) bytes(at, n int) []byte {
	if at < 0 || n < 0 || int64(at) > p.n || int64(n) > p.n-int64(at) {
		return nil
	}
	return p.blocks.bytes(p.at+int64(at), n)
}

// notOver counts the words, in rising order, that are not over v: 0 where they can't be
// read. No word lies across a block's end.
func (p *part) notOver(v uint64) int {
	var in *block
	have := int64(-1)
	i, j := int64(0), p.n/8
	for i < j {
		mid := (i + j) / 2
		at := p.at + 8*mid
		if at/blockSize != have {
			have = at / blockSize
			if in = p.block(have); in == nil {
				return 0
			}
		}
		if off := at % blockSize; le.Uint64(in[off:off+8]) > v {
			j = mid
		} else {
			i = mid + 1
		}
	}
	return int(i)
}

// writeTo writes it, without asking for more of it at a time than a block.
func (p *part) writeTo(w io.Writer) error {
	for at := int64(0); at < p.n; {
		n := min(blockSize-(p.at+at)%blockSize, p.n-at)
		b := p.bytes(int(at), int(n))
		if b == nil {
			return *p.err.Load()
		}
		if _, err := w.Write(b); err != nil {
			return err
		}
		at += n
	}
	return nil
}

// pile is a part that grows. Nothing of it moves, so it never takes twice its memory.
type pile struct {
	have []*block
	n    int64
}

func (p *pile) write(b []byte) {
	for len(b) > 0 {
		off := p.n % blockSize
		if off == 0 {
			p.have = append(p.have, new(block))
		}
		n := copy(p.have[len(p.have)-1][off:], b)
		p.n += int64(n)
		b = b[n:]
	}
}

func (p *pile) part() part {
	b := newBlocks(p.n, nil)
	for i, one := range p.have {
		b.have[i].Store(one)
	}
	return part{blocks: b, n: p.n}
}

// failed is why the profile's file can't be read any more.
func (p *Profile) failed() error {
	if err := p.text.err.Load(); err != nil {
		return *err
	}
	return nil
}
