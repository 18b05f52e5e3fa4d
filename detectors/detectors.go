// Package detectors is the contract between what watches a guest and what
// decides what that means: a detector asks for probes at symbolic locations and
// turns their hits into findings and verdicts.
package detectors

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hprobe/hprobe/xenevents"
)

// Detector asks for probes and decides what their hits mean. It knows nothing
// of addresses, views or rings.
type Detector interface {
	// Name names the detector for people and in findings: "stopgap/vmsplice".
	Name() string
	// Probes says what to probe. It is asked once for each domain.
	Probes() []ProbeSpec
}

// ProbeSpec is a probe by symbol: a binder makes an address of it.
type ProbeSpec struct {
	Name string
	// At is where: "symbol", "symbol+0x10", "module!symbol", an address, or
	// "image:PATH!symbol" and "image:PATH+0xOFFSET" in a user program or library; with
	// Image also "image:PATH!file.c:123".
	// "caller:callee" is the one place where a function of the kernel calls another,
	// whose arguments a hit there has; "caller:callee|callee" where kernels differ.
	At string
	// PID, when not 0, is of a process that runs: At is an address in it. The
	// probe follows its page, waits where there is none, and takes the hits of
	// that process alone.
	PID uint32
	// Source, when not nil, is what is watched in place of an instruction at At.
	Source *Source
	// Comm, when not empty, and PID choose the processes whose hits count, where At
	// is in an image; with neither it is all that have it mapped, now or later.
	Comm string
	// Image is what the operator's own copy of the image says of the place. nil: what
	// the guest has in memory is looked at.
	Image *ImagePlace
	// Fields are members that the handler reads: "iov_iter.count", or with the names
	// that kernels have it under, "iov_iter.__iov|iov". Hit.Field says where in their
	// structs they are. A probe with one that the profile lacks is not armed.
	Fields []string
	// Handle is called at each hit while the vCPU waits: it must be quick and
	// must not block or keep the Hit. nil counts.
	Handle Handler
	// Return asks for the end of each call, too: Handle is called once more for it.
	// Only at a function's entry.
	Return bool
	// Vital: it stays armed however much it costs, as a gap would be worse. Others
	// are suspended for a while when they have too many hits; a finding says so.
	Vital bool
	// Budget is what it may cost; one that is given counts for a Vital probe, too.
	Budget Budget
}

// ImagePlace is a place in the file of a user program or library.
type ImagePlace struct {
	Offset  uint64 // in the file, in bytes
	Code    []byte // what the file has there, from an instruction's first byte on
	BuildID []byte // nil: the file has none
	// Types is a profile, in the compact form, with the prototype of the function that At
	// names, and its types; nil: they are not known.
	Types []byte
}

// Budget bounds what a probe costs its guest. A field that is 0 has the default:
// 25,000 hits, and a quarter of the time.
type Budget struct {
	HitsPerSecond uint64
	// StalledPercent is how much of each second vCPUs wait for hprobed, in percent: of
	// one vCPU's time, so several may add up to more than 100.
	StalledPercent uint32
}

// Handler turns a hit into what happens next.
type Handler func(h Hit) Outcome

// Outcome is a handler's answer. The zero Outcome lets the guest go on, and
// says nothing.
type Outcome struct {
	Verdict Verdict
	Finding *Finding
}

// Verdict is what happens to the vCPU of a hit. Ask Hit.CanDeny before: one that
// can't be carried out lets the guest go on.
type Verdict struct {
	// Deny skips the function that the probe is at the entry or a call of: it returns
	// Return to its caller.
	Deny   bool
	Return int64
	// Registers are what the vCPU goes on with; nil: with its own.
	Registers *xenevents.Registers
	// Pause stops the whole domain before the instruction, until somebody has it
	// go on (xl unpause) or hprobed ends. It comes before the others.
	Pause bool
}

