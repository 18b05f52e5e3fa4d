package build

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/hprobe/hprobe/profiles/isf"
)

// A kernel with CONFIG_FTRACE_SYSCALLS, as the distributions' are, knows the arguments
// of its system calls for its own tracing: a struct syscall_metadata for each, with
// the types and names as text (include/linux/syscalls.h). BTF has few of them: their
// functions are inlined.
const (
	metaPrefix   = "__syscall_meta__"
	metaType     = "syscall_metadata"
	innerPrefix  = "__do_sys_"
	maxCallArgs  = 6
	maxCallText  = 256 // bytes of a type or name
	maxCallMetas = 4096
)

// addSyscalls adds the prototypes of system calls that BTF lacks, under the names that
// their inner functions have.
func addSyscalls(m *memory, out *isf.Builder, typedefs map[string]isf.Type) error {
	meta, ok := out.Users[metaType]
	if !ok {
		return nil // this kernel has none
	}
	for _, name := range []string{"nb_args", "types", "args"} {
		if _, ok := meta.Fields[name]; !ok {
			return fmt.Errorf("struct %s has no %s", metaType, name)
		}
	}
	n := 0
	for _, s := range out.Symbols {
		call, ok := strings.CutPrefix(s.Name, metaPrefix)
		if !ok {
			continue
		}
		if n++; n > maxCallMetas {
			break
		}
		if _, known := out.Funcs[innerPrefix+call]; known {
			continue
		}
		params, ok := m.params(s.Addr, &meta, out, typedefs)
		if ok {
			out.Funcs[innerPrefix+call] = isf.Func{Params: params, Return: isf.Type{Kind: isf.Base, Name: "long int"}}
		}
	}
	return nil
}

func (m *memory) text(addr uint64) string {
	b := m.at(addr, maxCallText)
	end := bytes.IndexByte(b, 0)
	if end < 0 {
		return ""
	}
	return string(b[:end])
}

// params are the arguments of a call; !ok where they make no sense.
func (m *memory) params(at uint64, meta *isf.UserType, out *isf.Builder, typedefs map[string]isf.Type) (all []isf.Param, ok bool) {
	count := m.at(at+meta.Fields["nb_args"].Offset, 1)
	if len(count) == 0 || count[0]&0x7f > maxCallArgs { // since Linux 6.19 it has 7 bits
		return nil, false
	}
	types, names := m.pointer(at+meta.Fields["types"].Offset), m.pointer(at+meta.Fields["args"].Offset)
	all = []isf.Param{}
	for i := range uint64(count[0] & 0x7f) {
		kind, name := m.text(m.pointer(types+8*i)), m.text(m.pointer(names+8*i))
		if kind == "" || !isIdentifier(name) {
			return nil, false
		}
		all = append(all, isf.Param{Name: name, Type: parseType(kind, out, typedefs)})
	}
	return all, true
}

func isIdentifier(s string) bool {
	for i, c := range s {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// parseType reads a type as C writes it, as far as arguments of system calls have
// them: "const char *", "struct stat *", "umode_t". Of one that is not known it is what
// fits into a register: a number, or a pointer to nobody knows what.
func parseType(text string, out *isf.Builder, typedefs map[string]isf.Type) isf.Type {
	if i := strings.Index(text, "__attribute__"); i >= 0 { // of the address space
		if j := strings.LastIndex(text, ")"); j > i {
			text = text[:i] + text[j+1:]
		}
	}
	stars := strings.Count(text, "*")
	var words []string
	for _, w := range strings.Fields(strings.ReplaceAll(text, "*", " ")) {
		switch w {
		case "const", "volatile", "restrict", "__user":
		default:
			words = append(words, w)
		}
	}
	t := namedType(words, out, typedefs)
	if t == nil {
		t = &isf.Type{Kind: isf.Base, Name: "long unsigned int"}
		if stars > 0 {
			t.Name = "void"
		}
	}
	for range min(stars, 3) {
		t = &isf.Type{Kind: isf.Pointer, Subtype: t}
	}
	return *t
}

// baseNames are what BTF calls numbers that C calls otherwise, too.
var baseNames = map[string]string{
	"unsigned": "unsigned int", "long": "long int", "unsigned long": "long unsigned int", "short": "short int", "unsigned short": "short unsigned int",
	"long long": "long long int", "unsigned long long": "long long unsigned int", "signed char": "signed char",
}

func namedType(words []string, out *isf.Builder, typedefs map[string]isf.Type) *isf.Type {
	name := strings.Join(words, " ")
	if n, ok := baseNames[name]; ok {
		name = n
	}
	if _, ok := out.Base[name]; ok {
		return &isf.Type{Kind: isf.Base, Name: name}
	}
	if t, ok := typedefs[name]; ok {
		return &t
	}
	if len(words) != 2 {
		return nil
	}
	switch words[0] {
	case "struct", "union":
		if _, ok := out.Users[words[1]]; ok {
			return &isf.Type{Kind: isf.Kind(words[0]), Name: words[1]}
		}
	case "enum":
		if _, ok := out.Enums[words[1]]; ok {
			return &isf.Type{Kind: isf.Enum, Name: words[1]}
		}
	}
	return nil
}
