package drivertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

func list(ctx context.Context, env *Env) error {
	all, err := env.Host.Domains(ctx)
	if err != nil {
		return err
	}
	if env.Host.Name() == "" {
		return errors.New("the driver has no name")
	}
	var found *xenevents.DomainInfo
	for i := range all {
		if all[i].ID == 0 || i > 0 && all[i-1].ID >= all[i].ID {
			return fmt.Errorf("not by rising ID, or with dom0: %+v", all)
		}
		if all[i].ID == env.Domain {
			found = &all[i]
		}
	}
	if found == nil {
		return fmt.Errorf("domain %d is not among %+v", env.Domain, all)
	}
	for _, name := range []string{found.Name, fmt.Sprint(found.ID), found.UUIDString()} {
		if name == "" { // not every driver can know
			continue
		}
		if got, err := xenevents.FindDomain(ctx, env.Host, name); err != nil || got.ID != found.ID {
			return fmt.Errorf("find %q: domain %d, %w", name, got.ID, err)
		}
	}
	_, err = xenevents.FindDomain(ctx, env.Host, "no such domain")
	return must(err, xenevents.ErrNoDomain, "find a domain that is not there")
}

func openBadID(ctx context.Context, env *Env) error {
	for _, id := range []xenevents.DomainID{0, 0x7000, 0x7fff} {
		dom, err := env.Host.Open(ctx, id)
		if err == nil {
			return errors.Join(fmt.Errorf("domain %d was opened", id), dom.Close())
		}
		if err := must(err, xenevents.ErrNoDomain, fmt.Sprintf("open domain %d", id)); err != nil {
			return err
		}
	}
	return nil
}

func features(ctx context.Context, o *open) error {
	for what, x := range map[string]any{"host": o.env.Host, "domain": o.dom} {
		p, ok := x.(xenevents.Prober)
		if !ok {
			return &Skip{"the driver's " + what + " is no Prober"}
		}
		all, err := p.Features(ctx)
		if err != nil || len(all) == 0 {
			return fmt.Errorf("%d features of the %s: %w", len(all), what, err)
		}
		seen := map[string]bool{}
		for _, f := range all {
			if f.Name == "" || f.Title == "" || seen[f.Name] || f.Answer > xenevents.Yes {
				return fmt.Errorf("feature of the %s: %+v", what, f)
			}
			if f.Answer == xenevents.CannotTell && f.Detail == "" {
				return fmt.Errorf("nothing says why %q can't be told", f.Name)
			}
			seen[f.Name] = true
		}
	}
	return nil
}

func info(ctx context.Context, o *open) error {
	i, err := o.dom.Info(ctx)
	if err != nil {
		return err
	}
	if i.ID != o.env.Domain || i.VCPUs < 1 || int(i.MaxVCPU) < i.VCPUs-1 || i.Pages == 0 || i.MaxPages < i.Pages || i.Paused || i.Dying || i.Shutdown {
		return fmt.Errorf("of a running guest: %+v", i)
	}
	second, err := o.env.Host.Open(ctx, o.env.Domain)
	if err != nil {
		return fmt.Errorf("open twice: %w", err)
	}
	j, err := second.Info(ctx)
	if i != j {
		err = errors.Join(err, fmt.Errorf("two Domains of one guest say %+v and %+v", i, j))
	}
	return errors.Join(err, second.Close())
}

func readAcross(_ context.Context, o *open) error {
	at, err := twoFrames(o.dom)
	if err != nil {
		return err
	}
	at += xenevents.PageSize - 8
	return xenevents.WithPaused(o.dom, func() error {
		var whole, parts [16]byte
		for _, r := range []struct {
			p  []byte
			at xenevents.GPA
		}{{whole[:], at}, {parts[:8], at}, {parts[8:], at + 8}} {
			if n, err := o.dom.ReadGPA(r.p, r.at); n != len(r.p) || err != nil {
				return fmt.Errorf("%d of %d bytes at %v: %w", n, len(r.p), r.at, err)
			}
		}
		if whole != parts {
			return fmt.Errorf("% x at once, % x in parts", whole, parts)
		}
		return nil
	})
}

