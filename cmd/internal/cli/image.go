package cli

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/cmd/internal/controlapi"
	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/detectors/binder"
	"github.com/hprobe/hprobe/profiles/image"
	"github.com/hprobe/hprobe/profiles/isf"
)

const imageHelp = `image:/usr/bin/sudo!main is a function of a user program or library,
image:libc.so.6!malloc+0x10 an instruction of one, image:/bin/sh+0x1234 an offset in
the file. A path is the guest's, from its root on; a name without a slash is that of
any file called so. The probe is in all processes that have the file mapped, now or
later, or with --pid or --comm in those alone; it sees their first call. Give
--image-file, your own copy of the file: it has all symbols, and is checked to be the
same build as the guest's. Without it only what programs link to can be found, and
only while a process has it in memory.

A copy that was built with -g, or its debug file (--debug-file), has more: the names and
types of arguments and of what is returned, for rules as well (req.path == "/etc/shadow"),
static functions, and lines: image:/usr/bin/sudo!parse.c:123 is the first instruction of
that line's code. Floats, structs by value and what is on the stack are not read.`

// imageFiles are the operator's copies of an image.
type imageFiles struct {
	program, debug string
}

// place finds the place that a probe is to be at in the operator's copy of an image, and
// what there is to say of it. It is done here, and not in hprobed: the file is parsed as who
// gave it.
func (f *imageFiles) place(at string) (place *controlapi.ImagePlace, notes []string, err error) {
	loc, err := binder.ParseLocation(at)
	switch {
	case f.program == "" && f.debug != "":
		err = errors.New("--debug-file comes with the program itself: --image-file")
	case f.program == "" && err == nil && loc.Line > 0:
		err = errors.New("a line is found in your own copy of the program, built with -g: --image-file")
	case f.program == "":
		return nil, nil, nil // whatever else at says, hprobed judges
	case at == "" || err == nil && loc.Image == "": // of a set of system calls, or in the kernel
		err = errors.New("--image-file is for a place in a program or library: --at image:PATH!symbol")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%w: %w", errUsage, err)
	}
	file, err := image.Open(f.program)
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	if f.debug != "" {
		if err := file.Debug(f.debug); err != nil {
			return nil, nil, err
		}
	}
	var found image.Found
	if loc.Line > 0 {
		found, err = file.FindLine(loc.File, loc.Line)
	} else {
		found, err = file.Find(loc.Symbol, loc.Offset)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", f.program, err)
	}
	place = &controlapi.ImagePlace{Offset: found.Offset, Code: found.Code, BuildId: found.BuildID}
	notes = placeNotes(&found)
	if found.Types != nil {
		var unread []string
		if place.Types, unread, err = packTypes(loc, found.Types); err != nil {
			return nil, nil, err
		}
		notes = append(notes, unread...)
	}
	return place, notes, nil
}

// packTypes makes of a prototype and its types what goes to hprobed, and says which
// arguments can't be read. Without types they are registers there.
func packTypes(loc binder.Location, types *isf.Profile) (packed []byte, notes []string, err error) {
	var out bytes.Buffer
	if err := types.WriteCompact(&out); err != nil {
		return nil, nil, err
	}
	sig, err := binder.SignatureAt(nil, loc, &detectors.ImagePlace{Types: out.Bytes()})
	if err != nil {
		return nil, []string{registersNote + err.Error()}, nil
	}
	for _, a := range sig.Args {
		if a.Unread != nil {
			notes = append(notes, fmt.Sprintf("argument %s (%s) is not shown: %v", a.Name, a.Type, a.Unread))
		}
	}
	return out.Bytes(), notes, nil
}

const registersNote = "its arguments are shown as registers: "

// placeNotes are what an operator should know of a place.
func placeNotes(found *image.Found) (notes []string) {
	if n := found.Copied; n > 0 {
		notes = append(notes, fmt.Sprintf("the compiler has copied it into other functions, at %s, which the probe does not see", count(uint64(n), "place")))
	}
	if n := len(found.Others); n > 0 {
		notes = append(notes, fmt.Sprintf("the line has code at %s more, which the probe does not see (image:PATH+OFFSET): %s", count(uint64(n), "place"), image.OffsetsText(found.Others)))
	}
	if found.Untyped != "" {
		notes = append(notes, registersNote+found.Untyped)
	}
	if found.Clipped {
		notes = append(notes, "its arguments lead to very many types: those that are far from them are left out")
	}
	return notes
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
