package guestos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hprobe/hprobe/profiles/isf"
	"github.com/hprobe/hprobe/xenevents"
	"github.com/hprobe/hprobe/xenevents/guestmem"
)

// A guest with one process, 1, that has mappings and open files. What these need beside
// mappingTypes' is where a tree of mappings would be.
const (
	inodeAt     = nodesAt
	superAt     = nodesAt + 0x40
	opsAt       = nodesAt + 0x80 // of a dentry
	spaceOps    = nodesAt + 0xc0
	special     = nodesAt + 0x100
	fdsAt       = nodesAt + 0x200 // a files_struct, its table, its bits
	arrayAt     = nodesAt + 0x300
	linksAt     = nodesAt + 0x600 // files that are in no folder, and their dentries
	linkNamesAt = nodesAt + 0xe00

	pipeNamer, anonNamer, simpleNamer, spaceNamer, specialOps = 0xffffffff81100000, 0xffffffff81100100, 0xffffffff81100200, 0xffffffff81100300, 0xffffffff81100400
)

func processTypes(b *isf.Builder) {
	taskTypes(b)
	b.Symbols = b.Symbols[:len(b.Symbols)-1] // mappingTypes has one init_task
	mappingTypes(false)(b)
	structs(b, map[string]uint64{
		"file.f_inode": 0x20, "file.f_flags": 0x28, "file.f_pos": 0x30, "inode.i_sb": 0, "inode.i_ino": 8, "inode.i_private": 16, "super_block.s_dev": 8,
		"hlist.pprev": 8, "dentry.d_op": 0x30, "dentry_operations.d_dname": 8, "ns_common.ops": 8, "proc_ns_operations.name": 8,
		"vm_area_struct.vm_ops": 0x38, "vm_area_struct.vm_private_data": 0x40, "vm_special_mapping.name": 8,
		"rw_semaphore.owner": 8, "mm_struct.start_brk": 0x50, "mm_struct.brk": 0x58, "mm_struct.start_stack": 0x60,
		"task_struct.files": 0xb0, "files_struct.fdt": 8, "fdtable.max_fds": 0, "fdtable.fd": 8, "fdtable.close_on_exec": 16,
	})
	inStruct(b, "dentry.d_hash", "hlist", 0x20)
	inStruct(b, "mm_struct.mmap_lock", "rw_semaphore", 0x70)
	b.Symbols = append(b.Symbols, isf.Symbol{Name: "pipefs_dname", Addr: pipeNamer}, isf.Symbol{Name: "anon_inodefs_dname", Addr: anonNamer}, isf.Symbol{Name: "simple_dname", Addr: simpleNamer},
		isf.Symbol{Name: "ns_dname", Addr: spaceNamer}, isf.Symbol{Name: "special_mapping_vmops", Addr: specialOps})
}

func newProcess(t testing.TB) *mappedGuest {
	m := newMappedOf(t, processTypes)
	page := make([]byte, 4096)
	base := uint64(initTaskAt + slide)
	for i := range uint64(2) {
		task := page[i*taskSize:]
		le.PutUint64(task[tasksField:], base+(1-i)*taskSize+tasksField)
		le.PutUint64(task[tasksField+8:], base+(1-i)*taskSize+tasksField)
		le.PutUint32(task[0x54:], uint32(i))
		le.PutUint64(task[mmField:], i*mmAt)
		le.PutUint64(task[0xb0:], i*fdsAt)
	}
	m.page(initTaskAt, string(page))
	m.fill(false, 8)
	m.files()
	m.put(filesAt+0x20, inodeAt)
	m.put(filesAt+0x100+0x40*4+0x28, 1) // it has a name
	m.put(inodeAt, superAt)
	m.put(inodeAt+8, 1234)
	m.put(superAt+8, 8<<20|17)
	for i := 1; i <= 8; i++ { // of no file but the first
		m.put(vmasAt+vmaSize*uint64(i)+0x18, uint64(i))
		if i > 1 {
			m.put(vmasAt+vmaSize*uint64(i)+0x28, 0)
		}
	}
	m.put(mmAt+0x50, 2<<20+0x800)
	m.put(mmAt+0x58, 2<<20+0x1000)
	m.put(mmAt+0x60, 3<<20+0x1000)
	m.put(vmasAt+vmaSize*4+0x38, specialOps+slide)
	m.put(vmasAt+vmaSize*4+0x40, special)
	m.put(special+8, linkNamesAt)
	m.text(linkNamesAt, "[vdso]\x00mnt\x00")
	m.done()
	return m
}

func (m *mappedGuest) text(at uint64, s string) { copy(m.pages[(at-mmAt)>>12][at&0xfff:], s) }

