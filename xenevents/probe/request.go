// Package probe is the engine: it puts probes into one running domain and takes
// them out again, decides at each hit what the guest does next, and sees to it
// that every vCPU that stopped for hprobe runs on.
package probe

import (
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
)

// ID names a probe of one Engine. It is never used again.
type ID uint64

// StepOver is how a vCPU gets past the instruction under a patch.
type StepOver uint8

// The ways to step over, the cheapest first. Auto takes the first that is known
// to work for the instruction.
const (
	Auto StepOver = iota
	// Emulate: Xen emulates the original bytes, which come with the reply. One
	// event, no view switch, and no other vCPU can pass the address meanwhile.
	Emulate
	// FastStep: one instruction in view 0, then back. One event.
	FastStep
	// SingleStep: the same with a second event at its end.
	SingleStep
)

var stepNames = [...]string{"auto", "emulate", "fast-singlestep", "singlestep"}

func (s StepOver) String() string {
	if int(s) < len(stepNames) {
		return stepNames[s]
	}
	return fmt.Sprintf("StepOver(%d)", uint8(s))
}

// ParseStepOver reads one of the names.
func ParseStepOver(name string) (StepOver, error) {
	for i, n := range stepNames {
		if n == name {
			return StepOver(i), nil
		}
	}
	return Auto, fmt.Errorf("no way to step over is called %q: there are %q", name, stepNames)
}

// Request asks for a probe.
type Request struct {
	// Name is for people; it shows in Status.
	Name string
	// At is the address of an instruction in Space: one of its first byte, or
	// the guest's program is changed into another. In the kernel's half (the
	// upper one) each address space's hits count. In the lower one only those of
	// Space's process do (with KPTI it has two roots, either of which Space may
	// be). What else runs the same frame is counted (Status.Passed) and goes on
	// at once.
	At    xenevents.GVA
	Space xenevents.AddressSpace
	Step  StepOver
	// Follow is for an address of a process, whose pages come, go and move: the
	// probe is accepted while there is none (see Waiting), and goes where the page
	// goes.
	Follow bool
	// Placed is for code of the kernel that comes and goes, as modules do. The probe
	// has no address of its own (At is 0): it is Waiting until Engine.Place says where
	// its code is, and again after Engine.Lift. Its hits are counted on.
	Placed bool
	// Many is for one probe in many processes: At and Space are of none. Those that
	// it is in join it (Members); it counts and judges the hits of all of them.
	Many bool
	// Return asks for the end of each call as well: Decide is called once more,
	// with Hit.Return, when the function has returned to its caller. Only for
	// the first instruction of a function, where RSP points to the return
	// address. In the kernel's half Space must not end before the probe does. In the
	// lower half the pages that calls return to are followed as with Follow, and a call
	// whose return address is not known to be where an instruction begins is Lost.
	Return bool
	// Thread says who runs, for Return: what no two threads have that use the
	// same stack one after the other. It is asked at entry and return, as Decide
	// is. nil, or !ok: stack and registers alone tell.
	Thread func(*Hit) (id uint64, ok bool)
	// Budget is what the probe may cost; the zero value is Options.Budget.
	Budget Budget
	// Gap is told when the probe is suspended for its Budget, and when it is
	// armed again, on the engine's goroutine. nil: it is logged and counted only.
	Gap func(Gap)
	// Decide is called at each hit, on the engine's goroutine, while the vCPU
	// waits: it must be quick, must not block, and must not keep the Hit. One that
	// has to ask somebody says so: see Later. nil counts, and lets the guest go on.
	Decide func(*Hit) Verdict
}

// Hit is one execution of a probed instruction, before it ran; or with Return the
// end of a call, or with Seen what a Watch saw. It is valid during Decide only.
type Hit struct {
	Probe ID
	// Seq counts the probe's hits, from 1. A return has that of its entry.
	Seq uint64
	// Return: the function has returned; RAX is its value, and RIP where it was
	// called. A verdict may set registers, not deny or skip.
	Return bool
	// Took is how long the call took, in ticks, with all that hits cost meanwhile.
	Took  uint64
	VCPU  xenevents.VCPU
	Space xenevents.AddressSpace
	// Regs are the vCPU's registers. To change them, return a Verdict.
	Regs *xenevents.Registers
	// Seen is what a Watch saw; nil at an instruction.
	Seen *Seen

	engine  *Engine
	patch   *patch
	verdict Verdict // of those who were asked before
	pause   bool    // somebody asked for it
	waited  bool    // its vCPU waited for a Later
	taken   bool    // it is somebody's
	// The return address is read once at most: another vCPU may change it, or
	// take the stack away, after somebody relied on it.
	to     uint64
	toErr  error
	toRead bool
}

// ErrDenied says that a subscriber that was asked before denies the call: it does
// not run, but returns that one's value.
var ErrDenied = errors.New("the call is denied already")

// CanDeny says whether a verdict to deny this hit will be carried out, and if not
// why. Whoever tells people that a call was stopped asks first.
func (h *Hit) CanDeny() error {
	if h.Seen != nil {
		if h.Seen.refuse == nil && h.verdict.Action == Deny {
			return ErrDenied
		}
		return h.Seen.refuse
	}
	if h.Return {
		return errors.New("the call is over")
	}
	if h.verdict.Action != SetRegs {
		if _, err := h.returnAddress(); err != nil {
			return err
		}
	}
	return h.undecided()
}

// CanSkip says whether a verdict to skip the call at which the hit is will be carried
// out, and if not why, as CanDeny does of a denial.
func (h *Hit) CanSkip() error {
	if h.Seen != nil || h.Return || !h.patch.insn.call {
		return errors.New("there is no call here that could be left out")
	}
	return h.undecided()
}

