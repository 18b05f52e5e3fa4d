package main

import (
	"context"
	"errors"
	"os"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivers"
)

// cutDump is what is left of a dump, in bytes, when the profile is compared: dom0 has no
// memory for both.
const cutDump = 1 << 20

// dump writes a guest's memory to a file, as it is at one moment: its first pages, which
// all of a PVH guest's are, but for a few of Xen's just below 4 GiB. Pages of zeros become
// holes: dom0 has the file in its own memory.
func dump(ctx context.Context, dom drivers.Domain, pages uint64, path string) (err error) {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return xenevents.WithPaused(dom, func() error {
		var page, zeros [xenevents.PageSize]byte
		size := int64(0)
		for gfn := range xenevents.GFN(pages) {
			if err := ctx.Err(); err != nil {
				return err
			}
			_, err := dom.ReadGPA(page[:], gfn.GPA())
			if errors.Is(err, xenevents.ErrAbsent) {
				continue
			}
			if err != nil {
				return err
			}
			size = int64(gfn.GPA()) + xenevents.PageSize
			if page == zeros {
				continue
			}
			if _, err := f.WriteAt(page[:], int64(gfn.GPA())); err != nil {
				return err
			}
		}
		return f.Truncate(size)
	})
}
