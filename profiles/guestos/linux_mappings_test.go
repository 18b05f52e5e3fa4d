package guestos

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
)

const (
	mmAt     = 0xffff888100000000 // struct mm_struct, and what belongs to it
	nodesAt  = mmAt + 0x1000      // of the tree
	vmasAt   = mmAt + 0x2000
	filesAt  = mmAt + 0x3000 // files, dentries, mounts
	mmPages  = 4
	vmaSize  = 0x80
	pathsAt  = filesAt + 0x800
	rootName = "/"
)

// mappingTypes adds what the kernel keeps of mappings and files, in either way.
func mappingTypes(tree bool) func(*isf.Builder) {
	return func(b *isf.Builder) {
		long := isf.Type{Kind: isf.Base, Name: "unsigned long"}
		fields := func(of map[string]int, arrays ...any) isf.UserType {
			u := isf.UserType{Kind: isf.Struct, Size: 512, Fields: map[string]isf.Field{}}
			for name, at := range of {
				u.Fields[name] = isf.Field{Offset: uint64(at), Type: long}
			}
			for i := 0; i < len(arrays); i += 3 {
				u.Fields[arrays[i].(string)] = isf.Field{Offset: uint64(arrays[i+1].(int)), Type: isf.Type{Kind: isf.Array, Count: uint64(arrays[i+2].(int)), Subtype: &long}}
			}
			return u
		}
		in := func(of, name, kind string, at int) {
			b.Users[of].Fields[name] = isf.Field{Offset: uint64(at), Type: isf.Type{Kind: isf.Struct, Name: kind}}
		}
		b.Symbols = append(b.Symbols, isf.Symbol{Name: "init_task", Addr: initTaskAt})
		for name, at := range map[string]int{"tasks": tasksField, "mm": mmField, "group_leader": 0x128, "start_boottime": 0x130} {
			b.Users["task_struct"].Fields[name] = isf.Field{Offset: uint64(at), Type: long}
		}
		b.Users["vm_area_struct"] = fields(map[string]int{"vm_start": 8, "vm_end": 0, "vm_flags": 0x18, "vm_pgoff": 0x20, "vm_file": 0x28, "vm_mm": 0x10})
		b.Users["mm_struct"] = fields(map[string]int{"pgd": pgdField})
		b.Users["file"] = fields(nil)
		in("file", "f_path", "path", 0x10)
		b.Users["path"] = fields(map[string]int{"mnt": 0, "dentry": 8})
		b.Users["dentry"] = fields(map[string]int{"d_parent": 8})
		in("dentry", "d_name", "qstr", 0x10)
		b.Users["qstr"] = fields(map[string]int{"len": 4, "name": 8})
		b.Users["mount"] = fields(map[string]int{"mnt_parent": 0, "mnt_mountpoint": 8})
		in("mount", "mnt", "vfsmount", 0x10)
		b.Users["vfsmount"] = fields(map[string]int{"mnt_root": 0})
		if !tree {
			b.Users["mm_struct"].Fields["mmap"] = isf.Field{Offset: 8, Type: long}
			b.Users["vm_area_struct"].Fields["vm_next"] = isf.Field{Offset: 0x30, Type: long}
			return
		}
		in("mm_struct", "mm_mt", "maple_tree", 0x10)
		b.Users["maple_tree"] = fields(map[string]int{"ma_root": 8})
		b.Enums["maple_type"] = isf.EnumType{Base: "unsigned int", Size: 4, Constants: map[string]int64{"maple_leaf_64": 1, "maple_range_64": 2, "maple_arange_64": 3}}
		b.Users["maple_range_64"] = fields(nil, "pivot", 8, 15, "slot", 128, 16)
		b.Users["maple_arange_64"] = fields(nil, "pivot", 8, 9, "slot", 80, 10)
	}
}

// mappedGuest is a guest with memory for one process's mappings.
type mappedGuest struct {
	*guest
	k     *Kernel
	pages [mmPages][]byte
	gfns  [mmPages]xenevents.GFN
}

func newMapped(t testing.TB, tree bool) *mappedGuest {
	t.Helper()
	return newMappedOf(t, mappingTypes(tree))
}