// Hit is one execution of a probed instruction, before it ran. It is valid
// while the Handler runs. What it reads is the guest's: it may lie.
type Hit interface {
	// Seq counts the hits of this probe, from 1. A return has that of its entry.
	Seq() uint64
	// Return says what the call returned: ok is false at its entry.
	Return() (r Return, ok bool)
	// Seen says what a probe of a Source saw: ok is false at an instruction.
	Seen() (s Seen, ok bool)
	VCPU() xenevents.VCPU
	// Registers are the vCPU's; they must not be changed.
	Registers() *xenevents.Registers
	// Arg returns the value of an argument of the function, counted from 0.
	// Only at a function's entry, or a call of it. A system call's are those of its caller.
	Arg(n int) (uint64, error)
	// Args returns all that the profile knows of the arguments.
	Args() []Arg
	// Field is the offset of the spec's field n in its struct, in bytes.
	Field(n int) uint64
	// ReadUint64 and Read read guest virtual memory as the vCPU sees it.
	ReadUint64(at xenevents.GVA) (uint64, error)
	Read(p []byte, at xenevents.GVA) (int, error)
	// CanDeny says whether a verdict to deny will be carried out, and if not why:
	// ErrDenied where another detector refuses the call already.
	CanDeny() error
	// Process is who runs. ok is false where that can't be found out.
	Process() (p Process, ok bool)
	// Running is the same, read only as far as it is asked for.
	Running() Running
	// Stack is who called whom: in the kernel, in the program, or both.
	Stack(kernel, user bool) Stack
	// Write writes guest virtual memory, as the vCPU sees it: at most MaxWrite
	// bytes, and nothing where the guest's page tables don't let it write. Another
	// vCPU may read them before the guest's own code does, and write over them.
	Write(p []byte, at xenevents.GVA) error
}

// Syscall is the system call that a hit is of, where a set of them is watched.
type Syscall struct {
	Name string
	Nr   uint32
	// Compat: of a 32-bit program, or by int 0x80; Name and Nr are i386's then.
	Compat bool
}

// SyscallHit is a Hit that knows its system call.
type SyscallHit interface {
	Hit
	Syscall() Syscall
}

// Stack is one of each, the innermost frame first. What it says is the guest's, and of
// a program that keeps no frame pointers it is little.
type Stack struct {
	Kernel, User []Frame
	Err          error // why one of them ends early
}

// Frame is one of a stack. Text is where it is: "do_exit+0x12", "vuln!vuln_copy+0x8",
// "/bin/busybox+0x1234" by the file's offset, or the address. It is the guest's: quote it.
type Frame struct {
	At   xenevents.GVA
	Text string
}

// MaxWrite is how many bytes Hit.Write takes.
const MaxWrite = 256

// Running is the task that a vCPU runs. What it says is the guest's.
type Running interface {
	PID() (uint32, error) // in the guest's first PID name space, as is TID
	TID() (uint32, error)
	UID() (uint32, error) // the real one, in the first user name space
	// StartTime is in nanoseconds since the guest's boot.
	StartTime() (uint64, error)
	Comm() (string, error)
	// Address is where its struct is in the guest's kernel.
	Address() (uint64, error)
}

// Return is the end of a call.
type Return struct {
	Value uint64
	Ticks uint64 // that it took, with the cost of hits meanwhile
}

// ErrDenied says that another detector refuses a call already: it does not run,
// but returns what that one said.
var ErrDenied = errors.New("another detector refuses the call already")

// Arg is an argument of a function.
type Arg struct {
	Name  string
	Type  string // "size_t", "struct iovec *"; "" if the profile does not know
	Value uint64
	Err   error // it could not be read
}

// Process is a guest's process. Comm is the guest's: quote it.
type Process struct {
	PID, TID uint32 // in the guest's first PID name space
	Comm     string
	// UID is the real user, in the first user name space; Started when the thread was
	// started, in nanoseconds since the guest's boot. nil where unknown.
	UID     *uint32
	Started *uint64
}

// Severity says how bad a finding is.
type Severity uint8

// The severities, after OCSF's names.
const (
	Informational Severity = iota
	Medium
	High
)

// severities are their names, in order.
var severities = [...]string{"info", "medium", "high"}

func (s Severity) String() string { return severities[min(s, High)] }

// ParseSeverity reads a severity's name.
func ParseSeverity(name string) (Severity, error) {
	i := slices.Index(severities[:], name)
	if i < 0 {
		return 0, fmt.Errorf("no severity is called %q: there are %s", name, strings.Join(severities[:], ", "))
	}
	return Severity(i), nil
}

// Finding is what a detector concluded. What does not concern it (time, domain,
// process, probe), and Blocked, the binder fills in.
type Finding struct {
	Time     time.Time
	Domain   string
	DomainID xenevents.DomainID
	Detector string
	Probe    string
	VCPU     xenevents.VCPU
	Process  *Process // nil where unknown

	Severity Severity
	Message  string
	// Tags are words to sort findings by: "cve-2008-0600". They must not be changed.
	Tags []string
	// Blocked: the guest did not get what it tried. The Message must not claim
	// it where Hit.CanDeny fails.
	Blocked bool
	// Facts are what the conclusion is drawn from, in order.
	Facts []Fact
}

// Fact is one value that a finding rests on.
type Fact struct {
	Name  string
	Value uint64
}

// Sink takes findings. Emit must not block: it is called while a vCPU waits.
type Sink interface {
	Emit(f *Finding)
}
