package build

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/xenevents"
)

// GuestBanner finds the banner of the kernel that a guest runs, without a profile: the
// first string in what is mapped where kernels are, read-only data before all else, that
// has linux_banner's form and a number of the build. Since Linux 6.1 there is one without
// before it, which was there while the kernel was linked (init/version.c); it is taken
// where no other one is. It is what a guest says there, to choose a profile by;
// guestos.FindKernel then makes sure of it at the address that the profile has.
//
// The guest runs meanwhile. Only if its page tables make no sense again and again, as those
// of processes that end do, it is paused while they are walked, for a few milliseconds. It
// fails with ErrNoKernel where no vCPU runs a Linux kernel (yet), and with what matches
// errors.ErrUnsupported where the guest has 5-level page tables.
func GuestBanner(ctx context.Context, dom Guest, vcpus int) (string, error) {
	var m *memory
	err := ErrNoKernel
	for try := 0; try < 3 && errors.Is(err, ErrNoKernel); try++ {
		m, err = findKernel(ctx, dom, vcpus)
	}
	if errors.Is(err, ErrNoKernel) {
		m, err = pausedKernel(ctx, dom, vcpus)
	}
	if err != nil {
		return "", fmt.Errorf("the guest's kernel: %w", err)
	}
	var unnumbered string
	for _, p := range m.pieces {
		banner, err := m.findBanner(ctx, p, &unnumbered)
		if err != nil || banner != "" {
			return banner, err
		}
	}
	if unnumbered != "" {
		return unnumbered, nil
	}
	return "", fmt.Errorf("the guest's kernel: %w: nothing in it has a banner's form", ErrNoKernel)
}

// pausedKernel is findKernel in a guest that is paused meanwhile.
func pausedKernel(ctx context.Context, dom Guest, vcpus int) (m *memory, err error) {
	err = xenevents.WithPaused(dom, func() (err error) {
		m, err = findKernel(ctx, dom, vcpus)
		return err
	})
	return m, err
}

// bannerStart is how linux_banner begins (init/version.c), before the release.
const bannerStart = "Linux version "

// findBanner searches a piece, and is "" where none is in it; one without a number it only
// remembers. A page that is absent ends its piece.
func (m *memory) findBanner(ctx context.Context, p *piece, unnumbered *string) (string, error) {
	const overlap = maxBanner
	b := make([]byte, 256<<10)
	for from, kept := int64(0), 0; ; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		size := min(int64(len(b)-kept), int64(p.size)-from, int64(m.left))
		if size <= 0 {
			return "", nil
		}
		m.left -= uint64(size)
		n, err := p.data.ReadAt(b[kept:kept+int(size)], from)
		window := b[:kept+n]
		for rest := window; ; {
			var banner string
			if banner, rest = bannerIn(rest); banner == "" {
				break
			}
			if !strings.Contains(banner, " # ") {
				return banner, nil
			}
			*unnumbered = cmp.Or(*unnumbered, banner)
		}
		if err != nil && !errors.Is(err, xenevents.ErrAbsent) {
			return "", fmt.Errorf("the guest's memory: %w", err)
		}
		if err != nil {
			return "", nil
		}
		from += int64(n)
		kept = copy(b, window[max(0, len(window)-overlap):])
	}
}

// bannerIn is the first string of a banner's form, and what comes after it: a release that
// begins with a digit, in one line of plain text, with its line's end and a NUL. What the
// kernel has logged of itself has no such end.
func bannerIn(b []byte) (banner string, rest []byte) {
	for {
		at := bytes.Index(b, []byte(bannerStart))
		if at < 0 {
			return "", nil
		}
		b = b[at:]
		line, _, ok := bytes.Cut(b[:min(len(b), maxBanner)], []byte("\n\x00"))
		digit := len(line) > len(bannerStart) && line[len(bannerStart)] >= '0' && line[len(bannerStart)] <= '9'
		b = b[len(bannerStart):]
		if ok && digit && bytes.IndexFunc(line, func(r rune) bool { return r < ' ' || r > '~' }) < 0 {
			return string(line), b
		}
	}
}