// twoFrames finds two frames of the guest that follow each other.
func twoFrames(dom xenevents.Domain) (xenevents.GPA, error) {
	var b [xenevents.PageSize + 1]byte
	for gfn := xenevents.GFN(16); gfn < 4096; gfn++ {
		if _, err := dom.ReadGPA(b[:], gfn.GPA()); err == nil {
			return gfn.GPA(), nil
		} else if !errors.Is(err, xenevents.ErrAbsent) {
			return 0, err
		}
	}
	return 0, &Skip{"the guest has no two frames next to each other in its first 16 MiB"}
}

// farAway is above MaxGFN: nobody has memory there.
const farAway = 1 << 16

func readAbsent(_ context.Context, o *open) error {
	top, err := o.dom.MaxGFN()
	if err != nil {
		return err
	}
	if top == 0 {
		return errors.New("the highest frame number is 0")
	}
	for _, size := range []int{1, 8, 9, 3 * xenevents.PageSize} {
		for _, off := range []xenevents.GPA{0, 8, 5} {
			n, err := o.dom.ReadGPA(make([]byte, size), (top+farAway).GPA()+off)
			if e := must(err, xenevents.ErrAbsent, "read absent memory"); e != nil || n != 0 {
				return fmt.Errorf("%d bytes: %w", n, errors.Join(e, err))
			}
			n, err = o.dom.WriteGPA(make([]byte, size), (top+farAway).GPA()+off)
			if e := must(err, xenevents.ErrAbsent, "write absent memory"); e != nil || n != 0 {
				return fmt.Errorf("%d bytes: %w", n, errors.Join(e, err))
			}
		}
	}
	return nil
}

func registers(ctx context.Context, o *open) error {
	i, err := o.dom.Info(ctx)
	if err != nil {
		return err
	}
	up := 0
	for v := range i.MaxVCPU + 1 {
		r, err := o.dom.Registers(v)
		if errors.Is(err, xenevents.ErrVCPUDown) {
			continue
		}
		if err != nil {
			return err
		}
		up++
		space := xenevents.AddressSpaceOf(&r)
		if r.RIP == 0 || space.Root == 0 || space.Mode == xenevents.PagingNone {
			return fmt.Errorf("vCPU %d of a running guest: %+v", v, r)
		}
	}
	if up != i.VCPUs {
		return fmt.Errorf("%d vCPUs have registers, %d are online", up, i.VCPUs)
	}
	if _, err = o.dom.Registers(i.MaxVCPU + 1); !errors.Is(err, xenevents.ErrVCPUDown) {
		return fmt.Errorf("registers of a vCPU that is not there: %v", err)
	}
	_, err = o.kernel()
	return err
}

// place is code of the guest's kernel that any system call runs.
type place struct {
	at    xenevents.GVA
	space xenevents.AddressSpace
	gpa   xenevents.GPA
}

// kernel finds where LSTAR of vCPU 0 points to.
func (o *open) kernel() (p place, err error) {
	err = xenevents.WithPaused(o.dom, func() error {
		r, err := o.dom.Registers(0)
		if err != nil {
			return err
		}
		if r.LSTAR == 0 {
			return &Skip{"the guest's vCPU 0 has no LSTAR: its kernel is not up"}
		}
		p.at, p.space = xenevents.GVA(r.LSTAR), xenevents.AddressSpaceOf(&r)
		t, err := guestmem.NewReader(o.dom).Translate(p.space, p.at)
		p.gpa = t.GPA
		return err
	})
	return p, err
}

func pauseNests(ctx context.Context, o *open) (err error) {
	if err := mustFail(o.dom.Unpause(), "unpause without a pause"); err != nil {
		return err
	}
	for i, step := range []struct {
		do     func() error
		paused bool
	}{{o.dom.Pause, true}, {o.dom.Pause, true}, {o.dom.Unpause, true}, {o.dom.Unpause, false}} {
		if err := step.do(); err != nil {
			return fmt.Errorf("step %d: %w", i, err)
		}
		if info, err := o.dom.Info(ctx); err != nil || info.Paused != step.paused {
			return fmt.Errorf("step %d: paused is %v, want %v: %w", i, info.Paused, step.paused, err)
		}
	}
	return mustFail(o.dom.Unpause(), "one unpause too many")
}

