package build

import (
	"archive/tar"
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/test/lab"
)

// tarOf is a tar archive of files.
func tarOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Typeflag: tar.TypeReg}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// deb is a package of members, name and content in turn.
func deb(members ...string) []byte {
	b := []byte(arMagic)
	for i := 0; i < len(members); i += 2 {
		b = fmt.Appendf(b, "%-16s%-12d%-6d%-6d%-8s%-10d`\n%s", members[i], 0, 0, 0, "100644", len(members[i+1]), members[i+1])
		if len(members[i+1])%2 == 1 {
			b = append(b, '\n')
		}
	}
	return b
}

// module is a module's ELF with these types.
func module(types []byte) []byte {
	return elfFile(elf.EM_X86_64, section{name: ".BTF", kind: uint32(elf.SHT_PROGBITS), data: types})
}

// splitTypes are the types of a module of kernelTypes' kernel, whose last ID is n: a
// struct of its own, one as the kernel has it, and another one that is called as one of the
// kernel's.
func splitTypes(t testing.TB) []byte {
	t.Helper()
	base := kernelTypes(t)
	first, err := boundBTF(base, 1)
	if err != nil {
		t.Fatal(err)
	}
	strings := "\x00own\x00list_head\x00next\x00task_struct\x00own_init\x00arg\x00"
	at := func(name string) uint32 { // names count from the end of the kernel's
		return le.Uint32(base[20:]) + uint32(bytes.Index([]byte(strings), []byte(name+"\x00")))
	}
	id := uint32(first)
	return rawTypes(strings,
		at("own"), kindStruct<<24|1, 16, at("arg"), id+4, 64, // id
		at("list_head"), kindStruct<<24|1, 8, at("next"), id+2, 0, // id+1
		0, kindPtr<<24, id+1, // id+2
		at("task_struct"), kindStruct<<24|1, 4, at("arg"), 0, 0, // id+3
		0, kindPtr<<24, id+3, // id+4
		0, kindFuncProto<<24|1, 0, at("arg"), id+4, // id+5
		at("own_init"), kindFunc<<24, id+5) // id+6
}

func TestModules(t *testing.T) {
	p, err := fromImage(context.Background(), kernel(t), "x", []moduleTypes{{name: "one", btf: splitTypes(t)}, {name: "two", btf: splitTypes(t)}})
	if err != nil {
		t.Fatal(err)
	}
	theirs := isf.Type{Kind: isf.Pointer, Subtype: &isf.Type{Kind: isf.Struct, Name: "one!task_struct"}}
	if u, err := p.UserType("own"); err != nil || u.Size != 16 || !reflect.DeepEqual(u.Fields["arg"], isf.Field{Offset: 8, Type: theirs}) {
		t.Errorf("%+v, %v", u, err)
	}
	if u, err := p.UserType("one!task_struct"); err != nil || u.Size != 4 {
		t.Errorf("%+v, %v", u, err)
	}
	if u, err := p.UserType("task_struct"); err != nil || u.Size != 64 {
		t.Errorf("the kernel's own: %+v, %v", u, err)
	}
	for _, name := range []string{"one!list_head", "one!own"} {
		if u, err := p.UserType(name); err == nil {
			t.Errorf("%s: %+v", name, u)
		}
	}
	for _, name := range []string{"one!own_init", "two!own_init"} {
		if f, err := p.Func(name); err != nil || len(f.Params) != 1 || f.Params[0].Type.Kind != isf.Pointer || f.Params[0].Type.Subtype.Name != name[:3]+"!task_struct" {
			t.Errorf("%s: %+v, %v", name, f, err)
		}
	}
	if _, err := p.Func("own_init"); err == nil {
		t.Error("a module's function has the name of one of the kernel's")
	}
}

