package guestos

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

// MaxFrames bounds a stack, of the kernel and of a program.
const MaxFrames = 64

// Frame is one of a stack: of a function that runs, where it runs, or where it will
// when what it called returns.
type Frame struct {
	At xenevents.GVA
	// Exact: At is of the instruction that runs; else of the one behind a call.
	Exact bool
}

// UserFrame is where a program is that the kernel was called by, or interrupted.
type UserFrame struct {
	IP, SP, BP xenevents.GVA
	// BPKnown: BP is the program's.
	BPKnown bool
}

// KernelStack is the kernel's stack below a vCPU that runs in it, the innermost first.
type KernelStack struct {
	Frames []Frame
	User   *UserFrame // whom it works for; nil: nobody, or it was not found
	Err    error      // why it ends early
}

// PrepareStacks looks up in the profile what stacks need, as Prepare does for the rest.
// What is not there is told when somebody asks for one. It reads nothing of the guest,
// and may be called from any goroutine.
func (k *Kernel) PrepareStacks() {
	_, _ = k.orcs()
	_, _ = k.mappings()
	_, _ = k.files()
	_, _ = k.modules()
}

// unwinder is at a frame.
type unwinder struct {
	k          *Kernel
	l          *orcLayout
	ip, sp, bp uint64
	exact      bool
	// first are the registers of the innermost frame. regs is a struct pt_regs in the
	// guest, which has those of the frame; 0: there is none. partial: only its end.
	first   *xenevents.Registers
	regs    uint64
	partial bool
}

var errNoOrc = errors.New("the kernel does not say how to go on from there")

// UnwindKernel walks the stack of a vCPU that runs in the kernel. What it reads is the
// guest's: it ends after MaxFrames, whatever that says.
func (k *Kernel) UnwindKernel(regs *xenevents.Registers) (s KernelStack) {
	l, err := k.orcs()
	if err == nil && l.numbers == nil {
		err = k.findOrcNumbers(l)
	}
	if err != nil {
		return KernelStack{Err: err, Frames: []Frame{{At: xenevents.GVA(regs.RIP), Exact: true}}}
	}
	u := unwinder{k: k, l: l, ip: regs.RIP, sp: regs.RSP, bp: regs.RBP, exact: true, first: regs}
	for range MaxFrames {
		s.Frames = append(s.Frames, Frame{At: xenevents.GVA(u.ip), Exact: u.exact})
		more, err := u.next()
		if err != nil {
			s.Err = fmt.Errorf("the stack goes on, but not to be seen, at %#x: %w", u.ip, err)
			return s
		}
		if !more {
			s.User = u.user()
			return s
		}
	}
	s.Err = fmt.Errorf("the stack has more than %d frames", MaxFrames)
	return s
}

// next goes to the caller's frame. False: there is none in the kernel.
func (u *unwinder) next() (more bool, err error) {
	at := u.ip
	if !u.exact {
		at-- // a call may be the last instruction of a function
	}
	o, err := u.k.orcAt(u.l, at)
	if err != nil {
		return false, err
	}
	if o.kind == orcEnd {
		u.regs = 0
		return false, nil
	}
	if o.kind == orcUnknown {
		return false, errNoOrc
	}
	sp, err := u.frame(&o)
	if err != nil {
		return false, err
	}
	read := u.k.read64
	var ip uint64
	bpWas := u.bp
	switch o.kind {
	case orcCall:
		if ip, err = read(sp - 8); err != nil {
			return false, err
		}
		u.ip, u.sp, u.exact, u.regs, u.partial = ip, sp, false, 0, false
	default: // regs
		base := sp
		if o.kind == orcPartialRegs {
			base = sp - u.l.ip
		}
		if ip, err = read(base + u.l.ip); err != nil {
			return false, err
		}
		next, err := read(base + u.l.sp)
		if err != nil {
			return false, err
		}
		cs, err := read(base + u.l.cs)
		if err != nil {
			return false, err
		}
		u.ip, u.sp, u.exact, u.regs, u.partial = ip, next, true, base, o.kind == orcPartialRegs
		if cs&3 != 0 {
			u.bpOf(&o, sp, bpWas)
			return false, nil
		}
	}
	return true, u.bpOf(&o, sp, bpWas)
}

// frame is where the frame of the caller begins.
func (u *unwinder) frame(o *orc) (sp uint64, err error) {
	off := uint64(o.sp)
	switch o.spReg {
	case orcSP:
		return u.sp + off, nil
	case orcBP:
		return u.bp + off, nil
	case orcSPIndirect:
		sp, err = u.k.read64(u.sp)
		return sp + off, err
	case orcBPIndirect:
		return u.k.read64(u.bp + off)
	case orcR10:
		return u.reg(u.l.r10, func(r *xenevents.Registers) uint64 { return r.R10 })
	case orcR13:
		return u.reg(u.l.r13, func(r *xenevents.Registers) uint64 { return r.R13 })
	case orcAX:
		return u.reg(u.l.ax, func(r *xenevents.Registers) uint64 { return r.RAX })
	case orcDI:
		return u.reg(u.l.di, func(r *xenevents.Registers) uint64 { return r.RDI })
	case orcDX:
		return u.reg(u.l.dx, func(r *xenevents.Registers) uint64 { return r.RDX })
	}
	return 0, errNoOrc
}

