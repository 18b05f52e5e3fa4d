package guestos

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
)

// TestSysV: arguments are where gcc has them; the registers are what gcc -O1 -S reads.
func TestSysV(t *testing.T) {
	b := isf.NewBuilder()
	for name, one := range map[string]isf.BaseType{
		"int": {Kind: "int", Size: 4, Signed: true}, "long": {Kind: "int", Size: 8, Signed: true}, "__int128": {Kind: "int", Size: 16, Signed: true}, "char": {Kind: "char", Size: 1, Signed: true},
		"float": {Kind: "float", Size: 4}, "double": {Kind: "float", Size: 8}, "long double": {Kind: "float", Size: 16}, "_Float128": {Kind: "float", Size: 16},
		"complex float": {Kind: "float", Size: 8}, "complex double": {Kind: "float", Size: 16}, "complex long double": {Kind: "float", Size: 32}, "void": {Kind: "void"},
	} {
		one.Endian = "little"
		b.Base[name] = one
	}
	of := func(name string) isf.Type {
		if name, ok := strings.CutPrefix(name, "struct "); ok {
			return isf.Type{Kind: isf.Struct, Name: name}
		}
		if name, ok := strings.CutSuffix(name, "*"); ok {
			return isf.Type{Kind: isf.Pointer, Subtype: &isf.Type{Kind: isf.Base, Name: name}}
		}
		return isf.Type{Kind: isf.Base, Name: name}
	}
	user := func(name string, size uint64, fields ...string) {
		u := isf.UserType{Kind: isf.Struct, Size: size, Fields: map[string]isf.Field{}}
		for i, f := range fields {
			var at uint64
			kind, place, _ := strings.Cut(f, "@")
			if _, err := fmt.Sscan(place, &at); err != nil {
				t.Fatal(err)
			}
			u.Fields[fmt.Sprint("f", i)] = isf.Field{Offset: at, Type: of(kind)}
		}
		b.Users[name] = u
	}
	user("point", 8, "int@0", "int@4")
	user("floats", 8, "float@0", "float@4")
	user("both", 8, "float@0", "int@4")
	user("doubles", 16, "double@0", "double@8")
	user("mixed", 16, "double@0", "long@8")
	user("mixed2", 16, "long@0", "double@8")
	user("large", 24, "long@0", "long@8", "long@16")
	user("packed", 9, "char@0", "long@1")
	user("quad", 16, "long double@0")
	user("outer", 16, "struct point@0", "struct floats@8")
	user("empty", 0)
	b.Users["chars"] = isf.UserType{Kind: isf.Struct, Size: 12, Fields: map[string]isf.Field{"c": {Type: isf.Type{Kind: isf.Array, Count: 12, Subtype: new(of("char"))}}}}
	b.Users["bits"] = isf.UserType{Kind: isf.Struct, Size: 4, Fields: map[string]isf.Field{"b": {Offset: 0, Type: isf.Type{Kind: isf.Bitfield, BitLen: 3, BitPos: 20, BitsType: new(of("long"))}}}}
	b.Users["self"] = isf.UserType{Kind: isf.Struct, Size: 8, Fields: map[string]isf.Field{"s": {Type: of("struct self")}}}
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	names := map[int]string{7: "rdi", 6: "rsi", 2: "rdx", 1: "rcx", 8: "r8", 9: "r9"}
	for _, c := range []struct{ prototype, want string }{
		{"void: int double int", "rdi sse rsi"},
		{"void: float long double int _Float128 int", "sse stack rdi sse rsi"},
		{"void: struct point struct floats struct both int", "rdi sse rsi rdx"},
		{"void: struct doubles struct mixed struct mixed2 int", "sse sse rsi rdx"},
		{"void: struct large struct packed struct quad int", "stack stack stack rdi"},
		{"void: struct outer struct chars struct bits int", "rdi rsi rcx r8"},
		{"void: __int128 int char* struct empty int", "rdi rdx rcx empty r8"},
		{"void: int int int int int struct point int int", "rdi rsi rdx rcx r8 r9 stack stack"},
		{"void: int int int int int __int128 int", "rdi rsi rdx rcx r8 stack r9"},
		{"void: double double double double double double double double double int", "sse sse sse sse sse sse sse sse stack rdi"},
		{"void: double double double double double double double struct doubles float", "sse sse sse sse sse sse sse stack sse"},
		{"void: complex float complex double complex long double int", "sse sse stack rdi"},
		{"struct large: int", "rsi"},
		{"struct quad: int", "rdi"},
		{"struct doubles: int", "rdi"},
		{"void: struct self int", "stack rdi"},
		{"void: struct unknown int", "rdi rsi"},
	} {
		returns, params, _ := strings.Cut(c.prototype, ": ")
		f := isf.Func{Return: of(returns)}
		words := strings.Fields(params)
		for len(words) > 0 {
			n := 1
			for n < len(words) && b.Base[strings.Join(words[:n], " ")].Kind == "" && !strings.HasSuffix(words[n-1], "*") && (words[0] != "struct" || n < 2) {
				n++
			}
			if words[0] == "long" && len(words) > 1 && words[1] == "double" {
				n = 2
			}
			f.Params = append(f.Params, isf.Param{Type: of(strings.Join(words[:n], " "))})
			words = words[n:]
		}
		var got []string
		for _, a := range ArgsOf(p, f) {
			switch {
			case a.Unread == nil:
				got = append(got, names[a.Register])
			case a.Unread == errFloat:
				got = append(got, "sse")
			case a.Unread == errOnStack:
				got = append(got, "stack")
			default:
				got = append(got, "empty")
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q, not %q", c.prototype, got, c.want)
		}
	}
	for name, in := range map[string]bool{"int": true, "char*": true, "__int128": true, "double": false, "long double": false, "struct point": true, "struct outer": false, "struct large": false, "void": true} {
		if err := Returned(p, of(name)); (err == nil) != in {
			t.Errorf("%s: %v", name, err)
		}
	}
}
