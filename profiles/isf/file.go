package isf

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// ReadFile opens a profile: the compact form, or ISF as .json, .json.xz or
// .json.gz. The content decides, not the name.
func ReadFile(path string) (*Profile, error) {
	p, err := readFile(path)
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", path, err)
	}
	return p, nil
}

func readFile(path string) (*Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close() // it was only read
	head := make([]byte, len(magic))
	if _, err := io.ReadFull(f, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	if bytes.Equal(head, magic) {
		return openSealed(f)
	}
	b, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	if err != nil {
		return nil, err
	}
	if len(b) > MaxSize {
		return nil, fmt.Errorf("more than %d bytes", MaxSize)
	}
	return Read(b)
}

// openSealed opens the compact form without reading it: of some 20 MB a monitor looks
// at a few pages. Its bytes are copied, in the kernel, to memory that nobody can change
// or cut off any more. Were the file itself mapped, whoever cut it off would end the
// monitor by SIGBUS, and stop its guests.
func openSealed(f *os.File) (*Profile, error) {
	fd, err := unix.MemfdCreate("hprobe profile", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory for it: %w", err)
	}
	defer unix.Close(fd) // the mapping stays
	size := 0
	for {
		n, err := unix.Sendfile(fd, int(f.Fd()), nil, 1<<24)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read it: %w", err)
		}
		if n == 0 {
			break
		}
		if size += n; size > MaxSize {
			return nil, fmt.Errorf("more than %d bytes", MaxSize)
		}
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE|unix.F_SEAL_SEAL); err != nil {
		return nil, fmt.Errorf("seal it: %w", err)
	}
	data, err := unix.Mmap(fd, 0, size, unix.PROT_READ, unix.MAP_PRIVATE)
	if err != nil {
		return nil, fmt.Errorf("map it: %w", err)
	}
	p, err := open(data)
	if err != nil {
		return nil, errors.Join(err, unix.Munmap(data))
	}
	// Go does not know that p's slices are in there: whoever reads them keeps p alive.
	runtime.AddCleanup(p, func(data []byte) { _ = unix.Munmap(data) }, data)
	return p, nil
}
