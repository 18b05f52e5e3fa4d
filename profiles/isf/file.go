package isf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// ReadFile opens a profile: the compact form, or ISF as .json, .json.xz or
// .json.gz. The content decides, not the name. The compact form is not read but for
// what is looked up, when it is: of some 20 MB that is little. The file stays open as
// long as the profile is used; to replace it, put another one in its place (rename), as
// a Store does. One that is written to is of no more use.
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
	if compact = bytes.Equal(head[:n], magic); compact {
		return openFile(f)
	}
	b, err := io.ReadAll(io.LimitReader(io.MultiReader(bytes.NewReader(head[:n]), f), MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("more than %d bytes", MaxSize)
	}
	return Read(b)
}

func openFile(f *os.File) (*Profile, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() > MaxSize {
		return nil, fmt.Errorf("more than %d bytes", MaxSize)
	}
	return open(part{file: &blocks{f: f, size: info.Size(), changed: info.ModTime(), have: map[int64][]byte{}}, n: info.Size()})
}

// part is some bytes of a profile: in memory, or in its file.
type part struct {
	mem   []byte
	file  *blocks // nil: it is in memory
	at, n int64   // in the file
}

func inMemory(b []byte) part { return part{mem: b, n: int64(len(b))} }

func (p *part) len() int { return int(p.n) }

// slice is a part of it, which must be in it.
func (p *part) slice(at, n int64) part {
	if p.file == nil {
		return part{mem: p.mem[at : at+n : at+n], n: n}
	}
	return part{file: p.file, at: p.at + at, n: n}
}

// bytes are n bytes of it, not to be changed; nil where there are not so many, or the
// file can't be read: see Profile.failed.
func (p *part) bytes(at, n int) []byte {
	switch {
	case at < 0 || n < 0 || int64(at) > p.n || int64(n) > p.n-int64(at):
		return nil
	case p.file == nil:
		return p.mem[at : at+n : at+n]
	}
	return p.file.bytes(p.at+int64(at), n)
}

// blockSize is how much of a file is read at a time, in bytes.
const blockSize = 64 << 10

// blocks is a file as it was when it was opened, as far as somebody asked for it.
type blocks struct {
	f       *os.File // closed with the last who has it
	size    int64
	changed time.Time

	mu   sync.Mutex
	have map[int64][]byte
	err  error // the first
}

// bytes are some of the file's; nil after an error.
func (b *blocks) bytes(at int64, n int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	first, last := at/blockSize, (at+int64(n)-1)/blockSize
	if n == 0 || first == last {
		block := b.block(first)
		if block == nil {
			return nil
		}
		off := int(at % blockSize)
		return block[off : off+n : off+n]
	}
	all := make([]byte, 0, n)
	for i := first; i <= last; i++ {
		block := b.block(i)
		if block == nil {
			return nil
		}
		from := max(at-i*blockSize, 0)
		to := min(at+int64(n)-i*blockSize, blockSize)
		all = append(all, block[from:to]...)
	}
	return all
}

// block reads one, if it is not there. What was written meanwhile may be of another
// kernel: a probe at its addresses would change the guest into something else.
func (b *blocks) block(i int64) []byte {
	if block, ok := b.have[i]; ok || b.err != nil {
		return block
	}
	block := make([]byte, min(blockSize, b.size-i*blockSize))
	_, err := b.f.ReadAt(block, i*blockSize)
	if info, statErr := b.f.Stat(); statErr != nil {
		err = statErr
	} else if !info.ModTime().Equal(b.changed) || info.Size() != b.size {
		err = errors.New("it was written to since it was opened: put new ones in place by renaming, and start hprobed anew")
	}
	if err != nil {
		b.err = fmt.Errorf("profile %s: %w", b.f.Name(), err)
		return nil
	}
	b.have[i] = block
	return block
}

// failed is why the profile's file can't be read any more.
func (p *Profile) failed() error {
	b := p.text.file
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}
