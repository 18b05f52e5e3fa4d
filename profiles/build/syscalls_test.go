package build

import (
	"bytes"
	"debug/elf"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
)

// callsImage is a kernel's data with what it knows of its system calls, whose symbols
// it returns: of each the name, the number of arguments, and types and names in turn.
func callsImage(t testing.TB, calls ...[]string) (*elf.File, []isf.Symbol) {
	t.Helper()
	const base = 0xffffffff82000000
	var data []byte
	text := func(s string) uint64 {
		data = append(append(data, s...), 0)
		return base + uint64(len(data)-len(s)-1)
	}
	var symbols []isf.Symbol
	for _, c := range calls {
		var types, names []uint64
		for i := 1; i+1 < len(c); i += 2 {
			types, names = append(types, text(c[i])), append(names, text(c[i+1]))
		}
		list := func(all []uint64) uint64 {
			at := base + uint64(len(data))
			for _, v := range all {
				data = le.AppendUint64(data, v)
			}
			return at
		}
		meta := []uint64{0, uint64(len(types)) << 32, list(types), list(names)}
		symbols = append(symbols, isf.Symbol{Name: metaPrefix + c[0], Addr: list(meta)})
	}
	f, err := elf.NewFile(bytes.NewReader(elfFile(elf.EM_X86_64, section{".data", uint32(elf.SHT_PROGBITS), uint32(elf.SHF_ALLOC), base, data})))
	if err != nil {
		t.Fatal(err)
	}
	return f, symbols
}

// callsBuilder knows some types.
func callsBuilder() (*isf.Builder, map[string]isf.Type) {
	b := isf.NewBuilder()
	for _, name := range []string{"int", "unsigned int", "char", "long unsigned int"} {
		b.Base[name] = isf.BaseType{Size: 4}
	}
	b.Users["stat"] = isf.UserType{Kind: isf.Struct}
	b.Enums["kind"] = isf.EnumType{}
	b.Users[metaType] = isf.UserType{Kind: isf.Struct, Fields: map[string]isf.Field{"name": {Offset: 0}, "nb_args": {Offset: 12}, "types": {Offset: 16}, "args": {Offset: 24}}}
	return b, map[string]isf.Type{"umode_t": {Kind: isf.Base, Name: "short unsigned int"}}
}

func TestSyscallPrototypes(t *testing.T) {
	f, symbols := callsImage(t, []string{"openat", "int", "dfd", "const char *", "filename", "umode_t", "mode"}, []string{"sync"}, []string{"known", "int", "a"},
		[]string{"bad", "int", "a b"}, []string{"seven", "int", "a", "int", "b", "int", "c", "int", "d", "int", "e", "int", "f", "int", "g"})
	b, typedefs := callsBuilder()
	b.Symbols = append(symbols, isf.Symbol{Name: metaPrefix + "nowhere", Addr: 0x1000})
	b.Funcs["__do_sys_known"] = isf.Func{}
	if err := addSyscalls(elfMemory(f), b, typedefs); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{"openat": "int dfd, char * filename, short unsigned int mode", "sync": "", "known": "", "bad": "-", "seven": "-", "nowhere": "-"} {
		got := "-"
		if f, ok := b.Funcs["__do_sys_"+name]; ok {
			var all []string
			for _, p := range f.Params {
				all = append(all, p.Type.String()+" "+p.Name)
			}
			got = strings.Join(all, ", ")
		}
		if got != want {
			t.Errorf("%s is (%s), not (%s)", name, got, want)
		}
	}
	delete(b.Users[metaType].Fields, "types")
	if err := addSyscalls(elfMemory(f), b, typedefs); err == nil {
		t.Error("no error without a field")
	}
	delete(b.Users, metaType)
	if err := addSyscalls(elfMemory(f), b, typedefs); err != nil {
		t.Error(err)
	}
}

func TestParseType(t *testing.T) {
	b, typedefs := callsBuilder()
	for text, want := range map[string]string{
		"int": "int", "unsigned": "unsigned int", "unsigned long": "long unsigned int", "const char *": "char *", "const char __user *const __user *": "char **", "umode_t": "short unsigned int",
		"struct stat *": "struct stat *", "struct none *": "void *", "enum kind": "enum kind", "nosuch_t": "long unsigned int", "nosuch_t *": "void *", "": "long unsigned int", "void *": "void *",
		"struct stat __attribute__((btf_type_tag(\"user\"))) *": "struct stat *", "int ****************": "int ***",
	} {
		if got := parseType(text, b, typedefs).String(); got != want {
			t.Errorf("%q is %q, not %q", text, got, want)
		}
	}
}

// FuzzSyscalls damages what a kernel says of its system calls.
func FuzzSyscalls(f *testing.F) {
	_, symbols := callsImage(f, []string{"openat", "int", "dfd", "const char *", "filename"})
	f.Add(uint16(3), "int *")
	f.Fuzz(func(t *testing.T, at uint16, kind string) {
		file, _ := callsImage(t, []string{"openat", "int", "dfd", kind, "filename"})
		b, typedefs := callsBuilder()
		for _, s := range symbols {
			b.Symbols = append(b.Symbols, isf.Symbol{Name: s.Name, Addr: s.Addr + uint64(at)})
		}
		if err := addSyscalls(elfMemory(file), b, typedefs); err != nil {
			t.Error(err)
		}
		for name, fn := range b.Funcs {
			if len(fn.Params) > maxCallArgs {
				t.Error(fmt.Sprint(name, fn))
			}
		}
	})
}
