package lab

import (
	"bufio"
	"compress/gzip"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
)

func copyFile(from, to string, mode fs.FileMode) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return writeFrom(in, to, mode)
}

func isELF(path string) bool {
	f, err := elf.Open(path)
	if err == nil {
		f.Close()
	}
	return err == nil
}

func gunzip(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	r, err := gzip.NewReader(in)
	if err != nil {
		return fmt.Errorf("%s: %w", from, err)
	}
	return writeFrom(r, to, 0o644)
}

func writeFrom(r io.Reader, to string, mode fs.FileMode) error {
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, r)
	return errors.Join(err, out.Close())
}

// writePayloadPages writes a file of pages that the fork server knows again in
// the memory of a host which has read them, and replaces by those of another file.
func writePayloadPages(path, tag string, megabytes int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	page := make([]byte, 4096)
	for n := range megabytes * 256 {
		clear(page)
		copy(page, fmt.Sprintf("LABPAGE %s %d\n", tag, n))
		if _, err := w.Write(page); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(w.Flush(), f.Close())
}
