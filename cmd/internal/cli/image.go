package cli

import (
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/profiles/image"
)

const imageHelp = `image:/usr/bin/sudo!main is a function of a user program or library,
image:libc.so.6!malloc+0x10 an instruction of one, image:/bin/sh+0x1234 an offset in
the file. A path is the guest's, from its root on; a name without a slash is that of
any file called so. The probe is in all processes that have the file mapped, now or
later, or with --pid or --comm in those alone; it sees their first call. Give
--image-file, your own copy of the file: it has all symbols, and is checked to be the
same build as the guest's. Without it only what programs link to can be found, and
only while a process has it in memory.`

// imagePlace finds the place that a probe is to be at in the operator's copy of an
// image. It is done here, and not in hprobed: the file is parsed as who gave it.
func imagePlace(at, path string) (place *controlapi.ImagePlace, err error) {
	if path == "" {
		return nil, nil
	}
	loc, err := binder.ParseLocation(at)
	if at == "" || err == nil && loc.Image == "" { // of a set of system calls, or in the kernel
		err = errors.New("--image-file is for a place in a program or library: --at image:PATH!symbol")
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	f, err := image.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	p, err := f.Place(loc.Symbol, loc.Offset)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &controlapi.ImagePlace{Offset: p.Offset, Code: p.Code, BuildId: p.BuildID}, nil
}

// processesText says in how many processes a probe is.
func processesText(p *controlapi.Probe) string {
	text := "mapped " + count(p.GetProcesses(), "time")
	if n := p.GetProcesses(); n > 0 {
		text += fmt.Sprintf(", %d of them in memory", p.GetTouched())
	}
	if n := p.GetMissed(); n > 0 {
		text += fmt.Sprintf("; missed %d (%s)", n, plain(p.GetMissedWhy()))
	}
	return text
}
