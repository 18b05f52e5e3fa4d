// Package build makes profiles of kernels, from their images, from the memory of a
// guest that runs one, or from a dump of that: symbols from kallsyms, types from BTF, both of which a
// distribution's kernel carries in itself. No debug package and no System.map is needed.
package build

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"

	"github.com/hprobe/hprobe/profiles/isf"
)

// maxImage bounds a kernel, packed or not, in bytes.
const maxImage = 512 << 20

// FromFile makes the profile of a kernel image: a vmlinuz (bzImage, packed with
// gzip, xz, zstd or lz4) or a bare vmlinux.
func FromFile(ctx context.Context, path string) (*isf.Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxImage))
	if err != nil {
		return nil, fmt.Errorf("profile: %w", err)
	}
	p, err := fromImage(ctx, b, filepath.Base(path))
	if err != nil {
		return nil, fmt.Errorf("profile of %s: %w", path, err)
	}
	return p, nil
}

func fromImage(ctx context.Context, b []byte, name string) (*isf.Profile, error) {
	vmlinux, err := unpackImage(b)
	if err != nil {
		return nil, err
	}
	f, err := elf.NewFile(bytes.NewReader(vmlinux))
	if err != nil {
		return nil, fmt.Errorf("no kernel: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("a kernel for %v (%v): hprobe knows x86-64 ones", f.Machine, f.Class)
	}
	return elfMemory(f).profile(ctx, name)
}

// profile makes the profile of what is in a kernel's memory. name is its source.
func (m *memory) profile(ctx context.Context, name string) (*isf.Profile, error) {
	out := isf.NewBuilder()
	out.Meta.Source = name
	var err error
	if out.Symbols, err = m.kallsyms(ctx); err != nil {
		return nil, err
	}
	if m.located != nil {
		if err := m.located(m, out.Symbols); err != nil {
			return nil, err
		}
	}
	if out.Meta.Banner, err = m.banner(out.Symbols); err != nil {
		return nil, err
	}
	out.Meta.BuildID = m.buildID()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	typedefs, err := addBTF(m, out)
	if err != nil {
		return nil, err
	}
	addVariables(out)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := addSyscalls(m, out, typedefs); err != nil {
		return nil, err
	}
	return out.Profile()
}

// minImage is less than any kernel has, unpacked, and maxTries bounds how many
// places of an image may look like the start of a packed stream, of one format:
// the image may be hostile.
const (
	minImage = 1 << 20
	maxTries = 64
)

type format struct {
	magic string
	open  func(io.Reader) (io.ReadCloser, error)
}

var formats = []format{
	{"\xfd7zXZ\x00", openXZ},
	{"\x28\xb5\x2f\xfd", openZstd},
	{"\x1f\x8b\x08", func(r io.Reader) (io.ReadCloser, error) { return gzip.NewReader(r) }},
	{"\x02\x21\x4c\x18", func(r io.Reader) (io.ReadCloser, error) { return io.NopCloser(lz4.NewReader(r)), nil }},
}

// unpackImage finds the kernel's ELF in a bzImage: it tries each place that
// looks like the start of a packed stream.
func unpackImage(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		return b, nil
	}
	for _, f := range formats {
		rest := b
		for range maxTries {
			at := bytes.Index(rest, []byte(f.magic))
			if at < 0 {
				break
			}
			if plain := f.unpack(rest[at:]); plain != nil {
				return plain, nil
			}
			rest = rest[at+1:]
		}
	}
	return nil, fmt.Errorf("no kernel in it that hprobe can unpack (it knows gzip, xz, zstd and lz4, and bare ELF)")
}

// unpack returns the kernel that a packed stream holds, or nil.
func (f format) unpack(b []byte) []byte {
	r, err := f.open(bytes.NewReader(b))
	if err != nil {
		return nil
	}
	defer r.Close()
	var plain bytes.Buffer
	if _, err := io.CopyN(&plain, r, int64(len(elf.ELFMAG))); err != nil || plain.String() != elf.ELFMAG {
		return nil
	}
	// What follows the stream in the image is no part of it, and the reader may
	// complain: what counts is that an ELF came out.
	_, _ = io.Copy(&plain, io.LimitReader(r, maxImage-int64(len(elf.ELFMAG))))
	if plain.Len() < minImage {
		return nil
	}
	return plain.Bytes()
}

// openXZ uses a reader that knows the filter for x86 code, which the kernel's
// build has xz use.
func openXZ(r io.Reader) (io.ReadCloser, error) {
	x, err := xz.NewReader(r, xz.DefaultDictMax)
	return io.NopCloser(x), err
}

// openZstd takes windows up to 128 MiB, which the kernel's build uses. Without
// concurrency it needs no goroutines.
func openZstd(r io.Reader) (io.ReadCloser, error) {
	z, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(1<<27), zstd.WithDecoderConcurrency(1))
	if err != nil {
		return nil, err
	}
	return z.IOReadCloser(), nil
}

// maxBanner bounds linux_banner, in bytes.
const maxBanner = 512

// banner reads linux_banner, which every kernel has and Volatility looks for.
func (m *memory) banner(symbols []isf.Symbol) (string, error) {
	at, ok := addressOf(symbols, "linux_banner")
	if !ok {
		return "", errors.New("no linux_banner in it: is it a Linux kernel?")
	}
	b := m.at(at, maxBanner)
	if b == nil {
		return "", errors.New("linux_banner is where nothing can be read: is it a Linux kernel?")
	}
	text, _, ok := bytes.Cut(b, []byte("\n"))
	if !ok || !bytes.HasPrefix(text, []byte("Linux version ")) {
		return "", fmt.Errorf("linux_banner says %q: is it a Linux kernel?", b[:min(len(b), 40)])
	}
	return string(text), nil
}

func addressOf(symbols []isf.Symbol, name string) (uint64, bool) {
	i := slices.IndexFunc(symbols, func(s isf.Symbol) bool { return s.Name == name })
	if i < 0 {
		return 0, false
	}
	return symbols[i].Addr, true
}

// buildID finds the GNU note (type 3, NT_GNU_BUILD_ID) among the kernel's.
func (m *memory) buildID() string {
	for _, p := range m.pieces {
		if !p.notes {
			continue
		}
		b, err := m.read(p)
		if err != nil {
			continue
		}
		for len(b) >= 12 {
			name, desc, kind := le.Uint32(b), le.Uint32(b[4:]), le.Uint32(b[8:])
			start := 12 + (uint64(name)+3)&^3
			end := start + uint64(desc)
			if end > uint64(len(b)) {
				break
			}
			if kind == 3 && string(b[12:min(16, len(b))]) == "GNU\x00" {
				return hex.EncodeToString(b[start:end])
			}
			b = b[min((end+3)&^3, uint64(len(b))):]
		}
	}
	return ""
}
