package guestos

import (
	"errors"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
)

// FileName is what /proc calls a file, and which one it is. Path is the guest's: quote it.
type FileName struct {
	Path string
	// Deleted: it has no name any more, and Path is the last one.
	Deleted bool
	Device  Device
	Inode   uint64
}

// String is the name as /proc/PID/maps and the links of /proc/PID/fd have it.
func (n FileName) String() string {
	if n.Deleted {
		return n.Path + " (deleted)"
	}
	return n.Path
}

// Device is the number of the device that a file is on, as the kernel has it.
type Device uint32

// String writes it as /proc/PID/maps does: major and minor number, in hexadecimal.
func (d Device) String() string { return fmt.Sprintf("%02x:%02x", uint32(d)>>20, uint32(d)&0xfffff) }

// The kernel's functions that name what is in no folder (d_dname of dentry_operations), and
// how; %s is the dentry's name, %d the inode's number.
var unnamed = map[string]string{
	"pipefs_dname":       "pipe:[%d]",
	"sockfs_dname":       "socket:[%d]",
	"anon_inodefs_dname": "anon_inode:%s",
	"pidfs_dname":        "anon_inode:[pidfd]",
	"simple_dname":       "/%s",
	"ns_dname":           "%s:[%d]",
}

// nameLayout is where the kernel keeps what a FileName is made of, beside fileLayout.
type nameLayout struct {
	err error

	inode, superblock, number, device uint64
	hashed, ops, namer                uint64 // of a dentry, of its operations
	namers                            map[uint64]string
	private, spaceOps, opName         uint64 // of a file of nsfs
}

func (k *Kernel) names() (*nameLayout, error) {
	k.nameOnce.Do(func() { k.name.err = k.findNameLayout(&k.name) })
	return &k.name, k.name.err
}

func (k *Kernel) findNameLayout(l *nameLayout) error {
	if _, err := k.files(); err != nil {
		return err
	}
	if err := k.locate(want(&l.inode, "file", "f_inode"), want(&l.superblock, "inode", "i_sb"), want(&l.number, "inode", "i_ino"), want(&l.device, "super_block", "s_dev"),
		want(&l.hashed, "dentry", "d_hash.pprev"), want(&l.ops, "dentry", "d_op"), want(&l.namer, "dentry_operations", "d_dname"),
		want(&l.private, "inode", "i_private"), want(&l.spaceOps, "ns_common", "ops"), want(&l.opName, "proc_ns_operations", "name")); err != nil {
		return err
	}
	l.namers = map[uint64]string{}
	for name := range unnamed {
		at, err := k.Address(name)
		if errors.Is(err, isf.ErrNotFound) {
			continue // of another kernel
		}
		if err != nil {
			return err
		}
		l.namers[uint64(at)] = name
	}
	return nil
}

// FileName reads a file's.
func (k *Kernel) FileName(f File) (n FileName, err error) {
	l, err := k.names()
	if err != nil {
		return n, err
	}
	fail := func(err error) (FileName, error) { return n, fmt.Errorf("a file of the guest: %w", err) }
	inode, err := k.read64(uint64(f) + l.inode)
	if err != nil {
		return fail(err)
	}
	if n.Inode, err = k.read64(inode + l.number); err != nil {
		return fail(err)
	}
	super, err := k.read64(inode + l.superblock)
	if err != nil {
		return fail(err)
	}
	device, err := k.read32(super + l.device)
	if err != nil {
		return fail(err)
	}
	n.Device = Device(device)
	dentry, err := k.read64(uint64(f) + k.file.dentry)
	if err != nil {
		return fail(err)
	}
	parent, err := k.read64(dentry + k.file.parent)
	if err != nil {
		return fail(err)
	}
	if parent == dentry {
		mount, err := k.read64(uint64(f) + k.file.mnt)
		if err != nil {
			return fail(err)
		}
		top, err := k.read64(mount + k.file.top)
		if err != nil {
			return fail(err)
		}
		if top != dentry {
			n.Path, err = k.unnamed(l, dentry, inode, n.Inode)
			if err != nil || n.Path != "" {
				n.Deleted = strings.HasPrefix(n.Path, "/")
				return n, err
			}
		}
	} else {
		hashed, err := k.read64(dentry + l.hashed)
		if err != nil {
			return fail(err)
		}
		n.Deleted = hashed == 0
	}
	n.Path, err = k.FilePath(f)
	return n, err
}

// unnamed is the name of what is in no folder; "" where the kernel has no function for it.
func (k *Kernel) unnamed(l *nameLayout, dentry, inode, number uint64) (string, error) {
	ops, err := k.read64(dentry + l.ops)
	if err != nil || ops == 0 {
		return "", err
	}
	namer, err := k.read64(ops + l.namer)
	if err != nil {
		return "", err
	}
	form := unnamed[l.namers[namer]]
	switch l.namers[namer] {
	case "pipefs_dname", "sockfs_dname":
		return fmt.Sprintf(form, number), nil
	case "anon_inodefs_dname", "simple_dname":
		name, err := k.dentryName(&k.file, dentry)
		return fmt.Sprintf(form, name), err
	case "ns_dname":
		space, err := k.read64(inode + l.private)
		if err != nil {
			return "", err
		}
		kind, err := k.spaceKind(l, space)
		return fmt.Sprintf(form, kind, number), err
	}
	return form, nil
}

// spaceKind is what nsfs calls the kind of a name space: "mnt".
func (k *Kernel) spaceKind(l *nameLayout, space uint64) (string, error) {
	ops, err := k.read64(space + l.spaceOps)
	if err != nil {
		return "", err
	}
	name, err := k.read64(ops + l.opName)
	if err != nil {
		return "", err
	}
	return k.text(name, 16)
}
