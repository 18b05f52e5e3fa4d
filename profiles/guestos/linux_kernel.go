// Package guestos says what is where in a running Linux guest: the slide of
// KASLR, modules and their symbols, the calling conventions. Every offset comes
// from the guest's profile, by name; none is in the code.
//
// The files are called linux_*.go and compile everywhere: it is the guest's
// system, not this machine's.
package guestos

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// WrongProfileError says that a profile is of another kernel than the guest's.
type WrongProfileError struct {
	Profile string // its banner
	Guest   string // the guest's, "" where none was found
	// Where the banners are the same the build ids are not: the profile's and the guest's.
	BuildID, GuestBuildID string
}

func (e *WrongProfileError) Error() string {
	if e.BuildID != "" {
		return fmt.Sprintf("the profile is of another build of the guest's kernel, %q: its build id is %q, the guest's is %q; make one of the guest's own kernel (hprobe profile build)", e.Profile, e.BuildID, e.GuestBuildID)
	}
	if e.Guest == "" {
		return fmt.Sprintf("the profile is of another kernel than the guest's: it is of %q; make one of the guest's own kernel (hprobe profile build)", e.Profile)
	}
	return fmt.Sprintf("the profile is of another kernel than the guest's: it is of %q, the guest runs %q; make one of that (hprobe profile build)", e.Profile, e.Guest)
}

// Kernel is a running Linux kernel seen from outside. It belongs to one goroutine.
type Kernel struct {
	Profile *isf.Profile
	// Slide is what KASLR added to every address of the profile.
	Slide uint64
	// Space maps the whole kernel, and no process.
	Space xenevents.AddressSpace

	mem      *guestmem.Reader
	taskOnce sync.Once
	task     taskLayout

	modulesOnce sync.Once
	layout      moduleLayout

	mappingOnce, fileOnce sync.Once
	mapping               mappingLayout
	file                  fileLayout

	orcOnce sync.Once
	orc     orcLayout

	statusOnce, nameOnce, regionOnce, fdOnce, loadedOnce, logOnce sync.Once

	status statusLayout
	name   nameLayout
	region regionLayout
	fd     fdLayout
	loaded loadedLayout
	log    logLayout
}

// Domain is what is read of a guest.
type Domain interface {
	xenevents.Memory
	xenevents.VCPUs
}

// slideStep is what KASLR's slide is a multiple of (CONFIG_PHYSICAL_ALIGN).
const slideStep = 2 << 20

// maxNotes bounds a kernel's ELF notes, in bytes: they have some hundred.
const maxNotes = 64 << 10

// syscallEntries are the symbols that LSTAR may point to.
var syscallEntries = []string{"entry_SYSCALL_64", "entry_SYSCALL_64_trampoline"}

// FindKernel finds the kernel of a guest from the LSTAR register of a vCPU,
// which holds the address of the system call entry, and makes sure of it by
// reading the banner there. vCPUs that do not run yet have no LSTAR: it tries all.
func FindKernel(dom Domain, vcpus int, profile *isf.Profile) (*Kernel, error) {
	k := &Kernel{Profile: profile, mem: guestmem.NewReader(dom)}
	errs := []error{errors.New("no vCPU has a system call entry: is it booted?")}
	for v := range min(vcpus, 512) {
		regs, err := dom.Registers(xenevents.VCPU(v))
		if err != nil || regs.LSTAR == 0 {
			continue
		}
		spaces, err := guestmem.KernelSpaces(&regs)
		if err != nil {
			return nil, err
		}
		err = k.find(regs.LSTAR, spaces)
		if err == nil {
			return k, nil
		}
		errs = append(errs, err)
	}
	return nil, errs[len(errs)-1]
}

func (k *Kernel) find(lstar uint64, spaces []xenevents.AddressSpace) error {
	want := k.Profile.Meta().Banner
	wrong := &WrongProfileError{Profile: want}
	for _, name := range syscallEntries {
		entry, err := k.Profile.Address(name)
		if err != nil {
			continue
		}
		slide := lstar - entry
		if slide%slideStep != 0 {
			continue
		}
		banner, err := k.Profile.Address("linux_banner")
		if err != nil {
			return err
		}
		for _, space := range spaces {
			text, err := k.mem.ReadCString(space, xenevents.GVA(banner+slide), 512)
			if err != nil {
				continue
			}
			if text = strings.TrimRight(text, "\n"); text == want {
				k.Slide, k.Space = slide, space
				if err := k.sameBuild(); err != nil {
					return err
				}
				return k.useOwnRoot()
			}
			wrong.Guest = printable(text)
		}
	}
	return wrong
}

// sameBuild compares build ids, where the profile has one and says where the kernel's is
// (include/asm-generic/vmlinux.lds.h has these symbols): two builds may have one banner.
func (k *Kernel) sameBuild() error {
	want := k.Profile.Meta().BuildID
	from, err := k.Address("__start_notes")
	to, err2 := k.Address("__stop_notes")
	if want == "" || err != nil || err2 != nil || to <= from || to-from > maxNotes {
		return nil
	}
	notes := make([]byte, to-from)
	if _, err := k.mem.ReadGVA(k.Space, notes, from); err != nil {
		return fmt.Errorf("the build id of the guest's kernel: %w", err)
	}
	if id := isf.BuildID(notes); id != want {
		return &WrongProfileError{Profile: k.Profile.Meta().Banner, Guest: k.Profile.Meta().Banner, BuildID: want, GuestBuildID: id}
	}
	return nil
}

// useOwnRoot goes over to the kernel's own page-table root, which maps all of it
// for ever. That of a process is free for another use once the process ended.
func (k *Kernel) useOwnRoot() error {
	at, err := k.Address("init_top_pgt")
	if err != nil {
		return err
	}
	t, err := k.mem.Translate(k.Space, at)
	if err != nil {
		return fmt.Errorf("the kernel's page-table root: %w", err)
	}
	k.Space.Root = t.GPA
	return nil
}

// printable keeps what a hostile guest calls its banner from being more than
// one line of text.
func printable(s string) string {
	if !strings.HasPrefix(s, "Linux version ") {
		return ""
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}

// Address returns where a symbol of the kernel is in the guest.
func (k *Kernel) Address(symbol string) (xenevents.GVA, error) {
	a, err := k.Profile.Address(symbol)
	return xenevents.GVA(a + k.Slide), err
}

// Symbolize writes an address in the guest as "symbol+0x12", and false where
// that is not in the kernel proper.
func (k *Kernel) Symbolize(at xenevents.GVA) (string, bool) {
	return k.Profile.Symbolize(uint64(at) - k.Slide)
}

func (k *Kernel) read64(at uint64) (uint64, error) { return k.loadWord(xenevents.GVA(at)) }

func (k *Kernel) loadWord(at xenevents.GVA) (uint64, error) { return k.mem.ReadUint64(k.Space, at) }

func (k *Kernel) read32(at uint64) (uint32, error) {
	return k.mem.ReadUint32(k.Space, xenevents.GVA(at))
}

// text reads a string of at most limit bytes, up to its NUL.
func (k *Kernel) text(at uint64, limit int) (string, error) {
	b := make([]byte, limit)
	n, err := k.mem.ReadGVA(k.Space, b, xenevents.GVA(at))
	if bytes.IndexByte(b[:n], 0) >= 0 {
		err = nil
	}
	return untilNUL(b[:n]), err
}

func untilNUL(b []byte) string {
	text, _, _ := bytes.Cut(b, []byte{0})
	return string(text)
}
