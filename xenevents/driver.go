package xenevents

import (
	"context"
	"fmt"
	"io"
)

// DomainID is Xen's number of a running domain. It is never used again while
// Xen runs, unless the numbers wrap round at 32,752.
type DomainID uint16

// DomainInfo is what the hypervisor says of a domain.
type DomainInfo struct {
	ID     DomainID
	UUID   [16]byte
	Name   string // from xenstore; "" where that is out of reach
	HVM    bool   // HVM or PVH: has nested paging, so can have views
	HAP    bool   // hardware assisted paging
	Paused bool   // by a controller (xl pause); an event does not show here
	Dying  bool
	// Shutdown is set once the domain shut itself down, crashed or was suspended: Suspended
	// says that it was the last, and it may go on, here or elsewhere.
	Shutdown, Suspended bool
	VCPUs               int    // online
	MaxVCPU             VCPU   // highest index
	Pages               uint64 // frames it has now
	MaxPages            uint64 // frames it may have
}

// UUIDString formats the UUID as xl prints it.
func (d *DomainInfo) UUIDString() string {
	u := d.UUID
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// Host is a driver's connection to one hypervisor. Its methods may be called
// from several goroutines at once.
type Host interface {
	// Name is the driver's name: "native", "libvmi", "sim", "replay".
	Name() string
	// Domains lists all domains but dom0, by rising ID.
	Domains(ctx context.Context) ([]DomainInfo, error)
	// Open opens a domain for reading and control. It changes nothing in it.
	// Several Domains of one ID may be open at once; only one can monitor.
	// It fails with ErrNoDomain if there is no such domain.
	Open(ctx context.Context, id DomainID) (Domain, error)
	io.Closer
}

// Watcher is a Host that tells when domains come and go.
type Watcher interface {
	// Watch calls changed, from one goroutine and without delay, whenever a domain may
	// have come, gone, shut down, crashed or been suspended: whoever wants to know
	// which asks Domains. It returns when ctx ends, or with why it can't go on.
	Watch(ctx context.Context, changed func()) error
}

// Domain is an open domain: the roles that every driver has. What only some
// drivers, hypervisors or CPUs can do is found by asking (Probe, or a type
// assertion to Views, PageAllocator, Injector, …).
//
// A Domain has one owner: its methods must not be called concurrently, but for
// Events.Interrupt. Close undoes whatever the Domain changed, and may be called twice.
type Domain interface {
	Info(ctx context.Context) (DomainInfo, error)
	Memory
	VCPUs
	Pauser
	Monitor
	io.Closer
}

// Memory is a guest's physical memory as the host p2m (view 0) maps it.
type Memory interface {
	// ReadGPA fills p from guest physical memory. It may cross pages. If a
	// page is absent it returns the number of bytes before it and an error
	// that matches ErrAbsent. A guest that writes at the same time may tear
	// values of more than 8 bytes.
	ReadGPA(p []byte, at GPA) (int, error)
	// WriteGPA is ReadGPA's counterpart.
	WriteGPA(p []byte, at GPA) (int, error)
	// MaxGFN returns the highest frame number that the guest has ever had.
	MaxGFN() (GFN, error)
}

// Swapper is a Memory that changes a word only if it is what was read, in one
// step that a guest's vCPU can't come between.
type Swapper interface {
	// CompareAndSwap64 writes v if old is there, and says whether it was. at is
	// a multiple of 8.
	CompareAndSwap64(at GPA, old, v uint64) (bool, error)
}

// VCPUs reads the state of vCPUs outside of events.
type VCPUs interface {
	// Registers reads the registers of one vCPU. They are a consistent set
	// only while the domain is paused or the vCPU waits for a reply. A guest may
	// take a vCPU offline at any time: that fails with ErrVCPUDown.
	Registers(v VCPU) (Registers, error)
}

// Pauser holds all vCPUs of a domain. Pause and Unpause nest, and nest with
// those of other tools. Use WithPaused: it can't forget the other half.
type Pauser interface {
	Pause() error
	Unpause() error
}

// WithPaused runs f while the domain is paused, and unpauses it however f ends.
func WithPaused(p Pauser, f func() error) (err error) {
	if err := p.Pause(); err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	defer func() {
		if e := p.Unpause(); e != nil {
			err = joinNonNil(err, fmt.Errorf("unpause: %w", e))
		}
	}()
	return f()
}

// Monitor subscribes to a domain's events.
type Monitor interface {
	// Attach opens the monitor ring. There is one for each domain:
	// ErrMonitored means that another program has it, or had it when it died.
	// The Events end with their Close or the Domain's.
	Attach(ctx context.Context) (Events, error)
}

// Subscription names a class of events.
type Subscription struct {
	Kind Kind
	// KindControlReg: 0, 3 or 4. KindMSR: the MSR's number.
	Index uint32
	// Sync: the vCPU waits for a reply. int3, single-step, MSRs and CPUID always do.
	// A control register or MSR is written before, unless WriteHolder.HoldWrites
	// was called.
	Sync bool
	// OnChange: KindControlReg only when the value changes.
	OnChange bool
}

// Events is the stream of a domain's events. All methods but Interrupt belong
// to one goroutine, which should be locked to its OS thread.
//
// KindMemAccess events need no subscription: SetAccess makes them.
type Events interface {
	Subscribe(s Subscription) error
	Unsubscribe(s Subscription) error

	// Next waits until there is at least one event, and fills batch with
	// those that are there: it returns how many. It sends all replies that
	// are not sent yet before it waits. It fails with ctx's error, with
	// ErrInterrupted after Interrupt, with ErrDomainGone when the domain
	// ended. A batch of 8 takes all that a ring can hold.
	Next(ctx context.Context, batch []Event) (int, error)
	// TryNext is Next, but returns 0 at once where there is none.
	TryNext(batch []Event) (int, error)
	// Reply answers one event: in any order, each exactly once. The answer
	// may wait until Flush or Next.
	Reply(e *Event, r *Reply) error
	// Flush sends all replies, with one notification.
	Flush() error
	// Interrupt makes the present or the next call of Next return
	// ErrInterrupted. Any goroutine may call it.
	Interrupt()

	// Close ends the subscription without trace: with the domain paused it
	// answers whatever still waits (the zero Reply), disables every event and
	// frees the ring. The owner must have taken its int3s and views away
	// before. Twice is harmless.
	Close() error
}

// Settler is an Events whose hypervisor may carry out a reply later than it was
// given, and must not be surprised meanwhile.
//
// Xen keeps an emulation or registers that a reply asks for until the vCPU is next
// scheduled. If a frame is taken out of any of the domain's maps before that (in
// dom0: RevertGFN, FreeGFN), the vCPU first goes on without them, and Xen carries
// them out at some later instruction: the guest crashes or computes nonsense.
// (Xen 4.15 to today: p2m_remove_entry sets mapcache_invalidate for each vCPU,
// vcpu_ioreq_handle_completion then returns false once, so that hvm_do_resume
// returns before hvm_vm_event_do_resume. Seen in the lab on 4.20.)
type Settler interface {
	// Settled says whether the vCPUs have carried out all replies. An event that
	// was not read yet says nothing: read those first, with the domain paused,
	// and reply to them with neither Emulate nor Regs.
	Settled() (bool, error)
}

// WriteHolder is an Events that can have the guest's writes of control registers and
// MSRs wait for the reply, which may refuse them (Reply.Deny).
type WriteHolder interface {
	// HoldWrites has each write that a subscription tells of wait for its reply, from
	// now until Close: there is no way back. No subscription to a control register
	// may be asynchronous then: Xen would hold those back as well, and the guest not
	// wait for them (xen/arch/x86/hvm/monitor.c, hvm_monitor_cr). A write whose reply
	// was not carried out is lost with Close: see Settler.
	HoldWrites() error
}

// Views is altp2m: other maps of the same guest, made by remapping frames and
// taking access rights. A Domain that has none is no Views or returns an
// *UnsupportedError.
type Views interface {
	// EnableViews turns altp2m on. The vCPUs stay in view 0.
	EnableViews() error
	// DisableViews turns altp2m off: all vCPUs go to view 0, all views and
	// what they hide vanish.
	DisableViews() error
	// CreateView makes a view that shows the guest as view 0 does.
	CreateView() (View, error)
	// DestroyView fails with ErrBusy while a vCPU is in it.
	DestroyView(v View) error
	// SwitchView moves all vCPUs to v.
	SwitchView(v View) error
	// RemapGFN lets gfn show frame to in view v.
	RemapGFN(v View, gfn, to GFN) error
	// RevertGFN lets gfn show in v what it shows in view 0, with full access.
	// Where the Events are a Settler it needs a settled, paused domain.
	RevertGFN(v View, gfn GFN) error
	// SetAccess sets the access rights of gfn in view v. On an entry that the
	// view has not yet it also fills it, and where view 0 maps a superpage,
	// all of the superpage. For a gfn that view 0 does not map it fails with
	// ErrAbsent, or does nothing: Xen since 4.15 keeps that to itself.
	SetAccess(v View, gfn GFN, a Access) error
}

// PageAllocator gives a domain spare frames, above all that it knows of.
type PageAllocator interface {
	// AllocGFN adds one zeroed frame to the domain.
	AllocGFN() (GFN, error)
	// FreeGFN takes it away again. Where the Events are a Settler it needs a
	// settled, paused domain.
	FreeGFN(GFN) error
}

// Injector raises exceptions in the guest.
type Injector interface {
	// InjectInt3 gives the guest the #BP of its own int3, of insnLen bytes,
	// once the event that told of it has had its (zero) reply.
	InjectInt3(v VCPU, insnLen uint8) error
}

func joinNonNil(a, b error) error {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return fmt.Errorf("%w; %w", a, b)
}
