package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// packages of a suite: its Linux, and for one that the lab has a Xen of, that.
func packages(suite string) []string {
	p := []string{"busybox-static", "linux-image-amd64"}
	for version, s := range xenSuites {
		if s == suite {
			p = append(p, "xenstore-utils", "xen-hypervisor-"+version+"-amd64", "xen-utils-"+version)
		}
	}
	if suite == baseSuite {
		p = append(p, "grub-xen-bin", "bochsbios", "vgabios", "debian-archive-keyring")
	}
	return p
}

// fetch unpacks the packages of a suite into the cache. apt verifies them; a
// mirror's list may be past its date (an archived release): it is still signed.
func fetch(ctx context.Context, cache, suite string, say func(string)) (string, error) {
	return once(ctx, cache, suite, func(tmp string) error {
		say("fetching Debian's packages of " + suite)
		return unpack(ctx, cache, suite, packages(suite), tmp, say)
	})
}

// unpack fetches packages and what they depend on, and unpacks them into dir;
// none of their scripts is run.
func unpack(ctx context.Context, cache, suite string, include []string, dir string, say func(string)) error {
	keyring, err := keyringFor(ctx, cache, suite, say)
	if err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	// As a tar archive, which tar unpacks as whoever we are: a folder
	// would, without root, belong to users of a name space.
	boot := exec.CommandContext(ctx, "mmdebstrap", "--quiet", "--aptopt=Acquire::Check-Valid-Until \"false\"", "--keyring="+keyring,
		"--variant=extract", "--format=tar", "--include="+strings.Join(include, ","), suite, "-")
	return pipe(boot, exec.CommandContext(ctx, "tar", "x", "-C", dir, "--no-same-owner", "--exclude=./dev/*"))
}

// keyringFor finds the keys that sign a suite. Those of testing may be newer
// than this machine's, but they come with the base suite, signed by keys that it has.
func keyringFor(ctx context.Context, cache, suite string, say func(string)) (string, error) {
	if suite != linuxSuites["7.2"] {
		return debianKeyring, nil
	}
	base, err := fetch(ctx, cache, baseSuite, say)
	if err != nil {
		return "", err
	}
	return first(filepath.Join(base, "usr/share/keyrings/debian-archive-keyring.pgp"), filepath.Join(base, debianKeyring))
}

// pipe runs two commands with the first one's output as the second one's input.
func pipe(from, to *exec.Cmd) error {
	var fromErr, toErr strings.Builder
	r, w := io.Pipe()
	from.Stdout, from.Stderr = w, &fromErr
	to.Stdin, to.Stderr = r, &toErr
	if err := to.Start(); err != nil {
		return err
	}
	err := from.Run()
	w.CloseWithError(err) // nil: the end of the file
	waitErr := to.Wait()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(from.Args, " "), err, lastLines(fromErr.String(), 15))
	}
	if waitErr != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(to.Args, " "), waitErr, lastLines(toErr.String(), 15))
	}
	return nil
}

// first returns the first path that exists; a path may be a pattern.
func first(patterns ...string) (string, error) {
	for _, p := range patterns {
		found, err := filepath.Glob(p)
		if err != nil {
			return "", err
		}
		for _, f := range found {
			if _, err := os.Stat(f); err == nil { // not a link that leads out of the tree
				return f, nil
			}
		}
	}
	return "", fmt.Errorf("none of these is there: %s", strings.Join(patterns, ", "))
}

// bochs builds the emulator from Debian's source with the lab's patches.
func bochs(ctx context.Context, cache string, say func(string)) (string, error) {
	return once(ctx, cache, "bochs-"+hashOf(".patch")[:12], func(tmp string) error {
		say("building the emulator (a minute or two, once)")
		dir := tmp + ".d"
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, "lists/partial"), 0o755); err != nil {
			return err
		}
		src, err := bochsSource(ctx, dir)
		if err != nil {
			return err
		}
		for _, name := range []string{"bochs.patch", "profiler.patch"} {
			if err := applyPatch(ctx, src, name); err != nil {
				return err
			}
		}
		build := `CXXFLAGS=-O2 ./configure --with-nogui --enable-smp --enable-x86-64 --enable-vmx=2 --enable-cpu-level=6 --enable-all-optimizations \
			--enable-pci --enable-fpu --enable-avx --enable-evex --disable-docbook --disable-plugins > configure.log 2>&1 && make -j"$(nproc)" > make.log 2>&1`
		if _, err := command(ctx, src, "sh", "-c", build); err != nil {
			return fmt.Errorf("the emulator does not build (see make.log and configure.log in %s): %w", src, err)
		}
		if err := os.Rename(filepath.Join(src, "bochs"), tmp); err != nil {
			return err
		}
		return os.RemoveAll(dir)
	})
}

// bochsSource fetches the source package, which apt verifies, and unpacks it.
func bochsSource(ctx context.Context, dir string) (string, error) {
	repo, err := command(ctx, dir, "apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian")
	if err != nil {
		return "", err
	}
	uri, _, _ := strings.Cut(repo, "\n")
	if uri == "" {
		return "", fmt.Errorf("apt knows no Debian mirror on this machine: run apt-get update, as root")
	}
	list := fmt.Sprintf("deb-src [signed-by=%s] %s %s main\n", debianKeyring, uri, baseSuite)
	if err := os.WriteFile(filepath.Join(dir, "src.list"), []byte(list), 0o644); err != nil {
		return "", err
	}
	apt := []string{"-q", "-o", "Dir::Etc::sourcelist=" + dir + "/src.list", "-o", "Dir::Etc::sourceparts=/dev/null", "-o", "Dir::State::lists=" + dir + "/lists",
		"-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache=", "-o", "APT::Sandbox::User=", "-o", "Dir::State::status=/dev/null"}
	if _, err := command(ctx, dir, "apt-get", append(apt, "update")...); err != nil {
		return "", err
	}
	// The archive is all that is needed, and apt has verified it when it is
	// there: not every mirror has the package's small description file as well.
	_, sourceErr := command(ctx, dir, "apt-get", append(apt, "source", "--download-only", "bochs")...)
	archive, err := first(filepath.Join(dir, "bochs_*.orig.tar.xz"))
	if err != nil {
		return "", errors.Join(err, sourceErr)
	}
	if _, err := command(ctx, dir, "tar", "xf", archive); err != nil {
		return "", err
	}
	return first(filepath.Join(dir, "bochs-*/"))
}

func applyPatch(ctx context.Context, src, name string) error {
	text, err := sources.ReadFile("assets/" + name)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "patch", "-sp1")
	cmd.Dir, cmd.Stdin = src, strings.NewReader(string(text))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s does not apply to Debian's Bochs: %w\n%s", name, err, out)
	}
	return nil
}
