package sim_test

import (
	"context"
	"errors"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/drivertest"
	"github.com/hprobe/hprobe/xenevents/sim"
)

const entryAt xenevents.GVA = 0xffff_ffff_8180_0040

// kernel is a guest whose LSTAR points to a function, and what touches it.
func kernel(vcpus int) (*sim.Guest, *drivertest.Env) {
	h := sim.NewHost()
	g := h.Add(sim.Config{ID: 3, Name: "guest", VCPUs: vcpus})
	s := g.NewSpace()
	page := s.Page(entryAt.Page())
	g.Poke(page.GPA()+xenevents.GPA(entryAt.Offset()), []byte{0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0x5d, 0xc3}) // endbr64; push rbp; pop rbp; ret
	const stack xenevents.GVA = 0xffff_c900_0000_0000
	for i := range vcpus {
		at := stack + xenevents.GVA(i)*2*xenevents.PageSize
		s.Page(at)
		g.VCPU(i).Set(func(r *xenevents.Registers) {
			r.CR3, r.RSP, r.LSTAR = s.CR3(), uint64(at)+xenevents.PageSize, uint64(entryAt)
		})
	}
	return g, &drivertest.Env{Host: h, Domain: 3, Touch: func(ctx context.Context) error {
		for i := range vcpus {
			steps := sim.Repeat(20, sim.Call(entryAt), sim.Read(entryAt+5, make([]byte, 8)), sim.WriteCR3(s.CR3()|8), sim.WriteCR3(s.CR3()))
			g.VCPU(i).Run(steps...)
		}
		var err error
		for i := range vcpus {
			err = errors.Join(err, g.VCPU(i).Wait(ctx))
		}
		return err
	}}
}

func TestConformance(t *testing.T) {
	for _, vcpus := range []int{1, 9} { // nine fill the ring
		g, env := kernel(vcpus)
		for _, c := range drivertest.Checks() {
			t.Run(c.Name, func(t *testing.T) {
				err := c.Func(context.Background(), env)
				if err != nil {
					t.Error(err) // nothing is skipped: sim has all roles
				}
				if l := append(g.Leaks(), g.Accidents()...); l != nil {
					t.Errorf("left behind: %q", l)
				}
			})
		}
	}
}

// TestSkips: without Touch the checks that need it say so.
func TestSkips(t *testing.T) {
	_, env := kernel(1)
	env.Touch = nil
	skipped := 0
	for _, c := range drivertest.Checks() {
		err := c.Func(context.Background(), env)
		var skip *drivertest.Skip
		switch {
		case errors.As(err, &skip):
			skipped++
		case err != nil:
			t.Errorf("%s: %v", c.Name, err)
		}
	}
	if skipped != 9 {
		t.Errorf("%d checks were skipped", skipped)
	}
}