func newMappedOf(t testing.TB, types func(*isf.Builder)) *mappedGuest {
	t.Helper()
	m := &mappedGuest{guest: newGuest(t, banner+"\n\x00")}
	m.k = m.find(t, testProfile(t, types))
	for i := range m.pages {
		m.pages[i] = make([]byte, 4096)
		m.gfns[i] = m.space.Page(mmAt + xenevents.GVA(i)*4096)
	}
	return m
}

func (m *mappedGuest) put(at, value uint64) { le.PutUint64(m.pages[(at-mmAt)>>12][at&0xfff:], value) }

func (m *mappedGuest) done() {
	for i, p := range m.pages {
		m.Poke(m.gfns[i].GPA(), p)
	}
}

// vma writes one mapping of i pages, and returns its address: [i MiB, i MiB + i pages).
func (m *mappedGuest) vma(i int) uint64 {
	at := vmasAt + vmaSize*uint64(i)
	start := uint64(i) << 20
	m.put(at+8, start)
	m.put(at, start+uint64(i)<<12)
	m.put(at+0x10, mmAt)
	m.put(at+0x18, uint64(i%2)<<2)
	m.put(at+0x20, uint64(i))
	m.put(at+0x28, filesAt)
	return at
}

// list puts n mappings into the list, or into a tree of two levels with holes.
func (m *mappedGuest) fill(tree bool, n int) {
	if !tree {
		m.put(mmAt+8, m.vma(1))
		for i := 1; i < n; i++ {
			m.put(m.vma(i)+0x30, m.vma(i+1))
		}
		m.done()
		return
	}
	// Leaves of four mappings with the holes before them; above them a node with gaps.
	const top = nodesAt
	m.put(mmAt+0x18, top|3<<3|2)
	leaves := (n + 3) / 4
	for l := range leaves {
		leaf := nodesAt + 256*uint64(l+1)
		slot := 0
		entry := func(last, vma uint64) {
			m.put(leaf+8+8*uint64(slot), last)
			m.put(leaf+128+8*uint64(slot), vma)
			slot++
		}
		for i := 4*l + 1; i <= min(4*l+4, n); i++ {
			entry(uint64(i)<<20-1, 0)
			entry(uint64(i)<<20+uint64(i)<<12-1, m.vma(i))
		}
		last := ^uint64(0)
		if l < leaves-1 {
			last = uint64(4*l+5)<<20 - 0x1000 - 1
		}
		entry(last, 0)
		m.put(leaf+128+15*8, 0x0a) // the node's own bookkeeping
		m.put(top+8+8*uint64(l), last)
		m.put(top+80+8*uint64(l), leaf|1<<3|4)
	}
	m.done()
}

func TestMappings(t *testing.T) {
	for _, tree := range []bool{false, true} {
		const n = 18
		m := newMapped(t, tree)
		m.fill(tree, n)
		i := 0
		err := m.k.Mappings(mmAt, func(one *Mapping) error {
			i++
			want := Mapping{Memory: mmAt, Start: xenevents.GVA(i << 20), End: xenevents.GVA(i<<20 + i<<12), Offset: uint64(i) << 12, Exec: i%2 == 1, File: filesAt,
				at: vmasAt + vmaSize*uint64(i), flags: uint64(i%2) << 2}
			if *one != want {
				t.Errorf("tree %v: %+v, want %+v", tree, *one, want)
			}
			return nil
		})
		if err != nil || i != n {
			t.Errorf("tree %v: %d mappings, %v", tree, i, err)
		}
		for i := 1; i <= n; i++ {
			for at, want := range map[int]bool{i << 20: true, i<<20 - 1: false, i<<20 + i<<12 - 1: true, i<<20 + i<<12: false} {
				one, ok, err := m.k.MappingAt(mmAt, xenevents.GVA(at))
				if err != nil || ok != want || ok && one.Offset != uint64(i)<<12 {
					t.Errorf("tree %v: at %#x %+v, %v, %v", tree, at, one, ok, err)
				}
			}
		}
		if err := m.k.Mappings(0, nil); err != nil {
			t.Errorf("of a thread of the kernel: %v", err)
		}
		stop := errors.New("stop")
		if err := m.k.Mappings(mmAt, func(*Mapping) error { return stop }); !errors.Is(err, stop) {
			t.Error(err)
		}
	}
}

