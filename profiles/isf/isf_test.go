package isf

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func builder() *Builder {
	b := NewBuilder()
	b.Meta = Meta{Banner: "Linux version 6.12 (a) #1", BuildID: "00ff", Source: "vmlinuz-6.12"}
	b.Symbols = []Symbol{{"vfs_read", 0x2000}, {"linux_banner", 0x5000}, {"read", 0x3000}, {"do_exit", 0x1000}, {"read", 0x2800}, {"read", 0x2800}}
	b.Base = map[string]BaseType{"int": {"int", 4, true, "little"}, "char": {"char", 1, true, "little"}, "void": {Kind: "void", Endian: "little"}}
	i, c := Type{Kind: Base, Name: "int"}, Type{Kind: Base, Name: "char"}
	b.Users = map[string]UserType{
		"iovec": {Struct, 16, map[string]Field{"iov_base": {0, Type{Kind: Pointer, Subtype: &Type{Kind: Base, Name: "void"}}, false}, "iov_len": {8, Type{Kind: Base, Name: "int"}, false}}},
		"task_struct": {Struct, 128, map[string]Field{
			"pid":             {16, i, false},
			"comm":            {32, Type{Kind: Array, Count: 16, Subtype: &c}, false},
			"flex":            {128, Type{Kind: Array, Subtype: &c}, false},
			"thread":          {64, Type{Kind: Struct, Name: "thread"}, false},
			"flag":            {20, Type{Kind: Bitfield, BitLen: 3, BitsType: &i}, false},
			"unnamed_field_5": {96, Type{Kind: Union, Name: "unnamed_1"}, true},
			"state":           {24, Type{Kind: Enum, Name: "state"}, false},
		}},
		"thread":    {Struct, 16, map[string]Field{"sp": {8, Type{Kind: Pointer, Subtype: &i}, false}}},
		"unnamed_1": {Union, 8, map[string]Field{"unnamed_field_0": {4, Type{Kind: Struct, Name: "deep"}, true}}},
		"deep":      {Struct, 4, map[string]Field{"inner": {2, i, false}}},
	}
	b.Enums = map[string]EnumType{"state": {"unsigned int", 4, map[string]int64{"RUNNING": 0, "DEAD": -1}}}
	b.Vars["do_exit"] = Type{Kind: Pointer, Subtype: &Type{Kind: Struct, Name: "thread"}, Base: "int"}
	b.Funcs = map[string]Func{"vfs_read": {[]Param{{"file", Type{Kind: Pointer, Subtype: &Type{Kind: Struct, Name: "file"}}}, {"", i}}, i}, "do_exit": {nil, i}}
	return b
}

func profile(t testing.TB, b *Builder) *Profile {
	t.Helper()
	p, err := b.Profile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLookups(t *testing.T) {
	p := profile(t, builder())
	if a, err := p.Address("do_exit"); a != 0x1000 || err != nil {
		t.Errorf("%#x, %v", a, err)
	}
	if all := p.Addresses("read"); !slices.Equal(all, []uint64{0x2800, 0x3000}) {
		t.Errorf("%#x", all)
	}
	if _, err := p.Address("read"); err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "2 functions") {
		t.Errorf("%v", err)
	}
	if _, err := p.Address("do_exi"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "do_exit") {
		t.Errorf("%v", err)
	}
	for addr, want := range map[uint64]string{0xfff: "", 0x1000: "do_exit", 0x1fff: "do_exit+0xfff", 0x2801: "read+0x1", 0x5000 + 1<<20: "linux_banner+0x100000", 0x5001 + 1<<20: "", 0: ""} {
		if got, ok := p.Symbolize(addr); got != want || ok != (want != "") {
			t.Errorf("%#x is %q", addr, got)
		}
	}
	for path, want := range map[string]uint64{"pid": 16, "thread.sp": 72, "inner": 102, "comm": 32} {
		if at, err := p.Field("task_struct", path); err != nil || at.Offset != want {
			t.Errorf("%s is at %d, %v", path, at.Offset, err)
		}
	}
	for _, bad := range []string{"", "nosuch", "pid.x", "thread.sp.x", "thread.", strings.Repeat("a.", 100)} {
		if at, err := p.Field("task_struct", bad); err == nil {
			t.Errorf("%q is at %v", bad, at)
		}
	}
	if _, err := p.Field("nosuch", "x"); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "struct nosuch") {
		t.Errorf("%v", err)
	}
}