func TestRegions(t *testing.T) {
	m := newProcess(t)
	all, err := m.k.Regions(t.Context(), 1)
	var got []string
	for _, r := range all {
		got = append(got, fmt.Sprint(uint64(r.Start)>>20, r.Rights, r.Offset, r.File.Device, r.File.Inode, r.File))
	}
	want := []string{"1 r--p 4096 08:11 1234 /mnt/dir/lib.so", "2 -w-p 0 00:00 0 [heap]", "3 rw-p 0 00:00 0 [stack]", "4 --xp 0 00:00 0 [vdso]", "5 r-xp 0 00:00 0 ", "6 -wxp 0 00:00 0 ", "7 rwxp 0 00:00 0 ", "8 ---s 0 00:00 0 "}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	m.put(filesAt+0x100+0x40*4+0x28, 0)
	m.done()
	if all, err := m.k.Regions(t.Context(), 1); err != nil || all[0].File.String() != "/mnt/dir/lib.so (deleted)" {
		t.Errorf("%+v, %v", all, err)
	}
	if _, err := m.k.Regions(t.Context(), 2); !errors.Is(err, ErrAbsent) {
		t.Error(err)
	}
	if all, err := m.k.Regions(t.Context(), 0); len(all) != 0 || !errors.Is(err, ErrAbsent) {
		t.Errorf("%+v, %v", all, err)
	}
	m.put(vmasAt+5*vmaSize+0x30, 0x1234)
	m.done()
	if all, err := m.k.Regions(t.Context(), 1); len(all) != 5 || !partial(err, "the memory of the process: ") {
		t.Errorf("%+v, %v", all, err)
	}
	late, stop := context.WithTimeout(t.Context(), 0)
	defer stop()
	if _, err := m.k.Regions(late, 1); !partial(err, "was over") {
		t.Error(err)
	}
}

// watched is memory that tells of each read of it.
type watched struct {
	guestmem.Memory
	read func()
}

func (w *watched) ReadGPA(p []byte, at xenevents.GPA) (int, error) {
	w.read()
	return w.Memory.ReadGPA(p, at)
}

// TestProcessEnds: what is read of a process that ends meanwhile is no answer.
func TestProcessEnds(t *testing.T) {
	for n := 40; ; n += 40 {
		m := newProcess(t)
		at := m.walk(t, initTaskAt+slide+taskSize+0x54)
		reads := 0
		m.k.mem = guestmem.NewReader(&watched{m.dom, func() {
			if reads++; reads == n {
				m.Poke(at, []byte{77}) // its memory is another's
			}
		}})
		all, err := m.k.Regions(t.Context(), 1)
		if err == nil {
			if n < reads-10 { // it was all read twice by then
				t.Errorf("after %d of %d reads: %d regions", n, reads, len(all))
			}
			break
		}
		if !errors.Is(err, ErrAbsent) {
			t.Errorf("after %d reads: %v", n, err)
		}
	}
}

// TestHalfChanged: mappings that stay half done, as the vCPU that changes them does not run,
// are no answer, until it has run.
func TestHalfChanged(t *testing.T) {
	m := newProcess(t)
	gpa := m.gfns[0].GPA()
	was := le.Uint64(m.pages[0][8:])
	m.put(mmAt+8, vmasAt+3*vmaSize) // its first two are not there yet
	m.put(mmAt+0x78, initTaskAt+slide)
	m.done()
	if all, err := m.k.Regions(t.Context(), 1); len(all) != 0 || !partial(err, "changes faster") {
		t.Errorf("%d, %v", len(all), err)
	}
	start := time.Now()
	run := false
	m.k.mem = guestmem.NewReader(&watched{m.dom, func() {
		if !run && time.Since(start) > 5*time.Millisecond {
			run = true
			m.Poke(gpa+8, le.AppendUint64(nil, was))
			m.Poke(gpa+0x78, le.AppendUint64(nil, 3)) // a reader has it
		}
	}})
	if all, err := m.k.Regions(t.Context(), 1); len(all) != 8 || err != nil {
		t.Errorf("%d, %v", len(all), err)
	}
}

// link makes an open file that is in no folder.
func (m *mappedGuest) link(i int, name string, namer uint64) uint64 {
	file := linksAt + 0x100*uint64(i)
	dentry, inode, ops, text := file+0x40, file+0x80, file+0xa0, linkNamesAt+0x40+0x20*uint64(i)
	m.put(file+0x18, dentry)
	m.put(file+0x10, file+0xc0) // its mount: of something else
	m.put(file+0x20, inode)
	m.put(file+0x28, uint64(0o2)+closeOnExec)
	m.put(file+0x30, uint64(100+i))
	m.put(dentry+8, dentry)
	m.put(dentry+0x10, uint64(len(name))<<32)
	m.put(dentry+0x18, text)
	m.put(dentry+0x30, ops)
	m.text(text, name)
	m.put(inode, superAt)
	m.put(inode+8, uint64(500+i))
	m.put(inode+16, file+0xd0)
	m.put(file+0xd0+8, spaceOps)
	m.put(ops+8, namer+slide)
	return file
}

