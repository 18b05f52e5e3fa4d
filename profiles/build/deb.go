package build

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// arMagic is how a Debian package begins, an archive of ar (deb(5), ar(5)).
const arMagic = "!<arch>\n"

// maxUnpacked bounds what a package has, unpacked, in bytes: that of a debug kernel has
// most, 6 GiB.
const maxUnpacked = 16 << 30

// readPackage finds the files of a package's data.tar.
func readPackage(ctx context.Context, r io.Reader, files *kernelFiles) error {
	in := bufio.NewReader(r)
	magic := make([]byte, len(arMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != arMagic {
		return errors.New("no Debian package")
	}
	for {
		// Name, time, owner, group, mode, size, and two bytes at its end.
		head := make([]byte, 60)
		if _, err := io.ReadFull(in, head); err != nil {
			return fmt.Errorf("no data.tar in the package: %w", err)
		}
		name := strings.TrimRight(string(head[:16]), " /")
		size, err := strconv.ParseInt(strings.TrimSpace(string(head[48:58])), 10, 64)
		if err != nil || size < 0 || string(head[58:]) != "`\n" {
			return errors.New("the package is damaged: a member's head makes no sense")
		}
		member := io.LimitReader(in, size)
		if strings.HasPrefix(name, "data.tar") {
			return readTar(ctx, member, files)
		}
		if n, err := io.Copy(io.Discard, member); err != nil || n < size {
			return fmt.Errorf("no data.tar in the package: %w", errors.Join(err, io.ErrUnexpectedEOF))
		}
		if size%2 == 1 {
			_, _ = in.ReadByte() // at the end there need not be one
		}
	}
}

func readTar(ctx context.Context, r io.Reader, files *kernelFiles) error {
	plain, err := unpacked(r)
	if err != nil {
		return fmt.Errorf("data.tar: %w", err)
	}
	defer plain.Close()
	limited := &io.LimitedReader{R: plain, N: maxUnpacked}
	for all := tar.NewReader(limited); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		head, err := all.Next()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case limited.N <= 0:
			return fmt.Errorf("data.tar: more than %d bytes", int64(maxUnpacked))
		case err != nil:
			return fmt.Errorf("data.tar: %w", err)
		case head.Typeflag != tar.TypeReg:
			continue
		}
		err = files.add(strings.TrimPrefix(head.Name, "./"), head.Size, func() (io.ReadCloser, error) { return io.NopCloser(all), nil })
		if err != nil {
			return err
		}
	}
}

// unpacked reads what r has, packed or not, whatever its name.
func unpacked(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReader(r)
	head, err := in.Peek(6)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte("\xfd7zXZ\x00")):
		return openXZ(in)
	case bytes.HasPrefix(head, []byte("\x28\xb5\x2f\xfd")):
		return openZstd(in)
	case bytes.HasPrefix(head, []byte("\x1f\x8b")):
		return gzip.NewReader(in)
	}
	return io.NopCloser(in), nil
}