func TestSizeOfAndString(t *testing.T) {
	p := profile(t, builder())
	i := Type{Kind: Base, Name: "int"}
	for _, c := range []struct {
		t    Type
		size uint64
		text string
	}{
		{i, 4, "int"}, {Type{Kind: Pointer, Subtype: &i}, 8, "int *"}, {Type{Kind: Pointer}, 8, "void *"},
		{Type{Kind: Pointer, Subtype: &Type{Kind: Pointer, Subtype: &Type{Kind: Struct, Name: "file"}}}, 8, "struct file **"},
		{Type{Kind: Array, Count: 3, Subtype: &i}, 12, "int[3]"}, {Type{Kind: Struct, Name: "iovec"}, 16, "struct iovec"},
		{Type{Kind: Enum, Name: "state"}, 4, "enum state"}, {Type{Kind: Bitfield, BitLen: 1, BitsType: &i}, 4, ""},
	} {
		if size, err := p.SizeOf(c.t); err != nil || size != c.size || c.t.String() != c.text {
			t.Errorf("%v: %d bytes, %v; %q", c.t, size, err, c.t.String())
		}
	}
	deep := &i
	for range 100 {
		deep = &Type{Kind: Array, Count: 1, Subtype: deep}
	}
	for _, bad := range []Type{{}, {Kind: Array}, {Kind: Bitfield}, {Kind: Function}, {Kind: Struct, Name: "nosuch"}, *deep,
		{Kind: Array, Count: 1 << 62, Subtype: &Type{Kind: Array, Count: 1 << 8, Subtype: &i}}} {
		if size, err := p.SizeOf(bad); err == nil {
			t.Errorf("%v: %d bytes", bad, size)
		}
	}
}

// same compares all that two profiles have.
func same(t *testing.T, what string, got, want *Profile) {
	t.Helper()
	if got.Meta() != want.Meta() {
		t.Errorf("%s: %+v, not %+v", what, got.Meta(), want.Meta())
	}
	var names []string
	for i := range want.NumSymbols() {
		names = append(names, want.SymbolAt(i).Name)
	}
	for _, n := range slices.Compact(names) {
		if g, w := got.Addresses(n), want.Addresses(n); len(g) == 0 || g[0] != w[0] {
			t.Errorf("%s: %s is at %#x, not %#x", what, n, g, w)
		}
	}
	for _, kind := range []string{keyBase, keyUser, keyEnum, keyFunc, keyVar} {
		collect := func(p *Profile) map[string]any {
			all := map[string]any{}
			if err := p.each(kind, func(name string, j json.RawMessage) error {
				var v any
				err := json.Unmarshal(j, &v)
				all[name] = v
				return err
			}); err != nil {
				t.Error(err)
			}
			return all
		}
		if g, w := collect(got), collect(want); !reflect.DeepEqual(g, w) || len(w) == 0 {
			t.Errorf("%s, %q:\n%v\nnot\n%v", what, kind, g, w)
		}
	}
}