func withPausedPanic(ctx context.Context, o *open) error {
	func() {
		defer func() { _ = recover() }()
		_ = xenevents.WithPaused(o.dom, func() error { panic("in the middle") })
	}()
	if info, err := o.dom.Info(ctx); err != nil || info.Paused {
		return fmt.Errorf("paused is %v after a panic: %w", info.Paused, err)
	}
	want := errors.New("an error")
	return must(xenevents.WithPaused(o.dom, func() error { return want }), want, "the function's own error")
}

func spareFrames(ctx context.Context, o *open) error {
	a, err := role[xenevents.PageAllocator](o)
	if err != nil {
		return err
	}
	before, err := o.dom.Info(ctx)
	if err != nil {
		return err
	}
	top, err := o.dom.MaxGFN()
	if err != nil {
		return err
	}
	seen := map[xenevents.GFN]bool{}
	for range 3 {
		gfn, err := a.AllocGFN()
		if err != nil {
			return err
		}
		if seen[gfn] || gfn <= top {
			return fmt.Errorf("spare frame %v, and the guest has frames up to %v", gfn, top)
		}
		seen[gfn] = true
		content := make([]byte, xenevents.PageSize)
		if _, err := o.dom.ReadGPA(content, gfn.GPA()); err != nil || !bytes.Equal(content, make([]byte, xenevents.PageSize)) {
			return fmt.Errorf("a spare frame is not all zero: %w", err)
		}
	}
	if now, err := o.dom.Info(ctx); err != nil || now.Pages != before.Pages+3 || now.MaxPages < now.Pages {
		return fmt.Errorf("with three spare frames %+v, before %+v: %w", now, before, err)
	}
	for gfn := range seen {
		if err := o.free(a, gfn); err != nil {
			return err
		}
		if err := mustFail(a.FreeGFN(gfn), "free a frame twice"); err != nil {
			return err
		}
		_, err := o.dom.ReadGPA(make([]byte, 8), gfn.GPA())
		if err := must(err, xenevents.ErrAbsent, "read a frame that was freed"); err != nil {
			return err
		}
	}
	if err := mustFail(a.FreeGFN(0), "free a frame of the guest's own"); err != nil {
		return err
	}
	if now, err := o.dom.Info(ctx); err != nil || now != before {
		return fmt.Errorf("after all spare frames went %+v, before %+v: %w", now, before, err)
	}
	return nil
}

// free takes a spare frame away as FreeGFN wants it: with the domain paused.
func (o *open) free(a xenevents.PageAllocator, gfn xenevents.GFN) error {
	return xenevents.WithPaused(o.dom, func() error { return a.FreeGFN(gfn) })
}

func writeSpare(_ context.Context, o *open) error {
	a, err := role[xenevents.PageAllocator](o)
	if err != nil {
		return err
	}
	gfn, err := a.AllocGFN()
	if err != nil {
		return err
	}
	want := make([]byte, xenevents.PageSize)
	for i := range want {
		want[i] = byte(i * 7)
	}
	if n, err := o.dom.WriteGPA(want, gfn.GPA()); n != len(want) || err != nil {
		return fmt.Errorf("%d bytes written: %w", n, err)
	}
	copy(want[8:], "12345678") // a single value of 8 bytes may go another way
	if n, err := o.dom.WriteGPA([]byte("12345678"), gfn.GPA()+8); n != 8 || err != nil {
		return fmt.Errorf("%d bytes written: %w", n, err)
	}
	got := make([]byte, xenevents.PageSize)
	if _, err := o.dom.ReadGPA(got, gfn.GPA()); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("what was written is not what is read: %w", err)
	}
	// Nothing is behind the last one: what comes before it counts.
	end := gfn.GPA() + xenevents.PageSize - 5
	for what, f := range map[string]func([]byte, xenevents.GPA) (int, error){"read": o.dom.ReadGPA, "write": o.dom.WriteGPA} {
		n, err := f(make([]byte, 16), end)
		if e := must(err, xenevents.ErrAbsent, what+" past the last frame"); e != nil || n != 5 {
			return fmt.Errorf("%s past the last frame: %d bytes of 5: %w", what, n, errors.Join(e, err))
		}
	}
	return o.free(a, gfn)
}
