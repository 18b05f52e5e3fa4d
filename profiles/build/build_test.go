package build

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/elf"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf/btf"
	"github.com/klauspost/compress/zstd"
	"github.com/pierrec/lz4/v4"
	"github.com/ulikunitz/xz"
	"github.com/ulikunitz/xz/lzma"

	"github.com/hprobe/hprobe/profiles/isf"
)

const testBanner = "Linux version 6.12.1-amd64 (a@b) (gcc) #1 SMP"

// kernelTypes are a few types in BTF.
func kernelTypes(t testing.TB) []byte {
	t.Helper()
	i := &btf.Int{Name: "int", Size: 4, Encoding: btf.Signed}
	u := &btf.Int{Name: "unsigned int", Size: 4}
	c := &btf.Int{Name: "char", Size: 1}
	b := &btf.Int{Name: "_Bool", Size: 1, Encoding: btf.Bool}
	inner := &btf.Struct{Size: 8, Members: []btf.Member{{Name: "deep", Type: i, Offset: 32}}}
	state := &btf.Enum{Name: "state", Size: 4, Signed: true, Values: []btf.EnumValue{{Name: "RUN"}, {Name: "DEAD", Value: 0xffffffffffffffff}}}
	list := &btf.Struct{Name: "list_head", Size: 8}
	list.Members = []btf.Member{{Name: "next", Type: &btf.Pointer{Target: list}}}
	task := &btf.Struct{Name: "task_struct", Size: 64, Members: []btf.Member{
		{Name: "pid", Type: &btf.Typedef{Name: "pid_t", Type: i}, Offset: 32},
		{Name: "comm", Type: &btf.Array{Index: u, Type: c, Nelems: 16}, Offset: 64},
		{Type: inner, Offset: 192},
		{Name: "list", Type: list, Offset: 256},
		{Name: "one", Type: u, Offset: 320, BitfieldSize: 1},
		{Name: "three", Type: u, Offset: 339, BitfieldSize: 3},
		{Name: "second_word", Type: u, Offset: 357, BitfieldSize: 2},
		{Name: "state", Type: state, Offset: 384},
		{Name: "name", Type: &btf.Const{Type: &btf.Pointer{Target: &btf.Const{Type: c}}}, Offset: 448},
	}}
	proto := &btf.FuncProto{Return: i, Params: []btf.FuncParam{{Name: "task", Type: &btf.Pointer{Target: task}}, {Name: "how", Type: b}, {Name: "arg", Type: &btf.Pointer{Target: &btf.Void{}}}}}
	builder, err := btf.NewBuilder([]btf.Type{task, &btf.Union{Name: "both", Size: 4, Members: []btf.Member{{Name: "a", Type: i}}},
		&btf.Func{Name: "do_it", Type: proto, Linkage: btf.StaticFunc}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := builder.Marshal(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

type section struct {
	name        string
	kind, flags uint32
	addr        uint64
	data        []byte
}

// elfFile writes an ELF of sections; where each is in the file is all that
// debug/elf and this room look at.
func elfFile(machine elf.Machine, sections ...section) []byte {
	sections = append([]section{{}}, append(sections, section{name: ".shstrtab", kind: uint32(elf.SHT_STRTAB)})...)
	names := &sections[len(sections)-1]
	var at []int
	for _, s := range sections {
		at = append(at, len(names.data))
		names.data = append(append(names.data, s.name...), 0)
	}
	body := make([]byte, 64)
	heads := make([]byte, 0, 64*len(sections))
	for i, s := range sections {
		for len(body)%16 != 0 {
			body = append(body, 0)
		}
		for _, v := range []any{uint32(at[i]), s.kind, uint64(s.flags), s.addr, uint64(len(body)), uint64(len(s.data)), uint32(0), uint32(0), uint64(1), uint64(0)} {
			heads, _ = binary.Append(heads, le, v)
		}
		body = append(body, s.data...)
	}
	head := []byte("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	for _, v := range []any{uint16(elf.ET_EXEC), uint16(machine), uint32(1), uint64(0), uint64(0), uint64(len(body)), uint32(0), uint16(64), uint16(56), uint16(0), uint16(64),
		uint16(len(sections)), uint16(len(sections) - 1)} {
		head, _ = binary.Append(head, le, v)
	}
	copy(body, head)
	return append(body, heads...)
}

const rodataAddr = 0xffffffff81000000 + 8<<20 // where symbolsOf has linux_banner

// kernelSections are those of a kernel: linux_banner is at the start of .rodata.
func kernelSections(t testing.TB) []section {
	l := layouts[3]
	rodata := append([]byte(testBanner+"\n\x00"), make([]byte, 64)...)
	rodata = append(rodata, kallsymsTable(l, rodataAddr+uint64(len(rodata)), symbolsOf(l, 1200))...)
	note := []byte("\x04\x00\x00\x00\x02\x00\x00\x00\x01\x00\x00\x00Xen\x00\x01\x02\x00\x00" + "\x04\x00\x00\x00\x03\x00\x00\x00\x03\x00\x00\x00GNU\x00\xab\xcd\xef\x00")
	return []section{
		{".text", uint32(elf.SHT_PROGBITS), uint32(elf.SHF_ALLOC | elf.SHF_EXECINSTR), 0xffffffff81000000, bytes.Repeat([]byte{0xcc}, 100)},
		{".rodata", uint32(elf.SHT_PROGBITS), uint32(elf.SHF_ALLOC), rodataAddr, rodata},
		{".notes", uint32(elf.SHT_NOTE), uint32(elf.SHF_ALLOC), 0xffffffff83000000, note},
		{".BTF", uint32(elf.SHT_PROGBITS), uint32(elf.SHF_ALLOC), 0xffffffff84000000, kernelTypes(t)},
	}
}

func kernel(t testing.TB) []byte { return elfFile(elf.EM_X86_64, kernelSections(t)...) }

func TestFromImage(t *testing.T) {
	p, err := fromImage(context.Background(), kernel(t), "vmlinux", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := p.Meta(), (isf.Meta{Banner: testBanner, BuildID: "abcdef", Source: "vmlinux"}); got != want {
		t.Errorf("%+v, not %+v", got, want)
	}
	if a, err := p.Address("func_777"); a != 0xffffffff81000000+16*777 || err != nil {
		t.Errorf("%#x, %v", a, err)
	}
	i, void := isf.Type{Kind: isf.Base, Name: "int"}, isf.Type{Kind: isf.Base, Name: "void"}
	u, c := isf.Type{Kind: isf.Base, Name: "unsigned int"}, isf.Type{Kind: isf.Base, Name: "char"}
	list := isf.Type{Kind: isf.Struct, Name: "list_head"}
	pointer := func(to isf.Type) isf.Type { return isf.Type{Kind: isf.Pointer, Subtype: &to} }
	user, err := p.UserType("task_struct")
	if err != nil {
		t.Fatal(err)
	}
	want := isf.UserType{Kind: isf.Struct, Size: 64, Fields: map[string]isf.Field{
		"pid":             {Offset: 4, Type: i}, // through its typedef
		"comm":            {Offset: 8, Type: isf.Type{Kind: isf.Array, Count: 16, Subtype: &c}},
		"unnamed_field_2": {Offset: 24, Type: user.Fields["unnamed_field_2"].Type, Anonymous: true},
		"list":            {Offset: 32, Type: list},
		"one":             {Offset: 40, Type: isf.Type{Kind: isf.Bitfield, BitLen: 1, BitPos: 0, BitsType: &u}},
		"three":           {Offset: 40, Type: isf.Type{Kind: isf.Bitfield, BitLen: 3, BitPos: 19, BitsType: &u}},
		"second_word":     {Offset: 44, Type: isf.Type{Kind: isf.Bitfield, BitLen: 2, BitPos: 5, BitsType: &u}},
		"state":           {Offset: 48, Type: isf.Type{Kind: isf.Enum, Name: "state"}},
		"name":            {Offset: 56, Type: pointer(c)}, // through its qualifiers
	}}
	if !reflect.DeepEqual(user, want) {
		t.Errorf("task_struct:\n%+v\nnot\n%+v", user, want)
	}
	if at, err := p.Field("task_struct", "deep"); err != nil || at.Offset != 28 {
		t.Errorf("a member of an anonymous one: %+v, %v", at, err)
	}
	if f, err := p.Func("do_it"); err != nil || !reflect.DeepEqual(f, isf.Func{Return: i, Params: []isf.Param{
		{Name: "task", Type: pointer(isf.Type{Kind: isf.Struct, Name: "task_struct"})}, {Name: "how", Type: isf.Type{Kind: isf.Base, Name: "_Bool"}}, {Name: "arg", Type: pointer(void)}}}) {
		t.Errorf("%+v, %v", f, err)
	}
	if e, err := p.EnumType("state"); err != nil || e.Size != 4 || e.Base != "int" || e.Constants["DEAD"] != -1 || len(e.Constants) != 2 {
		t.Errorf("%+v, %v", e, err)
	}
	for name, want := range map[string]isf.BaseType{
		"int": {Kind: "int", Size: 4, Signed: true, Endian: "little"}, "unsigned int": {Kind: "int", Size: 4, Endian: "little"},
		"char": {Kind: "char", Size: 1, Signed: true, Endian: "little"}, "_Bool": {Kind: "bool", Size: 1, Endian: "little"},
		"pointer": {Kind: "int", Size: 8, Endian: "little"}, "void": {Kind: "void", Endian: "little"},
	} {
		if got, err := p.BaseType(name); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

func TestFromImageSaysWhatIsWrong(t *testing.T) {
	without := func(name string) []section {
		return slices.DeleteFunc(kernelSections(t), func(s section) bool { return s.name == name })
	}
	changed := func(name string, f func(*section)) []byte {
		all := kernelSections(t)
		for i := range all {
			if all[i].name == name {
				f(&all[i])
			}
		}
		return elfFile(elf.EM_X86_64, all...)
	}
	for name, c := range map[string]struct {
		image []byte
		want  string
	}{
		"nothing":           {nil, "can unpack"},
		"text":              {[]byte("#!/bin/sh\n"), "can unpack"},
		"half an ELF":       {kernel(t)[:50], "no kernel"},
		"an Arm kernel":     {elfFile(elf.EM_AARCH64, kernelSections(t)...), "EM_AARCH64"},
		"no kallsyms":       {elfFile(elf.EM_X86_64, without(".rodata")...), "CONFIG_KALLSYMS"},
		"no BTF":            {elfFile(elf.EM_X86_64, without(".BTF")...), "CONFIG_DEBUG_INFO_BTF"},
		"broken BTF":        {changed(".BTF", func(s *section) { s.data = s.data[:30] }), "BTF:"},
		"another banner":    {changed(".rodata", func(s *section) { copy(s.data, "Hello") }), `"Hello version`},
		"a banner's escape": {changed(".rodata", func(s *section) { copy(s.data, "\x1b[2J") }), `"\x1b[2J`},
		"an endless banner": {changed(".rodata", func(s *section) { s.data[len(testBanner)] = ' ' }), "is it a Linux kernel"},
		"no banner":         {changed(".rodata", func(s *section) { s.addr -= 1 << 30 }), ""},
		"packed sections":   {changed(".rodata", func(s *section) { s.flags |= uint32(elf.SHF_COMPRESSED) }), ""},
	} {
		if _, err := fromImage(context.Background(), c.image, "x", nil); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A packed section that linux_banner points into has no reader.
	packed := section{".packed", uint32(elf.SHT_PROGBITS), uint32(elf.SHF_COMPRESSED), rodataAddr - 8, make([]byte, 64)}
	le.PutUint32(packed.data, uint32(elf.COMPRESS_ZLIB))
	le.PutUint64(packed.data[8:], 1<<40)
	all := append([]section{packed}, kernelSections(t)...)
	if _, err := fromImage(context.Background(), elfFile(elf.EM_X86_64, all...), "x", nil); err != nil {
		t.Errorf("with a packed section: %v", err)
	}
	path := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FromFile(context.Background(), path); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := fromImage(ctx, kernel(t), "x", nil); err == nil {
		t.Error("a command that was interrupted goes on")
	}
}

var packers = map[string]func(io.Writer) (io.WriteCloser, error){
	"gzip": func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
	"xz":   func(w io.Writer) (io.WriteCloser, error) { return xz.NewWriter(w) },
	"zstd": func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
	"lzma": func(w io.Writer) (io.WriteCloser, error) {
		return lzma.WriterConfig{DictCap: 64 << 20, EOSMarker: true}.NewWriter(w)
	},
	"lz4": func(w io.Writer) (io.WriteCloser, error) {
		z := lz4.NewWriter(w)
		return z, z.Apply(lz4.LegacyOption(true))
	},
}

func pack(t testing.TB, name string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := packers[name](&out)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// bzImage puts a packed kernel between a boot sector, in which things look like
// packed streams, and the size that the kernel's build appends.
func bzImage(packed []byte, size int) []byte {
	setup := make([]byte, 4096)
	for i, f := range formats {
		copy(setup[100*(i+1):], f.magic)
	}
	return slices.Concat(setup, packed, le.AppendUint32(nil, uint32(size)), bytes.Repeat([]byte{0xa5}, 300))
}

func TestUnpackImage(t *testing.T) {
	vmlinux := kernel(t)
	vmlinux = append(vmlinux, make([]byte, 3<<20-len(vmlinux))...)
	for i := range 1 << 20 {
		vmlinux[2<<20+i] = byte(i * i >> 7)
	}
	for name := range packers {
		got, err := unpackImage(bzImage(pack(t, name, vmlinux), len(vmlinux)))
		if err != nil || !bytes.Equal(got, vmlinux) {
			t.Errorf("%s: %d bytes of %d, %v", name, len(got), len(vmlinux), err)
		}
		if got, err := unpackImage(bzImage(pack(t, name, make([]byte, 3<<20)), 0)); err == nil {
			t.Errorf("%s: zeros are a kernel of %d bytes", name, len(got))
		}
		if got, err := unpackImage(bzImage(pack(t, name, vmlinux[:1<<19]), 0)); err == nil {
			t.Errorf("%s: half a MiB is a kernel of %d bytes", name, len(got))
		}
	}
	if got, err := unpackImage(vmlinux); err != nil || !bytes.Equal(got, vmlinux) {
		t.Errorf("bare: %v", err)
	}
}

// TestUnpackTriesNotForEver: an image full of starts costs no memory, no
// goroutine, and ends.
func TestUnpackTriesNotForEver(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, f := range formats {
		if _, err := unpackImage(bytes.Repeat([]byte(f.magic+"\x04\x00\x00\x00"), 100_000)); err == nil {
			t.Errorf("%q: it is a kernel", f.magic)
		}
	}
	zeros := pack(t, "zstd", make([]byte, 1<<20))
	if _, err := unpackImage(bytes.Repeat(zeros, 200)); err == nil {
		t.Error("it is a kernel")
	}
	if n := runtime.NumGoroutine(); n > before+2 {
		t.Errorf("%d goroutines, %d before", n, before)
	}
}

func FuzzUnpackImage(f *testing.F) {
	small := append([]byte(elf.ELFMAG), make([]byte, 200)...)
	for name := range packers {
		f.Add(pack(f, name, small))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		plain, err := unpackImage(b)
		if (err == nil) != bytes.HasPrefix(plain, []byte(elf.ELFMAG)) || len(plain) > maxImage {
			t.Errorf("%d bytes, %v", len(plain), err)
		}
	})
}

// FuzzFromImage damages a kernel's ELF, symbols and types.
func FuzzFromImage(f *testing.F) {
	all := kernelSections(f)
	f.Add([]byte{})
	f.Add([]byte{0x3c, 0, 0, 0xff})
	f.Add([]byte{0x12, 0, 0, 0xb7})
	image := elfFile(elf.EM_X86_64, all...)
	f.Fuzz(func(t *testing.T, how []byte) {
		p, err := fromImage(context.Background(), patch(image, how), "x", nil)
		if len(how) == 0 && err != nil {
			t.Error(err)
		}
		if err == nil && !strings.HasPrefix(p.Meta().Banner, "Linux version ") {
			t.Errorf("%q", p.Meta().Banner)
		}
	})
}
