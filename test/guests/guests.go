// Package guests builds what runs in the guests of the lab: small static
// programs, attacks among them, and a kernel module with a planted bug.
package guests

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/mikelolasagasti/xz"

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

// Source is the source of a program of src, by its name without ".c".
func Source(name string) ([]byte, error) { return sources.ReadFile("src/" + name + ".c") }

// Twin is the same module under another name, twin, with its own device: one that may
// be loaded where the other one was. /payload/twin.ko there.
func Twin(ctx context.Context, linux string, say func(string)) (lab.File, error) {
	source, err := sources.ReadFile("module/vuln.c")
	if err != nil {
		return lab.File{}, err
	}
	header, err := sources.ReadFile("module/vuln.h")
	if err != nil {
		return lab.File{}, err
	}
	twin := strings.NewReplacer(`"vuln.h"`, `"vuln.h"`, "struct vuln_", "struct vuln_", "vuln", "twin").Replace(string(source))
	path, err := lab.BuildModule(ctx, linux, "twin", map[string][]byte{"Kbuild": []byte("obj-m := twin.o\n"), "twin.c": []byte(twin), "vuln.h": header}, say)
	return lab.File{Name: "twin.ko", Source: path, Guest: true}, err
}

// KernelModule is a module of a guest's kernel as Debian ships it: /payload/NAME.ko
// there. dir must live until the copy is made.
func KernelModule(ctx context.Context, linux, name, dir string) (lab.File, error) {
	kernel, release, err := lab.GuestKernel(ctx, linux)
	if err != nil {
		return lab.File{}, err
	}
	root, _, _ := strings.Cut(kernel, "/boot/")
	root, _, _ = strings.Cut(root, "/usr/lib/modules/")
	for _, lib := range []string{"lib", "usr/lib"} {
		found, err := filepath.Glob(filepath.Join(root, lib, "modules", release, "kernel/drivers/*", name+".ko*"))
		if err != nil {
			return lab.File{}, err
		}
		if len(found) > 0 {
			to := filepath.Join(dir, name+".ko")
			return lab.File{Name: name + ".ko", Source: to, Guest: true}, unpack(found[0], to)
		}
	}
	return lab.File{}, fmt.Errorf("no module %s of Linux %s in %s", name, release, root)
}

// unpack copies a module that may be compressed.
func unpack(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	if filepath.Ext(from) == ".xz" {
		r, err := xz.NewReader(bytes.NewReader(b), xz.DefaultDictMax)
		if err != nil {
			return fmt.Errorf("unpack %s: %w", from, err)
		}
		if b, err = io.ReadAll(r); err != nil {
			return fmt.Errorf("unpack %s: %w", from, err)
		}
	}
	return os.WriteFile(to, b, 0o644)
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
