// Package store keeps profiles in a folder, one file for each kernel.
package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
)

// DefaultFolder is where hprobed keeps profiles.
const DefaultFolder = "/var/lib/hprobe/profiles"

// Ext is the extension of the compact form. ISF files (.json, packed or not)
// that somebody puts into the folder are read as well.
const Ext = ".hprofile"

var exts = []string{Ext, ".json", ".json.xz", ".json.gz"}

// Store is a folder of profiles. Several processes may use one.
type Store struct{ dir string }

// Open takes a folder, which need not exist yet.
func Open(dir string) *Store { return &Store{dir: dir} }

// Dir is the folder.
func (s *Store) Dir() string { return s.dir }

// Add keeps a profile and returns its file. One of the same kernel is replaced,
// at once and as a whole.
func (s *Store) Add(p *isf.Profile) (string, error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return "", fmt.Errorf("profile folder: %w", err)
	}
	tmp, err := os.CreateTemp(s.dir, "new-")
	if err != nil {
		return "", fmt.Errorf("profile folder: %w", err)
	}
	defer os.Remove(tmp.Name()) // fails once it has its name
	path := filepath.Join(s.dir, FileName(p.Meta()))
	if err := errors.Join(p.WriteCompact(tmp), tmp.Chmod(0o644), tmp.Close()); err != nil {
		return "", fmt.Errorf("write a profile: %w", err)
	}
	return path, os.Rename(tmp.Name(), path)
}

// FileName names a kernel's file: its release, and a hash of its whole banner,
// as two builds may have one release.
func FileName(m isf.Meta) string {
	release := "kernel"
	if f := strings.Fields(m.Banner); len(f) > 2 {
		release = strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-+", r) {
				return r
			}
			return '_'
		}, f[2])
	}
	hash := sha256.Sum256([]byte(m.Banner))
	return release[:min(len(release), 64)] + "-" + hex.EncodeToString(hash[:6]) + Ext
}

// Files lists the profiles, by name. A folder that is not there has none.
func (s *Store) Files() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("profile folder: %w", err)
	}
	var all []string
	for _, e := range entries {
		if slices.ContainsFunc(exts, func(x string) bool { return strings.HasSuffix(e.Name(), x) }) {
			all = append(all, filepath.Join(s.dir, e.Name()))
		}
	}
	return all, nil
}
