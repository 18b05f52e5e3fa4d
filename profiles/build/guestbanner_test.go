package build

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/xenevents"
)

// tornGuest has page tables of a process that ended, until it is paused.
type tornGuest struct{ *fakeGuest }

func (g *tornGuest) Registers(v xenevents.VCPU) (xenevents.Registers, error) {
	if g.paused == 0 {
		r := g.vcpus[v]
		r.CR3 = 0x3000
		return r, nil
	}
	return g.fakeGuest.Registers(v)
}

func TestGuestBanner(t *testing.T) {
	const slide = 6 << 20
	ctx := context.Background()
	guest := func(change func(rodata []byte) []byte) *fakeGuest {
		all := guestSections(t, layouts[3], slide)
		if change != nil {
			all[1].data = change(all[1].data)
		}
		return newFakeGuest(slide, all...).runs(fakeEntry + slide)
	}
	before := func(text string) func([]byte) []byte {
		return func(b []byte) []byte { return append([]byte(text), b...) }
	}
	inHole := guest(before(strings.Repeat("x", 2*xenevents.PageSize)))
	inHole.absent = xenevents.GPA(fakeBase + rodataAddr - linkedText + xenevents.PageSize).GFN()
	for name, c := range map[string]struct {
		g    *fakeGuest
		want string // an error's, if it is no banner
	}{
		"plain":            {guest(nil), testBanner},
		"KPTI":             {guest(nil).inUserMode(t), testBanner},
		"without a number": {guest(before(strings.Replace(testBanner, "#1", "#", 1) + "\n\x00")), testBanner},
		"only without": {guest(func(b []byte) []byte {
			return append([]byte(strings.Replace(testBanner, "#1", "#", 1)+"\n\x00"), b[len(testBanner):]...)
		}), strings.Replace(testBanner, "#1", "#", 1)},
		"a format":       {guest(before("Linux version %s\n\x00")), testBanner},
		"a log's line":   {guest(before("Linux version 1.2.3 (c@d) #1\n[0.1] Command line\n\x00")), testBanner},
		"an escape":      {guest(before("Linux version 1.2\x1b[2J\n\x00")), testBanner},
		"without an end": {guest(before("Linux version 1.2" + strings.Repeat("y", 600))), testBanner},
		"over two reads": {guest(before(strings.Repeat("x", 256<<10-9))), testBanner},
		"behind a hole":  {inHole, "banner's form"},
		"none":           {guest(func(b []byte) []byte { copy(b, "Minix"); return b }), "banner's form"},
		"not booted":     {newFakeGuest(slide), "is it booted"},
	} {
		c.g.free = true
		got, err := GuestBanner(ctx, c.g, 2)
		if got != c.want && (err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, ErrNoKernel)) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
		if pauses := map[bool]int{true: 1}[name == "not booted"]; c.g.paused != 0 || c.g.pauses != pauses || c.g.reads > 2*maxRead {
			t.Errorf("%s: it was paused %d times and is %d; %d bytes were read", name, c.g.pauses, c.g.paused, c.g.reads)
		}
	}
	torn := guest(nil) // it makes sense only while it stands still
	if got, err := GuestBanner(ctx, &tornGuest{torn}, 1); err != nil || got != testBanner || torn.pauses != 1 || torn.paused != 0 {
		t.Errorf("torn: %q, %v after %d pauses", got, err, torn.pauses)
	}
	five := guest(nil)
	five.free = true
	five.vcpus[0].CR4 |= xenevents.CR4LA57
	if got, err := GuestBanner(ctx, five, 1); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("5 levels: %q, %v", got, err)
	}
	done, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := GuestBanner(done, torn, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	// It reads no more than it must: linux_banner is at the start.
	g := guest(nil)
	g.free = true
	if _, err := GuestBanner(ctx, g, 1); err != nil || g.reads > 1<<20 {
		t.Errorf("%d bytes were read, %v", g.reads, err)
	}
}

// FuzzBannerIn searches what a guest may have.
func FuzzBannerIn(f *testing.F) {
	f.Add([]byte("x" + testBanner + "\n\x00"))
	f.Add([]byte("Linux version 1Linux version 2\n\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, _ := bannerIn(b)
		if got == "" {
			return
		}
		if !bytes.Contains(b, []byte(got+"\n\x00")) || !strings.HasPrefix(got, bannerStart) || len(got) > maxBanner || strings.ContainsAny(got, "\x00\n\x1b") {
			t.Errorf("%q", got)
		}
	})
}
