// Package guests builds what runs in the guests of the lab: small static
// programs, attacks among them, and a kernel module with a planted bug.
package guests

import (
	"context"
	"embed"
	"fmt"
	"io/fs"
	"os/exec"
	"path/filepath"

	"github.com/hprobe/hprobe/test/lab"
)

//go:embed src/*.c module
var sources embed.FS

// Program builds a program of src, by its name without ".c", for the guest:
// /payload/NAME there.
func Program(ctx context.Context, name string) (lab.File, error) {
	source, err := sources.ReadFile("src/" + name + ".c")
	if err != nil {
		return lab.File{}, fmt.Errorf("no program %q in test/guests/src: %w", name, err)
	}
	header, err := sources.ReadFile("module/vuln.h")
	if err != nil {
		return lab.File{}, err
	}
	path, err := lab.BuildProgram(ctx, name, map[string][]byte{name + ".c": source, "vuln.h": header})
	return lab.File{Name: name, Source: path, Guest: true}, err
}

// Module builds the module with the planted bug for a guest's Linux ("6.12"):
// /payload/vuln.ko there.
func Module(ctx context.Context, linux string, say func(string)) (lab.File, error) {
	files := map[string][]byte{}
	err := fs.WalkDir(sources, "module", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files[d.Name()], err = sources.ReadFile(path)
		return err
	})
	if err != nil {
		return lab.File{}, err
	}
	path, err := lab.BuildModule(ctx, linux, "vuln", files, say)
	return lab.File{Name: "vuln.ko", Source: path, Guest: true}, err
}

// Profile has a built hprobe make the profile of a kernel image, as a user
// would: /payload/profiles/guest.hprofile in dom0. dir must live until the copy
// is made.
func Profile(ctx context.Context, hprobe, vmlinuz, dir string) (lab.File, error) {
	path := filepath.Join(dir, "guest.hprofile")
	if out, err := exec.CommandContext(ctx, hprobe, "profile", "build", "--to", path, vmlinuz).CombinedOutput(); err != nil {
		return lab.File{}, fmt.Errorf("hprobe profile build %s: %w: %s", vmlinuz, err, out)
	}
	return lab.File{Name: "profiles/guest.hprofile", Source: path}, nil
}
