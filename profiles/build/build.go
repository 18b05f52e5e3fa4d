package build

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hprobe/hprobe/profiles/isf"
)

// FromFile makes the profile of a kernel image: a vmlinuz (a bzImage packed with
// gzip, xz, zstd or lz4) or a vmlinux, with or without a symbol table.
func FromFile(ctx context.Context, path string) (*isf.Profile, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("build a profile: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxKernel+1))
	if err != nil {
		return nil, fmt.Errorf("build a profile: %w", err)
	}
	if len(b) > maxKernel {
		return nil, fmt.Errorf("build a profile: %s has more than %d bytes: no kernel", path, maxKernel)
	}
	p, err := FromBytes(ctx, b, filepath.Base(path))
	if err != nil {
		return nil, fmt.Errorf("build a profile of %s: %w", path, err)
	}
	return p, nil
}

// FromBytes is FromFile for an image that is in memory; name is what the profile
// says of its source.
func FromBytes(ctx context.Context, b []byte, name string) (*isf.Profile, error) {
	vmlinux, err := unpack(b)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	m, err := imageOfELF(vmlinux)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(b)
	return FromImage(ctx, m, isf.Source{Kind: "symtab", Name: name, HashType: "sha256", HashValue: hex.EncodeToString(sum[:])})
}

// FromImage makes a profile from a kernel's memory. It needs the segment with
// the read-only data; with the data segment it also knows the arguments of
// system calls. Symbols get the addresses that the image's kallsyms say.
func FromImage(ctx context.Context, m *Image, source isf.Source) (*isf.Profile, error) {
	all, err := findKallsyms(m)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	at := landmarks(all)
	out := isf.NewBuilder()
	out.Meta.OS = "linux"
	out.Meta.Symbols = []isf.Source{source}
	banner, err := bannerOf(m, at)
	if err != nil {
		return nil, err
	}
	raw, err := btfOf(m, at)
	if err != nil {
		return nil, err
	}
	types, err := addTypes(out, raw)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	types.addSyscalls(m, all)
	for _, s := range all {
		var data []byte
		switch s.name {
		case isf.SymbolBanner:
			data = banner
		case isf.SymbolNotes:
			data = between(m, at, isf.SymbolNotes, "__stop_notes", maxNotes)
		}
		out.AddSymbol(s.name, s.addr, types.ofSymbol(s), data)
	}
	return out.Profile()
}

// landmarks are the addresses of the symbols that build itself needs.
func landmarks(all []symbol) map[string]uint64 {
	at := map[string]uint64{}
	for _, s := range all {
		switch s.name {
		case isf.SymbolBanner, isf.SymbolNotes, "__stop_notes", "__start_BTF", "__stop_BTF":
			at[s.name] = s.addr
		}
	}
	return at
}

// The bounds of what is copied out of the image, in bytes.
const (
	maxBanner = 4096
	maxNotes  = 16 << 10
)

// bannerOf reads linux_banner up to and with its newline and NUL, the form in
// which Volatility looks for it in memory.
func bannerOf(m *Image, at map[string]uint64) ([]byte, error) {
	addr, ok := at[isf.SymbolBanner]
	if !ok {
		return nil, errors.New("no symbol linux_banner: it is no Linux kernel")
	}
	b := m.upTo(addr, maxBanner)
	end := bytes.IndexByte(b, 0)
	if end < 0 || !bytes.HasPrefix(b, []byte("Linux version ")) {
		return nil, fmt.Errorf("linux_banner says %q: it is no Linux kernel, or a damaged one", b[:min(len(b), 40)])
	}
	return b[:end+1], nil
}

func btfOf(m *Image, at map[string]uint64) ([]byte, error) {
	if _, ok := at["__start_BTF"]; !ok {
		return nil, errNoBTF
	}
	b := between(m, at, "__start_BTF", "__stop_BTF", maxBTF)
	if len(b) == 0 {
		return nil, errNoBTF
	}
	return b, nil
}

// between returns the bytes from one symbol to another; nil where they are not
// in the image or more than limit.
func between(m *Image, at map[string]uint64, from, to string, limit uint64) []byte {
	start, end := at[from], at[to]
	if start == 0 || end <= start || end-start > limit {
		return nil
	}
	b, err := m.bytes(start, end-start)
	if err != nil {
		return nil
	}
	return b
}
