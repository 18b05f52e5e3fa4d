package store

import (
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"

	"github.com/hprobe/hprobe/profiles/isf"
)

// Profile is one that a store has.
type Profile struct {
	file
	Banner   string `json:"banner"` // "": of another system, or none
	Captured string `json:"captured,omitempty"`
	Error    string `json:"error,omitempty"` // why it can't be read; "": it can
}

// Name is the profile's file, or FILE.zip!NAME in a zip file.
func (p *Profile) Name() string { return p.name() }

// indexFile says what is in which file: to find the banner in an ISF file it has to be
// unpacked, and there may be hundreds. It is replaced as a whole; where two processes do so
// at once, one will have to look again at what only the other one knew.
const indexFile = ".index.json"

// maxIndex bounds that file, in bytes.
const maxIndex = 64 << 20

// List lists the profiles in the store's folders, by folder and name. Of files that are as
// they were when a process that could write to the store looked last, it opens none.
func (s *Store) List(ctx context.Context) ([]Profile, error) {
	files, err := s.walk(ctx)
	if err != nil {
		return nil, err
	}
	known := s.readIndex()
	all := make([]Profile, 0, len(files))
	news := len(files) != len(known)
	for _, f := range files {
		p, ok := known[f.name()]
		if !ok || p.file != f {
			news = true
			if ctx.Err() != nil {
				break // what was found stays found
			}
			p = f.look()
		}
		all = append(all, p)
	}
	if news {
		s.writeIndex(all)
	}
	return all, ctx.Err()
}

func (s *Store) readIndex() map[string]Profile {
	var all []Profile
	f, err := os.Open(filepath.Join(s.dir, indexFile))
	if err != nil {
		return nil
	}
	defer f.Close()
	// One that is damaged is made anew.
	if b, err := io.ReadAll(io.LimitReader(f, maxIndex)); err != nil || json.Unmarshal(b, &all) != nil {
		return nil
	}
	known := make(map[string]Profile, len(all))
	for _, p := range all {
		known[p.name()] = p
	}
	return known
}

// writeIndex does nothing where it can't: without an index all works, but slower.
func (s *Store) writeIndex(all []Profile) {
	if _, err := os.Stat(s.dir); err != nil {
		return // to list a store does not make it
	}
	_ = replace(filepath.Join(s.dir, indexFile), func(w io.Writer) error { return json.NewEncoder(w).Encode(all) })
}

// look finds out what a file is.
func (f *file) look() Profile {
	p := Profile{file: *f}
	var err error
	if f.compact() {
		var whole *isf.Profile
		if whole, err = isf.ReadFile(f.Path); err == nil {
			p.Banner, p.Captured = whole.Meta().Banner, whole.Meta().Captured
		}
	} else {
		p.Banner, err = f.findBanner()
	}
	if err != nil {
		p.Error = err.Error()
	}
	return p
}

func (f *file) findBanner() (string, error) {
	r, err := f.open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	return isf.FindBanner(r)
}
