package build

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
)

// rawTypes is a .BTF section of types, a word each, and strings.
func rawTypes(strings string, words ...uint32) []byte {
	b := []byte{0x9f, 0xeb, 1, 0}
	for _, n := range []int{24, 0, 4 * len(words), 4 * len(words), len(strings)} {
		b = le.AppendUint32(b, uint32(n))
	}
	for _, w := range words {
		b = le.AppendUint32(b, w)
	}
	return append(b, strings...)
}

func typesOf(b []byte) (*isf.Builder, error) {
	m := &memory{left: maxRead, pieces: []*piece{{name: ".BTF", size: uint64(len(b)), data: bytes.NewReader(b)}}}
	out := isf.NewBuilder()
	_, err := addBTF(m, nil, out)
	return out, err
}

func TestBTFBounds(t *testing.T) {
	if _, err := typesOf(kernelTypes(t)); err != nil {
		t.Error(err)
	}
	// A chain of pointers, which would be more than Go's stack takes; and one that is
	// as long, but is come to from its end.
	var chain, back, tags []uint32
	for i := range uint32(300_000) {
		chain = append(chain, 0, kindPtr<<24, i+2)
		back = append(back, 0, kindPtr<<24, i)
	}
	chain[len(chain)-1] = 0
	tags = []uint32{1, kindStruct << 24, 0} // a struct whose tag is of the next
	for i := range uint32(100_000) {
		tags = append(tags, 1, kindDeclTag<<24, i+1, 0xffffffff)
	}
	// The same of a module, whose types come after 1000 of the kernel's.
	var modules []uint32
	for i := range uint32(300_000) {
		modules = append(modules, 0, kindPtr<<24, 1000+i+2)
	}
	if _, err := boundBTF(rawTypes("\x00", modules...), 1001); err == nil || !strings.Contains(err.Error(), "lead to one another") {
		t.Errorf("a module's chain: %v", err)
	}
	// A member's name, again and again.
	long := "\x00" + strings.Repeat("n", maxTypeName) + "\x00"
	many := []uint32{0, kindInt << 24, 4, 32}
	for range uint32(4) {
		many = append(many, 0, kindStruct<<24|0xffff, 4)
		for range 0xffff {
			many = append(many, 1, 1, 0)
		}
	}
	for name, c := range map[string]struct {
		b    []byte
		want string
	}{
		"a chain":          {rawTypes("\x00", chain...), "lead to one another"},
		"from its end":     {rawTypes("\x00", back...), ""},
		"tags of tags":     {rawTypes("\x00a\x00", tags...), "lead to one another"},
		"a long name":      {rawTypes("\x00"+strings.Repeat("n", maxTypeName+1)+"\x00", 1, kindStruct<<24, 0), "a name has more"},
		"a name, often":    {rawTypes(long, many...), "take more than"},
		"no end of a name": {rawTypes("\x00abc", 1, kindStruct<<24, 0), "a name has more"},
		"half a type":      {rawTypes("\x00", 0, kindPtr<<24), "damaged"},
		"half a struct":    {rawTypes("\x00", 0, kindStruct<<24|1, 0, 0), "damaged"},
		"nothing":          {nil, "damaged"},
		"cut off":          {rawTypes("\x00", back...)[:1000], "damaged"},
	} {
		_, err := typesOf(c.b)
		switch {
		case c.want == "" && err != nil, c.want != "" && (!errors.Is(err, errBTF) || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzBTF damages types: what is within the bounds, the decoder takes or refuses.
func FuzzBTF(f *testing.F) {
	types := kernelTypes(f)
	f.Add([]byte{})
	f.Add([]byte{24, 0, 0, 1, 31, 0, 0, 17})
	f.Fuzz(func(t *testing.T, how []byte) {
		out, err := typesOf(patch(types, how))
		if len(how) == 0 && (err != nil || len(out.Users) < 3) {
			t.Errorf("%d structs, %v", len(out.Users), err)
		}
	})
}
