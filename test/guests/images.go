package guests

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/hprobe/hprobe/test/lab"
)

// imageFiles are what Images builds, in this order, with the compiler's arguments: a
// program that can be anywhere in memory, by two names, the library that it links to
// and those that it opens, and the same program linked statically.
var imageFiles = []struct {
	name string
	args []string
}{
	{"libshared.so", []string{"-shared", "-fPIC", "-Wl,-soname,libshared.so", "-DNAME=shared", "imagelib.c"}},
	{"libplugin.so", []string{"-shared", "-fPIC", "-DNAME=plugin", "imagelib.c"}},
	{"libother.so", []string{"-shared", "-fPIC", "-DNAME=other", "imagelib.c"}},
	{"images", []string{"-pie", "-fPIE", "images.c", "libshared.so", "-rdynamic", "-Wl,-rpath,/payload", "-Wl,-dynamic-linker,/payload/ld.so"}},
	{"twin", []string{"-pie", "-fPIE", "images.c", "libshared.so", "-rdynamic", "-Wl,-rpath,/payload", "-Wl,-dynamic-linker,/payload/ld.so"}},
	{"static", []string{"-static", "-DSTATIC_ONLY", "-DNAME=shared", "images.c", "imagelib.c"}},
	{"typed", []string{"-g", "-pie", "-fPIE", "typed.c", "-rdynamic", "-Wl,-rpath,/payload", "-Wl,-dynamic-linker,/payload/ld.so"}},
	// Another build of the library: an operator's copy that is not the guest's.
	{"newer.so", []string{"-shared", "-fPIC", "-Wl,-soname,libshared.so", "-DNAME=shared", "-DNEWER", "imagelib.c"}},
}

// Images builds programs and libraries of src/images.c, src/imagelib.c and src/typed.c with
// this machine's compiler: /payload/NAME in the guest, with this machine's loader and libc.
// Of typed the guest has no symbols: dom0 has them, in /payload/copies/typed.debug.
// dir must live until the copy is made.
func Images(ctx context.Context, dir string) (files []lab.File, err error) {
	for _, name := range []string{"images.c", "imagelib.c", "typed.c"} {
		text, err := sources.ReadFile("src/" + name)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o644); err != nil {
			return nil, err
		}
	}
	run := func(name string, args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil {
			return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out)), nil
	}
	for _, f := range imageFiles {
		if _, err := run("gcc", append([]string{"-O2", "-Wall", "-o", f.name}, f.args...)...); err != nil {
			return nil, err
		}
		files = append(files, lab.File{Name: f.name, Source: filepath.Join(dir, f.name), Guest: true})
	}
	for _, args := range [][]string{{"--only-keep-debug", "typed", "typed.debug"}, {"--strip-all", "typed"}} {
		if _, err := run("objcopy", args...); err != nil {
			return nil, err
		}
	}
	files = append(files, lab.File{Name: "copies/typed.debug", Source: filepath.Join(dir, "typed.debug")})
	for name, as := range map[string]string{"ld-linux-x86-64.so.2": "ld.so", "libc.so.6": "libc.so.6"} {
		path, err := run("gcc", "-print-file-name="+name)
		if err != nil {
			return nil, err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		files = append(files, lab.File{Name: as, Data: data, Guest: true})
	}
	return files, nil
}
