package lab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// BuildProgram builds a static program for guests from C sources and headers,
// by file name, with this machine's compiler. It is built once.
func BuildProgram(ctx context.Context, name string, files map[string][]byte) (string, error) {
	return built(ctx, name, files, "", func(dir string) (string, error) {
		var c []string
		for file := range files {
			if strings.HasSuffix(file, ".c") {
				c = append(c, file)
			}
		}
		_, err := command(ctx, dir, "gcc", append([]string{"-O2", "-Wall", "-static", "-pthread", "-o", name}, c...)...)
		return name, err
	})
}

// BuildModule builds a kernel module for a guest's Linux ("6.12") from its
// sources, one of which is the Kbuild file, in a package tree of the same suite:
// with the compiler that the suite's kernel was built with. It is built once.
func BuildModule(ctx context.Context, linux, name string, files map[string][]byte, say func(string)) (string, error) {
	_, release, err := GuestKernel(ctx, linux)
	if err != nil {
		return "", err
	}
	return built(ctx, name+".ko", files, release, func(dir string) (string, error) {
		cache, err := CacheDir()
		if err != nil {
			return "", err
		}
		root, err := headers(ctx, cache, linuxSuites[linux], release, say)
		if err != nil {
			return "", err
		}
		say(fmt.Sprintf("building the module %s for Linux %s", name, release))
		// In a name space of its own: the compiler wants /dev/null, objtool (since
		// Linux 7) /proc, and the sources must be inside. Root there is who calls this.
		script := `set -e
mkdir -p "$1/dev" "$1/src" "$1/tmp" "$1/proc"
mount --rbind /proc "$1/proc"
touch "$1/dev/null"
mount --bind /dev/null "$1/dev/null"
mount --bind "$2" "$1/src"
exec chroot "$1" /bin/sh -c 'export PATH=/usr/bin:/bin:/usr/sbin LC_ALL=C; make -s -C /lib/modules/'"$3"'/build M=/src modules'`
		args := []string{"--mount", "--map-root-user", "sh", "-c", script, "sh", root, dir, release}
		if os.Geteuid() == 0 {
			args = slices.Delete(args, 1, 2)
		}
		if _, err := command(ctx, dir, "unshare", args...); err != nil {
			return "", fmt.Errorf("build the module %s (this needs root, or user name spaces for everyone: sysctl kernel.unprivileged_userns_clone=1): %w", name, err)
		}
		return name + ".ko", nil
	})
}

// built runs make in a new folder with the files, and keeps the file that it
// names: once for the same sources.
func built(ctx context.Context, name string, files map[string][]byte, salt string, make func(dir string) (string, error)) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	h := sha256.New()
	fmt.Fprintln(h, name, salt, hashOf("build.go"))
	for _, file := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%s %d\n%s", file, len(files[file]), files[file])
	}
	dir := filepath.Join(cache, "built")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return once(ctx, dir, hex.EncodeToString(h.Sum(nil))[:12]+"-"+name, func(tmp string) error {
		work, err := os.MkdirTemp(dir, "work-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(work)
		for file, content := range files {
			if err := os.WriteFile(filepath.Join(work, file), content, 0o644); err != nil {
				return err
			}
		}
		out, err := make(work)
		if err != nil {
			return err
		}
		return os.Rename(filepath.Join(work, out), tmp)
	})
}

// headers unpacks what builds modules for a release: its headers, the compiler
// of its suite, and the programs that the kernel's makefiles call.
func headers(ctx context.Context, cache, suite, release string, say func(string)) (string, error) {
	return once(ctx, cache, "headers-"+release, func(tmp string) error {
		say("fetching the compiler and the headers of Linux " + release)
		include := []string{"linux-headers-" + release, "gcc", "make", "dash", "bash", "coreutils", "sed", "grep", "gawk", "findutils", "diffutils", "perl-base"}
		if err := unpack(ctx, cache, suite, include, tmp, say); err != nil {
			return fmt.Errorf("%w\n(if Debian has replaced Linux %s meanwhile, remove %s: the lab then fetches the new one)", err, release, filepath.Join(cache, suite))
		}
		// What packages' own scripts would do, which were not run.
		for link, to := range map[string]string{"usr/bin/awk": "gawk", "bin/sh": "dash"} {
			if err := os.Symlink(to, filepath.Join(tmp, link)); err != nil && !errors.Is(err, os.ErrExist) {
				return err
			}
		}
		return nil
	})
}

