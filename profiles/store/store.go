// Package store keeps profiles, and finds the one of the kernel that a running guest has:
// in its own folder, in folders of ISF files as Volatility 3 has them, or, where none is of
// that kernel, by making one from the guest's memory.
//
// A profile made of a guest's memory is the guest's word. It is marked (isf.Meta.Captured),
// and taken for no guest but that one: one tenant's guest must not say where probes in
// another's go.
package store

import (
	"cmp"
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

// Ext is the extension of the compact form.
const Ext = ".hprofile"

// Folders of a store: profiles of guests' memory, one for each guest, and the compact form
// of ISF files that were taken.
const (
	capturedFolder  = "captured"
	convertedFolder = "converted"
)

// maxKept is how many files each of these has; the oldest ones go. A profile has some 20 MB.
const maxKept = 32

// Store is a folder of profiles, which it writes to, and others that it reads. Several
// processes may use one: every file is put in place as a whole.
type Store struct {
	dir     string
	folders []string // all, dir first
}

// Open takes folders, none of which need exist yet. New profiles go to the first one.
func Open(dir string, more ...string) *Store {
	return &Store{dir: dir, folders: append([]string{dir}, more...)}
}

// Folders are those where profiles are looked for, as a text.
func (s *Store) Folders() string { return strings.Join(s.folders, " or ") }

// Add keeps a profile and returns its file. One of the same kernel is replaced, and one
// captured from the same guest.
func (s *Store) Add(p *isf.Profile) (string, error) {
	m := p.Meta()
	if m.Captured == "" {
		return s.write(filepath.Join(s.dir, fileName(&m)), p)
	}
	return s.keep(capturedFolder, safe(m.Captured)+Ext, p)
}

// keep writes a file to one of the store's own folders, from which the oldest goes.
func (s *Store) keep(folder, name string, p *isf.Profile) (string, error) {
	dir := filepath.Join(s.dir, folder)
	path, err := s.write(filepath.Join(dir, name), p)
	if err != nil {
		return "", err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", fmt.Errorf("profile folder: %w", err)
	}
	var all []fs.FileInfo
	for _, e := range entries {
		// What another process is writing has another name, and one that went is gone.
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), Ext) && e.Name() != name {
			all = append(all, info)
		}
	}
	slices.SortFunc(all, func(a, b fs.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	for _, old := range all[min(len(all), maxKept-1):] {
		if err := os.Remove(filepath.Join(dir, old.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("profile folder: %w", err)
		}
	}
	return path, nil
}

// write puts a profile in place, at once and as a whole.
func (s *Store) write(path string, p *isf.Profile) (string, error) {
	return path, replace(path, p.WriteCompact)
}

// fileName names a kernel's file: its release, and a hash of its whole banner, as two
// builds may have one release.
func fileName(m *isf.Meta) string {
	release := "kernel"
	if f := strings.Fields(m.Banner); len(f) > 2 {
		release = safe(f[2])
	}
	return release + "-" + hash(m.Banner) + Ext
}

// safe makes of a text, which may be a guest's, a part of a file's name.
func safe(s string) string {
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-+", r) {
			return r
		}
		return '_'
	}, s)
	s = strings.TrimLeft(s, ".")
	return s[:min(len(s), 64)]
}

func hash(s string) string {
	sum := sha256.Sum256([]byte(s))
	return hex.EncodeToString(sum[:6])
}
