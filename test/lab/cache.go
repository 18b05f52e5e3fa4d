package lab

import (
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

//go:embed *.go assets
var sources embed.FS

// Version names this version of the lab: what another version booted is not mixed with it.
func Version() string { return hashOf(".")[:12] }

// hashOf hashes the embedded files whose names contain one of the patterns.
func hashOf(patterns ...string) string {
	h := sha256.New()
	var names []string
	for _, pattern := range []string{"*.go", "assets/*"} {
		found, err := fs.Glob(sources, pattern)
		if err != nil {
			panic(err) // the pattern is a constant
		}
		names = append(names, found...)
	}
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") || !slices.ContainsFunc(patterns, func(p string) bool { return strings.Contains(name, p) }) {
			continue
		}
		b, err := sources.ReadFile(name)
		if err != nil {
			panic(err)
		}
		fmt.Fprintf(h, "%s %d\n", name, len(b))
		h.Write(b)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// CacheDir is where the lab keeps what it made. It is made if need be.
func CacheDir() (string, error) {
	dir := os.Getenv("HPROBE_LAB_CACHE")
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("no cache folder: set HPROBE_LAB_CACHE: %w", err)
		}
		dir = filepath.Join(base, "hprobe", "lab")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("the lab's cache folder (set HPROBE_LAB_CACHE for another): %w", err)
	}
	return dir, nil
}

// once makes dir/name by calling make with a temporary name, unless it is there.
// A lock keeps other processes from making it as well.
func once(ctx context.Context, dir, name string, make func(tmp string) error) (string, error) {
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	unlock, err := lock(ctx, path+".lock")
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	tmp := path + ".part"
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := errors.Join(make(tmp), ctx.Err()); err != nil {
		return "", err
	}
	return path, os.Rename(tmp, path)
}

func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { locked <- unix.Flock(int(f.Fd()), unix.LOCK_EX) }() // ends with the lock, or with the process
	select {
	case err := <-locked:
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("another process makes %s: %w", strings.TrimSuffix(path, ".lock"), ctx.Err())
	}
}

// tools are the programs that the lab needs, and Debian's packages that have them.
var tools = []struct{ program, pkg string }{
	{"mmdebstrap", "mmdebstrap"}, {"dpkg-source", "dpkg-dev"}, {"g++", "g++"}, {"gcc", "gcc"}, {"make", "make"}, {"patch", "patch"},
	{"grub-mkrescue", "grub-common"}, {"grub-mkstandalone", "grub-common"}, {"xorriso", "xorriso"}, {"mformat", "mtools"},
	{"cpio", "cpio"}, {"mksquashfs", "squashfs-tools"}, {"readelf", "binutils"}, {"zstd", "zstd"}, {"xz", "xz-utils"}, {"unshare", "util-linux"},
}

// CheckTools names all that is missing on this machine, in one error.
func CheckTools() error {
	var missing []string
	for _, t := range tools {
		if _, err := exec.LookPath(t.program); err != nil && !slices.Contains(missing, t.pkg) {
			missing = append(missing, t.pkg)
		}
	}
	for path, pkg := range map[string]string{
		"/usr/lib/grub/i386-pc": "grub-pc-bin",
		"/usr/include/stdio.h":  "libc6-dev",
		debianKeyring:           "debian-archive-keyring",
	} {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, pkg)
		}
	}
	if len(missing) > 0 {
		slices.Sort(missing)
		return fmt.Errorf("the lab needs programs that are not on this machine: apt-get install %s", strings.Join(missing, " "))
	}
	return nil
}

// command runs a program and gives its output with the error.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	// Locales that are not installed make perl programs complain.
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, lastLines(string(out), 15))
	}
	return string(out), nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