func TestMappingAt(t *testing.T) {
	m := Mapping{Start: 0x5000, End: 0x8000, Offset: 0x2000}
	for offset, want := range map[uint64]xenevents.GVA{0x2000: 0x5000, 0x4fff: 0x7fff, 0x1fff: 0, 0x5000: 0} {
		if at, ok := m.At(offset); at != want || ok != (want != 0) {
			t.Errorf("%#x is at %v, %v", offset, at, ok)
		}
	}
}

// TestMappingsLie: lists and trees without an end have one here.
func TestMappingsLie(t *testing.T) {
	for name, c := range map[string]struct {
		tree      bool
		at, value uint64
		want      string
	}{
		"a list in a circle":      {false, vmasAt + 5*vmaSize + 0x30, vmasAt + vmaSize, "no end"},
		"a list into nothing":     {false, vmasAt + 5*vmaSize + 0x30, 0x1234, "not mapped"},
		"a mapping from its end":  {false, vmasAt + 5*vmaSize, 0, "no sense"},
		"a mapping of the kernel": {true, vmasAt + 5*vmaSize, 1 << 63, "no sense"},
		"a mapping of another":    {true, vmasAt + 5*vmaSize + 0x10, 7, "another process"},
		"a root into nothing":     {true, mmAt + 0x18, 0x100000 | 3<<3, "not mapped"},
		"a root of no kind":       {true, mmAt + 0x18, nodesAt | 7<<3, "kind 7"},
		"a node that is its own":  {true, nodesAt + 80 + 8, nodesAt | 3<<3, "levels deep"},
		"a mapping into nothing":  {true, nodesAt + 256 + 128 + 8, 0x7fff_0000, "not mapped"},
	} {
		m := newMapped(t, c.tree)
		m.fill(c.tree, 18)
		m.put(c.at, c.value)
		m.done()
		if err := m.k.Mappings(mmAt, func(*Mapping) error { return nil }); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// An empty process, and one whose tree is one entry.
	for _, root := range []uint64{0, 0x1000} {
		m := newMapped(t, true)
		m.put(mmAt+0x18, root)
		m.done()
		if _, ok, err := m.k.MappingAt(mmAt, 5); root == 0 && (ok || err != nil) {
			t.Errorf("%v, %v", ok, err)
		}
	}
}

// files puts a file at filesAt: /mnt/dir/lib.so, with something mounted at /mnt.
func (m *mappedGuest) files() {
	const dentries, mounts = filesAt + 0x100, filesAt + 0x600
	names := uint64(pathsAt)
	dentry := func(i, parent int, name string) uint64 {
		at := dentries + 0x40*uint64(i)
		m.put(at+8, dentries+0x40*uint64(parent))
		m.put(at+0x10, uint64(len(name))<<32)
		m.put(at+0x18, names)
		copy(m.pages[3][names&0xfff:], name)
		names += uint64(len(name))
		return at
	}
	mount := func(i, parent int, point, top uint64) uint64 {
		at := mounts + 0x40*uint64(i)
		m.put(at, mounts+0x40*uint64(parent))
		m.put(at+8, point)
		m.put(at+0x10, top)
		return at
	}
	root := dentry(0, 0, rootName)
	point := dentry(1, 0, "mnt")
	top := dentry(2, 2, rootName)
	dentry(3, 2, "dir")
	lib := dentry(4, 3, "lib.so")
	mount(0, 0, root, root)
	inner := mount(1, 0, point, top)
	m.put(filesAt+0x10, inner+0x10)
	m.put(filesAt+0x18, lib)
	m.done()
}

func TestFileNamed(t *testing.T) {
	m := newMapped(t, true)
	m.files()
	if path, err := m.k.FilePath(filesAt); err != nil || path != "/mnt/dir/lib.so" {
		t.Errorf("%q, %v", path, err)
	}
	for name, want := range map[string]bool{"/mnt/dir/lib.so": true, "lib.so": true, "/dir/lib.so": false, "/mnt/dir/lib": false, "lib": false, "dir/lib.so": false, "": false, "/": false, "/mnt/dir/": false} {
		if ok, err := m.k.FileNamed(filesAt, name); ok != want || err != nil {
			t.Errorf("%q: %v, %v", name, ok, err)
		}
	}
	if ok, err := m.k.FileNamed(0, "lib.so"); ok || err != nil {
		t.Errorf("no file: %v, %v", ok, err)
	}
	// Names without an end, and folders in a circle.
	m.put(filesAt+0x100+0x40*4+0x10, 1000<<32)
	m.done()
	if _, err := m.k.FileNamed(filesAt, "lib.so"); err == nil || !strings.Contains(err.Error(), "1000 bytes") {
		t.Error(err)
	}
	m.files()
	m.put(filesAt+0x100+0x40*3+8, filesAt+0x100+0x40*4)
	m.done()
	if _, err := m.k.FilePath(filesAt); err == nil || !strings.Contains(err.Error(), "no end") {
		t.Error(err)
	}
	m.files()
	m.put(filesAt+0x600+0x40, filesAt+0x600+0x80) // what it is mounted in is nowhere
	m.done()
	if path, err := m.k.FilePath(filesAt); err != nil || path != "mnt/dir/lib.so" {
		t.Errorf("%q, %v", path, err)
	}
}

func TestOwners(t *testing.T) {
	m := newMapped(t, true)
	page := make([]byte, 4096)
	base := uint64(initTaskAt + slide)
	for i := range 3 { // the kernel's own, and two processes
		task := page[i*taskSize:]
		le.PutUint64(task[tasksField:], base+uint64((i+1)%3*taskSize)+tasksField)
		le.PutUint32(task[0x58:], uint32(i))
		copy(task[0x70:], fmt.Sprint("name", i))
		le.PutUint64(task[0x128:], base+uint64(i*taskSize))
		le.PutUint64(task[0x130:], uint64(1000+i))
		if i == 2 {
			le.PutUint64(task[mmField:], mmAt)
		}
	}
	m.page(initTaskAt, string(page))
	m.put(mmAt+pgdField, mmAt)
	m.done()
	var all []Owner
	if err := m.k.Owners(func(o *Owner) error { all = append(all, *o); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(all) != 1 || all[0] != (Owner{PID: 2, Comm: "name2", Memory: mmAt, Started: 1002}) {
		t.Errorf("%+v", all)
	}
	s, err := m.k.SpaceOf(mmAt)
	if err != nil || s.Root != m.gfns[0].GPA() || s.Mode != m.k.Space.Mode {
		t.Errorf("%v, %v", s, err)
	}
	if _, err := m.k.OwnerOf(0x1234); !errors.Is(err, xenevents.ErrNotMapped) {
		t.Error(err)
	}
}

// FuzzMappings: whatever a process's mappings are made of, a look at them has an end,
// and what is found is one.
func FuzzMappings(f *testing.F) {
	for _, tree := range []bool{true, false} {
		m := newMapped(f, tree)
		m.fill(tree, 18)
		m.files()
		var all []byte
		for _, p := range m.pages {
			all = append(all, p...)
		}
		f.Add(tree, all)
	}
	guests := map[bool]*mappedGuest{true: newMapped(f, true), false: newMapped(f, false)}
	f.Fuzz(func(t *testing.T, tree bool, mem []byte) {
		m := guests[tree]
		for i := range m.pages {
			clear(m.pages[i])
			if len(mem) > i<<12 {
				copy(m.pages[i], mem[i<<12:])
			}
		}
		m.done()
		n := 0
		err := m.k.Mappings(mmAt, func(one *Mapping) error {
			if one.Start >= one.End || one.Memory != mmAt {
				t.Errorf("%+v", one)
			}
			if n++; n > 64 { // the rest is more of the same
				return errEnough
			}
			_, err := m.k.FilePath(one.File)
			if _, e2 := m.k.FileNamed(one.File, "/x"); err == nil && e2 != nil {
				t.Error(e2)
			}
			return nil
		})
		if one, ok, err2 := m.k.MappingAt(mmAt, 0x10_0000); ok && (err2 != nil || one.Start > 0x10_0000 || one.End <= 0x10_0000) {
			t.Errorf("%+v, %v; %v", one, err2, err)
		}
	})
}