// reg is a register of the frame, where it is known.
func (u *unwinder) reg(at uint64, of func(*xenevents.Registers) uint64) (uint64, error) {
	switch {
	case u.first != nil:
		return of(u.first), nil
	case u.regs != 0 && !u.partial:
		return u.k.read64(u.regs + at)
	}
	return 0, errNoOrc
}

// bpOf finds the caller's frame pointer.
func (u *unwinder) bpOf(o *orc, sp, was uint64) (err error) {
	u.first = nil
	switch o.bpReg {
	case orcUndefined:
		if u.regs != 0 && !u.partial {
			u.bp, err = u.k.read64(u.regs + u.l.bp)
		}
	case orcPrevSP:
		u.bp, err = u.k.read64(sp + uint64(o.bp))
	case orcBP:
		u.bp, err = u.k.read64(was + uint64(o.bp))
	default:
		err = errNoOrc
	}
	return err
}

// user is the program that the kernel's stack ends at.
func (u *unwinder) user() *UserFrame {
	if u.regs == 0 {
		return nil
	}
	return &UserFrame{IP: xenevents.GVA(u.ip), SP: xenevents.GVA(u.sp), BP: xenevents.GVA(u.bp), BPKnown: !u.partial}
}

// maxUserFrame bounds the frame of one function of a program, in bytes.
const maxUserFrame = 8 << 20

// UnwindUser walks the frame pointers of a program. entry: it is at the first
// instruction of a function, which has no frame yet. Where a program keeps none it
// ends early, with no error: nothing tells.
func (k *Kernel) UnwindUser(space xenevents.AddressSpace, mm Memory, f UserFrame, entry bool) (all []Frame) {
	all = append(all, Frame{At: f.IP, Exact: true})
	load := func(at xenevents.GVA) (uint64, bool) {
		v, err := k.mem.ReadUint64(space, at)
		return v, err == nil
	}
	caller := func(at xenevents.GVA) bool {
		to, ok := load(at)
		if !ok {
			return false
		}
		m, found, err := k.MappingAt(mm, xenevents.GVA(to))
		if err != nil || !found || !m.Exec {
			return false
		}
		all = append(all, Frame{At: xenevents.GVA(to)})
		return true
	}
	if entry && !caller(f.SP) {
		return all
	}
	below := f.SP
	for bp := f.BP; f.BPKnown && len(all) < MaxFrames; {
		if bp < below || bp-below > maxUserFrame || bp%8 != 0 {
			break
		}
		next, ok := load(bp)
		if !ok || !caller(bp+8) {
			break
		}
		below, bp = bp+16, xenevents.GVA(next)
	}
	return all
}

// ModuleOf finds the module that has code at an address. It fails with an error that
// matches isf.ErrNotFound where there is none.
func (k *Kernel) ModuleOf(at xenevents.GVA) (found *Module, err error) {
	err = k.eachModule(func(one uint64) (bool, error) {
		m, err := k.moduleAt(one)
		if err != nil {
			return false, err
		}
		if m.Holds(at) {
			found = m
		}
		return found == nil, nil
	})
	if err == nil && found == nil {
		err = fmt.Errorf("code at %v: %w", at, isf.ErrNotFound)
	}
	return found, err
}

// FrameText says where a frame of the kernel is: "do_exit+0x12", "vuln!vuln_copy+0x8",
// or its address. What a module is called is the guest's: quote it.
func (k *Kernel) FrameText(f Frame) string {
	at := uint64(f.At)
	if !f.Exact {
		at--
	}
	if l, _ := k.orcs(); l.in(at) {
		if s, ok := k.Profile.Nearest(at - k.Slide); ok {
			return offsetText(s.Name, uint64(f.At)-k.Slide-s.Addr)
		}
	}
	m, err := k.ModuleOf(xenevents.GVA(at))
	if err != nil {
		return f.At.String()
	}
	name, from := "", m.Text.Start
	if symbols, err := k.Symbols(m); err == nil {
		if best, ok := symbols.nearest(xenevents.GVA(at)); ok {
			name, from = symbols.names.text(best.name), best.at
		}
	}
	return offsetText(m.Name+"!"+cmp.Or(name, "(code)"), uint64(f.At-from))
}

// UserFrameText says where a frame of a program is, as a place of a probe is written:
// "/bin/busybox+0x1234", by the file's offset; or its address.
func (k *Kernel) UserFrameText(mm Memory, f Frame) string {
	m, found, err := k.MappingAt(mm, f.At)
	if err != nil || !found || m.File == 0 {
		return f.At.String()
	}
	path, err := k.FilePath(m.File)
	if err != nil || strings.TrimSpace(path) == "" {
		return f.At.String()
	}
	return offsetText(path, m.Offset+uint64(f.At-m.Start))
}

func offsetText(name string, offset uint64) string {
	if offset == 0 {
		return name
	}
	return fmt.Sprintf("%s+%#x", name, offset)
}

// nearest is the last symbol that is not behind an address.
func (s *ModuleSymbols) nearest(at xenevents.GVA) (best moduleSymbol, ok bool) {
	for _, e := range s.table.entries {
		if s.module.Holds(e.at) && e.at <= at && (!ok || e.at > best.at) {
			best, ok = e, true
		}
	}
	return best, ok
}
