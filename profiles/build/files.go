package build

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// What bounds the files of a kernel. Debian's has 4,300 modules, whose types take 40 MiB.
const (
	maxModule      = 64 << 20 // bytes, unpacked
	maxModuleTypes = 256 << 20
	maxModules     = 20_000
	maxImages      = 64
)

// kernelFiles are the kernels and the types of their modules that a folder or a package
// has.
type kernelFiles struct {
	kernels map[string]kernelFile // by release
	modules []moduleTypes
	size    int      // bytes of the modules' types
	want    []string // names of modules
}

// AllModules names all modules.
const AllModules = "all"

func wanted(modules []string) (want []string) {
	for _, name := range modules {
		want = append(want, moduleName(name))
	}
	return want
}

// moduleName is a module's in the kernel, where none has a "-".
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// kernelFile is a kernel's image.
type kernelFile struct {
	name string
	data []byte
}

// moduleTypes are the types that a module has beside its kernel's: its .BTF section.
type moduleTypes struct {
	release, name string
	btf           []byte
}

// readFolder finds the files of a folder: an unpacked package, or a guest's /.
func readFolder(ctx context.Context, dir string, files *kernelFiles) error {
	return filepath.WalkDir(dir+string(filepath.Separator), func(name string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return err
		case !d.Type().IsRegular():
			return nil // what links lead to is there as well
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		return files.add(filepath.ToSlash(rel), info.Size(), func() (io.ReadCloser, error) { return os.Open(name) })
	})
}

// add looks at one file, by its name in the folder or package.
func (k *kernelFiles) add(name string, size int64, open func() (io.ReadCloser, error)) error {
	base := path.Base(name)
	release, inModules := moduleRelease(name)
	switch {
	case strings.HasPrefix(base, "vmlinuz"), strings.HasPrefix(base, "vmlinux"):
		if !inModules {
			release = strings.TrimPrefix(strings.TrimPrefix(strings.TrimPrefix(base, "vmlinuz"), "vmlinux"), "-")
		}
		return k.addKernel(name, release, size, open)
	case inModules && (strings.HasSuffix(base, ".ko") || strings.HasSuffix(strings.TrimSuffix(base, path.Ext(base)), ".ko")):
		return k.addModule(name, release, size, open)
	}
	return nil
}

// moduleRelease is the kernel's release in …lib/modules/RELEASE/…
func moduleRelease(name string) (string, bool) {
	_, rest, ok := strings.Cut("/"+name, "lib/modules/")
	release, _, below := strings.Cut(rest, "/")
	return release, ok && below
}

func (k *kernelFiles) addKernel(name, release string, size int64, open func() (io.ReadCloser, error)) error {
	if known, ok := k.kernels[release]; ok && strings.HasPrefix(path.Base(known.name), "vmlinuz") {
		return nil // it is the same one
	}
	if size > maxImage || len(k.kernels) >= maxImages {
		return fmt.Errorf("%s: it has %d bytes, or is one of more than %d kernels", name, size, maxImages)
	}
	data, err := readAll(open, maxImage)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if k.kernels == nil {
		k.kernels = map[string]kernelFile{}
	}
	k.kernels[release] = kernelFile{name, data}
	return nil
}

func (k *kernelFiles) addModule(name, release string, size int64, open func() (io.ReadCloser, error)) error {
	base, _, _ := strings.Cut(moduleName(path.Base(name)), ".ko")
	if !slices.Contains(k.want, base) && !slices.Contains(k.want, AllModules) {
		return nil
	}
	if size > maxModule || len(k.modules) >= maxModules {
		return fmt.Errorf("%s: it has %d bytes, or is one of more than %d modules", name, size, maxModules)
	}
	packed, err := readAll(open, maxModule)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	plain, err := unpacked(bytes.NewReader(packed))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	b, err := readAll(func() (io.ReadCloser, error) { return plain, nil }, maxModule)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return fmt.Errorf("%s is no module: %w", name, err)
	}
	s := f.Section(".BTF")
	if s == nil || s.Size > maxBTF {
		return nil // built without, or elsewhere
	}
	types, err := s.Data()
	if err != nil {
		return fmt.Errorf("%s: BTF: %w", name, err)
	}
	if k.size += len(types); k.size > maxModuleTypes {
		return fmt.Errorf("%s: the modules' types take more than %d bytes", name, maxModuleTypes)
	}
	k.modules = append(k.modules, moduleTypes{release, base, bytes.Clone(types)})
	return nil
}

func readAll(open func() (io.ReadCloser, error), most int64) ([]byte, error) {
	r, err := open()
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("more than %d bytes", most)
	}
	return b, errors.Join(err, r.Close())
}

// only is the one kernel that there is, and its modules.
func (k *kernelFiles) only() (kernelFile, []moduleTypes, error) {
	switch len(k.kernels) {
	case 0:
		return kernelFile{}, nil, errors.New("no kernel in it: no file is called vmlinuz… or vmlinux…")
	case 1:
	default:
		var names []string
		for _, f := range k.kernels {
			names = append(names, f.name)
		}
		slices.Sort(names)
		return kernelFile{}, nil, fmt.Errorf("%d kernels in it (%s): name one of them", len(names), strings.Join(names, ", "))
	}
	for release, kernel := range k.kernels {
		var own []moduleTypes
		for _, m := range k.modules {
			if m.release == release {
				own = append(own, m)
			}
		}
		for _, name := range k.want {
			if name != AllModules && !slices.ContainsFunc(own, func(m moduleTypes) bool { return m.name == name }) {
				return kernelFile{}, nil, fmt.Errorf("no module %q of the kernel %s in it, or none with types (BTF)", name, release)
			}
		}
		slices.SortFunc(own, func(a, b moduleTypes) int { return strings.Compare(a.name, b.name) })
		return kernel, own, nil
	}
	panic("unreachable")
}