func TestRoundTrips(t *testing.T) {
	p := profile(t, builder())
	var compact, plain, packed, gz bytes.Buffer
	if err := errors.Join(p.WriteCompact(&compact), p.WriteJSON(&plain), p.WriteJSONXZ(&packed)); err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(&gz)
	z.Write(plain.Bytes())
	z.Close()
	for name, b := range map[string][]byte{"compact": compact.Bytes(), "json": plain.Bytes(), "json.xz": packed.Bytes(), "json.gz": gz.Bytes()} {
		got, err := Read(b)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		same(t, name, got, p)
	}
	got, err := Read(compact.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	var again bytes.Buffer
	if err := got.WriteCompact(&again); err != nil || !bytes.Equal(again.Bytes(), compact.Bytes()) {
		t.Errorf("the compact form is not the same again: %v", err)
	}
	if n := got.NumSymbols(); n != 5 {
		t.Errorf("%d symbols: one was there twice", n)
	}
}

// TestSchema checks what Volatility's schema-6.2.0.json demands and json.Valid
// does not show: it refuses names that it does not know, and wants some that
// would be left out for being zero.
func TestSchema(t *testing.T) {
	var out bytes.Buffer
	if err := profile(t, builder()).WriteJSON(&out); err != nil {
		t.Fatal(err)
	}
	var doc map[string]json.RawMessage
	if err := json.Unmarshal(out.Bytes(), &doc); err != nil {
		t.Fatal(err)
	}
	only := func(what string, raw json.RawMessage, names ...string) map[string]json.RawMessage {
		var all map[string]json.RawMessage
		if err := json.Unmarshal(raw, &all); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		for n := range all {
			if !slices.Contains(names, n) {
				t.Errorf("%s has %q", what, n)
			}
		}
		return all
	}
	only("the document", out.Bytes(), "metadata", "base_types", "user_types", "enums", "symbols")
	meta := only("metadata", doc["metadata"], "format", "producer", "linux")
	linux := only("metadata.linux", meta["linux"], "symbols", "types")
	if got := string(linux["symbols"]); got != `[{"name":"vmlinuz-6.12"}]` {
		t.Errorf("metadata.linux.symbols is %s", got)
	}
	var users map[string]struct {
		Fields map[string]struct{ Type json.RawMessage }
	}
	if err := json.Unmarshal(doc["user_types"], &users); err != nil {
		t.Fatal(err)
	}
	for field, want := range map[string]string{
		"flex": `{"kind":"array","count":0,"subtype":{"kind":"base","name":"char"}}`,
		"flag": `{"kind":"bitfield","bit_length":3,"bit_position":0,"type":{"kind":"base","name":"int"}}`,
		"pid":  `{"kind":"base","name":"int"}`,
	} {
		if got := string(users["task_struct"].Fields[field].Type); got != want {
			t.Errorf("%s is %s, not %s", field, got, want)
		}
	}
	var symbols map[string]json.RawMessage
	if err := json.Unmarshal(doc["symbols"], &symbols); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"vfs_read":     `{"address":8192,"type":{"kind":"base","name":"void"}}`, // Volatility wants one of each
		"linux_banner": `{"address":20480,"type":{"kind":"base","name":"void"},"constant_data":"TGludXggdmVyc2lvbiA2LjEyIChhKSAjMQoA"}`,
		"do_exit":      `{"address":4096,"type":{"kind":"pointer","subtype":{"kind":"struct","name":"thread"},"base":"int"}}`,
	} {
		if got := string(symbols[name]); got != want {
			t.Errorf("%s is %s, not %s", name, got, want)
		}
	}
}

