package guestos

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// OpenFile is a file that a process has open.
type OpenFile struct {
	FD       uint32
	File     FileName
	Position uint64 // in bytes; it may be of another moment than the rest
	// Flags are those of open(2), O_CLOEXEC (closeOnExec) among them.
	Flags uint32
}

// closeOnExec is O_CLOEXEC (include/uapi/asm-generic/fcntl.h), which the kernel keeps of the
// number and not of the file.
const closeOnExec = 0o2000000

// maxFDs bounds how far a table of open files is read: fs.nr_open as it is. Each that is
// open costs memory here: of these maxOpen.
const (
	maxFDs  = 1 << 20
	maxOpen = 1 << 16
)

var errManyFiles = fmt.Errorf("it has more than %d open, or than %d numbers for them", maxOpen, maxFDs)

// fdLayout is where the kernel keeps open files.
type fdLayout struct {
	err error

	files, table, limit, array, cloexec uint64
	flags, position                     uint64 // of a file
}

func (k *Kernel) fds() (*fdLayout, error) {
	k.fdOnce.Do(func() {
		l := &k.fd
		l.err = k.locate(want(&l.files, "task_struct", "files"), want(&l.table, "files_struct", "fdt"), want(&l.limit, "fdtable", "max_fds"), want(&l.array, "fdtable", "fd"),
			want(&l.cloexec, "fdtable", "close_on_exec"), want(&l.flags, "file", "f_flags"), want(&l.position, "file", "f_pos"))
	})
	return &k.fd, k.fd.err
}

// OpenFiles reads what files a process has open, as /proc/PID/fd and fdinfo show them. It
// does not hold the guest: it reads until twice the same is there. With a *PartialError
// comes what was found; a context's deadline makes one. A process that has ended has none.
func (k *Kernel) OpenFiles(ctx context.Context, pid uint32) ([]OpenFile, error) {
	l, err := k.fds()
	if err != nil {
		return nil, err
	}
	return ofProcess(ctx, k, pid, "the files of the process", func(p *Status) ([]OpenFile, error) { return k.readOpenFiles(ctx, l, p) }, func(x, y OpenFile) bool {
		x.Position = y.Position // that of a file that is being read never stands still
		return x == y
	})
}

func (k *Kernel) readOpenFiles(ctx context.Context, l *fdLayout, p *Status) (all []OpenFile, err error) {
	files, err := k.read64(p.task + l.files)
	if err != nil || files == 0 {
		return nil, err
	}
	table, err := k.read64(files + l.table)
	if err != nil {
		return nil, err
	}
	limit, err := k.read32(table + l.limit)
	if err != nil {
		return nil, err
	}
	array, err := k.read64(table + l.array)
	if err != nil {
		return nil, err
	}
	cloexec, err := k.read64(table + l.cloexec)
	if err != nil {
		return nil, err
	}
	names := fileNames{k: k}
	err = k.eachFile(array, min(limit, maxFDs), func(fd uint32, file uint64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if len(all) == maxOpen {
			return errManyFiles
		}
		one, err := k.openFile(l, &names, fd, file)
		if err != nil {
			return err
		}
		word, err := k.read64(cloexec + uint64(fd)/64*8)
		if word>>(fd%64)&1 != 0 {
			one.Flags |= closeOnExec
		}
		all = append(all, one)
		return err
	})
	if err == nil && limit > maxFDs {
		err = errManyFiles
	}
	if err != nil {
		return all, err
	}
	return all, k.unchanged(p)
}

// eachFile calls each for the numbers that are in use.
func (k *Kernel) eachFile(array uint64, limit uint32, each func(fd uint32, file uint64) error) error {
	var b [xenevents.PageSize]byte
	for fd := uint32(0); fd < limit; {
		part := b[:8*min(limit-fd, uint32(len(b)/8))]
		if _, err := k.mem.ReadGVA(k.Space, part, xenevents.GVA(array+8*uint64(fd))); err != nil {
			return err
		}
		for ; len(part) > 0; part = part[8:] {
			if file := binary.LittleEndian.Uint64(part); file != 0 {
				if err := each(fd, file); err != nil {
					return err
				}
			}
			fd++
		}
	}
	return nil
}

func (k *Kernel) openFile(l *fdLayout, names *fileNames, fd uint32, file uint64) (o OpenFile, err error) {
	o.FD = fd
	if o.File, err = names.of(File(file)); err != nil {
		return o, err
	}
	flags, err := k.read32(file + l.flags)
	if err != nil {
		return o, err
	}
	o.Flags = flags &^ closeOnExec
	o.Position, err = k.read64(file + l.position)
	return o, err
}
