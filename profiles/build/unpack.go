package build

import (
	"bytes"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
	"github.com/pierrec/lz4/v4"
)

// maxKernel bounds a kernel image, packed or unpacked, in bytes. Debian's are
// 60 MB unpacked.
const maxKernel = 512 << 20

// The format of bzImage (Documentation/arch/x86/boot.rst): offsets of fields in
// its header.
const (
	bzSetupSects    = 0x1f1 // u8: sectors of 512 bytes before the protected-mode code, without the first
	bzMagic         = 0x202 // "HdrS"
	bzPayloadOffset = 0x248 // u32: from the protected-mode code
	bzPayloadLength = 0x24c // u32
	bzHeader        = 0x250
)

// formats are the compressions that Linux's build offers for x86 and that occur
// in distributions.
var formats = []struct {
	name, magic string
	// sized: the build appends the unpacked size, in 4 bytes (size_append in
	// scripts/Makefile.lib). gzip has it by itself.
	sized bool
	open  func(io.Reader) (io.Reader, error)
}{
	{"gzip", "\x1f\x8b\x08", false, func(r io.Reader) (io.Reader, error) {
		z, err := gzip.NewReader(r)
		if err == nil {
			z.Multistream(false)
		}
		return z, err
	}},
	// With the filter for x86 code, which not every xz reader has.
	{"xz", "\xfd7zXZ\x00", true, func(r io.Reader) (io.Reader, error) {
		z, err := xz.NewReader(r, 1<<28)
		if err == nil {
			z.Multistream(false)
		}
		return z, err
	}},
	{"zstd", "\x28\xb5\x2f\xfd", true, func(r io.Reader) (io.Reader, error) {
		return zstd.NewReader(r, zstd.WithDecoderMaxWindow(1<<28), zstd.WithDecoderConcurrency(1), zstd.IgnoreChecksum(false))
	}},
	{"lz4", "\x02\x21\x4c\x18", true, func(r io.Reader) (io.Reader, error) { return lz4.NewReader(r), nil }},
}

var errNoKernel = errors.New("no Linux kernel: neither a bzImage (vmlinuz) nor an ELF file (vmlinux)")

// unpack returns the ELF file of a kernel: what it is given, or what a bzImage
// has packed in it.
func unpack(b []byte) ([]byte, error) {
	if bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		return b, nil
	}
	if len(b) < bzHeader || string(b[bzMagic:bzMagic+4]) != "HdrS" {
		return nil, errNoKernel
	}
	sectors := uint64(b[bzSetupSects])
	if sectors == 0 {
		sectors = 4 // boot.rst: "for backwards compatibility"
	}
	start := (sectors+1)*512 + uint64(binary.LittleEndian.Uint32(b[bzPayloadOffset:]))
	length := uint64(binary.LittleEndian.Uint32(b[bzPayloadLength:]))
	if length < 16 || start+length > uint64(len(b)) {
		return nil, fmt.Errorf("bzImage is cut off: its payload is %d bytes at %d, the file has %d", length, start, len(b))
	}
	payload := b[start : start+length]
	if bytes.HasPrefix(payload, []byte(elf.ELFMAG)) {
		return payload, nil
	}
	for _, f := range formats {
		if !bytes.HasPrefix(payload, []byte(f.magic)) {
			continue
		}
		size := uint64(binary.LittleEndian.Uint32(payload[length-4:])) // also gzip's own
		if f.sized {
			payload = payload[:length-4]
		}
		r, err := f.open(bytes.NewReader(payload))
		if err != nil {
			return nil, fmt.Errorf("unpack the kernel (%s): %w", f.name, err)
		}
		if z, ok := r.(*zstd.Decoder); ok {
			defer z.Close()
		}
		return readSized(r, size, f.name)
	}
	return nil, fmt.Errorf("the kernel is packed in a way that hprobe does not know (it begins with % x): unpack it with the kernel's scripts/extract-vmlinux", payload[:6])
}

func readSized(r io.Reader, size uint64, format string) ([]byte, error) {
	if size > maxKernel {
		return nil, fmt.Errorf("unpack the kernel (%s): %d bytes are more than any kernel has", format, size)
	}
	// The size is only a claim: memory grows with what is really there.
	var out bytes.Buffer
	out.Grow(int(min(size, 96<<20)) + bytes.MinRead)
	n, err := io.Copy(&out, io.LimitReader(r, int64(size)))
	if err != nil {
		return nil, fmt.Errorf("unpack the kernel (%s): %w", format, err)
	}
	if uint64(n) != size {
		return nil, fmt.Errorf("unpack the kernel (%s): %d bytes of %d", format, n, size)
	}
	return out.Bytes(), nil
}
