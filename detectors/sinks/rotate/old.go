package rotate

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
)

// stamp is what an old file's name ends in, after a dot: names sort by it.
const stamp = "20060102T150405.000000000Z"

// Old returns the old files of the one at a path, the oldest first.
func Old(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var all []string
	for _, e := range entries {
		if _, ok := stampOf(path, e.Name()); ok {
			all = append(all, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	slices.Sort(all)
	// One that was compressed, and not removed yet, is there twice.
	return slices.DeleteFunc(all, func(p string) bool {
		return compressed(p) != "" && slices.Contains(all, strings.TrimSuffix(p, compressed(p)))
	}), nil
}

// stampOf returns the time that is in the name of an old file.
func stampOf(path, name string) (time.Time, bool) {
	rest, ok := strings.CutPrefix(filepath.Base(name), filepath.Base(path)+".")
	if !ok {
		return time.Time{}, false
	}
	t, err := time.Parse(stamp, rest[:len(rest)-len(compressed(rest))])
	return t, err == nil
}

// compressed returns what a compressed file's name ends in; "" of others.
func compressed(name string) string {
	for _, s := range suffixes {
		if s != "" && strings.HasSuffix(name, s) {
			return s
		}
	}
	return ""
}

// nextName is the name that the file gets as an old one. It comes after all others, even
// where the clock was set back.
func (f *File) nextName(now time.Time) (string, error) {
	old, err := Old(f.c.Path)
	if err != nil {
		return "", err
	}
	if len(old) > 0 {
		if newest, _ := stampOf(f.c.Path, old[len(old)-1]); !now.After(newest) {
			now = newest.Add(1)
		}
	}
	return f.c.Path + "." + now.UTC().Format(stamp), nil
}

// OpenOld opens one of the files to read, unpacked; one that was compressed since its name
// was read, too. The caller closes it.
func OpenOld(path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	for _, s := range suffixes {
		if !errors.Is(err, os.ErrNotExist) {
			break
		}
		if other, e := os.Open(path + s); e == nil {
			f, err, path = other, nil, path+s
		}
	}
	if err != nil {
		return nil, err
	}
	var r io.Reader = f
	closeAll := f.Close
	switch compressed(path) {
	case ".zst":
		z, e := zstd.NewReader(f, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(64<<20))
		err = e
		if err == nil {
			r, closeAll = z, func() error { z.Close(); return f.Close() }
		}
	case ".gz":
		r, err = gzip.NewReader(f)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, err), f.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{r, closer(closeAll)}, nil
}

type closer func() error

func (c closer) Close() error { return c() }

// tidyUp compresses old files and removes those that are too many, each time that there
// is a new one.
func (f *File) tidyUp() {
	for range f.old {
		if err := f.tidyOnce(); err != nil && !errors.Is(err, errEnding) {
			f.log.Error("old files", "err", err)
		}
	}
}

func (f *File) tidyOnce() error {
	old, err := Old(f.c.Path)
	if err != nil {
		return err
	}
	for f.c.Keep > 0 && len(old) > f.c.Keep {
		err = errors.Join(err, os.Remove(old[0]))
		old = old[1:]
	}
	for _, path := range old {
		if f.c.Compress != "" && compressed(path) == "" {
			err = errors.Join(err, f.compress(path))
		}
	}
	return err
}

var errEnding = errors.New("the file is being closed")

// ending is a reader that ends with the File.
type ending struct {
	io.Reader
	end <-chan struct{}
}

func (e ending) Read(p []byte) (int, error) {
	select {
	case <-e.end:
		return 0, errEnding
	default:
		return e.Reader.Read(p)
	}
}

// compress replaces an old file. Until the new one is on the disk it stays.
func (f *File) compress(path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	to := path + suffixes[f.c.Compress]
	part := to + ".part" // of one that died at it: written anew
	out, err := os.OpenFile(part, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(part))
		}
	}()
	var w io.WriteCloser = gzip.NewWriter(out)
	if f.c.Compress == "zstd" {
		if w, err = zstd.NewWriter(out, zstd.WithEncoderConcurrency(1)); err != nil {
			return errors.Join(err, out.Close())
		}
	}
	_, err = io.Copy(w, ending{in, f.end})
	if err = errors.Join(err, w.Close(), out.Sync(), out.Close()); err != nil {
		return err
	}
	return errors.Join(os.Rename(part, to), os.Remove(path))
}