var goBuilt struct {
	sync.Mutex
	paths map[string]string
	dir   string
}

// GoBinary builds a package of this module for a copy's dom0, once in a test run:
// as a static binary, or with LibVMI (see Driver), where that can't run on this
// machine, and a test without LibVMI is skipped.
func GoBinary(t testing.TB, pkg string) string {
	t.Helper()
	return goFor(t, pkg, "-s -w", "build")
}

// GoBinaryLibVMI is GoBinary with LibVMI, whichever driver the tests are for.
func GoBinaryLibVMI(t testing.TB, pkg string) string {
	t.Helper()
	NeedLibVMI(t)
	path, err := goBuild(context.Background(), driverLibVMI, pkg, "-s -w", "build")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// GoBinaryWithSymbols is GoBinary, with symbols for a profiler.
func GoBinaryWithSymbols(t testing.TB, pkg string) string {
	t.Helper()
	return goFor(t, pkg, "", "build")
}

// BuildGo builds a package as a static binary, whichever driver the tests are for:
// for who is no test, and for programs that a test runs on this machine.
func BuildGo(ctx context.Context, pkg string) (string, error) {
	return goBuild(ctx, driverNative, pkg, "-s -w", "build")
}

// GoTest builds the tests of a package for a copy, as GoBinary does.
func GoTest(t testing.TB, pkg string) string {
	t.Helper()
	return goFor(t, pkg, "", "test", "-c")
}

// goFor builds with the driver that the tests are for.
func goFor(t testing.TB, pkg, ldflags string, how ...string) string {
	t.Helper()
	d := driver(t)
	if d == driverLibVMI {
		NeedLibVMI(t)
	}
	path, err := goBuild(context.Background(), d, pkg, ldflags, how...)
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// keepBuilds is how long what one test run built stays in the cache.
const keepBuilds = 2 * time.Hour

func goBuild(ctx context.Context, driver, pkg, ldflags string, how ...string) (string, error) {
	goBuilt.Lock()
	defer goBuilt.Unlock()
	name := how[0] + "-" + strings.ReplaceAll(pkg, "/", "_")
	if how[0] == "build" && ldflags == "" {
		name += "-symbols"
	}
	env := []string{"CGO_ENABLED=0"}
	if driver == driverLibVMI {
		l, err := findLibVMI()
		if err != nil {
			return "", err
		}
		name += "-libvmi"
		env = []string{"CGO_ENABLED=1", "CGO_CFLAGS=" + strings.Join(append([]string{"-O2"}, l.flags...), " ")}
		how = append(slices.Clone(how), "-tags=libvmi")
		ldflags += ` -linkmode external -extldflags "` + libvmiLink + `"`
	}
	if path := goBuilt.paths[name]; path != "" {
		return path, nil
	}
	if goBuilt.paths == nil {
		dir, err := buildDir()
		if err != nil {
			return "", err
		}
		goBuilt.paths, goBuilt.dir = map[string]string{}, dir
	}
	path := filepath.Join(goBuilt.dir, name)
	args := slices.Concat(env, []string{"go"}, how)
	if ldflags != "" {
		args = append(args, "-ldflags="+ldflags)
	}
	if _, err := command(ctx, "", "env", append(args, "-trimpath", "-o", path, pkg)...); err != nil {
		return "", err
	}
	goBuilt.paths[name] = path
	return path, nil
}

// buildDir makes a folder for this run, and removes those of earlier ones.
func buildDir() (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(cache, "go")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	old, err := os.ReadDir(parent)
	if err != nil {
		return "", err
	}
	for _, d := range old {
		if info, err := d.Info(); err == nil && time.Since(info.ModTime()) > keepBuilds {
			os.RemoveAll(filepath.Join(parent, d.Name()))
		}
	}
	return os.MkdirTemp(parent, "run-")
}