func TestWrongInputSaysWhere(t *testing.T) {
	const meta = `"metadata":{"format":"6.2.0"}`
	user := func(fields string) string {
		return `{` + meta + `,"user_types":{"task_struct":{"kind":"struct","size":8,"fields":` + fields + `}}}`
	}
	pid := func(kind string) string { return user(`{"pid":{"offset":0,"type":` + kind + `}}`) }
	for text, want := range map[string]string{
		"":                                "the document: unexpected EOF: get the file anew",
		"[":                               "at byte 1",
		"[]":                              "the document: an array where an object belongs",
		"{}":                              "metadata.format",
		`{"metadata":{"format":3}}`:       "metadata.format: a number where a string belongs",
		`{"metadata":{"format":"3.0.0"}}`: `ISF 3.0.0 is not known`,
		`{` + meta + `} {}`:               "the document: there is more behind its end",
		`{` + meta + `,"base_types":7}`:   "base_types: a number where an object belongs",
		`{` + meta + `,"base_types":{"int":{"kind":"integer"}}}`:                                  `base_types.int.kind: "integer" is no kind of base type (void, int, float, char, bool)`,
		`{` + meta + `,"base_types":{"int":{"endian":"middle"}}}`:                                 `base_types.int.endian: "middle"`,
		`{` + meta + `,"base_types":{"int":{"kind":"int","size":4,"signed":true}}}`:               `base_types.int: no "endian"`,
		`{` + meta + `,"user_types":{"a":{"kind":"struct","size":1,"fields":{}},"b":{"size":""}}`: `user_types.b.size: a string where a number belongs`,
		`{` + meta + `,"user_types":{"a b":{"size":-1}}}`:                                         `user_types."a b".size: -1 is no whole number from 0 to`,
		`{` + meta + `,"user_types":{"a":{"length":4,"kind":"struct","fields":{}}}}`:              `user_types.a: no "size"`,
		`{` + meta + `,"user_types":{"a":{"kind":"enum"}}}`:                                       `user_types.a.kind: "enum" is no kind of user type (struct, union, class)`,
		user(`[]`):                     `user_types.task_struct.fields: an array`,
		user(`{"pid":{}}`):             `user_types.task_struct.fields.pid: no "offset"`,
		user(`{"pid":{"offset":0.5}}`): `user_types.task_struct.fields.pid.offset: 0.5 is no whole number`,
		user(`{"a":{"offset":0,"type":{"kind":"function"}},"a":{}}`):                       `user_types.task_struct.fields.a: it is there twice`,
		pid(`{"kind":"structt","name":"x"}`):                                               `user_types.task_struct.fields.pid.type.kind: "structt" is no kind of type (array, base, bitfield, class, enum, function, pointer, struct, union): get the file anew`,
		pid(`{"name":"x"}`):                                                                `user_types.task_struct.fields.pid.type: no "kind"`,
		pid(`{"kind":"struct"}`):                                                           `user_types.task_struct.fields.pid.type: no "name"`,
		pid(`{"kind":"array","count":1}`):                                                  `user_types.task_struct.fields.pid.type: no "subtype"`,
		pid(`{"kind":"pointer","subtype":{"kind":"array","subtype":{"kind":"base"}}}`):     `user_types.task_struct.fields.pid.type.subtype.subtype: no "name"`,
		pid(`{"kind":"array","count":1e30}`):                                               `pid.type.count: 1e30`,
		pid(`{"kind":"bitfield","bit_length":129}`):                                        `pid.type.bit_length: 129`,
		pid(strings.Repeat(`{"kind":"pointer","subtype":`, 34) + `{`):                      `a type in more than 32 others`,
		pid(strings.Repeat(`[`, 20_000)):                                                   `user_types.task_struct.fields.pid.type`,
		`{` + meta + `,"symbols":{"a\u001b[2J":{"address":"0x1"}}}`:                        `symbols."a\x1b[2J".address: a string where a number belongs`,
		`{` + meta + `,"symbols":{"a":{"address":18446744073709551616}}}`:                  `symbols.a.address: 18446744073709551616 is no whole number of 64 bits`,
		`{` + meta + `,"symbols":{"a":{}}}`:                                                `symbols.a: no "address"`,
		`{` + meta + `,"symbols":{"a":{"address":1},"b":{"address":2},"a":{"address":1}}}`: `symbols.a: it is there twice`,
		`{` + meta + `,"enums":{"e":{"size":4,"base":"int","constants":{}},"e":{"size":4,"base":"","constants":{}}}}`: `enums.e: it is there twice`,
		`{` + meta + `,"enums":{"e":{"constants":{"A":1.5}}}}`:                                                        `enums.e.constants.A: 1.5`,
		`{` + meta + `,"enums":{"e":{"constants":{"A":1,"A":1}}}}`:                                                    `enums.e.constants.A: it is there twice`,
		`{` + meta + `,"symbols":{"linux_banner":{"address":1,"constant_data":"!"}}}`:                                 "symbols.linux_banner.constant_data: illegal base64",
		`{` + meta + `,"symbols":{"a":{"address":1}`:                                                                  "symbols",
		`{"metadata":{"format":"6.2.0","producer":{"hprobe":{"functions":{"f":{"params":[{"name":"a"}]}}}}}}`:         `metadata.producer.hprobe.functions.f.params.0: no "type"`,
		`{"x":"` + strings.Repeat("y", 4*maxValue) + `"}`:                                                             `a string of more than 1048576 bytes`,
		`{"metadata":{"format":"` + strings.Repeat("7", 5000) + `"}}`:                                                 strings.Repeat("7", 100) + "… is not known",
		"BZh9 no bzip2":        "unpack",
		"\x1f\x8b\x08 no gzip": "unpack",
		"\xfd7zXZ\x00 no xz":   "unpack",
		"hprobe profile 2\n\x00\x00\x00\x00\x00\x00\x00":                               "the profile is cut off",
		"hprobe profile 1\n\x00\x00\x00\x00\x00\x00\x00" + strings.Repeat("\x00", 100): "make it anew",
	} {
		path := filepath.Join(t.TempDir(), "x.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ReadFile(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if _, err := ReadFile(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}

func crc(b []byte) uint32 { return crc32.ChecksumIEEE(b) }

func allocated() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

// TestXZHeadSizesNothing: the head of an xz block names the dictionary's size,
// here 4 GiB less 1, before any byte of it is known to be there.
func TestXZHeadSizesNothing(t *testing.T) {
	// Stream head, a block's head with LZMA2 and its largest dictionary, one chunk.
	b := []byte("\xfd7zXZ\x00\x00\x00\xff\x12\xd9\x41\x02\x00\x21\x01\x28\x00\x00\x00")
	b = binary.LittleEndian.AppendUint32(b, crc(b[12:]))
	b = append(b, 1, 0, 0, 'x', 0)
	before := allocated()
	if _, err := Read(b); err == nil {
		t.Error("it is read")
	}
	if n := allocated() - before; n > 128<<20 {
		t.Errorf("%d bytes of xz took %d MiB of memory", len(b), n>>20)
	}
}

func TestDamagedCompactForm(t *testing.T) {
	var out bytes.Buffer
	if err := profile(t, builder()).WriteCompact(&out); err != nil {
		t.Fatal(err)
	}
	good := out.Bytes()
	for n := range len(good) {
		if _, err := Read(good[:n]); err == nil {
			t.Fatalf("%d of %d bytes are a profile", n, len(good))
		}
	}
	end := headerSize
	for part := range numParts - 1 { // text may be longer than what is referred to
		length := len(magic) + 8*part
		end += int(le.Uint64(good[length:]))
		for _, more := range []int{1, 4, 8} {
			bad := slices.Insert(slices.Clone(good), end, make([]byte, more)...)
			le.PutUint64(bad[length:], le.Uint64(bad[length:])+uint64(more))
			if _, err := Read(bad); err == nil {
				t.Errorf("part %d has %d bytes more: no error", part, more)
			}
		}
	}
	types := bytes.Index(good, []byte(`{"base":"unsigned int"`))
	bad := slices.Clone(good)
	bad[types] = '!'
	p, err := Read(bad)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.EnumType("state"); err == nil || !strings.Contains(err.Error(), "enum state: the profile is damaged") {
		t.Errorf("%v", err)
	}
	if err := p.WriteJSON(new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "state") {
		t.Errorf("it is written as ISF: %v", err)
	}
}

// TestAnonymousMembersOfEachOther: to look for a member takes no longer than
// there are structs, however they hold each other.
func TestAnonymousMembersOfEachOther(t *testing.T) {
	b := NewBuilder()
	for i := range 40 {
		fields := map[string]Field{}
		for j := range 40 {
			fields[string(rune('A'+j))+"_"] = Field{Type: Type{Kind: Struct, Name: string(rune('A' + j))}, Anonymous: true}
		}
		b.Users[string(rune('A'+i))] = UserType{Kind: Struct, Fields: fields}
	}
	p := profile(t, b)
	done := make(chan error, 1)
	go func() {
		_, err := p.Field("A", "nosuch")
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it looks and looks")
	}
}

// use looks everything up that a caller may.
func use(p *Profile) {
	for i := range min(p.NumSymbols(), 100) {
		s := p.SymbolAt(i)
		p.Address(s.Name)
		p.Symbolize(s.Addr + 1)
	}
	p.Nearest(0)
	p.Nearest(^uint64(0))
	for i := range min(p.types.len()/typeSize, 100) {
		key := string(p.str(p.types.bytes(i*typeSize, typeSize)))
		if key == "" {
			continue
		}
		name := key[1:]
		p.BaseType(name)
		p.EnumType(name)
		p.Var(name)
		if f, err := p.Func(name); err == nil {
			for _, a := range f.Params {
				_ = a.Type.String()
				p.SizeOf(a.Type)
			}
		}
		if u, err := p.UserType(name); err == nil {
			for n, f := range u.Fields {
				_ = f.Type.String()
				p.SizeOf(f.Type)
				p.Field(name, n)
			}
			p.Field(name, "nosuch.x")
		}
	}
	p.WriteJSON(new(bytes.Buffer))
}

func FuzzReadJSON(f *testing.F) {
	f.Add([]byte(`{"metadata":{"format":"6.2.0"},"user_types":{"s":{"kind":"struct","size":8,"fields":{"a":{"offset":0,"type":{"kind":"struct","name":"s"},"anonymous":true}}}},"symbols":{"linux_banner":{"address":1,"constant_data":"TGk="}}}`))
	for _, name := range []string{"dwarf2json.json", "pdbconv.json", "isf4.json"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(`{"metadata":{"format":"6.2.0","producer":{"hprobe":{"functions":{"f":{"params":[{"name":"a","type":{"kind":"array","count":2,"subtype":{"kind":"pointer","subtype":{"kind":"base","name":"x"}}}}]}}}}}}`))
	f.Add([]byte(`{"metadata":{"format":"6.2.0","producer":{"hprobe":{"functions":{"f":{},"g":{"params":null}}}}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.HasPrefix(b, magic) {
			return
		}
		p, err := Read(b)
		if err != nil {
			return
		}
		use(p)
		var out, second bytes.Buffer
		if err := p.WriteJSON(&out); err != nil {
			t.Fatal(err)
		}
		again, err := Read(out.Bytes())
		if err != nil {
			t.Fatalf("%s: %v", out.Bytes(), err)
		}
		if err := again.WriteJSON(&second); err != nil || !bytes.Equal(out.Bytes(), second.Bytes()) {
			t.Fatalf("%s\nbecame\n%s\n%v", out.Bytes(), second.Bytes(), err)
		}
	})
}

func FuzzReadCompact(f *testing.F) {
	small := NewBuilder()
	small.Symbols = []Symbol{{"a", 1}, {"b", 2}}
	small.Users["s"] = UserType{Struct, 8, map[string]Field{"x": {0, Type{Kind: Struct, Name: "s"}, true}}}
	for _, b := range []*Builder{NewBuilder(), small} {
		var out bytes.Buffer
		if err := profile(f, b).WriteCompact(&out); err != nil {
			f.Fatal(err)
		}
		f.Add(out.Bytes()[len(magic):])
	}
	f.Fuzz(func(_ *testing.T, b []byte) {
		if p, err := Read(slices.Concat(magic, b)); err == nil {
			use(p)
		}
	})
}
