package lab

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Programs with LibVMI are built by this machine's compiler and run in the dom0
// of another Debian release. So they bring their loader and their libraries along,
// and nothing of dom0's but what depends on its Xen: libxenctrl and its kind.
//
// The C library is the newer one of this machine's and the base suite's: the program
// may need the former, and dom0's libxenstore needs what its own release has. The
// suites of older Xens are older than the base suite; glibc is compatible backwards.

const (
	// libvmiDir is where they are in dom0: the programs' DT_RPATH, which comes before
	// LD_LIBRARY_PATH (dom0's own libraries), and holds for what they load by name and
	// for the libraries of libraries as well. DT_RUNPATH does neither.
	libvmiDir    = "/payload/libvmi"
	libvmiLoader = libvmiDir + "/ld-linux-x86-64.so.2"
	libvmiSoname = "libvmi.so.0"

	// libvmiLink has a linker (by way of gcc) make a program that is run so.
	libvmiLink = "-Wl,--dynamic-linker=" + libvmiLoader + " -Wl,--disable-new-dtags -Wl,-rpath=" + libvmiDir
)

// glibc is what must be of one build: the C library's files, those among them that
// only programs of before glibc 2.34 ask for, and what pthread_cancel loads by name.
var glibc = []string{filepath.Base(libvmiLoader), "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "libresolv.so.2", "libgcc_s.so.1"}

// The drivers that the tests can be asked for.
const (
	driverNative = "native"
	driverLibVMI = "libvmi"
)

// Driver is the driver that HPROBE_TEST_DRIVER asks the tests for: "native", the
// default, or "libvmi". With the latter GoBinary and GoTest build with it, and the
// programs of a test's copy are told by HPROBE_DRIVER.
func Driver() (string, error) {
	switch d := os.Getenv("HPROBE_TEST_DRIVER"); d {
	case "", driverNative:
		return driverNative, nil
	case driverLibVMI:
		return d, nil
	default:
		return "", fmt.Errorf("HPROBE_TEST_DRIVER is %q: the tests know %s and %s", d, driverNative, driverLibVMI)
	}
}

// driver is Driver for a test, which ends with what is wrong.
func driver(t testing.TB) string {
	t.Helper()
	d, err := Driver()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// NeedLibVMI skips a test where LibVMI, or what builds programs with it, is not on
// this machine.
func NeedLibVMI(t testing.TB) {
	t.Helper()
	if _, err := findLibVMI(); err != nil {
		t.Skipf("libvmi: %v", err)
	}
}

// libvmi is LibVMI on this machine.
type libvmi struct {
	path  string   // of libvmi.so.0
	flags []string // that find its headers
}

var findLibVMI = sync.OnceValues(func() (libvmi, error) {
	ctx := context.Background()
	path, err := libvmiPath(ctx)
	if err != nil {
		return libvmi{}, err
	}
	l := libvmi{path: path}
	// Headers in a usual place need no flag, and pkg-config need not be there.
	if out, err := command(ctx, "", "pkg-config", "--cflags", "libvmi"); err == nil {
		l.flags = strings.Fields(out)
	}
	args := append(slices.Clone(l.flags), "-fsyntax-only", "-include", "libvmi/libvmi.h", "-include", "libvmi/events.h", "-x", "c", os.DevNull)
	if _, err := command(ctx, "", "gcc", args...); err != nil {
		return libvmi{}, fmt.Errorf("%s is on this machine, its headers are not: %w", libvmiSoname, err)
	}
	return l, nil
})

// libvmiPath finds the library as this machine's loader does, or where its
// pkg-config file says.
func libvmiPath(ctx context.Context) (string, error) {
	// Only root has /sbin in its PATH.
	for _, ldconfig := range []string{"ldconfig", "/sbin/ldconfig"} {
		out, err := command(ctx, "", ldconfig, "-p")
		if err != nil {
			continue
		}
		for line := range strings.Lines(out) {
			name, path, ok := strings.Cut(strings.TrimSpace(line), " => ")
			if ok && strings.HasPrefix(name, libvmiSoname+" ") && strings.Contains(name, "x86-64") {
				return path, nil
			}
		}
	}
	if dir, err := command(ctx, "", "pkg-config", "--variable=libdir", "libvmi"); err == nil {
		if path := filepath.Join(strings.TrimSpace(dir), libvmiSoname); exists(path) {
			return path, nil
		}
	}
	return "", fmt.Errorf("%s is not on this machine (ldconfig -p and pkg-config know of none)", libvmiSoname)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// LibVMIProgram builds a program for dom0 from C sources and headers, by file name,
// with LibVMI. It is built once. Without LibVMI the test is skipped.
func LibVMIProgram(t testing.TB, name string, files map[string][]byte) File {
	t.Helper()
	NeedLibVMI(t)
	l, err := findLibVMI()
	if err != nil {
		t.Fatal(err)
	}
	path, err := built(context.Background(), name, files, hashOf("libvmi.go")+l.path, func(dir string) (string, error) {
		args := append([]string{"-O2", "-Wall", "-o", name}, l.flags...)
		for _, file := range slices.Sorted(maps.Keys(files)) {
			if strings.HasSuffix(file, ".c") {
				args = append(args, file)
			}
		}
		// By its path: there need be no link without a version, and no headers of its own libraries.
		args = append(append(args, l.path), strings.Fields(libvmiLink)...)
		_, err := command(context.Background(), dir, "gcc", args...)
		return name, err
	})
	if err != nil {
		t.Fatal(err)
	}
	return File{Name: name, Source: path}
}

// hasLibVMI says whether a file of dom0 is a program that was linked to find LibVMI
// in libvmiDir.
func (f File) hasLibVMI() bool {
	if f.Guest {
		return false
	}
	var in io.ReaderAt = bytes.NewReader(f.Data)
	if f.Source != "" {
		file, err := os.Open(f.Source)
		if err != nil {
			return false // who places it will say so
		}
		defer file.Close()
		in = file
	}
	program, err := elf.NewFile(in)
	if err != nil {
		return false
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_INTERP {
			loader, err := io.ReadAll(p.Open())
			return err == nil && strings.TrimRight(string(loader), "\x00") == libvmiLoader
		}
	}
	return false
}

// withLibVMI adds what programs with LibVMI need in the dom0 of a Xen to the files
// of a copy, if there is such a program among them.
func withLibVMI(ctx context.Context, xen string, files []File, say func(string)) ([]File, error) {
	if !slices.ContainsFunc(files, File.hasLibVMI) {
		return files, nil
	}
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	base, err := fetch(ctx, cache, baseSuite, say)
	if err != nil {
		return nil, err
	}
	suite, err := fetch(ctx, cache, xenSuites[xen], say)
	if err != nil {
		return nil, err
	}
	more, err := libvmiLibraries(ctx, base)
	if err != nil {
		return nil, fmt.Errorf("the libraries for programs with LibVMI: %w", err)
	}
	// LibVMI asks for libxenctrl by its version, if need be, and for this one never.
	store, err := libraryName(suite, "libxenstore.so.*")
	if err != nil {
		return nil, err
	}
	more = append(more, File{Name: "libvmi/libxenstore.so", Link: "/lib64/" + store})
	return append(slices.Clone(files), more...), nil
}

// libvmiLibraries are LibVMI and what it needs, but Xen's libraries.
func libvmiLibraries(ctx context.Context, base string) ([]File, error) {
	l, err := findLibVMI()
	if err != nil {
		return nil, err
	}
	out, err := command(ctx, "", "ldd", l.path)
	if err != nil {
		return nil, err
	}
	paths := map[string]string{libvmiSoname: l.path}
	for line := range strings.Lines(out) {
		name, to, ok := strings.Cut(strings.TrimSpace(line), " => ")
		path, _, _ := strings.Cut(to, " (")
		switch {
		case ok && !filepath.IsAbs(path):
			return nil, fmt.Errorf("%s needs %s, which is not on this machine", l.path, name)
		case ok && !strings.HasPrefix(name, "libxen"):
			paths[name] = path
		}
	}
	dir, err := newestGlibc(filepath.Dir(paths["libc.so.6"]), filepath.Join(base, "usr/lib/x86_64-linux-gnu"))
	if err != nil {
		return nil, err
	}
	for _, name := range glibc {
		paths[name] = filepath.Join(dir, name)
	}
	var all []File
	for _, name := range slices.Sorted(maps.Keys(paths)) {
		// As data: a Source may be linked into the copy's files and then be made
		// executable, which is not for the system's own files.
		b, err := os.ReadFile(paths[name])
		if err != nil {
			return nil, err
		}
		all = append(all, File{Name: "libvmi/" + name, Data: b})
	}
	return all, nil
}

// newestGlibc is the one of some folders whose C library is the newest.
func newestGlibc(dirs ...string) (newest string, err error) {
	most := -1
	for _, dir := range dirs {
		version, err := glibcVersion(filepath.Join(dir, "libc.so.6"))
		if err != nil {
			return "", err
		}
		if version > most {
			newest, most = dir, version
		}
	}
	return newest, nil
}

// glibcVersion is N of glibc 2.N: the newest version of symbols that the library has.
func glibcVersion(path string) (int, error) {
	f, err := elf.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	versions, err := f.DynamicVersions()
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	most := -1
	for _, v := range versions {
		minor, ok := strings.CutPrefix(v.Name, "GLIBC_2.")
		minor, _, _ = strings.Cut(minor, ".") // of 2.2.5, say
		if n, err := strconv.Atoi(minor); ok && err == nil {
			most = max(most, n)
		}
	}
	if most < 0 {
		return 0, fmt.Errorf("%s has no versions of glibc", path)
	}
	return most, nil
}

// libraryName is the name by which programs of a suite ask for one of its libraries:
// the file's own name may have more of its version.
func libraryName(suite, pattern string) (string, error) {
	path, err := first(filepath.Join(suite, "usr/lib/x86_64-linux-gnu", pattern))
	if err != nil {
		return "", err
	}
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	names, err := f.DynString(elf.DT_SONAME)
	if err != nil || len(names) != 1 {
		return "", errors.Join(fmt.Errorf("%s does not say what it is called", path), err)
	}
	return names[0], nil
}
