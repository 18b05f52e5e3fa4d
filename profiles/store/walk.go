package store

import (
	"archive/zip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
)

// maxFiles bounds how many files are looked at.
const maxFiles = 10_000

// isfExts are the extensions of ISF files. What a file is its content says.
var isfExts = []string{".json", ".json.xz", ".json.gz", ".json.bz2"}

// file is one in a store's folders, or in a zip file there. It is known again by its name,
// its size and when it was changed.
type file struct {
	Path     string `json:"path"`
	Inner    string `json:"inner,omitempty"` // in the zip file Path
	Size     int64  `json:"size"`            // of Path, in bytes
	Modified int64  `json:"modified"`        // in nanoseconds since 1970
}

// name is how people see it.
func (f *file) name() string {
	if f.Inner == "" {
		return f.Path
	}
	return f.Path + "!" + f.Inner
}

func (f *file) compact() bool { return strings.HasSuffix(f.Path, Ext) }

// walk lists the files that may be profiles, by folder and name. Folders and zip files
// that Volatility has for other systems it leaves out, and what can't be read.
func (s *Store) walk(ctx context.Context) ([]file, error) {
	var all []file
	add := func(f file) error {
		if len(all) == maxFiles {
			return fmt.Errorf("more than %d files in %s: name folders that have profiles only", maxFiles, s.Folders())
		}
		all = append(all, f)
		return nil
	}
	for _, folder := range s.folders {
		// With a slash at its end a link to a folder is one.
		err := filepath.WalkDir(folder+string(filepath.Separator), func(path string, d fs.DirEntry, err error) error {
			name := filepath.Base(path)
			top := filepath.Clean(path) == filepath.Clean(folder)
			switch {
			case ctx.Err() != nil:
				return ctx.Err()
			case err != nil && top && !errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("profile folder: %w", err)
			case err != nil:
				return nil
			case top:
				return nil
			case d.IsDir() && (otherSystem(name) || name[0] == '.' || name == convertedFolder && filepath.Dir(path) == filepath.Clean(s.dir)):
				return fs.SkipDir
			case d.IsDir() || name[0] == '.':
				return nil
			}
			isZip := strings.HasSuffix(name, ".zip") && !otherSystem(strings.TrimSuffix(name, ".zip"))
			if !isZip && !strings.HasSuffix(name, Ext) && !isISF(name) {
				return nil
			}
			info, err := os.Stat(path)
			if err != nil || !info.Mode().IsRegular() {
				return nil
			}
			f := file{Path: path, Size: info.Size(), Modified: info.ModTime().UnixNano()}
			if !isZip {
				return add(f)
			}
			return f.inZip(add)
		})
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

func otherSystem(name string) bool { return name == "windows" || name == "mac" }

func isISF(name string) bool {
	return slices.ContainsFunc(isfExts, func(x string) bool { return strings.HasSuffix(name, x) })
}

// inZip calls add for the ISF files that a zip file has; one that is damaged has none.
func (f *file) inZip(add func(file) error) error {
	z, err := zip.OpenReader(f.Path)
	if err != nil {
		return nil
	}
	defer z.Close()
	for _, e := range z.File {
		if !isISF(e.Name) || slices.ContainsFunc(strings.Split(path.Dir(e.Name), "/"), otherSystem) {
			continue
		}
		inner := *f
		inner.Inner = e.Name
		if err := add(inner); err != nil {
			return err
		}
	}
	return nil
}

// open reads a file that is no compact form.
func (f *file) open() (io.ReadCloser, error) {
	if f.Inner == "" {
		return os.Open(f.Path)
	}
	z, err := zip.OpenReader(f.Path)
	if err != nil {
		return nil, err
	}
	e, err := z.Open(f.Inner)
	if err != nil {
		return nil, errors.Join(err, z.Close())
	}
	return struct {
		io.Reader
		io.Closer
	}{e, z}, nil
}

// read reads a profile as a whole, if it is no compact form.
func (f *file) read() (*isf.Profile, error) {
	if f.Inner == "" {
		return isf.ReadFile(f.Path)
	}
	r, err := f.open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, isf.MaxSize+1))
	if err == nil && len(b) > isf.MaxSize {
		err = fmt.Errorf("more than %d bytes", isf.MaxSize)
	}
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", f.name(), err)
	}
	return isf.Read(b)
}