// undecided says what became of the hit by those who were asked before, if anything.
func (h *Hit) undecided() error {
	switch h.verdict.Action {
	case SetRegs:
		return errors.New("another probe's decision set the registers")
	case Deny, Skip:
		return ErrDenied
	}
	return nil
}

func (h *Hit) returnAddress() (uint64, error) {
	if !h.toRead {
		h.toRead = true
		h.to, h.toErr = h.ReadUint64(xenevents.GVA(h.Regs.RSP))
		if h.toErr != nil {
			h.toErr = fmt.Errorf("its return address can't be read: %w", h.toErr)
		}
	}
	return h.to, h.toErr
}

// Read reads guest virtual memory as the vCPU sees it. A page that is not
// mapped ends it: n bytes were read before. See guestmem for the errors.
func (h *Hit) Read(p []byte, at xenevents.GVA) (n int, err error) {
	return h.engine.mem.ReadGVA(h.Space, p, at)
}

// ReadUint64 reads 8 bytes of guest virtual memory.
func (h *Hit) ReadUint64(at xenevents.GVA) (uint64, error) {
	return h.engine.mem.ReadUint64(h.Space, at)
}

// Action is what happens to the vCPU of a hit.
type Action uint8

// The actions.
const (
	// Continue: the instruction runs as if there were no probe.
	Continue Action = iota
	// Deny: the function that the probe is at the entry of is not run: it
	// returns Verdict.Return to its caller. Only at a function's first
	// instruction, where RSP points to the return address. See Hit.CanDeny.
	Deny
	// Skip: the call that the probe is at is not made: its caller goes on behind it,
	// as if the function had returned Verdict.Return. Only at a call instruction. See
	// Hit.CanSkip.
	Skip
	// SetRegs: the vCPU's registers become Verdict.Regs, then the instruction
	// runs; where RIP was changed, the vCPU goes on there instead.
	SetRegs
)

func (a Action) String() string {
	return [...]string{"continue", "deny", "skip the call", "set registers"}[min(a, SetRegs)]
}

// Verdict is what Decide concluded.
type Verdict struct {
	Action Action
	Return uint64 // Deny, Skip: the value of RAX
	Regs   *xenevents.Registers
	// Pause: first the domain is paused as a whole. Whoever unpauses it, or
	// Engine.Run's end, has the vCPU go on, by Action.
	Pause bool
	// Later: the verdict is not known yet, and nothing else here counts.
	Later *Later
}

// State is how a probe is doing.
type State uint8

// The states.
const (
	Armed State = iota
	// Displaced: the guest wrote over the instruction; the probe is armed
	// again when it is as it was.
	Displaced
	// Failed: its Decide panicked. It lets the guest go on and is counted.
	Failed
	// Waiting: of a Request with Follow or Many, the guest has no page there that may
	// be run; the probe is armed once it has. Of one with Placed, it is at no place.
	Waiting
	// Ended: of a Request with Follow, the process has exited.
	Ended
	// Suspended: it cost more than its Budget, and has no hits for a while.
	Suspended
)

var stateNames = [...]string{"armed", "displaced", "failed", "waiting", "ended", "suspended"}

func (s State) String() string { return stateNames[min(s, Suspended)] }

// Status is how one probe is doing.
type Status struct {
	ID    ID
	Name  string
	At    xenevents.GVA
	State State
	Step  StepOver
	Insn  string // the instruction under it
	Hits  uint64
	// Moves is how often it was armed in another frame, for a Request with Follow.
	Moves uint64
	// Changed counts the verdicts other than Continue.
	Changed uint64
	// Passed counts what was hit for nothing, and not reported: in other address
	// spaces, by way of another address, and where its calls return to, by others.
	Passed uint64
	// Returns counts the calls that were seen to return, Lost those that will
	// never be. Hits is the sum of both and of the calls under way.
	Returns, Lost uint64
	// Gaps counts the times it was suspended, GapTicks for how long in all.
	Gaps, GapTicks uint64
	// Members are the places of a Request with Many, Armed those of them where the
	// page is there. Missed counts those that it should have had, and could not have;
	// MissedWhy is why the last one could not.
	Members, Armed int
	Missed         uint64
	MissedWhy      string
	// Detail says why the probe is not armed.
	Detail string
	// Source is what it watches, of a Watch; else nil.
	Source *Source
}

// Stats are an engine's counters.
type Stats struct {
	Events     map[string]uint64 // by kind
	Reinjected uint64            // the guest's own int3s
	Stale      uint64            // int3s of patches that were just removed
	Retried    uint64            // int3s that were run again because they came at a bad time
	Reads      uint64            // guest reads of a shadow page
	Writes     uint64            // guest writes to one
	Passed     uint64            // int3s of ours that were nobody's hit, nor the end of a call
	Shadows    int               // shadow pages
	Tables     int               // page tables that are write-protected, for Request.Follow
	Calls      int               // under way, whose returns are waited for
	Sites      int               // places that they return to
	StaleCalls uint64            // that did not return: a longjmp or the end of their thread took them
	Evicted    uint64            // that were given up because there were too many
	Waiting    int               // vCPUs whose hit waits for a Later
	TooLate    uint64            // hits whose Later did not come in time
	TableStats
	// Batches is how often the ring was emptied. Ticks are the ticks from having
	// the events of a batch to having all replies in the ring, summed over
	// batches, MaxTicks the longest.
	Batches, Ticks, MaxTicks uint64
}

// TableStats count what the guest does to protected page tables.
type TableStats struct {
	TableWrites  uint64 // by instructions: each costs a single-step
	AccessedBits uint64 // by page walks: each costs one event
	OtherWalks   uint64 // by page walks, dirty bits mostly: each costs a single-step
}
