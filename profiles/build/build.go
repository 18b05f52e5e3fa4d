// Package build makes profiles of kernels, from their images, from the memory of a
// guest that runs one, or from a dump of that: symbols from kallsyms, types from BTF, both of which a
// distribution's kernel carries in itself. No debug package and no System.map is needed.
package build

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz/lzma"

	"github.com/hprobe/hprobe/profiles/isf"
)

// maxImage bounds a kernel, packed or not, in bytes.
const maxImage = 512 << 20

// FromFile makes the profile of a kernel: of its image, a vmlinuz (bzImage, packed with
// gzip, xz, zstd, lz4 or lzma) or a bare vmlinux; or of a folder or a Debian package that
// has one image. The types of its modules that are named there are added; AllModules names
// all.
func FromFile(ctx context.Context, path string, modules ...string) (*isf.Profile, error) {
	p, err := fromPath(ctx, path, modules)
	if err != nil {
		return nil, fmt.Errorf("profile of %s: %w", path, err)
	}
	return p, nil
}

func fromPath(ctx context.Context, path string, modules []string) (*isf.Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	files := kernelFiles{want: wanted(modules)}
	magic := make([]byte, len(arMagic))
	switch n, _ := f.ReadAt(magic, 0); {
	case info.IsDir():
		err = readFolder(ctx, path, &files)
	case string(magic[:n]) == arMagic:
		err = readPackage(ctx, f, &files)
	case len(modules) > 0:
		return nil, errors.New("modules are in a folder or in a package, and not in a kernel's image: name one of those")
	case strings.HasPrefix(string(magic[:n]), elf.ELFMAG):
		return fromELF(ctx, f, filepath.Base(path), nil) // of a debug kernel, of GBs, not all is needed
	default:
		b, err := io.ReadAll(io.LimitReader(f, maxImage))
		if err != nil {
			return nil, err
		}
		return fromImage(ctx, b, filepath.Base(path), nil)
	}
	if err != nil {
		return nil, err
	}
	kernel, found, err := files.only()
	if err != nil {
		return nil, err
	}
	return fromImage(ctx, kernel.data, filepath.Base(path)+": "+kernel.name, found)
}

func fromImage(ctx context.Context, b []byte, name string, modules []moduleTypes) (*isf.Profile, error) {
	vmlinux, err := unpackImage(b)
	if err != nil {
		return nil, err
	}
	return fromELF(ctx, bytes.NewReader(vmlinux), name, modules)
}

func fromELF(ctx context.Context, image io.ReaderAt, name string, modules []moduleTypes) (*isf.Profile, error) {
	f, err := elf.NewFile(image)
	if err != nil {
		return nil, fmt.Errorf("no kernel: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || f.Class != elf.ELFCLASS64 || f.Data != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("a kernel for %v (%v): hprobe knows x86-64 ones", f.Machine, f.Class)
	}
	return elfMemory(f).profile(ctx, isf.Meta{Source: name}, modules)
}

// profile makes the profile of what is in a kernel's memory, and of modules. from says
// where that is.
func (m *memory) profile(ctx context.Context, from isf.Meta, modules []moduleTypes) (*isf.Profile, error) {
	out := isf.NewBuilder()
	out.Meta = from
	var err error
	if out.Symbols, err = m.symbols(ctx); err != nil {
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
	typedefs, err := m.types(modules, out)
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
	// lzma has no magic; this is how it begins with the options that the kernel's build has
	// (scripts/extract-vmlinux).
	{"\x5d\x00\x00\x00", openLZMA},
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
	return nil, fmt.Errorf("no kernel in it that hprobe can unpack (it knows gzip, xz, zstd, lz4 and lzma, and bare ELF)")
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

// openLZMA takes dictionaries up to 128 MiB, twice what the kernel's build uses; they are
// made when the head says so, and most of what looks like one is none.
func openLZMA(r io.Reader) (io.ReadCloser, error) {
	in := bufio.NewReader(r)
	// After the head is the first byte of the range coder, which is 0.
	head, err := in.Peek(lzma.HeaderLen + 1)
	if err != nil || !lzma.ValidHeader(head[:lzma.HeaderLen]) || head[lzma.HeaderLen] != 0 {
		return nil, errors.New("no lzma")
	}
	x, err := lzma.ReaderConfig{DictCap: 1 << 27}.NewReader(in)
	return io.NopCloser(x), err
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
	if !ok || !bytes.HasPrefix(text, []byte(bannerStart)) {
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

// buildID is what the kernel's notes have.
func (m *memory) buildID() string {
	for _, p := range m.pieces {
		if !p.notes {
			continue
		}
		if b, err := m.read(p); err == nil {
			if id := isf.BuildID(b); id != "" {
				return id
			}
		}
	}
	return ""
}
