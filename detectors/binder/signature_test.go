package binder

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/detectors"
	"github.com/hprobe/hprobe/profiles/isf"
)

// programTypes are those of a function of a program, packed as they come with its place.
func programTypes(t *testing.T, params int) []byte {
	t.Helper()
	b := isf.NewBuilder()
	b.Base["int"] = isf.BaseType{Kind: "int", Size: 4, Signed: true, Endian: "little"}
	b.Base["double"] = isf.BaseType{Kind: "float", Size: 8, Signed: true, Endian: "little"}
	b.Users["pair"] = isf.UserType{Kind: isf.Struct, Size: 8, Fields: map[string]isf.Field{"a": {Type: isf.Type{Kind: isf.Base, Name: "int"}}}}
	of := func(name string) isf.Type { return isf.Type{Kind: isf.Base, Name: name} }
	f := isf.Func{Return: of("double"), Params: []isf.Param{{Name: "ratio", Type: of("double")}, {Name: "by", Type: isf.Type{Kind: isf.Struct, Name: "pair"}}, {Name: "n", Type: of("int")}}}
	for len(f.Params) < params {
		f.Params = append(f.Params, f.Params[2])
	}
	b.Funcs["vfs_read"] = f // a program may call one as the kernel does
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	if err := p.WriteCompact(&packed); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes()
}

// TestSignatureInProgram: a program's function has the prototype that came with its place,
// never that of one of the kernel's.
func TestSignatureInProgram(t *testing.T) {
	kernel := newBench(t).binder.kernel.Profile
	at, err := ParseLocation("image:/bin/x!vfs_read")
	if err != nil {
		t.Fatal(err)
	}
	s, err := SignatureAt(kernel, at, &detectors.ImagePlace{Types: programTypes(t, 3)})
	if err != nil || len(s.Args) != 3 || s.Types == kernel || s.Result.Name != "double" {
		t.Fatalf("%+v, %v", s, err)
	}
	if a := s.Args; a[0].Unread == nil || !errors.Is(a[1].Unread, errByValue) || a[2].Unread != nil || a[2].Register != 6 || a[2].Name != "n" {
		t.Errorf("%+v", s.Args)
	}
	for _, place := range []*detectors.ImagePlace{nil, {}} {
		if s, err := SignatureAt(kernel, at, place); err != nil || s.Types != kernel || len(s.Args) != 6 || s.Args[0].Name != "arg0" || s.Result.Kind != "" {
			t.Errorf("%+v, %v", s, err)
		}
	}
	for _, where := range []string{"image:/bin/x!vfs_read+4", "image:/bin/x!a.c:7", "image:/bin/x+0x1000"} {
		loc, err := ParseLocation(where)
		if err != nil {
			t.Fatal(err)
		}
		if s, err := SignatureAt(kernel, loc, &detectors.ImagePlace{Types: programTypes(t, 3)}); err != nil || s.Args != nil {
			t.Errorf("%s: %+v, %v", where, s, err)
		}
	}
	other, err := ParseLocation("image:/bin/x!other")
	if err != nil {
		t.Fatal(err)
	}
	for want, types := range map[string][]byte{"compact": []byte("{}"), "cut off": programTypes(t, 3)[:40], "more than 64": programTypes(t, 65), "more than 1048576": make([]byte, MaxTypes+1)} {
		if _, err := SignatureAt(kernel, at, &detectors.ImagePlace{Types: types}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	if _, err := SignatureAt(kernel, other, &detectors.ImagePlace{Types: programTypes(t, 3)}); !errors.Is(err, isf.ErrNotFound) {
		t.Error(err)
	}
}

// TestLineLocation: a line of a source file is no symbol, and no place of returns.
func TestLineLocation(t *testing.T) {
	for text, want := range map[string]Location{
		"image:/bin/x!a.c:123":            {Image: "/bin/x", File: "a.c", Line: 123},
		"image:/bin/x!src/c++/a.cc:7":     {Image: "/bin/x", File: "src/c++/a.cc", Line: 7},
		"image:libx.so!/usr/src/x/a.rs:9": {Image: "libx.so", File: "/usr/src/x/a.rs", Line: 9},
		"image:/bin/x!ns::f":              {Image: "/bin/x", Symbol: "ns::f"},
		"image:/bin/x!ns::x.y::9":         {Image: "/bin/x", Symbol: "ns::x.y::9"},
		"image:/bin/x!main:9":             {Image: "/bin/x", Symbol: "main:9"},
		"image:/bin/x!a.c:0":              {Image: "/bin/x", Symbol: "a.c:0"},
	} {
		got, err := ParseLocation(text)
		if err != nil || got != want {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
		if got.Line > 0 && (got.Entry() || got.MayReturn() == nil) {
			t.Errorf("%s is taken for a function's entry", text)
		}
	}
	if _, err := newBench(t).binder.Bind(t.Context(), &imaged{detectors.ProbeSpec{At: "image:/bin/x!a.c:1"}}); err == nil || !strings.Contains(err.Error(), "--image-file") {
		t.Error(err)
	}
}
