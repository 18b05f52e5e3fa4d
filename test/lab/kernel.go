package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

// GuestKernel returns the vmlinuz of a guest's Linux ("6.12"), as Debian ships
// it, and its release ("6.12.118+deb13-amd64"). It fetches the package if need be.
func GuestKernel(ctx context.Context, version string) (path, release string, err error) {
	if err := (Config{Guest: version}).Validate(); err != nil {
		return "", "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", "", err
	}
	root, err := fetch(ctx, cache, linuxSuites[version], func(string) {})
	if err != nil {
		return "", "", err
	}
	return kernelOf(root)
}

func kernelOf(root string) (path, release string, err error) {
	path, err = first(filepath.Join(root, "boot/vmlinuz-*"), filepath.Join(root, "usr/lib/modules/*/vmlinuz"))
	if err != nil {
		return "", "", err
	}
	if name, ok := strings.CutPrefix(filepath.Base(path), "vmlinuz-"); ok {
		return path, name, nil
	}
	return path, filepath.Base(filepath.Dir(path)), nil
}

// unpackKernel makes the bare ELF of a vmlinuz: unpacking it here saves the
// emulator billions of instructions.
func unpackKernel(vmlinuz, to string) error {
	b, err := os.ReadFile(vmlinuz)
	if err != nil {
		return err
	}
	for _, format := range []struct {
		magic string
		open  func(io.Reader) (io.Reader, error)
	}{
		{"\xfd7zXZ\x00", func(r io.Reader) (io.Reader, error) { return xz.NewReader(r, xz.DefaultDictMax) }},
		{"\x28\xb5\x2f\xfd", func(r io.Reader) (io.Reader, error) { return zstd.NewReader(r) }},
	} {
		at := bytes.Index(b, []byte(format.magic))
		if at < 0 {
			continue
		}
		r, err := format.open(bytes.NewReader(b[at:]))
		if err != nil {
			continue
		}
		// What follows the stream is no part of it, which the reader may
		// complain of; what counts is that a whole ELF came out.
		elf, err := io.ReadAll(r)
		if bytes.HasPrefix(elf, []byte("\x7fELF")) && len(elf) > 10<<20 {
			return os.WriteFile(to, elf, 0o644)
		}
		if err != nil {
			return fmt.Errorf("unpack %s: %w", vmlinuz, err)
		}
	}
	return fmt.Errorf("%s holds no kernel that the lab can unpack (it knows xz and zstd)", vmlinuz)
}

// module writes the kernel module of a name, and first those that it depends
// on, from a package tree into dir; it returns their file names in order.
func module(root, name, dir string) ([]string, error) {
	_, release, err := kernelOf(root)
	if err != nil {
		return nil, err
	}
	base, err := first(filepath.Join(root, "usr/lib/modules", release), filepath.Join(root, "lib/modules", release))
	if err != nil {
		return nil, err
	}
	var found string
	err = filepath.WalkDir(base, func(path string, d os.DirEntry, err error) error {
		plain := strings.TrimSuffix(strings.TrimSuffix(filepath.Base(path), ".xz"), ".zst")
		if err == nil && strings.ReplaceAll(plain, "_", "-") == name+".ko" {
			found = path
			return filepath.SkipAll
		}
		return err
	})
	if err != nil || found == "" {
		return nil, fmt.Errorf("no module %s in %s: %w", name, base, err)
	}
	to := filepath.Join(dir, name+".ko")
	if err := unpackModule(found, to); err != nil {
		return nil, err
	}
	b, err := os.ReadFile(to)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, dep := range depends(b) {
		more, err := module(root, strings.ReplaceAll(dep, "_", "-"), dir)
		if err != nil {
			return nil, err
		}
		all = append(all, more...)
	}
	return append(all, name+".ko"), nil
}

// depends reads the "depends=" entry of a module's .modinfo.
func depends(module []byte) []string {
	_, rest, ok := bytes.Cut(module, []byte("\x00depends="))
	list, _, _ := bytes.Cut(rest, []byte{0})
	if !ok || len(list) == 0 || len(list) > 200 {
		return nil
	}
	return strings.Split(string(list), ",")
}

func unpackModule(path, to string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	var r io.Reader = f
	switch filepath.Ext(path) {
	case ".xz":
		r, err = xz.NewReader(f, xz.DefaultDictMax)
	case ".zst":
		r, err = zstd.NewReader(f)
	}
	if err != nil {
		return err
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return fmt.Errorf("unpack %s: %w", path, err)
	}
	return os.WriteFile(to, b, 0o644)
}