func TestOpenFiles(t *testing.T) {
	m := newProcess(t)
	m.put(spaceOps+8, linkNamesAt+7)
	m.put(fdsAt+8, fdsAt+0x20)
	m.put(fdsAt+0x20, 16)
	m.put(fdsAt+0x28, arrayAt)
	m.put(fdsAt+0x30, fdsAt+0x40)
	m.put(fdsAt+0x40, 1<<3)
	for i, f := range []uint64{filesAt, m.link(0, "", pipeNamer), m.link(1, "[eventfd]", anonNamer), m.link(2, "memfd:x", simpleNamer), m.link(3, "", spaceNamer)} {
		m.put(arrayAt+16*uint64(i)+8, f)
	}
	m.done()
	want := []string{"1 0 0 /mnt/dir/lib.so", "3 2000002 100 pipe:[500]", "5 2 101 anon_inode:[eventfd]", "7 2 102 /memfd:x (deleted)", "9 2 103 mnt:[503]"}
	all, err := m.k.OpenFiles(t.Context(), 1)
	var got []string
	for _, f := range all {
		got = append(got, fmt.Sprintf("%d %o %d %v", f.FD, f.Flags, f.Position, f.File))
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
	for name, c := range map[string]struct {
		at, value uint64
		why       string
		found     int
	}{
		"a table of 4 billion": {fdsAt + 0x20, 0xffffffff, "not mapped", 5},
		"a wild table":         {fdsAt + 8, 1 << 40, "not mapped", 0},
		"a wild file":          {arrayAt + 24, 1 << 40, "not mapped", 1},
		"a wild inode":         {filesAt + 0x20, 1 << 40, "not mapped", 0},
	} {
		was := slices.Clone(m.pages[(c.at-mmAt)>>12])
		m.put(c.at, c.value)
		m.done()
		if all, err := m.k.OpenFiles(t.Context(), 1); len(all) != c.found || !partial(err, c.why) {
			t.Errorf("%s: %d, %v", name, len(all), err)
		}
		copy(m.pages[(c.at-mmAt)>>12], was)
	}
}

func TestAgain(t *testing.T) {
	n := 0
	count := func() (int, error) { n++; return min(n, 5), nil }
	same := func(a, b int) bool { return a == b }
	if v, err := again(t.Context(), &reasons{}, count, same); v != 5 || err != nil || n != 6 {
		t.Errorf("%d, %v, %d times", v, err, n)
	}
	n = -100
	if _, err := again(t.Context(), &reasons{}, count, same); !errors.Is(err, errChanged) {
		t.Error(err)
	}
	n = 0
	if _, err := again(t.Context(), &reasons{}, func() (int, error) { n++; return 1, xenevents.ErrNotMapped }, same); !errors.Is(err, xenevents.ErrNotMapped) || n != tries {
		t.Errorf("%v, %d times", err, n)
	}
}

func TestReasons(t *testing.T) {
	var r reasons
	if r.err() != nil {
		t.Error(r.err())
	}
	for i := range maxReasons + 3 {
		r.add("number %d", i)
	}
	if err := r.err(); !strings.Contains(err.Error(), "number 7; and 3 more") {
		t.Error(err)
	}
}

// FuzzOpenFiles has the guest write its open files, and what they are named by.
func FuzzOpenFiles(f *testing.F) {
	m := newProcess(f)
	m.put(fdsAt+8, fdsAt+0x20)
	m.put(fdsAt+0x20, 16)
	m.put(fdsAt+0x28, arrayAt)
	m.put(fdsAt+0x30, fdsAt+0x40)
	for i, namer := range []uint64{pipeNamer, anonNamer, simpleNamer, spaceNamer} {
		m.put(arrayAt+8*uint64(i), m.link(i, "name", namer))
	}
	was := m.pages
	for i := range was {
		was[i] = slices.Clone(was[i])
	}
	f.Add(aPoke((arrayAt-mmAt)/8, filesAt))
	f.Add(aPoke((vmasAt-mmAt)/8, 1<<63))
	f.Fuzz(func(t *testing.T, in []byte) {
		for i := range was {
			copy(m.pages[i], was[i])
		}
		pokes(in, mmPages*512, func(word int, v uint64) { m.put(mmAt+8*uint64(word), v) })
		m.done()
		files, err := m.k.OpenFiles(t.Context(), 1)
		if p := (*PartialError)(nil); err != nil && !errors.As(err, &p) || len(files) > 4096 {
			t.Errorf("%d, %v", len(files), err)
		}
		if _, err := m.k.Regions(t.Context(), 1); err != nil && err.Error() == "" {
			t.Error(err)
		}
	})
}
