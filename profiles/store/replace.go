package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// replace has f write a file, and puts it in place when all of it is there. Its folder is
// made.
func replace(path string, f func(io.Writer) error) error {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("profile folder: %w", err)
	}
	tmp, err := os.CreateTemp(dir, ".new-")
	if err != nil {
		return fmt.Errorf("profile folder: %w", err)
	}
	defer os.Remove(tmp.Name()) // fails once it has its name
	if err := errors.Join(f(tmp), tmp.Chmod(0o644), tmp.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(tmp.Name(), path)
}
