// Package build makes profiles from kernel images: symbols from kallsyms, types
// from BTF, both of which a distribution's kernel carries in itself. No debug
// package and no System.map is needed.
package build

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"

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
	out := isf.NewBuilder()
	out.Meta.Source = name
	out.Meta.BuildID = buildID(f)
	if out.Symbols, err = kallsyms(f); err != nil {
		return nil, err
	}
	if out.Meta.Banner, err = banner(f, out.Symbols); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	typedefs, err := addBTF(f, out)
	if err != nil {
		return nil, err
	}
	if err := addSyscalls(f, out, typedefs); err != nil {
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

// sectionData reads a section of a kernel, whose size the file only claims.
func sectionData(s *elf.Section) ([]byte, error) {
	if s.Flags&elf.SHF_COMPRESSED != 0 || s.Size > maxImage {
		return nil, fmt.Errorf("section %q is packed, or has %d bytes", s.Name, s.Size)
	}
	return s.Data()
}

// maxBanner bounds linux_banner, in bytes.
const maxBanner = 512

// banner reads linux_banner, which every kernel has and Volatility looks for.
func banner(f *elf.File, symbols []isf.Symbol) (string, error) {
	for _, s := range symbols {
		if s.Name != "linux_banner" {
			continue
		}
		for _, section := range f.Sections {
			if section.Type != elf.SHT_PROGBITS || section.ReaderAt == nil || s.Addr < section.Addr || s.Addr >= section.Addr+section.Size {
				continue
			}
			b := make([]byte, min(maxBanner, section.Size-(s.Addr-section.Addr)))
			if _, err := section.ReadAt(b, int64(s.Addr-section.Addr)); err != nil {
				return "", fmt.Errorf("read linux_banner: %w", err)
			}
			text, _, ok := bytes.Cut(b, []byte("\n"))
			if !ok || !bytes.HasPrefix(text, []byte("Linux version ")) {
				return "", fmt.Errorf("linux_banner says %q: is it a Linux kernel?", b[:min(len(b), 40)])
			}
			return string(text), nil
		}
	}
	return "", fmt.Errorf("no linux_banner in it: is it a Linux kernel?")
}

func buildID(f *elf.File) string {
	for _, s := range f.Sections {
		if s.Type != elf.SHT_NOTE {
			continue
		}
		b, err := sectionData(s)
		if err != nil {
			continue
		}
		for len(b) >= 12 {
			name, desc, kind := f.ByteOrder.Uint32(b), f.ByteOrder.Uint32(b[4:]), f.ByteOrder.Uint32(b[8:])
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
