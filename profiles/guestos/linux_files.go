package guestos

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"github.com/hprobe/hprobe/xenevents"
)

// The guest's names are the guest's: how long one may be, and how deep.
const (
	maxName      = 255 // NAME_MAX
	maxPathParts = 256
	maxPathLen   = 4096 // PATH_MAX
)

// File is the address of an open file's struct file; 0 is none.
type File uint64

// fileLayout is where the kernel keeps the names of files, by its profile.
type fileLayout struct {
	err                                 error
	mnt, dentry                         uint64 // of a file
	parent, name, nameLen               uint64 // of a dentry
	mount, mountParent, mountPoint, top uint64 // of a mount; top: of the vfsmount in it
}

func (k *Kernel) files() (*fileLayout, error) {
	k.fileOnce.Do(func() {
		l := &k.file
		for _, f := range []struct {
			of, path string
			to       *uint64
		}{
			{"file", "f_path.mnt", &l.mnt}, {"file", "f_path.dentry", &l.dentry}, {"dentry", "d_parent", &l.parent}, {"dentry", "d_name.name", &l.name},
			{"dentry", "d_name.len", &l.nameLen}, {"mount", "mnt", &l.mount}, {"mount", "mnt_parent", &l.mountParent}, {"mount", "mnt_mountpoint", &l.mountPoint},
			{"vfsmount", "mnt_root", &l.top},
		} {
			at, err := k.Profile.Field(f.of, f.path)
			if err != nil {
				l.err = err
				return
			}
			*f.to = at.Offset
		}
	})
	return &k.file, k.file.err
}

// FileNamed says whether a file has a name: its whole path, from the root of the mounts
// that it is in, or its last part where the name has no slash. One that was deleted has the
// name that it had.
func (k *Kernel) FileNamed(f File, name string) (bool, error) {
	l, err := k.files()
	if err != nil || f == 0 {
		return false, err
	}
	dentry, err := k.read64(uint64(f) + l.dentry)
	if err != nil {
		return false, fmt.Errorf("the guest's file: %w", err)
	}
	last, err := k.dentryName(l, dentry)
	if err != nil || last != name[strings.LastIndexByte(name, '/')+1:] {
		return false, err
	}
	if !strings.Contains(name, "/") {
		return true, nil
	}
	path, err := k.FilePath(f)
	return path == name, err
}

// FilePath is a file's path, from the root of the mounts that it is in: the guest's, or
// a container's. It is the guest's: quote it.
func (k *Kernel) FilePath(f File) (string, error) {
	l, err := k.files()
	if err != nil {
		return "", err
	}
	fail := func(err error) (string, error) { return "", fmt.Errorf("the path of a guest's file: %w", err) }
	dentry, err := k.read64(uint64(f) + l.dentry)
	if err != nil {
		return fail(err)
	}
	mount, err := k.read64(uint64(f) + l.mnt)
	if err != nil {
		return fail(err)
	}
	mount -= l.mount
	var parts []string
	length := 0
	for range maxPathParts {
		top, err := k.read64(mount + l.mount + l.top)
		if err != nil {
			return fail(err)
		}
		if dentry == top { // what is above it is where it is mounted
			above, err := k.read64(mount + l.mountParent)
			if err != nil {
				return fail(err)
			}
			if above == mount {
				slices.Reverse(parts)
				return "/" + strings.Join(parts, "/"), nil
			}
			if dentry, err = k.read64(mount + l.mountPoint); err != nil {
				return fail(err)
			}
			mount = above
			continue
		}
		name, err := k.dentryName(l, dentry)
		if err != nil {
			return fail(err)
		}
		parent, err := k.read64(dentry + l.parent)
		if err != nil {
			return fail(err)
		}
		if parent == dentry { // it is not mounted anywhere
			slices.Reverse(parts)
			return strings.Join(parts, "/"), nil
		}
		parts, dentry = append(parts, name), parent
		if length += len(name) + 1; length > maxPathLen {
			break
		}
	}
	return fail(fmt.Errorf("it has no end: more than %d parts or %d bytes", maxPathParts, maxPathLen))
}

func (k *Kernel) dentryName(l *fileLayout, dentry uint64) (string, error) {
	var b [maxName]byte
	if _, err := k.mem.ReadGVA(k.Space, b[:4], xenevents.GVA(dentry+l.nameLen)); err != nil {
		return "", fmt.Errorf("the name of a guest's file: %w", err)
	}
	n := binary.LittleEndian.Uint32(b[:4])
	if n > maxName {
		return "", fmt.Errorf("the name of a guest's file has %d bytes", n)
	}
	at, err := k.read64(dentry + l.name)
	if err != nil {
		return "", fmt.Errorf("the name of a guest's file: %w", err)
	}
	if _, err := k.mem.ReadGVA(k.Space, b[:n], xenevents.GVA(at)); err != nil {
		return "", fmt.Errorf("the name of a guest's file: %w", err)
	}
	return string(b[:n]), nil
}