func TestFromPackage(t *testing.T) {
	vmlinux := kernel(t)
	ko := module(splitTypes(t))
	const lib, usrlib = "./lib/modules/6.12.1/kernel/", "./usr/lib/modules/6.12.1/"
	files := map[string][]byte{"./boot/vmlinuz-6.12.1": vmlinux, "./boot/System.map": []byte("x"), lib + "one.ko.xz": pack(t, "xz", ko), lib + "t-w-o.ko": ko, lib + "three.ko.zst": pack(t, "zstd", ko),
		lib + "broken.ko": []byte("x"), "./lib/modules/6.12.2/kernel/other.ko": ko, usrlib + "modules.dep": []byte("x")}
	debOf := func(ext, packer string, files map[string][]byte) []byte {
		data := tarOf(t, files)
		if packer != "" {
			data = pack(t, packer, data)
		}
		return deb("debian-binary", "2.0\n", "control.tar.xz", "odd", "data.tar"+ext, string(data))
	}
	with := func(change func(map[string][]byte)) map[string][]byte {
		all := maps.Clone(files)
		change(all)
		return all
	}
	dir := t.TempDir()
	folder := filepath.Join(dir, "root")
	for name, content := range files {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, c := range map[string]struct {
		deb     []byte // nil: the folder
		modules []string
		want    string // an error's
	}{
		"xz":               {debOf(".xz", "xz", files), []string{"one", "t-w-o"}, ""},
		"zstd":             {debOf(".zst", "zstd", files), []string{"one", "t_w_o", "three"}, ""},
		"gzip":             {debOf(".gz", "gzip", files), []string{"one"}, ""},
		"not packed":       {debOf("", "", files), []string{"one"}, ""},
		"a folder":         {nil, []string{"one", "three"}, ""},
		"no modules":       {nil, nil, ""},
		"all":              {nil, []string{"all"}, "broken.ko is no module"},
		"a module missing": {nil, []string{"four"}, `no module "four"`},
		"of another":       {nil, []string{"other"}, `no module "other" of the kernel 6.12.1`},
		"without types":    {debOf("", "", with(func(m map[string][]byte) { m[lib+"old.ko"] = elfFile(elf.EM_X86_64) })), []string{"old"}, `no module "old"`},
		"a bad module":     {nil, []string{"broken"}, "broken.ko is no module"},
		"in lib/modules": {debOf("", "", with(func(m map[string][]byte) {
			m[usrlib+"vmlinuz"] = m["./boot/vmlinuz-6.12.1"]
			delete(m, "./boot/vmlinuz-6.12.1")
		})), []string{"one"}, ""},
		"twice":       {debOf("", "", with(func(m map[string][]byte) { m[usrlib+"vmlinuz"] = vmlinux })), []string{"one"}, ""},
		"two kernels": {debOf("", "", with(func(m map[string][]byte) { m["./boot/vmlinuz-6.12.2"] = vmlinux })), nil, "2 kernels in it (boot/vmlinuz-6.12.1, boot/vmlinuz-6.12.2)"},
		"no kernel":   {debOf("", "", map[string][]byte{"./x": nil}), nil, "no kernel in it"},
		"no data":     {deb("debian-binary", "2.0\n"), nil, "no data.tar"},
		"cut off":     {debOf("", "", files)[:4000], nil, "unexpected EOF"},
		"a bad head":  {append([]byte(arMagic), bytes.Repeat([]byte("x"), 60)...), nil, "damaged"},
		"a bad tar":   {deb("data.tar.xz", "\xfd7zXZ\x00xxxxxxxxxxxx"), nil, "data.tar"},
	} {
		path := folder
		if c.deb != nil {
			path = filepath.Join(dir, "x.deb")
			if err := os.WriteFile(path, c.deb, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		p, err := FromFile(context.Background(), path, c.modules...)
		if c.want != "" {
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p.Meta().Banner != testBanner || !strings.Contains(p.Meta().Source, "vmlinuz") {
			t.Errorf("%s: %+v", name, p.Meta())
		}
		for _, m := range []string{"one", "t_w_o", "three", "other"} {
			_, err := p.Func(m + "!own_init")
			if want := slices.Contains(c.modules, m) || slices.Contains(c.modules, strings.ReplaceAll(m, "_", "-")); (err == nil) != want {
				t.Errorf("%s: module %s: %v", name, m, err)
			}
		}
	}
	image := filepath.Join(dir, "vmlinux")
	if err := os.WriteFile(image, vmlinux, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := FromFile(context.Background(), image, "one"); err == nil || !strings.Contains(err.Error(), "in a folder or in a package") {
		t.Errorf("%v", err)
	}
}

// TestModulesOfAKernel: a distribution's modules, with the kernel that they are of. What
// the profile has of the kernel stays as it is.
func TestModulesOfAKernel(t *testing.T) {
	ctx := context.Background()
	vmlinuz, _, err := lab.GuestKernel(ctx, "6.12")
	if err != nil {
		t.Fatal(err)
	}
	root, _, _ := strings.Cut(vmlinuz, "/boot/")
	plain, err := FromFile(ctx, vmlinuz)
	if err != nil {
		t.Fatal(err)
	}
	p, err := FromFile(ctx, root, "nf_tables", "btrfs")
	if err != nil {
		t.Fatal(err)
	}
	f, err := p.Func("nf_tables!nft_do_chain")
	if err != nil || len(f.Params) != 2 || f.Params[0].Name != "pkt" || f.Params[0].Type.String() != "struct nft_pktinfo *" {
		t.Errorf("%+v, %v", f, err)
	}
	if at, err := p.Field("nft_pktinfo", "skb"); err != nil || at.Type.String() != "struct sk_buff *" {
		t.Errorf("%+v, %v", at, err)
	}
	// The kernel has a struct dir_entry, too: fs/btrfs/send.c has another one.
	if _, err := p.UserType("btrfs!dir_entry"); err != nil {
		t.Error(err)
	}
	for _, name := range []string{"task_struct", "sk_buff", "dir_entry", "unnamed_100"} {
		a, err := plain.UserType(name)
		b, err2 := p.UserType(name)
		if err != nil || err2 != nil || !reflect.DeepEqual(a, b) {
			t.Errorf("%s: %v, %v", name, err, err2)
		}
	}
	for _, name := range []string{"btrfs_fs_info", "btrfs_inode", "nft_ctx"} { // whatever they are of is there
		u, err := p.UserType(name)
		if err != nil || len(u.Fields) < 5 {
			t.Fatalf("%s: %+v, %v", name, u, err)
		}
		for field, f := range u.Fields {
			if _, err := p.SizeOf(f.Type); err != nil {
				t.Errorf("%s.%s: %v", name, field, err)
			}
		}
	}
	if plain.NumSymbols() != p.NumSymbols() || plain.Meta().BuildID != p.Meta().BuildID {
		t.Errorf("%+v", p.Meta())
	}
	if err := p.Check(); err != nil {
		t.Error(err)
	}
}

// FuzzFromPackage damages a package, and reads anything as one.
func FuzzFromPackage(f *testing.F) {
	f.Add(deb("debian-binary", "2.0\n", "data.tar", string(tarOf(f, map[string][]byte{"boot/vmlinuz-1": []byte("x"), "lib/modules/1/a.ko": module(splitTypes(f))}))))
	f.Add(deb("data.tar.gz", string(pack(f, "gzip", tarOf(f, map[string][]byte{"lib/modules/1/a.ko.gz": pack(f, "gzip", []byte("x"))})))))
	f.Fuzz(func(t *testing.T, b []byte) {
		files := kernelFiles{want: wanted([]string{AllModules})}
		err := readPackage(context.Background(), bytes.NewReader(b), &files)
		if len(files.kernels) > maxImages || files.size > maxModuleTypes+maxBTF || err == nil && len(b) < 68 {
			t.Errorf("%v", err)
		}
	})
}

// FuzzModuleTypes damages a module's types.
func FuzzModuleTypes(f *testing.F) {
	vmlinux, types := kernel(f), splitTypes(f)
	f.Add([]byte{})
	f.Add([]byte{0x18, 0, 0, 0xff})
	f.Fuzz(func(t *testing.T, how []byte) {
		p, err := fromImage(context.Background(), vmlinux, "x", []moduleTypes{{name: "m", btf: patch(types, how)}})
		if len(how) == 0 && err != nil {
			t.Error(err)
		}
		if err == nil && p.Check() != nil {
			t.Error(p.Check())
		}
	})
}
